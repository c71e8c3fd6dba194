"""Predict the cost of a picture from the header alone, and refuse too much before a block is decoded."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geoprocessing_worker.color.bands import BandChoice, Color
from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.geo.layout import Layout
from geoprocessing_worker.raster import Level, SourceHeader
from geoprocessing_worker.tiff.gate import BlockLayout
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import BLOCK_TAGS

# The limit is on work: about a minute of decoding on one slow core.
MAX_DECODED_BYTES = 12 << 30

# Bytes of pixels that a stored byte of a block may expand to, beyond the minimum for any file. Honest files stay below:
# their blocks do not share bytes, and deflate reaches 1,030 only for constant data.
EXPANSION = 256

# Data is read at up to twice the output's scale if it fits in here. Averaging is then exact.
WORK_BYTES = 160 << 20
READING_BYTES = 256 << 20  # two chunks in all their forms, and GDAL's cache


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes in all blocks once decoded, and peak memory of the process: the minimum, not the worst case."""

    decoded_bytes: int
    memory_bytes: int


def allowance(stored: int, least: int, most: int) -> int:
    """Return the work that a file may cause, in the unit of both bounds.

    Args:
        stored: of its page, as `stored_bytes`.
        least: the work that any file may cause.
        most: the work that no file may exceed.
    """
    return min(most, least + EXPANSION * stored)


def stored_bytes(path: Path, directory: int) -> int:
    """Return the distinct bytes of the file that the blocks of a page occupy. 0 if they are unknown.

    A block counts with at most its decoded size. So tables, other pages, shared blocks and blocks padded with
    unused bytes earn no work.

    Args:
        path: the file.
        directory: 1-based number of the page's directory.
    """
    try:
        structure = TiffStructure.read(path)
        with structure.open() as reader:
            page = structure.ifd(directory)
            return 0 if page is None else _covered(reader, page)
    except (OSError, JobError):
        return 0  # a damaged chain. GDAL may find more of it.


def _covered(reader: TiffReader, page: Ifd) -> int:
    places, lengths = next((pair for pair in BLOCK_TAGS if page.find(pair[0])), BLOCK_TAGS[0])
    starts, sizes = reader.numbers(page.find(places)), reader.numbers(page.find(lengths))
    decoded = BlockLayout.read(reader, page).block_bytes
    if sizes.size != starts.size:  # a file without compression needs no lengths
        sizes = np.full(starts.size, decoded, dtype=np.uint64)
    starts = np.minimum(starts, np.uint64(reader.size))
    order = np.argsort(starts)
    starts = starts[order]
    ends = np.minimum(starts + np.minimum(sizes, np.uint64(decoded))[order], np.uint64(reader.size))
    reached = np.maximum.accumulate(ends)
    starts[1:] = np.maximum(starts[1:], reached[:-1])
    return int((ends - np.minimum(starts, ends)).sum())


def cost(header: SourceHeader, level: Level, choice: BandChoice, layout: Layout) -> Cost:
    """Return the cost of reading and warping a level."""
    return Cost(_decoded_bytes(header, level, choice), _memory_bytes(header, level, choice, layout))


def afford(predicted: Cost, room: int | None) -> None:
    """Refuse a picture that costs too much. `room` is in bytes, `None` for no limit.

    Raises:
        JobError: `too_complex`, `too_large`, each with its limit and its number.
    """
    if predicted.decoded_bytes > MAX_DECODED_BYTES:
        raise invalid_input(
            "too_complex",
            f"Reading this file means decoding {predicted.decoded_bytes >> 20:,} MB. The limit is "
            f"{MAX_DECODED_BYTES >> 20:,} MB. Add overviews (gdaladdo), or save it smaller.",
            decoded=predicted.decoded_bytes,
            allowed=MAX_DECODED_BYTES,
        )
    if room is not None and predicted.memory_bytes > room:
        raise invalid_input(
            "too_large",
            f"This picture needs at least {predicted.memory_bytes >> 20:,} MB of memory, but {room >> 20:,} MB are "
            "free. Save the file in smaller tiles.",
            limit="memory",
            found=predicted.memory_bytes,
            allowed=room,
        )


def address_space_left() -> int | None:
    """Return the bytes that this process may still allocate. `None` without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return max(0, limit - pages * resource.getpagesize())


def stored_pixels(level: Level) -> int:
    """Return the pixels in all stored blocks of a level. Other blocks are not decoded."""
    across, down = -(-level.width // level.block_width), -(-level.height // level.block_height)
    blocks = across * down if level.stored is None else level.stored.count()
    return blocks * level.block_width * level.block_height


def _decoded_bytes(header: SourceHeader, level: Level, choice: BandChoice) -> int:
    return stored_pixels(level) * _bands_in_block(header, choice) * _sample_bytes(header)


def _memory_bytes(header: SourceHeader, level: Level, choice: BandChoice, layout: Layout) -> int:
    """Count read and warped pixels together, then warped and packed ones."""
    channels = 1 if choice.color is Color.GRAY else 3
    coded = channels * (1 if _sample_bytes(header) == 1 else 2)
    read = min(level.width, layout.read_width) * min(level.height, layout.read_height) * coded
    placed = layout.target.width * layout.target.height * (channels + 1)
    block = level.block_width * level.block_height * _bands_in_block(header, choice) * _sample_bytes(header)
    return max(read, placed) + placed + 2 * block + READING_BYTES  # GDAL decodes a block, then copies it into its cache


def _bands_in_block(header: SourceHeader, choice: BandChoice) -> int:
    """Return bands per decoded block. Pixel-interleaved blocks hold every band. Otherwise only shown bands are read."""
    return len(header.bands) if header.pixel_interleaved else len(choice.indexes) + (choice.alpha is not None)


def _sample_bytes(header: SourceHeader) -> int:
    return np.dtype(header.bands[0].dtype).itemsize
