"""Self-tests of the built-in handlers: a small file in, the right results out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
from affine import Affine

from geoprocessing_worker.handlers import Payload, TaskRequest, TaskResult
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.task_options import CogOptions, InfoOptions, TilesOptions
from geoprocessing_worker.tasks.cog.job import make_cog
from geoprocessing_worker.tasks.info import describe_file
from geoprocessing_worker.tasks.picture import convert
from geoprocessing_worker.tasks.tiles.job import make_tiles

Options = TypeVar("Options", bound=Payload)

SIZE = 64  # pixels a side
NORTH_UP = Affine(30.0, 0.0, 400_000.0, 0.0, -30.0, 1_700_000.0)


def picture(folder: Path) -> TaskResult:
    """Render a color picture, reprojected and checked as every picture."""
    return convert(_request(folder, RenderOptions()), _quiet)


def cog(folder: Path) -> TaskResult:
    """Rewrite the same picture as a cloud optimized GeoTIFF, which is validated."""
    return make_cog(_request(folder, CogOptions()), _quiet)


def info(folder: Path) -> TaskResult:
    """Describe the file, and check its coordinate system."""
    result = describe_file(_request(folder, InfoOptions()), _quiet)
    crs: Any = result.metadata["crs"]
    if crs["epsg"] != 32638:
        raise AssertionError(f"its system is {crs['name']}")
    return result


def tiles(folder: Path) -> TaskResult:
    """Write the same picture as an archive of tiles, which is read again and compared."""
    return make_tiles(_request(folder, TilesOptions()), _quiet)


def _request(folder: Path, options: Options) -> TaskRequest[Options]:
    source = _write(folder)
    return TaskRequest(source=source, output_folder=folder, stem="out", options=options, source_name=source.name)


def _write(folder: Path) -> Path:
    """Write a GeoTIFF in UTM with three bands that rise in three directions."""
    path = folder / "self-test.tif"
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.uint8) * 3
    data = np.stack([rows, columns, 255 - rows])
    profile = {"driver": "GTiff", "width": SIZE, "height": SIZE, "count": 3, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", **profile, crs="EPSG:32638", transform=NORTH_UP, photometric="rgb") as dataset:
        dataset.write(data)
    return path


def _quiet(_stage: str, _percent: float, _text: str) -> None:
    """Ignore progress."""
