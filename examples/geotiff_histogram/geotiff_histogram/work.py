"""The work, imported only in the job's child process, after the gates have admitted the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from geoprocessing_worker.handlers import ProgressCallback, TaskRequest, TaskResult, invalid_input, write_whole
from geotiff_histogram.handler import HistogramOptions


def count_values(request: TaskRequest[HistogramOptions], report: ProgressCallback) -> TaskResult:
    """Write `<stem>_histogram.csv`: lower end, upper end and number of valid pixels of each bucket.

    Raises:
        JobError: `no_such_band`, `no_valid_pixels`.
    """
    options = request.options
    with rasterio.open(request.file) as dataset:
        if options.band > dataset.count:
            raise invalid_input(
                "no_such_band",
                f"The file has {dataset.count} bands, but no band {options.band}. Choose another.",
            )
        report("look", 0, "Finding the lowest and highest value")
        ends = [(values.min(), values.max()) for values in _values(dataset, options.band) if values.size]
        if not ends:
            raise invalid_input("no_valid_pixels", "No pixel of this band is valid. Choose another band.")
        low, high = float(min(low for low, _ in ends)), float(max(high for _, high in ends))
        counts = np.zeros(options.buckets, dtype=np.int64)
        edges = np.linspace(low, high if high > low else low + 1, options.buckets + 1)
        for number, values in enumerate(_values(dataset, options.band)):
            counts += np.histogram(values, edges)[0]
            report("count", 100 * number / len(ends), "Counting")
    lines = [f"{edges[i]:g},{edges[i + 1]:g},{count}" for i, count in enumerate(counts)]
    content = "\n".join(["from,to,pixels", *lines, ""]).encode()
    made = write_whole(request.output_folder, f"{request.stem}_histogram.csv", content, "text/csv")
    return TaskResult(outputs=(made,), metadata={"minimum": low, "maximum": high, "pixels": int(counts.sum())})


def _values(dataset: Any, band: int) -> Iterator[Any]:
    """Yield the valid values of each block, so memory does not depend on the file's size."""
    for _, window in dataset.block_windows(band):
        yield dataset.read(band, window=window, masked=True).compressed()


def self_test(folder: Path) -> TaskResult:
    """Count known values. `worker.py verify` runs this in the same sandbox as a job."""
    path = folder / "known.tif"
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(1, 0, 0, 0, -1, 0)}
    with rasterio.open(path, "w", driver="GTiff", width=10, height=10, count=1, dtype="uint8", **place) as dataset:
        dataset.write(np.arange(100, dtype=np.uint8).reshape(1, 10, 10))
    options = HistogramOptions(buckets=2)
    request = TaskRequest(source=path, output_folder=folder, stem="known", options=options, source_name=path.name)
    made = count_values(request, lambda _stage, _percent, _text: None)
    if made.metadata["pixels"] != 100:
        raise AssertionError(f"{made.metadata['pixels']} of 100 pixels were counted")
    return made
