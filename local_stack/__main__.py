"""What `./start_worker.sh` runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from geoprocessing_worker import config, health
from geoprocessing_worker.errors import ConfigurationError
from local_stack import demo
from local_stack.stack import StackError, running

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
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="FOLDER", help="for the demo")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.demo is not None:
            return demo.run(Path(parsed.demo) if parsed.demo else None, parsed.output)
        if config.load().settings.is_configured:
            return _worker_alone()
        return _serve()
    except (ConfigurationError, StackError) as error:
        print(f"❌ {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 1
    except KeyboardInterrupt:
        return 130


def _worker_alone() -> int:
    from geoprocessing_worker import worker  # noqa: PLC0415 - its libraries take half a second to load

    if health.main([]) != 0:
        return 1
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
