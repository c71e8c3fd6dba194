"""What each handler that comes with the worker does to show that it can: a small file in, the right results out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from geoprocessing_worker.conversion import ConversionRequest, convert
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.options import RenderOptions

SIZE = 64  # pixels a side
NORTH_UP = Affine(30.0, 0.0, 400_000.0, 0.0, -30.0, 1_700_000.0)


def picture(folder: Path) -> TaskResult:
    """A colour picture, reprojected and checked as every picture is before it leaves."""
    source = _write(folder)
    request = ConversionRequest(
        source=source, output_folder=folder, stem="out", options=RenderOptions(), source_name=source.name
    )
    return convert(request, _quiet)


def _write(folder: Path) -> Path:
    """A GeoTIFF in UTM of three bands that rise in three directions."""
    path = folder / "self-test.tif"
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.uint8) * 3
    data = np.stack([rows, columns, 255 - rows])
    profile = {"driver": "GTiff", "width": SIZE, "height": SIZE, "count": 3, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", **profile, crs="EPSG:32638", transform=NORTH_UP, photometric="rgb") as dataset:
        dataset.write(data)
    return path


def _quiet(_stage: str, _percent: float, _text: str) -> None:
    """Nobody listens."""
