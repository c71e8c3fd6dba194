"""The command `tasks`: list the installed task types."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from rich.console import Console
from rich.table import Table

from geoprocessing_worker.config import Settings
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.processes import check_defaults
from geoprocessing_worker.plugins.registry import Tasks


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the worker's command line."""
    parser = commands.add_parser("tasks", help="list the task types of this worker")
    parser.add_argument("name", nargs="?", metavar="TYPE", help="only this one")
    parser.add_argument("--json", action="store_true", help="as the API takes them: an object for one, else a list")
    parser.set_defaults(command=_list)


def _list(parsed: argparse.Namespace, settings: Settings) -> int:
    tasks = registry.load(settings, only=[parsed.name] if parsed.name else None)
    for problem in tasks.problems:
        print(f"❌ {problem}", file=sys.stderr)  # noqa: T201
    asyncio.run(check_defaults(settings, tasks))
    if parsed.json:
        types = [task.handler.announced.model_dump(mode="json", by_alias=True) for task in tasks]
        print(json.dumps(types[0] if parsed.name and types else types, indent=2))  # noqa: T201 - a command's output
    else:
        Console().print(_table(tasks))
    return 1 if tasks.problems else 0


def _table(tasks: Tasks) -> Table:
    table = Table("task type", "input", "outputs", "timeout", "needs")
    for task in tasks:
        kind = task.handler.task_type
        suffixes = ", ".join(slot.suffix for slot in kind.outputs) or "metadata only"
        table.add_row(kind.name, kind.input.value, suffixes, f"{kind.timeout_seconds} s", ", ".join(task.handler.needs))
    return table
