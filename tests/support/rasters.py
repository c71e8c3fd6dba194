"""GeoTIFFs built by code for tests: any type, bands, colors, validity and place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from geoprocessing_worker.handlers import ProgressCallback
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, convert

UTM = Affine(30.0, 0.0, 400_000.0, 0.0, -30.0, 1_700_000.0)
"""North-up, 30 m, near 15° N 44° E in EPSG:32638."""

DEGREES = Affine(0.01, 0.0, 44.0, 0.0, -0.01, 16.0)
"""North-up, a hundredth of a degree, upper left at 44° E 16° N."""


@dataclass(frozen=True)
class Tiff:
    """A GeoTIFF to write. `data` is (bands, rows, columns) in the stored type."""

    data: NDArray[Any]
    crs: str | None = "EPSG:4326"
    transform: Affine | None = DEGREES
    nodata: float | None = None
    colors: Sequence[str] | None = None
    mask: NDArray[Any] | None = None
    palette: dict[int, tuple[int, int, int, int]] | None = None
    descriptions: Sequence[str] = ()
    gcps: tuple[Sequence[Any], str] | None = None
    overviews: Sequence[int] = ()
    profile: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write the file to `path`."""
        count, height, width = self.data.shape
        place = {"transform": self.transform} if self.transform is not None else {}
        with (
            gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"),
            rasterio.open(
                path,
                "w",
                driver="GTiff",
                height=height,
                width=width,
                count=count,
                dtype=self.data.dtype,
                crs=self.crs,
                nodata=self.nodata,
                **place,
                **self.profile,
            ) as dataset,
        ):
            # Before the first pixel, since GTiff cannot write it into the header later.
            if self.colors is not None:
                dataset.colorinterp = [ColorInterp[name] for name in self.colors]
            dataset.write(self.data)
            if self.palette is not None:
                dataset.write_colormap(1, self.palette)
            if self.mask is not None:
                dataset.write_mask(self.mask)
            for index, text in enumerate(self.descriptions, 1):
                dataset.set_band_description(index, text)
            if self.gcps is not None:
                dataset.gcps = (list(self.gcps[0]), rasterio.crs.CRS.from_string(self.gcps[1]))
        if self.overviews:
            with gdal_environment(), rasterio.open(path, "r+") as dataset:
                dataset.build_overviews(list(self.overviews), rasterio.enums.Resampling.average)
        return path


def ramp(height: int, width: int, dtype: str = "uint8", low: float = 0, high: float = 255) -> NDArray[Any]:
    """Return (1, height, width), rising from the upper left to the lower right."""
    values = np.linspace(low, high, height * width).reshape(1, height, width)
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


def quarters(size: int = 64) -> NDArray[np.uint8]:
    """Return (3, size, size): red, green over blue, white, each a quarter."""
    data = np.zeros((3, size, size), dtype=np.uint8)
    half = size // 2
    data[0, :half, :half] = data[1, :half, half:] = data[2, half:, :half] = 255
    data[:, half:, half:] = 255
    return data


def quiet(stage: str, percent: float, message: str) -> None:
    """Discard a report."""


Converter = Callable[..., ConversionResult]


def run(
    source: Path, folder: Path, *, validate_headers: bool = True, report: ProgressCallback = quiet, **options: Any
) -> ConversionResult:
    """Run `convert` with options by their Python names. Outputs have the source's stem."""
    folder.mkdir(exist_ok=True)
    request = ConversionRequest(
        source=source,
        output_folder=folder,
        stem=source.stem,
        options=RenderOptions(**options),
        source_name=source.name,
        validate_headers=validate_headers,
    )
    return convert(request, report)


def picture_of(result: ConversionResult) -> NDArray[np.uint8]:
    """Return (height, width, 4) RGBA of the first output, with palettes resolved."""
    from PIL import Image

    with Image.open(result.outputs[0].path) as image:
        return np.asarray(image.convert("RGBA"))
