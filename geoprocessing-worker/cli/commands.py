"""The worker's commands beside working itself: converting one file, and telling and trying what is installed."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from geo_jobs_common.near_misses import unknown
from geoprocessing_worker import config, log
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError, JobError, invalid_input
from geoprocessing_worker.handlers import Explanation, Payload, TaskRequest, TaskResult
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.calls import PERFORM, SELF_TEST, Call, SelfTest
from geoprocessing_worker.plugins.processes import check_defaults, make_sandbox, own_umask
from geoprocessing_worker.plugins.registry import BoundHandler, Tasks
from geoprocessing_worker.sandbox.process import Sandbox

Made = TypeVar("Made", bound=BaseModel)

DONE, FAILED = 0, 1
USUAL_TASK = "geotiff_to_png"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this module's commands to the worker's own command line."""
    one = commands.add_parser("convert", help="convert one file, without queue or network")
    one.add_argument("source", type=Path, metavar="MAP.tif")
    one.add_argument("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="where to (default: here)")
    one.add_argument("-t", "--task", default=USUAL_TASK, metavar="TYPE", help=f"task type (default: {USUAL_TASK})")
    one.add_argument(
        "-p",
        "--payload",
        default="{}",
        metavar="JSON",
        help="what a job's inputPayload would say, for example '{\"maxSize\": 2048}'",
    )
    one.add_argument(
        "--explain", action="store_true", help="print what is found and would be chosen, as JSON, and make nothing"
    )
    one.set_defaults(command=_convert)
    told = commands.add_parser("tasks", help="tell the kinds of job that this worker can do")
    told.add_argument("name", nargs="?", metavar="TYPE", help="only this one")
    told.add_argument("--json", action="store_true", help="as the API takes them; an object for one, else a list")
    told.set_defaults(command=_tasks)
    tried = commands.add_parser("verify", help="try each kind of job in a child process, and tell what it needs")
    tried.add_argument("names", nargs="*", metavar="TYPE", help="only these")
    tried.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    tried.set_defaults(command=_verify)


# -- convert -----------------------------------------------------------------------------------------------------------


def _convert(parsed: argparse.Namespace, settings: Settings) -> int:
    if not parsed.source.is_file():
        raise ConfigurationError(f"there is no file {parsed.source}")
    loaded = registry.load(settings, only=[parsed.task])
    _refuse_broken(loaded)
    task = loaded.usable[parsed.task]
    log.configure(settings.log_level, None)
    config.keep_harmless_environment()
    try:
        request = _request(parsed, settings, task)
        if parsed.explain:
            return _explain(request, settings, loaded, task)
        parsed.output.mkdir(parents=True, exist_ok=True)
        box: Sandbox[Call, TaskResult] = make_sandbox(settings, loaded, PERFORM, TaskResult, umask=own_umask())
        result = asyncio.run(_with_bar(box, Call.of(task.handler, request), task))
    except JobError as error:
        print(f"❌ {error.code}: {registry.advised(error, task.handler).message}", file=sys.stderr)  # noqa: T201
        return FAILED
    except OSError as error:
        raise ConfigurationError(f"{parsed.output} cannot be written: {error.strerror}") from None
    for output in result.outputs:
        print(output.path)  # noqa: T201
    return DONE


def _explain(request: TaskRequest[Payload], settings: Settings, loaded: Tasks, task: BoundHandler) -> int:
    if task.handler.explain is None:
        raise ConfigurationError(f"{task.name} has nothing to explain: leave --explain out")
    call = Call(task.handler.explain, request, task.handler.opens)
    box: Sandbox[Call, Explanation] = make_sandbox(settings, loaded, PERFORM, Explanation)
    told = asyncio.run(_with_bar(box, call, task))
    print(json.dumps(told.plan, indent=2, ensure_ascii=False))  # noqa: T201 - a command's output
    return DONE


def _request(parsed: argparse.Namespace, settings: Settings, task: BoundHandler) -> TaskRequest[Payload]:
    source: Path = parsed.source.absolute()
    return TaskRequest(
        source=source,
        output_folder=parsed.output.absolute(),
        stem=source.stem,
        options=_options(parsed.payload, task),
        source_name=source.name,
        validate_headers=settings.validate_file_headers,
    )


async def _with_bar(box: Sandbox[Call, Made], call: Call, task: BoundHandler) -> Made:
    request = call.request
    with Progress(console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("")
        return await box.run(
            call,
            lambda stage, percent, _text: bar.update(shown, description=stage, completed=percent),
            task.reach(request.file, request.output_folder),
        )


def _options(text: str, task: BoundHandler) -> Payload:
    """Return the options of a payload. Unknown keys are refused here, as the API does when a job is made."""
    payload = _payload(text)
    schema = task.handler.announced.payload_schema or {}
    properties = schema.get("properties")
    known = sorted(properties) if isinstance(properties, dict) else []
    if schema.get("additionalProperties") is False:
        for key in payload:
            if key not in known:
                raise invalid_input("invalid_payload", f"{task.name}: {unknown('key', key, known)}")
    return task.options(payload)


def _payload(text: str) -> dict[str, Any]:
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_input("invalid_payload", f"The payload is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise invalid_input("invalid_payload", "The payload must be a JSON object.")
    return payload


# -- tasks -------------------------------------------------------------------------------------------------------------


def _tasks(parsed: argparse.Namespace, settings: Settings) -> int:
    loaded = registry.load(settings, only=[parsed.name] if parsed.name else None)
    _tell_broken(loaded)
    asyncio.run(check_defaults(settings, loaded))
    if parsed.json:
        told = [task.handler.announced.model_dump(mode="json", by_alias=True) for task in loaded]
        print(json.dumps(told[0] if parsed.name and told else told, indent=2))  # noqa: T201 - a command's output
    else:
        Console().print(_table(loaded))
    return FAILED if loaded.broken else DONE


def _table(loaded: Tasks) -> Table:
    table = Table("task type", "input", "outputs", "timeout", "needs")
    for task in loaded:
        kind = task.handler.task_type
        suffixes = ", ".join(slot.suffix for slot in kind.outputs) or "metadata only"
        table.add_row(kind.name, kind.input.value, suffixes, f"{kind.timeout_seconds} s", ", ".join(task.handler.needs))
    return table


# -- verify ------------------------------------------------------------------------------------------------------------


def _verify(parsed: argparse.Namespace, settings: Settings) -> int:
    loaded = registry.load(settings, only=parsed.names or None)
    log.configure("ERROR", None)
    config.keep_harmless_environment()
    told = asyncio.run(_try_all(loaded, settings))
    told |= {broken.name: {"usable": False, "message": broken.reason, "needs": {}} for broken in loaded.broken}
    if parsed.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))  # noqa: T201 - a command's output
    else:
        for name, found in told.items():
            print(f"{'✅' if found['usable'] else '❌'} {name}: {found['message']}")  # noqa: T201
            needs = ", ".join(f"{need} {there or 'is missing'}" for need, there in found["needs"].items())
            print(f"   needs {needs or 'nothing but the worker'}")  # noqa: T201
    return DONE if told and all(found["usable"] for found in told.values()) else FAILED


async def _try_all(loaded: Tasks, settings: Settings) -> dict[str, dict[str, Any]]:
    box: Sandbox[SelfTest, TaskResult] = make_sandbox(settings, loaded, SELF_TEST, TaskResult)
    found = {}
    for task in loaded:
        needs = {need: _installed(need) for need in task.handler.needs}
        try:
            made = await _try(task, box)
        except JobError as error:
            usable, message = False, f"{error.code}: {error.message} {error.detail or ''}".rstrip()
        else:
            usable, message = True, f"made {', '.join(made) or 'nothing but metadata'} of a file of its own"
        found[task.name] = {"usable": usable and None not in needs.values(), "message": message, "needs": needs}
    return found


async def _try(task: BoundHandler, box: Sandbox[SelfTest, TaskResult]) -> list[str]:
    """Run one self-test behind the walls, and hold what it made against what the handler says it makes."""
    folder = Path(tempfile.mkdtemp(prefix="verify_"))
    try:
        test = SelfTest(task.handler.self_test, folder)
        result = await box.run(test, lambda *_: None, task.reach(None, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = [output.name for output in result.outputs]
    suffixes = tuple(slot.suffix for slot in task.handler.task_type.outputs)
    strange = [name for name in names if not name.endswith(suffixes or ("/",))]
    if strange:
        raise invalid_input("undeclared_output", f"It made {', '.join(strange)}, which its task type does not tell of.")
    return names


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _refuse_broken(loaded: Tasks) -> None:
    if loaded.broken:
        raise ConfigurationError("\n".join(_in_words(loaded)))


def _tell_broken(loaded: Tasks) -> None:
    for line in _in_words(loaded):
        print(f"❌ {line}", file=sys.stderr)  # noqa: T201


def _in_words(loaded: Tasks) -> Sequence[str]:
    return [f"{broken.name} cannot be used: {broken.reason}" for broken in loaded.broken]
