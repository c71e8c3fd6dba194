#!/usr/bin/env bash
# Runs all tests, or what the pytest arguments select. Needs nothing but Python 3.11 or newer.
# One process for each processor, at most four, each with all tests of a file: half of the time goes in waiting for other
# programs. `-n 0` does without, as a debugger needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh
make_environment requirements-dev.txt
processors=$(nproc)
exec "$python" -m pytest --numprocesses $((processors < 4 ? processors : 4)) --dist loadfile "$@"
