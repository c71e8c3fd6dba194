"""`python -m geo_jobs_api`."""

from __future__ import annotations

import sys

try:
    from geo_jobs_api import cli
except ModuleNotFoundError as missing:
    sys.exit(
        f"{missing.name} is not installed for {sys.executable}. Install geoprocessing-worker[api], or run "
        "./start_worker.sh --demo in a checkout, which creates an environment in .venv."
    )


def main() -> int:
    """Run the command line. Return the exit code."""
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
