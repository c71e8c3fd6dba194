"""Divide a picture into chunks of reading, so that no block is decoded twice and memory stays small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from geoprocessing_worker.raster import Level
from geoprocessing_worker.render.plan import ReadSize

CHUNK_BYTES = 8 << 20  # raw bytes: the steps after reading then find them in the processor's cache
MAX_BYTES = 32 << 20  # a row of tiles up to this size is one chunk, a longer one several side by side
RUNS = 4  # more would balance better, but adjacent runs may both decode the tiles at their border


class Span(NamedTuple):
    """Output rows or columns `first` to `last`, made of the source's `begin` to `end`."""

    first: int
    last: int
    begin: int
    end: int


class Chunk(NamedTuple):
    """The part of a picture that is read at a time."""

    rows: Span
    columns: Span

    @property
    def place(self) -> tuple[slice, slice]:
        """The chunk's rows and columns in the output."""
        return slice(self.rows.first, self.rows.last), slice(self.columns.first, self.columns.last)


def divide(level: Level, size: ReadSize, pixel_bytes: int) -> list[Sequence[Chunk]]:
    """Return runs of chunks, together all of the level. A run is for one reader, from top to bottom.

    Chunks consist of whole blocks, except at their borders. The reader of a run has those blocks in its cache.
    `pixel_bytes`: bytes of one pixel in all bands that are read.
    """
    column_bytes = pixel_bytes * level.block_height
    across = level.width
    if across * column_bytes > MAX_BYTES:
        across = max(1, MAX_BYTES // (level.block_width * column_bytes)) * level.block_width
    row_of_blocks = min(across, level.width) * column_bytes
    if row_of_blocks > MAX_BYTES:  # a block by itself
        down = max(1, MAX_BYTES * level.block_height // row_of_blocks)
    else:
        down = max(1, CHUNK_BYTES // row_of_blocks) * level.block_height
    rows = list(_spans(level.height, size.height, down))
    stacks = [[Chunk(one, columns) for one in rows] for columns in _spans(level.width, size.width, across)]
    if row_of_blocks > MAX_BYTES:  # two readers would push each other's block out of the cache
        return [list(chain(*stacks))]
    each = -(-len(rows) * len(stacks) // RUNS)
    return [stack[first : first + each] for stack in stacks for first in range(0, len(rows), each)]


def _spans(size: int, shown: int, step: int) -> Iterator[Span]:
    """Divide one side, `size` in the source and `shown` in the output, into spans of `step` source pixels.

    A border between two spans is the source row nearest to the border of an output row. It is at most half a source
    pixel off, and the error does not add up.
    """
    first = begin = 0
    while first < shown:
        last = max(first + 1, int((begin + step) * shown / size))
        last = shown if last >= shown - 1 else last
        end = size if last == shown else round(last * size / shown)
        yield Span(first, last, begin, max(end, begin + 1))
        first, begin = last, end
