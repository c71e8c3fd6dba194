"""The cost of all layers around a file on a 512 x 512 job. Exit code 1 if above 15 % of its time.

Jobs with and without the layers alternate, in children of one fork server, so that other load affects both alike.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, convert

SIZE = 512
ROUNDS = 60
MAX_SHARE = 0.15


def write_source(path: Path) -> Path:
    """Write a textured RGB file in UTM."""
    rng = np.random.default_rng(1)
    profile = {"driver": "GTiff", "width": SIZE, "height": SIZE, "count": 3, "dtype": "uint8", "compress": "deflate"}
    place = {"crs": "EPSG:32638", "transform": Affine(30, 0, 400_000, 0, -30, 1_700_000)}
    with gdal_environment(), rasterio.open(path, "w", **profile, **place) as dataset:
        dataset.write(rng.integers(0, 255, (3, SIZE, SIZE), dtype=np.uint8) // 8)
    return path


async def seconds(box: Sandbox[ConversionRequest, ConversionResult], source: Path, *, layers: bool) -> float:
    """Return the duration of one job."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        request = ConversionRequest(
            source=source,
            output_folder=out,
            stem="a",
            options=RenderOptions(),
            source_name="a.tif",
            validate_headers=layers,
        )
        started = time.perf_counter()
        await box.run(request, lambda *_: None, AllowedPaths((source,), (out,)))
        return time.perf_counter() - started


async def measure() -> float:
    """Return the layers' share of a job's time, by medians."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_source(Path(folder) / "a.tif")
        boxes = {
            layers: Sandbox(convert, ConversionResult, preload=("geoprocessing_worker.tasks.preload",), confine=layers)
            for layers in (True, False)
        }
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for layers, box in boxes.items():
                taken[layers].append(await seconds(box, source, layers=layers))
        medians = {layers: statistics.median(values) for layers, values in taken.items()}
    share = medians[True] / medians[False] - 1
    print(f"with all layers {medians[True] * 1000:.1f} ms, without {medians[False] * 1000:.1f} ms: {share:+.1%}")
    print(f"bar: {MAX_SHARE:.0%}")
    return share


if __name__ == "__main__":
    sys.exit(asyncio.run(measure()) > MAX_SHARE)
