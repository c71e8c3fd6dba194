"""Explain the choices for a file without rendering it, in a job's child process: `convert --explain`."""

from geoprocessing_worker.handlers import Explanation, ProgressCallback
from geoprocessing_worker.tasks.png import ConversionRequest, explain


def explain_request(request: ConversionRequest, report: ProgressCallback) -> Explanation:
    """Inspect the file and make its plan.

    Raises:
        JobError: as the conversion, for all errors that precede rendering.
    """
    report("inspect", 0.0, "Looking at the file")
    return Explanation(plan=explain(request.file, request.options, validate_headers=request.validate_headers))
