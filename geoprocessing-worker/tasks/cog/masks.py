"""Masks and colors that GDAL or a codec would drop in a cloud optimized GeoTIFF."""

from __future__ import annotations

from typing import Any

import numpy as np

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.raster import SourceHeader
from geoprocessing_worker.render.task_options import CogOptions, Compression
from geoprocessing_worker.tasks.cog.check import all_nodata


def refuse_lost_colors(dataset: Any, header: SourceHeader, options: CogOptions) -> None:
    """Refuse a fourth band of data for WebP where it is 0: the codec takes it for opacity and drops those colors.

    Raises:
        JobError: `invalid_payload`.
    """
    if options.compression is not Compression.WEBP or len(header.bands) != 4 or header.bands[-1].colorinterp == "alpha":
        return
    for _, window in dataset.block_windows(1):
        block = dataset.read(window=window)
        if ((block[-1] == 0) & (block[:-1] != 0).any(axis=0)).any():
            raise invalid_input(
                "invalid_payload",
                "compression was 'webp': WebP drops colors where a fourth band is 0, and band 4 of the file holds no "
                "opacity. Use deflate or zstd, or save the file without band 4.",
                bands=len(header.bands),
            )


def refuse_lost_mask(dataset: Any, header: SourceHeader, options: CogOptions) -> None:
    """Refuse a mask that GDAL would drop, unless nodata or alpha hide the same pixels.

    GDAL's warp reads nodata or a last band of alpha instead of the mask. For JPEG, a last band of alpha replaces it.

    Raises:
        JobError: `unsupported_mask`.
    """
    if not header.has_mask:
        return
    web = options.web_optimized
    nodata = dataset.nodatavals if web else (None,) * dataset.count
    by_nodata = any(value is not None for value in nodata)
    by_alpha = header.bands[-1].colorinterp == "alpha" and (web or options.compression is Compression.JPEG)
    if not (by_nodata or by_alpha) or not _hides_more(dataset, nodata if by_nodata else None, by_alpha=by_alpha):
        return
    others = " and ".join(word for word, there in (("nodata", by_nodata), ("an alpha band", by_alpha)) if there)
    cure = "Omit webOptimized" if web else "Use compression deflate or zstd"
    if web and options.compression is Compression.JPEG and by_alpha:
        cure += " and use compression deflate or zstd"
    raise invalid_input(
        "unsupported_mask",
        f"The file has a mask and {others}, and the mask hides other pixels. The copy would lose it. {cure}.",
        page=header.page,
    )


def _hides_more(dataset: Any, nodata: tuple[float | None, ...] | None, *, by_alpha: bool) -> bool:
    """Whether the mask hides any pixel that neither nodata in all bands nor an alpha of 0 hides."""
    for _, window in dataset.block_windows(1):
        hidden = dataset.read_masks(1, window=window) == 0
        if not hidden.any():
            continue
        block = dataset.read(window=window)[:, hidden]
        shown = np.ones(block.shape[1], dtype=np.bool_)
        if nodata is not None:
            shown &= ~all_nodata(block, nodata)
        if by_alpha:
            shown &= block[-1] != 0
        if shown.any():
            return True
    return False
