"""`python -m geo_jobs_api`."""

from __future__ import annotations

import sys

from geo_jobs_api import cli


def main() -> int:
    """Run the command line; the exit code."""
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
