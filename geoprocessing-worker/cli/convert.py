"""The command `convert`: convert one file, without queue or network."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress

from geo_jobs_common.suggestions import describe_unknown
from geoprocessing_worker import config, log
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError, JobError, invalid_input
from geoprocessing_worker.handlers import Explanation, Payload, TaskRequest, TaskResult
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.calls import PERFORM, Call
from geoprocessing_worker.plugins.processes import make_sandbox, own_umask
from geoprocessing_worker.plugins.registry import BoundHandler, Tasks
from geoprocessing_worker.sandbox.process import Sandbox

Result = TypeVar("Result", bound=BaseModel)

JOB_FAILED, WRONG_PAYLOAD = 1, 2  # exit codes
PAYLOAD_CODES = {"invalid_payload", "bad_crs"}  # another payload helps, another file does not
SOURCE_URL = "sourceUrl"
DEFAULT_TASK = "geotiff_to_png"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the worker's command line."""
    parser = commands.add_parser("convert", help="convert one file, without queue or network")
    parser.add_argument("source", type=Path, metavar="MAP.tif")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="where to (default: here)")
    parser.add_argument("-t", "--task", default=DEFAULT_TASK, metavar="TYPE", help=f"default: {DEFAULT_TASK}")
    payload_help = "the inputPayload of a job, for example '{\"maxSize\": 2048}'"
    parser.add_argument("-p", "--payload", default="{}", metavar="JSON", help=payload_help)
    parser.add_argument("--explain", action="store_true", help="print the plan as JSON with its reasons, write no file")
    parser.set_defaults(command=_convert)


def _convert(parsed: argparse.Namespace, settings: Settings) -> int:
    if not parsed.source.is_file():
        raise ConfigurationError(f"there is no file {parsed.source}")
    tasks = registry.load(settings, only=[parsed.task])
    if tasks.problems:
        raise ConfigurationError("\n".join(tasks.problems))
    task = tasks.usable[parsed.task]
    log.configure(settings.log_level, None)
    config.keep_harmless_environment()
    try:
        request = _request(parsed, settings, task)
        if parsed.explain:
            return _explain(request, settings, tasks, task)
        parsed.output.mkdir(parents=True, exist_ok=True)
        sandbox: Sandbox[Call, TaskResult] = make_sandbox(settings, tasks, PERFORM, TaskResult, umask=own_umask())
        result = asyncio.run(_run_with_bar(sandbox, Call.of(task.handler, request), task))
    except JobError as error:
        print(f"❌ {error.code}: {registry.advised(error, task.handler).message}", file=sys.stderr)  # noqa: T201
        return WRONG_PAYLOAD if error.code in PAYLOAD_CODES else JOB_FAILED
    except OSError as error:
        raise ConfigurationError(f"{parsed.output} cannot be written: {error.strerror}") from None
    for output in result.outputs:
        print(output.path)  # noqa: T201
    return 0


def _explain(request: TaskRequest[Payload], settings: Settings, tasks: Tasks, task: BoundHandler) -> int:
    if task.handler.explain is None:
        raise ConfigurationError(f"{task.name} has nothing to explain: leave --explain out")
    call = Call(task.handler.explain, request, task.handler.opens)
    sandbox: Sandbox[Call, Explanation] = make_sandbox(settings, tasks, PERFORM, Explanation)
    explanation = asyncio.run(_run_with_bar(sandbox, call, task))
    print(json.dumps(explanation.plan, indent=2, ensure_ascii=False))  # noqa: T201 - a command's output
    return 0


def _request(parsed: argparse.Namespace, settings: Settings, task: BoundHandler) -> TaskRequest[Payload]:
    source: Path = parsed.source.absolute()
    return TaskRequest(
        source=source,
        output_folder=parsed.output.absolute(),
        stem=source.stem,
        options=_options(parsed.payload, parsed.source, task),
        source_name=source.name,
        validate_headers=settings.validate_file_headers,
    )


async def _run_with_bar(sandbox: Sandbox[Call, Result], call: Call, task: BoundHandler) -> Result:
    request = call.request
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("")
        return await sandbox.run(
            call,
            lambda stage, percent, _text: bar.update(row, description=stage, completed=percent),
            task.reach(request.file, request.output_folder),
        )


def _without_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _options(text: str, source: Path, task: BoundHandler) -> Payload:
    """Return the options of a payload. Unknown keys are rejected here, as the API does for new jobs."""
    try:
        payload = json.loads(text, object_pairs_hook=_without_twice)
    except (ValueError, RecursionError) as error:
        raise invalid_input("invalid_payload", f"The payload is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise invalid_input("invalid_payload", "The payload must be a JSON object.")
    schema = task.handler.announced.payload_schema or {}
    properties = schema.get("properties")
    known = sorted(properties) if isinstance(properties, dict) else []
    if schema.get("additionalProperties") is False:
        for key in payload:
            if key not in known:
                raise invalid_input("invalid_payload", f"{task.name}: {describe_unknown('key', key, known)}")
    if payload.get(SOURCE_URL) is not None:
        raise invalid_input("invalid_payload", f"{SOURCE_URL} has no use here: convert reads {source}.")
    return task.options(payload)
