# Sourced by start_worker.sh and run_tests.sh: makes .venv, installs what a requirements file pins, and the project.
# Does nothing when all of that is already there. Sets $python to the environment's interpreter.

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
  local requirements=$1 base stamp=.venv/.installed
  python=$PWD/.venv/bin/python
  # One at a time; what an interrupted start left running holds the lock too, until it is done.
  if command -v flock >/dev/null; then
    exec 9>.venv.lock
    flock 9
  fi
  # requirements-dev.txt holds all of requirements.txt.
  if [[ -f $stamp ]] && "$python" -c '' 2>/dev/null &&
    grep -qxF -e "$(_wanted "$requirements")" -e "$(_wanted requirements-dev.txt)" "$stamp"; then
    exec 9>&-
    return
  fi
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$(find_python)
    echo "Making .venv with $base …" >&2
    rm -rf .venv
    "$base" -m venv .venv || {
      echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2
      return 1
    }
  fi
  echo "Installing what $requirements pins (a minute or so, once) …" >&2
  "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements" >&2
  # What building an earlier wheel left here would be found before what is installed, with its older entry points.
  rm -rf ./*.egg-info
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
  _wanted "$requirements" >"$stamp"
  exec 9>&-
}

# What has to be installed, and for which folder: a checkout that was moved or copied is installed anew.
_wanted() {
  echo "$1 $(cat "$1" pyproject.toml | cksum) $PWD"
}
