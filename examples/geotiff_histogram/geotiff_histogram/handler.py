"""The task type's description. The worker imports it, so it imports no library that opens files."""

from typing import Annotated

from pydantic import Field

from geoprocessing_worker.handlers import INTERFACE, OutputSlot, Payload, TaskHandler, TaskType


class HistogramOptions(Payload):
    """The `inputPayload`: a band, from 1, and the number of buckets."""

    band: Annotated[int, Field(ge=1, le=65535)] = 1
    buckets: Annotated[int, Field(ge=2, le=4096)] = 64


HANDLER = TaskHandler(
    interface=INTERFACE,
    task_type=TaskType(
        name="geotiff_histogram",
        outputs=(OutputSlot(suffix="_histogram.csv", content_type="text/csv", max_bytes=1 << 20),),
        timeout_seconds=600,
    ),
    payload=HistogramOptions,
    stages={"look": 20, "count": 80},
    work="geotiff_histogram.work:count_values",
    self_test="geotiff_histogram.work:self_test",
    needs=("numpy", "rasterio"),
)
