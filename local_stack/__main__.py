"""What `./start_worker.sh` runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from geoprocessing_worker import config, health
from geoprocessing_worker.errors import ConfigurationError
from local_stack import demo
from local_stack.stack import StackError, Terminated, running

DESCRIPTION = """\
Starts a worker for the API that API_BASE_URL and WORKER_AUTH_TOKEN name (in the environment or in .env), after a health
check. Where they are not set, starts everything on this machine instead: an embedded PostgreSQL, the job API and one
worker, on loopback only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well."""
    parser = argparse.ArgumentParser(prog="start_worker.sh", description=DESCRIPTION)
    parser.add_argument(
        "--demo",
        nargs="?",
        const="",
        metavar="MAP.tif",
        help="send one map the whole way on this machine and leave the results in demo-output/; "
        "without a file, a map is made",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the demo (default: demo-output)")
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
        return demo.run(source, _from_callers_folder(parsed.output) if parsed.output else Path("demo-output"))
    settings = config.load().settings
    if settings.api_base_url or settings.worker_auth_token.get_secret_value():
        # Half a configuration is a mistake: the worker says which half is missing.
        return _worker_alone() if settings.is_configured else _worker()
    return _serve()


def _from_callers_folder(path: Path) -> Path:
    """What a path means to the person who typed it: start_worker.sh goes to the checkout first, and says from where."""
    return Path(os.path.relpath(Path(os.environ.get("INVOKED_FROM", "")) / path))


def _worker_alone() -> int:
    return 1 if health.main([]) != 0 else _worker()


def _worker() -> int:
    from geoprocessing_worker import worker  # noqa: PLC0415 - takes half a second, which a demo need not wait for

    return worker.main([])


def _serve() -> int:
    with running(quiet=False) as stack:
        print(  # noqa: T201
            f"The job API is at {stack.base_url} (try {stack.base_url}/docs), and one worker works for it.\n"
            f"A token for people: .venv/bin/python -m geo_jobs_api jwt --sub you\n"
            f"Stop with Ctrl-C.",
            flush=True,
        )
        stack.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
