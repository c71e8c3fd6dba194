"""Divides a picture into what is read at a time, so that no block is decoded twice and none lies there for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from geoprocessing_worker.raster import Level
from geoprocessing_worker.render.plan import ReadSize

PIECE_BYTES = 8 << 20  # raw bytes: the steps after reading then find them in the processor's cache
MOST_BYTES = 32 << 20  # a row of tiles up to this size is one piece, a longer one several side by side
RUNS = 4  # more would share the work more evenly, but the tiles where two meet may be decoded for both


class Span(NamedTuple):
    """Output rows or columns `first` to `last` and those of the source, `begin` to `end`, that they are made of."""

    first: int
    last: int
    begin: int
    end: int


class Piece(NamedTuple):
    """What is read at a time."""

    rows: Span
    columns: Span

    @property
    def place(self) -> tuple[slice, slice]:
        """In the output."""
        return slice(self.rows.first, self.rows.last), slice(self.columns.first, self.columns.last)


def divided(level: Level, work: ReadSize, pixel_bytes: int) -> list[Sequence[Piece]]:
    """Runs of pieces, together all of the level; a run is for one reader, its pieces lie one below the other.

    Pieces are of whole blocks, but for what lies across their borders, which the reader of a run has in its cache.
    `pixel_bytes`: what the bands that are read take of one pixel.
    """
    column_bytes = pixel_bytes * level.block_height
    across = level.width
    if across * column_bytes > MOST_BYTES:
        across = max(1, MOST_BYTES // (level.block_width * column_bytes)) * level.block_width
    row_of_blocks = min(across, level.width) * column_bytes
    if row_of_blocks > MOST_BYTES:  # a block by itself
        down = max(1, MOST_BYTES * level.block_height // row_of_blocks)
    else:
        down = max(1, PIECE_BYTES // row_of_blocks) * level.block_height
    rows = list(_spans(level.height, work.height, down))
    stacks = [[Piece(one, columns) for one in rows] for columns in _spans(level.width, work.width, across)]
    if row_of_blocks > MOST_BYTES:  # two readers would push each other's block out of the cache
        return [list(chain(*stacks))]
    each = -(-len(rows) * len(stacks) // RUNS)
    return [stack[first : first + each] for stack in stacks for first in range(0, len(rows), each)]


def _spans(size: int, shown: int, step: int) -> Iterator[Span]:
    """Together all of one side, `size` in the source and `shown` in the output; `step` of the source in each.

    A border between two lies on the source row nearest to the border of an output row: at most half a source pixel
    off, and the error does not add up.
    """
    first = begin = 0
    while first < shown:
        last = max(first + 1, int((begin + step) * shown / size))
        last = shown if last >= shown - 1 else last
        end = size if last == shown else round(last * size / shown)
        yield Span(first, last, begin, max(end, begin + 1))
        first, begin = last, end
