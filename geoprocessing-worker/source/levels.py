"""The resolutions of a page that can replace the full picture."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

from geoprocessing_worker.raster import Level
from geoprocessing_worker.source.gdal import open_source
from geoprocessing_worker.source.mask_overviews import contradicting
from geoprocessing_worker.tiff.masks import mask_sizes
from geoprocessing_worker.tiff.structure import TiffStructure

MAX_OVERVIEWS = 32


class Levels(NamedTuple):
    """The full picture and its usable overviews. `unlike` is the share of wrong pixels in the worst mask overview."""

    usable: tuple[Level, ...]
    unlike: float = 0.0


def usable_levels(structure: TiffStructure, full: Level, overviews: int, *, raw: bool, masked: bool) -> Levels:
    """Return the levels of the first page. Overviews of a masked file need a mask that agrees with the full one.

    Args:
        structure: of the file.
        full: the full picture.
        overviews: the number of readable overviews.
        raw: as in `open_source`.
        masked: the page has a mask.
    """
    path = structure.path
    masks = mask_sizes(structure) if masked and overviews else frozenset()
    found: dict[int, Any] = {}
    with ExitStack() as opened:
        for number in range(min(overviews, MAX_OVERVIEWS)):
            overview = opened.enter_context(open_source(path, number, raw=raw))
            # For an overview without a mask of its own, GDAL reports all pixels as valid.
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
    """Return columns and rows of a block of the first band."""
    rows, columns = dataset.block_shapes[0]
    return columns, rows
