"""Start of the scripts at fixed paths from a bare checkout, with any Python.

Imports only the standard library, since no other may be installed yet.
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent


def exec_module(module: str) -> NoReturn:
    """Run `module` in this process if its package is installed, else run the script in the project's environment.

    The process stays the same, so signals arrive, and its command line keeps the script's name for `ps`.
    """
    if _has(module):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    environment = ROOT / (os.environ.get("VENV_DIR") or ".venv")
    python = environment / "bin" / "python"
    if Path(sys.prefix) == environment or not os.access(python, os.X_OK):
        sys.exit(
            f"This user cannot run {environment}: run ./start_worker.sh --demo once to create it, "
            "or set VENV_DIR to another environment."
        )
    os.execv(python, [str(python), *sys.argv])  # noqa: S606 - no shell is wanted


def _has(module: str) -> bool:
    # The folder of a script is first on sys.path, and this one has modules with short names.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != FOLDER]
    return sys.version_info >= (3, 11) and importlib.util.find_spec(module.split(".", maxsplit=1)[0]) is not None
