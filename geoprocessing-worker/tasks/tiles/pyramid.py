"""Build the tiles of all zooms from squares of the highest one, bottom up and depth first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from geoprocessing_worker.raster import U8
from geoprocessing_worker.tasks.tiles.grid import SIDE, SQUARE_ZOOMS, Coverage, Tile, Zooms

Square = Callable[[Tile], U8 | None]
"""The pixels under a tile, (height, width, 4) with 2**depth tiles a side, or None if it is empty."""
Emit = Callable[[list[tuple[Tile, U8]]], None]
"""Called with finished tiles, each (256, 256, 4) and not empty."""


def depth(zooms: Zooms) -> int:
    """Return the number of zooms that a square renders below its own tile's."""
    return min(SQUARE_ZOOMS, zooms.last)


class Pyramid:
    """The tiles of a box. Memory holds one square and at most three tiles of each zoom.

    Args:
        box: their coverage.
        zooms: the first and the last.
        square: renders one.
        emit: receives the tiles.
        picked: downsample by picking pixels, for colors that cannot be mixed.
    """

    def __init__(self, box: Coverage, zooms: Zooms, square: Square, emit: Emit, *, picked: bool) -> None:
        self._box, self._first = box, zooms.first
        self._depth = depth(zooms)
        self._base = zooms.last - self._depth
        self._square, self._emit = square, emit
        self._halved = _picked if picked else _averaged

    def build(self) -> None:
        """Emit all tiles."""
        for root in self._box.tiles(min(self._first, self._base)):
            self._build(root)

    def _build(self, tile: Tile) -> U8 | None:
        if not self._box.touches(tile):
            return None
        if tile.zoom == self._base:
            return self._from_square(tile)
        below = [self._build(child) for child in tile.children()]
        if all(part is None for part in below):
            return None
        pixels = self._halved(_joined(below))
        self._emit_visible([(tile, pixels)])
        return pixels

    def _from_square(self, root: Tile) -> U8 | None:
        """Return the one tile that a square shrinks to, and emit those of the zooms between."""
        pixels = self._square(root)
        if pixels is None or not pixels[..., 3].any():
            return None
        for step in range(self._depth, 0, -1):
            self._emit_visible(list(_cut(pixels, root, step)))
            pixels = self._halved(pixels)
        self._emit_visible([(root, pixels)])
        return pixels

    def _emit_visible(self, tiles: list[tuple[Tile, U8]]) -> None:
        self._emit([(tile, pixels) for tile, pixels in tiles if tile.zoom >= self._first and pixels[..., 3].any()])


def _cut(pixels: U8, root: Tile, step: int) -> Iterator[tuple[Tile, U8]]:
    for down in range(2**step):
        for across in range(2**step):
            tile = Tile(root.zoom + step, root.column * 2**step + across, root.row * 2**step + down)
            yield tile, pixels[down * SIDE : (down + 1) * SIDE, across * SIDE : (across + 1) * SIDE]


def _joined(below: list[U8 | None]) -> U8:
    empty = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    parts = [empty if part is None else part for part in below]
    return np.concatenate([np.concatenate(parts[:2], axis=1), np.concatenate(parts[2:], axis=1)])


def _picked(pixels: U8) -> U8:
    return np.ascontiguousarray(pixels[::2, ::2])


def _averaged(pixels: U8) -> U8:
    """Return half the size: the mean of each four pixels, without hidden ones."""
    fours = [pixels[down::2, across::2] for down in (0, 1) for across in (0, 1)]
    made = np.empty(fours[0].shape, dtype=np.uint8)
    if (pixels[..., 3] == 255).all():
        made[:] = (sum((four.astype(np.uint16) for four in fours), start=np.uint16(2))) >> 2
        return made
    weights = [four[..., 3:].astype(np.uint32) for four in fours]
    total = sum(weights, start=np.zeros_like(weights[0]))
    color = sum((four[..., :3] * weight for four, weight in zip(fours, weights, strict=True)), start=total // 2)
    made[..., :3] = color // np.maximum(total, 1)
    made[..., 3:] = (total + 2) // 4
    made[made[..., 3] == 0] = 0
    return made
