"""Stored blocks of sparse GeoTIFFs. A block with a byte count of 0 is empty and costs nothing to read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.raster import Level, StoredBlocks
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import (
    COMPRESSION,
    IS_MASK,
    IS_REDUCED,
    SAMPLES,
    STRIP_BYTES,
    TILE_BYTES,
    TILE_WIDTH,
)

LARGE_PIXELS = 64_000_000  # pixels. Smaller levels are read whole anyway
UNCOMPRESSED = 1


def with_storage(structure: TiffStructure, levels: Sequence[Level], number: int, *, masked: bool) -> tuple[Level, ...]:
    """Return the levels of a page, with `sequential` and `stored` set for a large page.

    GDAL splits a single strip into blocks of one row. For each row above the last one read it decodes the strip again
    from the top. A masked page has no `stored`, since the mask has blocks of its own.

    Args:
        structure: of the file.
        levels: of the page, the full picture first.
        number: of the page's IFD.
        masked: the page has a mask.
    """
    if levels[0].width * levels[0].height < LARGE_PIXELS:
        return tuple(levels)
    with suppress(OSError, JobError), structure.open() as reader:
        return tuple(_with_storage(reader, _candidates(structure, level, number), level, masked) for level in levels)
    return tuple(levels)


def _with_storage(reader: TiffReader, candidates: list[Ifd], level: Level, masked: bool) -> Level:
    sequential = level.block_height < level.height and any(_is_single_strip(reader, ifd) for ifd in candidates)
    present = _present(reader, candidates[0], level) if len(candidates) == 1 and not masked else None
    stored = None
    if present is not None and not present.all():
        stored = StoredBlocks.of(present, level.block_width, level.block_height)
    return replace(level, sequential=sequential, stored=stored)


def _is_single_strip(reader: TiffReader, ifd: Ifd) -> bool:
    return (
        ifd.find(TILE_WIDTH) is None
        and reader.first(ifd, COMPRESSION) not in {0, UNCOMPRESSED}
        and reader.numbers(ifd.find(STRIP_BYTES)).size in {1, reader.first(ifd, SAMPLES)}
    )


def _candidates(structure: TiffStructure, level: Level, number: int) -> list[Ifd]:
    """Return the IFDs that a level may be: the page's own, or for an overview those of its size."""
    if level.overview is None:
        return list(structure.ifds[number - 1 : number])
    return [
        ifd
        for ifd in structure.ifds
        if ifd.subfile_type & (IS_REDUCED | IS_MASK) == IS_REDUCED
        and (ifd.width, ifd.height) == (level.width, level.height)
    ]


def _present(reader: TiffReader, ifd: Ifd, level: Level) -> NDArray[np.bool_] | None:
    """Return (rows, columns) of stored blocks. With separate bands, a block counts if any band has it."""
    counts = reader.numbers(ifd.find(STRIP_BYTES if ifd.find(TILE_WIDTH) is None else TILE_BYTES))
    across, down = -(-level.width // level.block_width), -(-level.height // level.block_height)
    if counts.size not in {across * down, across * down * reader.first(ifd, SAMPLES)}:
        return None
    return np.asarray((counts.reshape(-1, down, across) > 0).any(axis=0))
