"""Check the worker's host: database, API and token, file system, dependencies. Exit code 0 if healthy, else 1."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent / "geoprocessing-worker"))
    from importlib import import_module

    import_module("bootstrap").exec_module("geoprocessing_worker.cli.health")
