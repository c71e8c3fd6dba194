"""Which blocks of a sparse GeoTIFF are stored: those with a byte count of 0 hold nothing, and cost nothing to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.raster import Level, StoredBlocks
from geoprocessing_worker.tiff.directory import (
    COMPRESSION,
    HEIGHT,
    IS_MASK,
    IS_REDUCED,
    SUBFILE_TYPE,
    TILE_WIDTH,
    WIDTH,
    Directory,
    Tiff,
)

LARGE = 64_000_000  # pixels; below this a level is read whole anyway
UNCOMPRESSED = 1
STRIP_BYTES, TILE_BYTES, SAMPLES = 279, 325, 277


def with_single_strips(path: Path, levels: Sequence[Level], directory: int) -> tuple[Level, ...]:
    """The levels of the page in this 1-based directory, with those marked of which large ones are a single strip.

    GDAL gives such a strip as blocks of one row, and decodes it from the top for each row above the last one read.
    """
    if levels[0].width * levels[0].height < LARGE:
        return tuple(levels)
    with suppress(OSError, JobError), path.open("rb") as file:
        tiff = Tiff(file)
        return tuple(replace(level, sequential=_is_single_strip(tiff, level, directory)) for level in levels)
    return tuple(levels)


def _is_single_strip(tiff: Tiff, level: Level, number: int) -> bool:
    return level.block_height < level.height and any(
        directory.find(TILE_WIDTH) is None
        and _number(tiff, directory, COMPRESSION) not in {0, UNCOMPRESSED}
        and tiff.numbers(directory.find(STRIP_BYTES)).size in {1, _number(tiff, directory, SAMPLES)}
        for directory in _candidates(tiff, level, number)
    )


def with_stored_blocks(path: Path, levels: Sequence[Level], directory: int) -> tuple[Level, ...]:
    """The levels of the page in this 1-based directory; where blocks of large ones are missing, with those stored.

    Not for pages with a mask: a mask has blocks of its own.
    """
    if levels[0].width * levels[0].height < LARGE:
        return tuple(levels)
    found = dict(_stored(path, levels, directory))
    return tuple(replace(level, stored=found.get(level.overview)) for level in levels)


def _stored(path: Path, levels: Sequence[Level], directory: int) -> Iterator[tuple[int | None, StoredBlocks]]:
    """By overview, `None` for the full picture; an overview is known by its size, if only one directory has that."""
    with suppress(OSError, JobError), path.open("rb") as file:
        tiff = Tiff(file)
        for level in levels:
            candidates = _candidates(tiff, level, directory)
            present = _present(tiff, candidates[0], level) if len(candidates) == 1 else None
            if present is not None and not present.all():
                yield level.overview, StoredBlocks.of(present, level.block_width, level.block_height)


def _candidates(tiff: Tiff, level: Level, number: int) -> list[Directory]:
    """The directories that can be a level's, of the page in the directory with this 1-based number."""
    return [
        candidate
        for place, candidate in enumerate(tiff.directories(), 1)
        if (place == number if level.overview is None else _is_overview(tiff, candidate, level))
    ]


def _is_overview(tiff: Tiff, directory: Directory, level: Level) -> bool:
    kind, width, height = (_number(tiff, directory, tag) for tag in (SUBFILE_TYPE, WIDTH, HEIGHT))
    return kind & (IS_REDUCED | IS_MASK) == IS_REDUCED and (width, height) == (level.width, level.height)


def _number(tiff: Tiff, directory: Directory, tag: int) -> int:
    values = tiff.numbers(directory.find(tag))
    return int(values[0]) if values.size else 0


def _present(tiff: Tiff, directory: Directory, level: Level) -> NDArray[np.bool_] | None:
    """(rows, columns) of blocks; where bands are stored apart, those of which any band is."""
    tiled = directory.find(TILE_WIDTH) is not None
    counts = tiff.numbers(directory.find(TILE_BYTES if tiled else STRIP_BYTES))
    across, down = -(-level.width // level.block_width), -(-level.height // level.block_height)
    if counts.size not in {across * down, across * down * _number(tiff, directory, SAMPLES)}:
        return None
    return np.asarray((counts.reshape(-1, down, across) > 0).any(axis=0))
