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
  local requirements=$1 base wanted stamp=.venv/.installed
  python=$PWD/.venv/bin/python
  wanted="$requirements $(cat "$requirements" pyproject.toml | cksum)"
  # requirements-dev.txt holds all of requirements.txt.
  if [[ -x $python && -f $stamp ]] && grep -qxF -e "$wanted" -e "requirements-dev.txt $(cat requirements-dev.txt pyproject.toml | cksum)" "$stamp" && "$python" -c '' 2>/dev/null; then
    return
  fi
  if ! "$python" -c '' 2>/dev/null; then
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
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
  echo "$wanted" >"$stamp"
}
