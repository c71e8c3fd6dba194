#!/usr/bin/env bash
# Starts a worker; without a configuration, the whole stack on this machine. --help tells more.
set -euo pipefail
export INVOKED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh
make_environment requirements.txt
# exec, so that signals arrive where they are handled
exec "$python" -m local_stack "$@"
