# Sourced by start_worker.sh and run_tests.sh: makes the environment in VENV_DIR (default .venv), installs the pins of a
# requirements file, and the project. Does nothing, and writes nothing, when all of that is already there.
# Sets $python to the environment's interpreter.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer is needed, and none was found. Install one, or name one: PYTHON=/path/to/python3 $0" >&2
  return 1
}

# make_environment REQUIREMENTS - with the hashes that it pins
make_environment() {
  local requirements=$1 base venv=${VENV_DIR:-.venv}
  [[ $venv == /* ]] || venv=$(pwd -P)/$venv
  python=$venv/bin/python
  # Before the lock: a user who may not write here needs none.
  if _is_ready "$venv" "$requirements"; then return; fi
  _check_place "$venv" || return
  # One at a time; what an interrupted start left running holds the lock too, until it is done.
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
    echo "Making $venv with $base …" >&2
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    "$base" -m venv "$venv" || {
      echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2
      return 1
    }
  fi
  echo "Installing what $requirements pins (a minute or so, once) …" >&2
  "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements" >&2
  # What building an earlier wheel left here would be found before what is installed, with its older entry points.
  if [[ -w . ]]; then rm -rf ./*.egg-info; fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
  _wanted "$requirements" >"$venv/.installed"
  exec 9>&-
}

# Whether the environment holds all that is wanted. requirements-dev.txt holds all of requirements.txt.
_is_ready() {
  [[ -r $1/.installed ]] && "$1/bin/python" -c '' 2>/dev/null &&
    grep -qxF -e "$(_wanted "$2")" -e "$(_wanted requirements-dev.txt)" "$1/.installed"
}

# Refuse a place that cannot be written, and one with other people's files: it is emptied before an environment is made.
_check_place() {
  if ! mkdir -p "$1" 2>/dev/null || [[ ! -w $1 ]]; then
    cat >&2 <<EOF
❌ There is no environment for this version in $1, and $(id -un 2>/dev/null || id -u) may not write there.
Run ./start_worker.sh --demo once as the owner of that folder, or set VENV_DIR to a folder of your own:
  VENV_DIR=\$HOME/.cache/geoprocessing-worker-venv $0
EOF
    return 1
  fi
  if [[ ! -e $1/pyvenv.cfg && -n $(find "$1" -mindepth 1 -maxdepth 1 ! -name .lock ! -name .installed -print -quit) ]]; then
    echo "❌ VENV_DIR: $1 holds other files. Name an empty folder, or one that is not there yet." >&2
    return 1
  fi
}

# What has to be installed, and for which folder: a checkout that was moved or copied is installed anew.
_wanted() {
  echo "$1 $(cat "$1" pyproject.toml | cksum) $(pwd -P)"
}
