#!/usr/bin/env bash
# Starts a worker, or the whole stack on this machine if there is no configuration. See --help.
set -euo pipefail
export INVOKED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh
make_environment requirements.txt
# exec, so that signals reach the program.
exec "$python" -m local_stack "$@"
