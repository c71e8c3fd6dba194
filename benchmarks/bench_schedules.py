"""Two schedulers, killed at random, fire 2,000 simulated moments. Each must happen exactly once.

The exit code is 1 if one happened twice or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from benchmarks.queue_load import database_server
from benchmarks.queue_table import Row, print_table
from geo_jobs_api.database.migrate import migrate

ROOT = Path(__file__).resolve().parents[1]


def measure(database_url: str, fires: int, seed: int) -> list[Row]:
    """Run the storm on a migrated, empty database."""
    command = [sys.executable, "-m", "tests.support.schedule_storm", "--database", database_url]
    storm = subprocess.run(
        [*command, "--fires", str(fires), "--seed", str(seed)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if not storm.stdout:
        raise RuntimeError(storm.stderr)
    verdict = json.loads(storm.stdout)
    wrong = sum(verdict[name] for name in ("missing", "doubled", "unexpected", "without a job"))
    print(f"{verdict['fires']} fires, {verdict['jobs']} jobs, {verdict['kills']} kills (SIGKILL)")
    return [Row("fires that did not happen exactly once", wrong, 0, at_least=False, unit="")]


def rows(fires: int = 2000, seed: int = 1) -> list[Row]:
    """The figures, on an embedded server of their own."""
    with database_server() as server:
        url = server.url("postgres")
        asyncio.run(migrate(url))
        return measure(url, fires, seed)


def main() -> int:
    """Run with the given arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fires", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return print_table(rows(arguments.fires, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
