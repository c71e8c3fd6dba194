#!/usr/bin/env bash
# Runs all tests, or what the pytest arguments select. Needs nothing but Python 3.11 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh
make_environment requirements-dev.txt
exec "$python" -m pytest "$@"
