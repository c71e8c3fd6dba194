#!/usr/bin/env bash
# Runs all tests, or those that the pytest arguments select. Requires only Python 3.11 or newer.
# Runs one process per processor, at most four. Tests of one file share a process. `-n 0` runs them in this process, as a
# debugger needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh
make_environment requirements-dev.txt
processors=$(nproc)
exec "$python" -m pytest --numprocesses $((processors < 4 ? processors : 4)) --dist loadfile "$@"
