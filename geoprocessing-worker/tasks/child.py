"""The work of a job's child process: the checks of every file, then the job's handler."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.handlers import Opens, Payload, ProgressCallback, TaskResult, invalid_input
from geoprocessing_worker.plugins.calls import Call, Checked, SelfTest
from geoprocessing_worker.source.damage import damage
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.gdal_errors import named_errors
from geoprocessing_worker.tiff.gate import admit


def perform(call: Call, report: ProgressCallback) -> Any:
    """Check the file, do the work, and return its model.

    Raises:
        JobError: refusals of the options' `check` and of `tiff.gate.admit`, and errors of the work. Errors of GDAL
            are converted to these.
    """
    call.request.options.check()
    source, work = call.request.source, resolve_name(call.work)
    if source is None or call.opens is Opens.ANYTHING:
        return work(call.request, report)
    with gdal_environment(), named_errors(source):
        admit(source, validate_headers=call.request.validate_headers)
        try:
            return work(call.request, report)
        except JobError as error:
            if error.code == "self_check_failed" and (found := damage(source)) is not None:
                raise found from error  # the file is at fault, so a retry does not help
            raise


def check(options: Payload, _report: ProgressCallback) -> Checked:
    """Check the operator's defaults, which belong to no job.

    Raises:
        JobError: as `Payload.check`.
    """
    options.check()
    return Checked()


def self_test(test: SelfTest, _report: ProgressCallback) -> TaskResult:
    """Run a handler's self-test, which raises if the handler cannot work.

    Raises:
        JobError: `not_importable`.
    """
    try:
        with gdal_environment():
            made = resolve_name(test.function)(test.folder)
    except ImportError as error:
        raise invalid_input(
            "not_importable",
            f"{error}. Within the sandbox only the worker's own libraries are readable, the handler's package, and the "
            "distributions that it names in `needs`. Install the missing one, or name it.",
        ) from error
    if not isinstance(made, TaskResult):
        raise TypeError(f"{test.function} returned no TaskResult")
    return made
