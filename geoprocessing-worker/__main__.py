"""`python -m geoprocessing_worker`."""

import sys


def main() -> int:
    """Run the command line. Imported late, since children of the fork server import this module too."""
    try:
        from geoprocessing_worker.worker import main as run  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        sys.exit(
            f"{missing.name} is not installed for {sys.executable}. Install geoprocessing-worker[worker], or run "
            "./start_worker.sh --demo in a checkout, which creates an environment in .venv."
        )
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
