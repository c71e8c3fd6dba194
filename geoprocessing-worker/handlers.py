"""The plug-in interface for task types, and the only module that a plug-in imports.

A package registers a `TaskHandler` as an entry point of the group `geoprocessing_worker.tasks`, under the name of its
task type. The worker imports the module with that object, so it should be light. The work is in another module, which
only the sandboxed child process imports: without network and other programs. It can read the job's file and the
libraries, and write to the output folder.

`examples/` has a package to start from.
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
"""The version of this interface. It changes when handlers of the previous version stop working."""

GROUP = "geoprocessing_worker.tasks"

Options = TypeVar("Options", bound=Payload)

ProgressCallback = Callable[[str, float, str], None]
"""Receives the stage, the percent within it (0 to 100), and a sentence."""

Seconds = Annotated[int, Field(gt=0, le=30 * 86400)]


class InputRule(StrEnum):
    """Whether a job of this type has an input file."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    NONE = "none"


class Opens(StrEnum):
    """The check of the job's file before the work.

    `GEOTIFF`: its structure and metadata are checked, and GDAL can open no other format.
    `ANYTHING`: no check.
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
"""Media types of GeoTIFF files in practice. The first is the registered one."""


class _Declaration(BaseModel):
    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid", allow_inf_nan=False
    )


class OutputSlot(_Declaration):
    """A possible output of a job, named by the stem of its input and this suffix.

    `formats`: values of the payload's `outputFormat` with this output, `None` for all.
    """

    suffix: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    content_type: str = Field(min_length=1, max_length=255)
    max_bytes: int = Field(gt=0)
    formats: tuple[str, ...] | None = None


class RateLimit(_Declaration):
    """Limit of `count` started jobs in any `period_seconds`."""

    count: int = Field(gt=0)
    period_seconds: Seconds


class TaskType(_Declaration):
    """A task type for the API, as printed by `worker.py tasks --json`.

    Everything but name, input and outputs can be changed in the API later. These are the initial values.

    `payload_schema`: JSON Schema of `inputPayload`. `{}` accepts any payload, `None` is derived from the handler's
    options. `input_types`: accepted media types of uploads. `None` accepts any, or only GeoTIFF for `Opens.GEOTIFF`.
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
    """The request for the work of one job.

    Attributes:
        source: the job's file, or None.
        output_folder: an empty folder for the results, the only writable one. No subfolders.
        stem: prefix of the names of results.
        options: the job's payload.
        source_name: the user's name of the file.
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
    """The result of a job: files in the output folder, metadata of at most 256 kB, and seconds per stage."""

    model_config = ConfigDict(frozen=True)

    outputs: tuple[OutputFile, ...] = ()
    metadata: dict[str, JsonValue] = {}
    timings: dict[str, float] = {}


class Explanation(BaseModel):
    """The findings in a file and the choices for it, with reasons."""

    plan: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class TaskHandler:
    """The handler of one task type.

    Functions are given as `package.module:function`, so only the child process imports their modules.

    Attributes:
        interface: the `INTERFACE` of this handler.
        task_type: for the API, with the name of the entry point.
        payload: the options of a job.
        stages: the stages of the work in order, each with its share of the time.
        work: takes a `TaskRequest` and a `ProgressCallback`, returns a `TaskResult`, raises `JobError` for expected
            errors.
        self_test: takes an empty folder, returns a `TaskResult` with outputs there, made from its own input. Raises if
            the result is wrong.
        opens: the check of the file.
        needs: names of the distributions that the work imports. Those outside of the worker's own libraries, such as
            editable ones, can be read in the sandbox only if listed here.
        preload: modules for the fork server, which are slow to import and quick to fork.
        settings: names of the worker's settings, in lower case, with the defaults of fields of the payload.
        explain: like `work`, but returns an `Explanation`, for `convert --explain`.
        lighter: advice for the user on less time, memory and disk space, in one sentence. It is appended to the errors
            that it helps against.
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
        declared = self.task_type
        takes_file = declared.input is not InputRule.NONE
        changes: dict[str, object] = {}
        if declared.payload_schema is None:
            changes["payload_schema"] = payload_schema(self.payload, takes_file=takes_file)
        if declared.input_types is None and takes_file and self.opens is Opens.GEOTIFF:
            changes["input_types"] = GEOTIFF_TYPES
        return declared.model_copy(update=changes)
