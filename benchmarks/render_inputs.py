"""The rasters of the rendering benchmark: made by code, kept in a folder, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.windows import Window

Floats = NDArray[np.float32]

CRS = "EPSG:32638"
SEA = -9999.0  # the nodata value of the elevation model
SENSOR_BLUR = 0.5  # pixels
LARGEST_TEXTURE = 12_000  # pixels on a side. A larger one repeats, since 40,000² would take 6 GB for each layer
ROWS = 1000  # rows written at a time, since the largest input must not need its own size in memory


@dataclass(frozen=True, slots=True)
class Input:
    """One row of the table: its name, how it is made, and the options of GDAL's tools for the same result."""

    name: str
    size: int
    write: Callable[[Path, int], None]
    gdalwarp: tuple[str, ...] = ("-r", "average", "-dstalpha")
    bands: tuple[int, ...] = ()
    stretched: bool = False
    classes: bool = False
    size_bar: str = "size"
    wall_bar: str = "wall"


def texture(size: int, seed: int, roughness: float = 0.55) -> Floats:
    """Return a square, 0 to 1, with detail at every scale: sums of smooth noise, finer and fainter.

    Finally it is blurred like by optics. A sensor passes a third of the finest detail.
    """
    random = np.random.default_rng(seed)
    total = np.zeros((size, size), dtype=np.float32)
    weight, cells, weights = 1.0, 4, 0.0
    while cells < size * 2:
        side = min(cells, size)
        noise = random.random((side, side), dtype=np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) * np.float32(weight)
        weights += weight
        weight, cells = weight * roughness, cells * 4
    blurred = cv2.GaussianBlur(total / np.float32(weights), (0, 0), SENSOR_BLUR)
    return np.asarray((blurred - 0.25) * 2.0, dtype=np.float32)


def strips(size: int, seed: int, roughness: float = 0.55) -> Iterator[tuple[Window, Floats]]:
    """Yield rows of a texture of any size, as (1, rows, columns)."""
    once = texture(min(size, LARGEST_TEXTURE), seed, roughness)
    for top in range(0, size, ROWS):
        rows = min(ROWS, size - top)
        part = once[np.arange(top, top + rows)[:, None] % len(once), np.arange(size) % len(once)]
        yield Window(0, top, size, rows), part[None]


def _profile(size: int, count: int, dtype: str, **extra: Any) -> dict[str, Any]:
    pixel = 60_000.0 / size
    place = Affine(pixel, 0, 380_000, 0, -pixel, 1_720_000)
    return {
        "driver": "GTiff", "width": size, "height": size, "count": count, "dtype": dtype, "crs": CRS,
        "transform": place, **extra,
    }  # fmt: skip


def _write_bands(path: Path, profile: dict[str, Any], levels: tuple[tuple[float, float], ...]) -> None:
    """Each band is one texture between its own low and high. Bands share most of their shape, like colors."""
    size = profile["width"]
    seeds = (1, *range(10, 10 + len(levels)))
    with rasterio.open(path, "w", **profile) as dataset:
        for (window, shared), *own in zip(*(strips(size, seed) for seed in seeds), strict=True):
            data = np.concatenate(
                [
                    low + (shared * 0.75 + part * 0.25) * (high - low)
                    for (_, part), (low, high) in zip(own, levels, strict=True)
                ]
            )
            top = np.iinfo(profile["dtype"]).max
            dataset.write(np.clip(data, 0, top).astype(profile["dtype"]), window=window)


def _rgb(path: Path, size: int) -> None:
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "photometric": "RGB"}
    _write_bands(path, _profile(size, 3, "uint8", interleave="pixel", **tiles), ((20, 220), (30, 210), (10, 180)))


def _cog(path: Path, size: int) -> None:
    plain = path.with_suffix(".plain.tif")
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "jpeg", "photometric": "YCBCR"}
    profile = _profile(size, 3, "uint8", interleave="pixel", **tiles)
    with rasterio.Env(GDAL_NUM_THREADS=2, JPEG_QUALITY_OVERVIEW=85):
        _write_bands(plain, profile, ((20, 220), (30, 210), (10, 180)))
        with rasterio.open(plain, "r+") as dataset:
            dataset.build_overviews([2**n for n in range(1, 8) if size >> n >= 256], Resampling.average)
        with rasterio.open(plain) as source:
            copy(source, path, driver="COG", COMPRESS="JPEG", QUALITY=85, OVERVIEWS="FORCE_USE_EXISTING")
    plain.unlink()


def _uint16(path: Path, size: int) -> None:
    profile = _profile(size, 4, "uint16", compress="lzw", interleave="pixel", photometric="RGB", alpha="NO")
    _write_bands(path, profile, ((300, 3500), (400, 3200), (200, 2800), (800, 6000)))


def _elevation(path: Path, size: int) -> None:
    profile = _profile(size, 1, "float32", tiled=True, compress="deflate", predictor=3, nodata=SEA)
    with rasterio.open(path, "w", **profile) as dataset:
        for window, part in strips(size, 3, 0.4):
            height = (part - 0.3) * 4000
            dataset.write(np.where(height < 0, np.float32(SEA), height), window=window)


def _classes(path: Path, size: int) -> None:
    profile = _profile(size, 1, "uint8", tiled=True, compress="lzw", nodata=0)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write_colormap(1, {i: (20 * i % 256, 70 * i % 256, 255 - 20 * i, 255) for i in range(13)})
        for window, part in strips(size, 4, 0.5):
            dataset.write(np.clip(part * 14 - 1, 0, 12).astype(np.uint8), window=window)


def _masked(path: Path, size: int) -> None:
    profile = _profile(size, 3, "uint8", compress="deflate", interleave="pixel", photometric="RGB")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
        _write_bands(path, profile, ((20, 220), (30, 210), (10, 180)))
        row, column = np.ogrid[:size, :size]
        inside = np.hypot(row - size / 2, column - size / 2) < size * 0.48
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(inside)


INPUTS = (
    Input("6000² RGB, tiled deflate", 6000, _rgb, wall_bar="wall rgb"),
    Input("12000² RGB, JPEG COG", 12000, _cog, size_bar="size noise"),
    Input("4000² 4 bands uint16, LZW", 4000, _uint16, bands=(1, 2, 3), stretched=True, size_bar="size noise"),
    Input("6000² float32 elevation", 6000, _elevation, stretched=True),
    Input(
        "8000² palette classes",
        8000,
        _classes,
        gdalwarp=("-r", "near", "-dstnodata", "0"),
        classes=True,
        size_bar="size classes",
    ),
    Input("3000² RGB strips, mask", 3000, _masked, wall_bar="wall masked"),
)
LARGE = Input("40000² RGB, JPEG COG", 40000, _cog)


def made(one: Input, folder: Path) -> Path:
    """Return the file, from the folder or made now. It appears there only when complete."""
    path = folder / f"{one.write.__name__.strip('_')}-{one.size}.tif"
    if not path.exists():
        unfinished = path.with_suffix(".part.tif")
        one.write(unfinished, one.size)
        unfinished.rename(path)
    return path
