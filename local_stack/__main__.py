"""The command line of `./start_worker.sh`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from geoprocessing_worker import config
from geoprocessing_worker.cli import health
from geoprocessing_worker.errors import ConfigurationError
from local_stack import demo
from local_stack.stack import WORKER_SCRIPT, StackError, Terminated, running

DESCRIPTION = """\
Starts a worker for the API in API_BASE_URL and WORKER_AUTH_TOKEN (in the environment or in .env), after a health check.
If neither is set, starts everything on this machine instead: an embedded PostgreSQL, the job API and one worker, on
loopback only."""
MAX_WORKERS = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return 0 on success."""
    parser = argparse.ArgumentParser(prog="start_worker.sh", description=DESCRIPTION)
    parser.add_argument(
        "--demo",
        nargs="?",
        const="",
        metavar="MAP.tif",
        help="send one map through the whole service on this machine and write the results to demo-output/. "
        "Without a file, make a map",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the demo (default: demo-output)")
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="worker processes of the local stack (default: 1)"
    )
    parsed = parser.parse_args(arguments)
    try:
        return _run(parsed)
    except StackError as error:
        print(f"❌ {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 1
    except ConfigurationError as error:
        print(f"❌ {error}", file=sys.stderr)  # noqa: T201
        return 78  # as the worker's own
    except Terminated:
        return 0
    except KeyboardInterrupt:
        return 130


def _run(parsed: argparse.Namespace) -> int:
    if parsed.demo is not None:
        source = _from_callers_folder(Path(parsed.demo)) if parsed.demo else None
        output = _from_callers_folder(parsed.output) if parsed.output else _default_output()
        return demo.run(source, output, workers=parsed.workers)
    settings = config.load().settings
    if settings.api_base_url or settings.worker_auth_token.get_secret_value():
        if parsed.workers != 1:
            raise ConfigurationError("--workers is for the local stack: set CONCURRENT_JOBS, or start more workers")
        # Half a configuration is a mistake. The worker names the missing half.
        return 1 if settings.is_configured and health.main([]) != 0 else _become_worker()
    return _serve(parsed.workers)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_WORKERS}")
    return number


def _default_output() -> Path:
    """Return `demo-output` in the checkout, or in the caller's folder if the checkout is not writable."""
    here = Path("demo-output")
    return here if os.access(here if here.exists() else Path(), os.W_OK) else _from_callers_folder(here)


def _from_callers_folder(path: Path) -> Path:
    """Resolve a path against the caller's folder, which start_worker.sh passes in INVOKED_FROM."""
    return Path(os.path.relpath(Path(os.environ.get("INVOKED_FROM", "")) / path))


def _become_worker() -> NoReturn:
    """Replace this process by the worker, run by path, so that `ps` shows worker.py."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(WORKER_SCRIPT)])  # noqa: S606 - no shell is wanted


def _serve(workers: int) -> int:
    with running(quiet=False, workers=workers) as stack:
        working = "one worker works" if workers == 1 else f"{workers} workers work"
        print(  # noqa: T201
            f"The job API is at {stack.base_url} (try {stack.base_url}/docs), and {working} for it.\n"
            f"Its log is {stack.api_log}; the log of the workers is {stack.worker_log}.\n"
            f"A token for people: {_python()} -m geo_jobs_api jwt --sub you\n"
            f"Stop with Ctrl-C.",
            flush=True,
        )
        stack.wait()
    return 0


def _python() -> str:
    """Return the path of the environment's interpreter, relative if it is below the current folder."""
    return os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable


if __name__ == "__main__":
    raise SystemExit(main())
