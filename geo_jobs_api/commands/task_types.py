"""task-types: kinds of jobs, and their limits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_json, print_line, print_object, print_result, print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.errors import Problem
from geo_jobs_api.task_types.schemas import TaskType
from geo_jobs_api.task_types.store import TaskTypeStore

_FIELDS = [name for name in TaskType.model_json_schema()["properties"] if name != "name"]


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    kinds = commands.group("task-types", "Kinds of jobs, and their limits.")
    kinds.add_action("list", "List the task types.", _list)
    kinds.add_action("show", "Show a task type.", _show).add_argument("name", metavar="NAME")
    command = kinds.add_action("set", f"Change fields of a task type: {', '.join(_FIELDS)}.", _set)
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "fields",
        metavar="FIELD=VALUE",
        nargs="+",
        type=_field,
        help="maxConcurrentRuns=4, backoffSeconds=[60,300], rateLimit=10/60 (10 in 60 s), leaseSeconds=null, …",
    )
    command = kinds.add_action("apply", "Create task types, or change the given fields.", _apply)
    command.add_argument(
        "file", metavar="FILE", help="JSON, an object or a list (- for the output of `worker.py tasks --json`)"
    )
    for name, text in (("pause", "Stop handing out jobs of a type."), ("resume", "Hand them out again.")):
        command = kinds.add_action(name, text, _pause)
        command.add_argument("name", metavar="NAME")
        command.set_defaults(fields=[("paused", name == "pause")])


def _field(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or name not in _FIELDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE with one of {', '.join(_FIELDS)}")
    count, slash, period = value.partition("/")
    if name == "rateLimit" and slash:
        value = json.dumps({"count": _value(count), "periodSeconds": _value(period)})
    return name, _value(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _limits(kind: TaskType) -> str:
    parts = []
    if kind.max_concurrent_runs is not None:
        parts.append(f"{kind.max_concurrent_runs} at once")
    if kind.rate_limit is not None:
        parts.append(f"{kind.rate_limit.count} in {kind.rate_limit.period_seconds:g} s")
    return ", ".join(parts)


async def _list(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    columns = {
        "NAME": lambda kind: kind.name,
        "PAUSED": lambda kind: kind.paused,
        "LIMITS": _limits,
        "TIMEOUT": lambda kind: kind.timeout_seconds,
        "ATTEMPTS": lambda kind: kind.max_attempts,
        "PRIORITY": lambda kind: kind.default_priority,
        "INPUT": lambda kind: kind.input,
        "OUTPUTS": lambda kind: " ".join(rule.suffix for rule in kind.outputs),
    }
    print_table(await TaskTypeStore(pool).list_task_types(), columns, as_json=arguments.json)
    return 0


async def _show(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    print_object(
        _or_not_found(await TaskTypeStore(pool).find_task_type(arguments.name), arguments.name), as_json=arguments.json
    )
    return 0


async def _set(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    changed = await TaskTypeStore(pool).change_task_type(arguments.name, dict(arguments.fields))
    print_object(_or_not_found(changed, arguments.name), as_json=arguments.json)
    return 0


async def _pause(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    kind = _or_not_found(
        await TaskTypeStore(pool).change_task_type(arguments.name, dict(arguments.fields)), arguments.name
    )
    done = f"{kind.name} is paused. Running jobs continue." if kind.paused else f"{kind.name} is resumed."
    print_result(done, kind, as_json=arguments.json)
    return 0


async def _apply(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    store = TaskTypeStore(pool)
    kinds = [
        _or_not_found(await store.change_task_type(name, given, may_create=True), name)
        for name, given in ((str(given.get("name", "")), given) for given in _objects(_read(arguments.file)))
    ]
    if arguments.json:
        print_json([kind.model_dump(mode="json", by_alias=True) for kind in kinds])
        return 0
    for kind in kinds:
        print_line(f"{kind.name} is set.")
    return 0


def _read(file: str) -> str:
    return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")


def _objects(text: str) -> list[Mapping[str, object]]:
    given = _value(text)
    objects = given if isinstance(given, list) else [given]
    if not objects or not all(isinstance(one, dict) for one in objects):
        raise Problem("validation", "The file must contain a JSON object or a list of objects.")
    return objects


def _or_not_found(kind: TaskType | None, name: str) -> TaskType:
    if kind is None:
        raise Problem("task_type_not_found", f"There is no task type {name!r}. `task-types list` lists them.")
    return kind
