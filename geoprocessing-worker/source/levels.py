"""The resolutions of a file that can stand for the full picture."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from geoprocessing_worker.raster import Level
from geoprocessing_worker.source.gdal import open_source
from geoprocessing_worker.source.mask_overviews import contradicting
from geoprocessing_worker.tiff.masks import mask_sizes

MAX_OVERVIEWS = 32


class Levels(NamedTuple):
    """The full picture and its usable overviews; `unlike`: the share of wrong pixels in the worst mask overview."""

    usable: tuple[Level, ...]
    unlike: float = 0.0


def usable_levels(path: Path, full: Level, overviews: int, *, raw: bool, masked: bool) -> Levels:
    """Levels of the first page. Of a masked file only overviews count whose own mask is there and agrees with it.

    Args:
        path: the file.
        full: the full picture.
        overviews: the number of overviews that can be read.
        raw: as in `open_source`.
        masked: the page has a mask.
    """
    masks = mask_sizes(path) if masked and overviews else frozenset()
    found: dict[int, Any] = {}
    with ExitStack() as opened:
        for number in range(min(overviews, MAX_OVERVIEWS)):
            overview = opened.enter_context(open_source(path, number, raw=raw))
            # Of an overview that is older than the mask GDAL says that all is valid.
            if not masked or (overview.width, overview.height) in masks:
                found[number] = overview
        wrong = [0.0] * len(found)
        if masked and found:
            wrong = contradicting(opened.enter_context(open_source(path, raw=raw)), list(found.values()))
        right = tuple(
            Level(number, overview.width, overview.height, *block_size(overview))
            for (number, overview), share in zip(found.items(), wrong, strict=True)
            if share == 0
        )
    return Levels((full, *right), max(wrong, default=0.0))


def block_size(dataset: Any) -> tuple[int, int]:
    """Columns and rows of the blocks of the first band."""
    rows, columns = dataset.block_shapes[0]
    return columns, rows
