"""Run a task type on a file as the child does, without the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geoprocessing_worker.handlers import TaskHandler, TaskRequest, TaskResult
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.tasks.child import perform
from tests.support.rasters import quiet


def perform_on(
    handler: TaskHandler, source: Path, folder: Path, *, validate_headers: bool = True, **payload: Any
) -> TaskResult:
    """Return the result of a job with this `inputPayload`. Its outputs are in `folder`."""
    folder.mkdir(exist_ok=True)
    request = TaskRequest(
        source=source,
        output_folder=folder,
        stem=source.stem,
        options=handler.payload.from_payload(payload, handler.payload()),
        source_name=source.name,
        validate_headers=validate_headers,
    )
    made: TaskResult = perform(Call.of(handler, request), quiet)
    return made
