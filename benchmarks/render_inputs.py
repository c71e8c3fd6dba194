"""The rasters of the rendering benchmark: made by code, kept in a folder, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.windows import Window

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


def texture(size: int, seed: int, roughness: float = 0.55) -> Any:
    """Return a square libvips image, 0 to 1, with detail at every scale: sums of smooth noise, finer and fainter.

    Finally it is blurred like by optics. A sensor passes a third of the finest detail.
    """
    if size > LARGEST_TEXTURE:
        times = -(-size // LARGEST_TEXTURE)
        once = texture(LARGEST_TEXTURE, seed, roughness).copy_memory()
        return once.replicate(times, times).crop(0, 0, size, size)
    random = np.random.default_rng(seed)
    total: Any = None
    weight, cells, weights = 1.0, 4, 0.0
    while cells < size * 2:
        side = min(cells, size)
        noise = random.random((side, side), dtype=np.float32)
        layer = pyvips.Image.new_from_array(noise).resize(size / side, kernel="cubic") * weight
        total = layer if total is None else total + layer
        weights += weight
        weight, cells = weight * roughness, cells * 4
    return ((total / weights - 0.25) * 2.0).gaussblur(SENSOR_BLUR)


def strips(image: Any) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield rows of a single-band libvips image, as (1, rows, columns)."""
    for top in range(0, image.height, ROWS):
        rows = min(ROWS, image.height - top)
        part = image.crop(0, top, image.width, rows).cast("float").write_to_memory()
        yield (
            Window(0, top, image.width, rows),
            np.frombuffer(part, dtype=np.float32).reshape(1, rows, image.width),
        )


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
    shared = texture(size, 1)
    bands = [strips(shared * 0.75 + texture(size, 10 + index) * 0.25) for index in range(len(levels))]
    with rasterio.open(path, "w", **profile) as dataset:
        for parts in zip(*bands, strict=True):
            window = parts[0][0]
            data = np.concatenate(
                [low + part * (high - low) for (_, part), (low, high) in zip(parts, levels, strict=True)]
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
        for window, part in strips(texture(size, 3, 0.4)):
            height = (part - 0.3) * 4000
            dataset.write(np.where(height < 0, np.float32(SEA), height), window=window)


def _classes(path: Path, size: int) -> None:
    profile = _profile(size, 1, "uint8", tiled=True, compress="lzw", nodata=0)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write_colormap(1, {i: (20 * i % 256, 70 * i % 256, 255 - 20 * i, 255) for i in range(13)})
        for window, part in strips(texture(size, 4, 0.5)):
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
    Input("6000² RGB, tiled deflate", 6000, _rgb),
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
    Input("3000² RGB strips, mask", 3000, _masked),
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
