"""The tiles of web maps: coverage of a file between two zooms, and the place of each tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from affine import Affine
from pyproj import CRS

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.geo.pixel_to_crs import EARTH_GIRTH
from geoprocessing_worker.raster import Grid
from geoprocessing_worker.render.task_options import HIGHEST_ZOOM

SIDE = 256  # pixels
HALF_GIRTH = EARTH_GIRTH / 2
# About half an hour on one core. At 15 kB each, 3 GB before the archive's own limit.
MAX_TILES = 200_000
SQUARE_ZOOMS = 3  # zooms of tiles that are cut from a square of 2048 pixels, 16 MB
ROUNDING = 1e-6  # of a tile: a smaller overlap with the next tile is rounding


class Tile(NamedTuple):
    """A tile by its zoom, its column from 180° W and its row from the north."""

    zoom: int
    column: int
    row: int

    def children(self) -> tuple[Tile, Tile, Tile, Tile]:
        """Upper left, upper right, lower left, lower right."""
        zoom, column, row = self.zoom + 1, 2 * self.column, 2 * self.row
        return (
            Tile(zoom, column, row),
            Tile(zoom, column + 1, row),
            Tile(zoom, column, row + 1),
            Tile(zoom, column + 1, row + 1),
        )

    def grid(self, crs: CRS, times: int = 1) -> Grid:
        """Return its pixels in Web Mercator, with `times` times as many of them along each side."""
        size, pixels = EARTH_GIRTH / 2**self.zoom, SIDE * times
        left, top = self.column * size - HALF_GIRTH, HALF_GIRTH - self.row * size
        return Grid(pixels, pixels, Affine(size / pixels, 0, left, 0, -size / pixels, top), crs)


@dataclass(frozen=True, slots=True)
class Coverage:
    """A box in Web Mercator, in metres. `right` may pass the antimeridian and then wraps around."""

    left: float
    bottom: float
    right: float
    top: float

    def columns(self, zoom: int) -> tuple[range, ...]:
        """Return the columns of tiles at a zoom: two ranges where the box crosses the antimeridian."""
        count = 2**zoom
        first, last = _tiles(self.left + HALF_GIRTH, self.right + HALF_GIRTH, zoom)
        if last - first >= count:
            return (range(count),)
        first, last = first - first // count * count, last - first // count * count
        return (range(first, last),) if last <= count else (range(first, count), range(last - count))

    def rows(self, zoom: int) -> range:
        """Return the rows of tiles at a zoom."""
        first, last = _tiles(HALF_GIRTH - self.top, HALF_GIRTH - self.bottom, zoom)
        return range(max(0, first), min(2**zoom, last))

    def count(self, zoom: int) -> int:
        """Return the number of tiles at a zoom."""
        return sum(len(columns) for columns in self.columns(zoom)) * len(self.rows(zoom))

    def touches(self, tile: Tile) -> bool:
        """Whether the box overlaps a tile."""
        return tile.row in self.rows(tile.zoom) and any(tile.column in part for part in self.columns(tile.zoom))

    def tiles(self, zoom: int) -> Iterator[Tile]:
        """Yield all tiles of the box at a zoom."""
        for columns in self.columns(zoom):
            for column in columns:
                for row in self.rows(zoom):
                    yield Tile(zoom, column, row)


def _tiles(begin: float, end: float, zoom: int) -> tuple[int, int]:
    size = EARTH_GIRTH / 2**zoom
    first = math.floor(begin / size + ROUNDING)
    return first, max(first + 1, math.ceil(end / size - ROUNDING))


@dataclass(frozen=True)
class SparseCoverage(Coverage):
    """A box with empty parts. Below the zoom of a square of `SQUARE_ZOOMS` zooms, tiles are not checked.

    `empty`: whether a tile and all below it are empty.
    """

    empty: Callable[[Tile], bool]
    _kept: dict[int, dict[Tile, None]] = field(default_factory=dict)

    @classmethod
    def of(cls, box: Coverage, empty: Callable[[Tile], bool]) -> SparseCoverage:
        """Return the same box without its empty tiles."""
        return cls(box.left, box.bottom, box.right, box.top, empty)

    def count(self, zoom: int) -> int:
        """Return the maximum number of tiles at a zoom."""
        above = max(0, zoom - SQUARE_ZOOMS)
        return min(super().count(zoom), len(self._tiles(above)) << 2 * (zoom - above))

    def touches(self, tile: Tile) -> bool:
        """Whether a tile may show something."""
        return super().touches(tile) and tile in self._tiles(tile.zoom)

    def tiles(self, zoom: int) -> Iterator[Tile]:
        """Yield all tiles at a zoom that may show something."""
        yield from self._tiles(zoom)

    def _tiles(self, zoom: int) -> dict[Tile, None]:
        if zoom not in self._kept:
            candidates = super().tiles(0)
            if zoom > 0:
                below = (child for tile in self._tiles(zoom - 1) for child in tile.children())
                candidates = (tile for tile in below if Coverage.touches(self, tile))
            self._kept[zoom] = dict.fromkeys(tile for tile in candidates if not self.empty(tile))
        return self._kept[zoom]


class Zooms(NamedTuple):
    """The first and the last zoom, the maximum number of tiles, and the reason for a limit."""

    first: int
    last: int
    tiles: int
    note: str | None


def choose_zooms(box: Coverage, pixel: float, first: int | None, last: int | None) -> Zooms:
    """Choose zooms: the job's, else from one tile for all to the one nearest to the file's resolution.

    Args:
        box: of the file.
        pixel: the side of one of the file's pixels, in metres of Web Mercator.
        first: the job's.
        last: the job's.

    Raises:
        JobError: `too_many_tiles`, with the highest zoom that is possible.
    """
    native = min(HIGHEST_ZOOM, max(0, round(math.log2(EARTH_GIRTH / SIDE / pixel))))
    highest = native if last is None else last
    widest = max(box.right - box.left, box.top - box.bottom)
    lowest = max(0, math.floor(math.log2(EARTH_GIRTH / widest))) if first is None else first
    lowest = min(lowest, highest)
    possible = _possible(box, lowest, highest)
    if (possible < highest and last is not None) or possible < lowest:
        found = sum(Coverage.count(box, zoom) for zoom in range(lowest, highest + 1))
        raise invalid_input(
            "too_many_tiles",
            f"Zooms {lowest} to {highest} are up to {found:,} tiles. The limit is {MAX_TILES:,}. "
            f"{_fewer(box, lowest, possible)}, or cut the file into parts.",
            tiles=found,
            allowed=MAX_TILES,
            possible=possible,
        )
    count = sum(box.count(zoom) for zoom in range(lowest, possible + 1))
    note = None
    if possible < native and last is None:
        note = f"the file's resolution is that of zoom {native}, which has too many tiles"
    elif highest > native:
        note = f"zooms above {native} show no more than the file has"
    return Zooms(lowest, possible, count, note)


def _fewer(box: Coverage, lowest: int, possible: int) -> str:
    if possible >= lowest:
        return f"Ask for a maxZoom of at most {possible}"
    # The lowest zoom by itself has too many.
    return f"Ask for a minZoom and a maxZoom of at most {_possible(box, 0, lowest)}"


def _possible(box: Coverage, lowest: int, highest: int) -> int:
    total = 0
    for zoom in range(lowest, highest + 1):
        total += box.count(zoom)
        if total > MAX_TILES:
            return zoom - 1
    return highest
