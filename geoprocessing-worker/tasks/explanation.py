"""The choices for a file without making its picture, in a job's child process: what `convert --explain` prints."""

from geoprocessing_worker.handlers import Explanation, ProgressCallback
from geoprocessing_worker.tasks.png import ConversionRequest, explain


def explain_request(request: ConversionRequest, report: ProgressCallback) -> Explanation:
    """Look at the file and choose.

    Raises:
        JobError: as the conversion would, for all that shows before pixels are rendered.
    """
    report("inspect", 0.0, "Looking at the file")
    return Explanation(plan=explain(request.file, request.options, validate_headers=request.validate_headers))
