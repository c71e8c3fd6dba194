# Sourced by start_worker.sh and run_tests.sh. Creates the environment in VENV_DIR (default .venv), and installs the pins
# of a requirements file and the project. Writes nothing if all of that is present.
# Sets $python to the environment's interpreter.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer found. Install one, or name one: PYTHON=/path/to/python3 $0" >&2
  return 1
}

# make_environment REQUIREMENTS - install a requirements file, with its hashes
make_environment() {
  local requirements=$1 base venv=${VENV_DIR:-.venv}
  [[ $venv == /* ]] || venv=$(pwd -P)/$venv
  python=$venv/bin/python
  # Checked before the lock, since a user without write access cannot take it.
  if _is_ready "$venv" "$requirements"; then return; fi
  _check_place "$venv" || return
  # One at a time. Processes of an interrupted start keep the lock until they end.
  if command -v flock >/dev/null; then
    exec 9>"$venv/.lock"
    flock 9
  fi
  if _is_ready "$venv" "$requirements"; then
    exec 9>&-
    return
  fi
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$(find_python)
    echo "Creating $venv with $base …" >&2
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    "$base" -m venv "$venv" || {
      echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2
      return 1
    }
  fi
  echo "Installing $requirements (about a minute, once) …" >&2
  "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements" >&2
  # Remains of an earlier build shadow the installed package, with its older entry points.
  if [[ -w . ]]; then rm -rf ./*.egg-info; fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
  _fingerprint "$requirements" >"$venv/.installed"
  exec 9>&-
}

# Whether the environment is complete. requirements-dev.txt includes requirements.txt.
_is_ready() {
  [[ -r $1/.installed ]] && "$1/bin/python" -c '' 2>/dev/null &&
    grep -qxF -e "$(_fingerprint "$2")" -e "$(_fingerprint requirements-dev.txt)" "$1/.installed"
}

# Refuse a folder that is not writable or has other files. It is emptied before the environment is created.
_check_place() {
  if ! mkdir -p "$1" 2>/dev/null || [[ ! -w $1 ]]; then
    cat >&2 <<EOF
❌ $1 has no environment for this version, and $(id -un 2>/dev/null || id -u) may not write there.
Run ./start_worker.sh --demo once as the owner of that folder, or set VENV_DIR to a folder of your own:
  VENV_DIR=\$HOME/.cache/geoprocessing-worker-venv $0
EOF
    return 1
  fi
  if [[ ! -e $1/pyvenv.cfg && -n $(find "$1" -mindepth 1 -maxdepth 1 ! -name .lock ! -name .installed -print -quit) ]]; then
    echo "❌ VENV_DIR: $1 holds other files. Name an empty or new folder." >&2
    return 1
  fi
}

# Requirements and folder of an installation. A moved or copied checkout is installed again.
_fingerprint() {
  echo "$1 $(cat "$1" pyproject.toml | cksum) $(pwd -P)"
}
