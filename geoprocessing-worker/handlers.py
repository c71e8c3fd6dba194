"""What a kind of job is, and how a package adds one: the only module that such a package imports.

A package names an object of `TaskHandler` as an entry point of the group `geoprocessing_worker.tasks`, under the name
of its task type. The worker imports the module with that object, so that module should be light; the work itself
stands in a module that is imported in the job's child process only, behind the sandbox's walls: no network, no other
programs, nothing to read but the job's file and the libraries, nothing to write but the output folder.

`examples/` holds a package to start from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel

from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input
from geoprocessing_worker.outputs import OutputFile, finished, unfinished_path, write_whole
from geoprocessing_worker.payload import Payload, strict_number
from geoprocessing_worker.payload_schema import payload_schema

__all__ = [
    "INTERFACE",
    "ErrorClass",
    "Explanation",
    "InputRule",
    "JobError",
    "Opens",
    "OutputFile",
    "OutputSlot",
    "Payload",
    "ProgressCallback",
    "RateLimit",
    "TaskHandler",
    "TaskRequest",
    "TaskResult",
    "TaskType",
    "finished",
    "invalid_input",
    "strict_number",
    "unfinished_path",
    "write_whole",
]

INTERFACE = 1
"""The version of this module; it changes when a handler written for the one before would no longer work."""

GROUP = "geoprocessing_worker.tasks"

Options = TypeVar("Options", bound=Payload)

ProgressCallback = Callable[[str, float, str], None]
"""Told the stage, the percent done within it (0 to 100), and a sentence."""

Seconds = Annotated[int, Field(gt=0, le=30 * 86400)]


class InputRule(StrEnum):
    """Whether a job of this type has a file to begin with."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    NONE = "none"


class Opens(StrEnum):
    """What the job's file must be before the work sees it.

    `GEOTIFF`: its structure and metadata are looked at first, and GDAL is set up to open nothing else.
    `ANYTHING`: the work gets the file as it came.
    """

    GEOTIFF = "geotiff"
    ANYTHING = "anything"


GEOTIFF_TYPES = (
    "image/tiff",
    "image/tif",
    "image/x-tiff",
    "image/x-tif",
    "image/geotiff",
    "image/x-geotiff",
    "application/tiff",
    "application/x-tiff",
    "application/geotiff",
    "application/x-geotiff",
    "application/octet-stream",
    "binary/octet-stream",
)
"""Media types that programs give GeoTIFF files; the first is the registered one."""


class _Told(BaseModel):
    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid", allow_inf_nan=False
    )


class OutputSlot(_Told):
    """A file that a job may make: the stem of its input's name and this suffix.

    `formats`: only offered when the payload's `outputFormat` is one of these; `None` for always.
    """

    suffix: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    content_type: str = Field(min_length=1, max_length=255)
    max_bytes: int = Field(gt=0)
    formats: tuple[str, ...] | None = None


class RateLimit(_Told):
    """At most `count` jobs begun in any `period_seconds`."""

    count: int = Field(gt=0)
    period_seconds: Seconds


class TaskType(_Told):
    """A kind of job as the API keeps it; its JSON is what `worker.py tasks --json` prints and the API takes.

    Everything but name, input and outputs can be changed in the API later; here stand the values to begin with.

    `payload_schema`: JSON Schema of `inputPayload`; `{}` lets any payload pass, `None` is made from the handler's
    options. `input_types`: media types that an upload may have; `None` for any, or for those of GeoTIFF where the
    handler opens nothing else.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    input: InputRule = InputRule.REQUIRED
    outputs: tuple[OutputSlot, ...] = ()
    timeout_seconds: Seconds = 3600
    lease_seconds: Seconds = 60
    max_attempts: int = Field(5, gt=0)
    backoff_seconds: tuple[float, ...] = (2, 10, 60, 300, 900)
    max_concurrent_runs: int | None = Field(None, gt=0)
    rate_limit: RateLimit | None = None
    paused: bool = False
    default_priority: int = Field(0, ge=-100, le=100)
    payload_schema: dict[str, JsonValue] | None = None
    input_types: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _suffixes_differ(self) -> Self:
        suffixes = [slot.suffix for slot in self.outputs]
        if len(set(suffixes)) < len(suffixes):
            raise ValueError("two outputs have the same suffix")
        return self


@dataclass(frozen=True)
class TaskRequest(Generic[Options]):
    """One job, as its work sees it.

    Attributes:
        source: the job's file; None where the job has none.
        output_folder: an empty folder, the only one that may be written into; results lie directly in it.
        stem: what the names of results begin with.
        options: the job's payload.
        source_name: the name that the uploader knows the file by.
        validate_headers: the operator's VALIDATE_FILE_HEADERS.
    """

    source: Path | None
    output_folder: Path
    stem: str
    options: Options
    source_name: str
    validate_headers: bool = True

    @property
    def file(self) -> Path:
        """The job's file.

        Raises:
            JobError: `no_input`.
        """
        if self.source is None:
            raise invalid_input("no_input", "Jobs of this kind need a file.")
        return self.source


class TaskResult(BaseModel):
    """What was made: files in the output folder, metadata of at most 256 kB, and seconds per stage."""

    model_config = ConfigDict(frozen=True)

    outputs: tuple[OutputFile, ...] = ()
    metadata: dict[str, JsonValue] = {}
    timings: dict[str, float] = {}


class Explanation(BaseModel):
    """What was found in a file and what would be chosen, each with its reason."""

    plan: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class TaskHandler:
    """How a worker does jobs of one type.

    Functions are named as `package.module:function`, so that only the job's child process imports what they need.

    Attributes:
        interface: the `INTERFACE` that this handler was written for.
        task_type: what the API is told; its name is that of the entry point.
        payload: the options of a job.
        stages: the names that the work reports progress for, in order, each with its share of the time.
        work: from a `TaskRequest` and a `ProgressCallback` to a `TaskResult`; raises `JobError` for what has a name.
        self_test: from an empty folder to a `TaskResult` of what it made there from inputs of its own; raises where
            the result is not what it should be.
        opens: what the file must be.
        needs: the distributions that the work imports, by their names. Those that are installed elsewhere than the
            worker's own libraries, as editable ones are, can be read behind the walls only if they are named here.
        preload: modules to be imported once for all jobs, where they are slow to import and quick to fork.
        settings: for fields of the payload, the worker's setting that holds their default, by its name in lower case.
        explain: like `work`, but to an `Explanation`, for `convert --explain`.
        lighter: how the same work takes less time, memory and room, as a sentence for the person who asked. It stands
            at the end of the errors that this cures; without it they name no cure.
    """

    interface: int
    task_type: TaskType
    payload: type[Payload]
    stages: Mapping[str, float]
    work: str
    self_test: str
    opens: Opens = Opens.GEOTIFF
    needs: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    explain: str | None = None
    lighter: str | None = None

    @cached_property
    def announced(self) -> TaskType:
        """The task type with the schema of its payload and the types of its files, for the API."""
        told = self.task_type
        takes_file = told.input is not InputRule.NONE
        changes: dict[str, object] = {}
        if told.payload_schema is None:
            changes["payload_schema"] = payload_schema(self.payload, takes_file=takes_file)
        if told.input_types is None and takes_file and self.opens is Opens.GEOTIFF:
            changes["input_types"] = GEOTIFF_TYPES
        return told.model_copy(update=changes)
