"""A stand-in for a page that GDAL's COG driver would not copy completely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from geoprocessing_worker.raster import SourceHeader
from geoprocessing_worker.source.gdal import gdal_options, open_source, open_without_mask
from geoprocessing_worker.source.sampling import OpenLevel, internal_mask, open_level
from geoprocessing_worker.tasks.cog.crs import TEMPORARY

MASK_PIXELS = 1 << 24  # pixels of a mask that are read at once


def needs_stand_in(path: Path, header: SourceHeader, data: tuple[int, ...]) -> bool:
    """Whether GDAL would lose the page's mask, take another page's, or take one of the `data` bands for opacity."""
    with open_source(path, directory=header.directory) as dataset:
        copied = dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]
    return bool(data) or header.mask_directory is not None or copied != header.has_mask


@contextmanager
def stand_in(path: Path, header: SourceHeader, data: tuple[int, ...], folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the file and the page's directory, or for the block a copy in `folder` that GDAL reads correctly.

    In the copy the page has its own mask with one bit, or none. The `data` bands (1-based) are not declared as alpha.
    """
    if not needs_stand_in(path, header, data):
        yield path, header.directory
        return
    made = folder / ".readable.tif"
    try:
        with open_without_mask(path, header.directory) as page:
            rasterio.shutil.copy(page, str(made), **TEMPORARY)
        with (
            gdal_options(GDAL_TIFF_INTERNAL_MASK="YES"),
            open_level(path, header, header.full) as source,
            rasterio.open(made, "r+", driver="GTiff") as copy,
        ):
            if data:
                copy.colorinterp = [
                    ColorInterp.undefined if index in data else color for index, color in enumerate(copy.colorinterp, 1)
                ]
            if header.has_mask:
                _copy_mask(source, header, copy)
        yield made, 1
    finally:
        made.unlink(missing_ok=True)


def _copy_mask(source: OpenLevel, header: SourceHeader, copy: Any) -> None:
    every = tuple(band.index for band in header.bands)
    rows = max(1, MASK_PIXELS // header.width)
    for top in range(0, header.height, rows):
        window = Window(0, top, header.width, min(rows, header.height - top))
        copy.write_mask(internal_mask(source, every, window), window=window)


def bands_as_data(header: SourceHeader, data: tuple[int, ...]) -> SourceHeader:
    """Return the header in which these bands are not declared as alpha."""
    return replace(
        header,
        bands=tuple(replace(band, colorinterp="undefined") if band.index in data else band for band in header.bands),
    )


def notes_of(path: Path, header: SourceHeader, data: tuple[int, ...], made: SourceHeader) -> list[str]:
    """Return notes on declared alpha bands and on the mask, where the copy has them as something else.

    `header` is that of `bands_as_data`.
    """
    notes = [
        f"band {index} is called alpha, but holds no opacity: in the copy it is a band of data and hides nothing"
        for index in data
    ]
    if len(made.bands) < len(header.bands):
        notes.append("the alpha band became a mask, in which every pixel that is not fully transparent is visible")
    if header.mask_directory is not None:
        with open_source(path, directory=header.mask_directory) as mask:
            if mask.count > 1:
                notes.append("the mask has a sample for each band: in the copy it has one, which hides where all hide")
    return notes
