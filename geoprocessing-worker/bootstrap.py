"""Lets the scripts at fixed paths run from a bare checkout, with whatever Python started them.

Only the standard library is used here: nothing else may be installed yet.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent


def exec_module(module: str) -> NoReturn:
    """Go on as `python -m module`, in this interpreter if it has what is needed, else in the project's environment."""
    python = ROOT / ".venv" / "bin" / "python"
    if _has(module):
        python = Path(sys.executable)
    elif not os.access(python, os.X_OK):
        sys.exit(f"{ROOT} has no environment to run in yet: run ./start_worker.sh --demo once, which makes it.")
    # The same process goes on, so that signals sent to it arrive.
    os.execv(python, [str(python), "-m", module, *sys.argv[1:]])  # noqa: S606 - no shell is wanted


def _has(module: str) -> bool:
    # The folder of a script is the first on sys.path, and this one is full of modules with short names.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != FOLDER]
    return sys.version_info >= (3, 11) and importlib.util.find_spec(module.split(".", maxsplit=1)[0]) is not None
