"""The command `verify`: run the self-test of each task type in the sandbox."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from geoprocessing_worker import config, log
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.calls import SELF_TEST, SelfTest
from geoprocessing_worker.plugins.processes import make_sandbox
from geoprocessing_worker.plugins.registry import BoundHandler, Tasks
from geoprocessing_worker.sandbox.process import Sandbox


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the worker's command line."""
    parser = commands.add_parser("verify", help="run the self-test of each task type in a child process")
    parser.add_argument("names", nargs="*", metavar="TYPE", help="only these")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(command=_verify)


def _verify(parsed: argparse.Namespace, settings: Settings) -> int:
    tasks = registry.load(settings, only=parsed.names or None)
    log.configure("ERROR", None)
    config.keep_harmless_environment()
    results = asyncio.run(_test_all(tasks, settings))
    results |= {broken.name: {"usable": False, "message": broken.reason, "needs": {}} for broken in tasks.broken}
    if parsed.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))  # noqa: T201 - a command's output
    else:
        for name, result in results.items():
            print(f"{'✅' if result['usable'] else '❌'} {name}: {result['message']}")  # noqa: T201
            needs = ", ".join(f"{need} {found or 'is missing'}" for need, found in result["needs"].items())
            print(f"   needs {needs or 'nothing but the worker'}")  # noqa: T201
    return 0 if results and all(result["usable"] for result in results.values()) else 1


async def _test_all(tasks: Tasks, settings: Settings) -> dict[str, dict[str, Any]]:
    sandbox: Sandbox[SelfTest, TaskResult] = make_sandbox(settings, tasks, SELF_TEST, TaskResult)
    results = {}
    for task in tasks:
        needs = {need: _installed(need) for need in task.handler.needs}
        try:
            outputs = await _test(task, sandbox)
        except JobError as error:
            usable, message = False, f"{error.code}: {error.message} {error.detail or ''}".rstrip()
        else:
            usable, message = True, f"made {', '.join(outputs) or 'nothing but metadata'} of a file of its own"
        results[task.name] = {"usable": usable and None not in needs.values(), "message": message, "needs": needs}
    return results


async def _test(task: BoundHandler, sandbox: Sandbox[SelfTest, TaskResult]) -> list[str]:
    """Run one self-test in the sandbox. Return the names of its outputs, all of which the task type must declare."""
    folder = Path(tempfile.mkdtemp(prefix="verify_"))
    try:
        test = SelfTest(task.handler.self_test, folder)
        result = await sandbox.run(test, lambda *_: None, task.reach(None, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = [output.name for output in result.outputs]
    suffixes = tuple(slot.suffix for slot in task.handler.task_type.outputs)
    undeclared = [name for name in names if not name.endswith(suffixes or ("/",))]
    if undeclared:
        raise invalid_input(
            "undeclared_output", f"It made {', '.join(undeclared)}, which its task type does not declare."
        )
    return names


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
