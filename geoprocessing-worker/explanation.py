"""The choices for a file without making its picture, in a job's child process: what `convert --explain` prints."""

from pydantic import BaseModel, JsonValue

from geoprocessing_worker.conversion import ConversionRequest, Report, explain


class Explanation(BaseModel):
    """What was found in a file and what was chosen, each with its reason."""

    plan: dict[str, JsonValue]


def explain_request(request: ConversionRequest, report: Report) -> Explanation:
    """Look at the file and choose.

    Raises:
        JobError: as the conversion would, for all that shows before pixels are rendered.
    """
    report("inspect", 0.0, "Looking at the file")
    return Explanation(plan=explain(request.source, request.options, validate_headers=request.validate_headers))
