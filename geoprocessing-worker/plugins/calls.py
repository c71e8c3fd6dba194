"""Requests to a job's child process. Its functions are named by string, so that only the child imports them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from geoprocessing_worker.handlers import Opens, Payload, TaskHandler, TaskRequest

PERFORM = "geoprocessing_worker.tasks.child:perform"
"""From a `Call` to the result of its work."""

SELF_TEST = "geoprocessing_worker.tasks.child:self_test"
"""From a `SelfTest` to its `TaskResult`."""

CHECK = "geoprocessing_worker.tasks.child:check"
"""From a `Payload` to `Checked`."""


@dataclass(frozen=True)
class Call:
    """The name of a function, `package.module:function`, and its argument."""

    work: str
    request: TaskRequest[Any]
    opens: Opens

    @classmethod
    def of(cls, handler: TaskHandler, request: TaskRequest[Payload]) -> Call:
        """Return the call of a handler's work with a request."""
        return cls(handler.work, request, handler.opens)


@dataclass(frozen=True)
class SelfTest:
    """The name of a self-test, `package.module:function`, and an empty folder for its outputs."""

    function: str
    folder: Path


class Checked(BaseModel):
    """Options that passed their check."""
