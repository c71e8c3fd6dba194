"""Samples a file's values for the plan: from a small level, or from blocks spread over the picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from geoprocessing_worker.color.alpha import AlphaBlock, AlphaReading, Declared, Role, gather, read_alpha
from geoprocessing_worker.color.arrays import U8_TOP, alpha_to_byte, decibels, straightened, unpremultiply, validity
from geoprocessing_worker.color.band_ranges import unlike_ranges
from geoprocessing_worker.color.bands import BandChoice, Color, called_alpha, first_alone
from geoprocessing_worker.color.lab import to_lab
from geoprocessing_worker.color.logluv import is_logluv, to_light
from geoprocessing_worker.color.stretch import is_ordered
from geoprocessing_worker.raster import Level, SourceHeader
from geoprocessing_worker.source.gdal import open_source

SAMPLED_PIXELS = 1_000_000  # pixels. Percentiles are then accurate to a tenth of a percent
MAX_WHOLE_PIXELS = 4_000_000  # pixels. A level up to this size is read whole
MAX_BLOCKS = 64
COLLAR_SHARE = 0.95  # of the outermost pixels, from which one value is a collar
LOSSY = ("JPEG", "WEBP", "JXL", "LERC")  # GDAL's names of codecs
SMALLEST_OVERVIEW = 256  # pixels on the long side. Smaller ones are too smooth for the extremes


@dataclass(frozen=True, slots=True)
class Sample:
    """Valid raw values per shown band (1-d each, the same pixels in all), and the number of pixels read.

    `choice`: the bands to show. It includes the choices that depend on values: the alpha band, and whether three bands
    are the colors of one picture. `collar`: the value along all edges of a single-band picture. `ordered`: in a band of
    few values, neighboring pixels have neighboring values, as in a photograph.
    """

    values: tuple[NDArray[Any], ...]
    looked_at: int
    source: str
    choice: BandChoice
    collar: float | None = None
    ordered: bool = False

    @property
    def valid(self) -> int:
        """Return the number of valid pixels in the sample."""
        return int(self.values[0].size) if self.values else 0


def take_sample(
    path: Path, header: SourceHeader, choice: BandChoice, nodata: tuple[float | None, ...], shown: Level
) -> Sample:
    """Read at most a few million pixels, from the `shown` level if that is small."""
    level = shown if shown.width * shown.height <= MAX_WHOLE_PIXELS else header.level_for(side=SMALLEST_OVERVIEW)
    windows = _windows(level)
    parts: list[NDArray[Any]] = []
    looked_at = 0
    collar, ordered = None, False
    with open_level(path, header, level) as source:
        choice = _with_alpha(source, header, choice, nodata, windows)
        for window in windows:
            block, alpha = read_window(source, header, choice, nodata, window)
            if len(block) == 1 and alpha is None and len(windows) == 1:
                collar = _collar(block[0])
            ordered = ordered or (choice.color is Color.GRAY and is_ordered(block[0]))
            step = max(1, int(np.sqrt(block[0].size * len(windows) / (2 * SAMPLED_PIXELS))))
            block, alpha = block[:, ::step, ::step], None if alpha is None else alpha[::step, ::step]
            looked_at += block[0].size
            parts.append(block.reshape(len(block), -1) if alpha is None else block[:, alpha > 0])
    values = np.concatenate(parts, axis=1)
    if choice.by_position and (unlike := unlike_ranges(values, [header.band(index) for index in choice.indexes])):
        return take_sample(path, header, first_alone(choice, unlike), nodata[:1], shown)
    kind = "overview" if level.overview is not None else "blocks" if len(windows) > 1 else "all pixels"
    return Sample(tuple(values), looked_at, kind, choice, collar, ordered)


def _with_alpha(
    source: OpenLevel, header: SourceHeader, choice: BandChoice, nodata: tuple[float | None, ...], windows: list[Window]
) -> BandChoice:
    """Return the choice with its alpha band confirmed by values: the last band called alpha that holds opacity."""
    if choice.alpha is None:
        return choice
    called = [choice.alpha] if choice.alpha_asked else [band.index for band in reversed(called_alpha(header))]
    notes, not_opacity = choice.notes, choice.not_opacity
    for index in called:
        reading = _read_alpha(source, header, replace(choice, alpha=index), nodata, windows)
        notes += (reading.note,) if reading.note else ()
        if reading.role in {Role.NONE, Role.COLLAR}:
            not_opacity += (index,)
        if reading.role is not Role.NONE:
            return replace(
                choice,
                alpha=index,
                alpha_role=reading.role,
                alpha_top=reading.top,
                premultiplied=reading.premultiplied,
                not_opacity=not_opacity,
                notes=notes,
            )
    return replace(choice, alpha=None, not_opacity=not_opacity, notes=notes)


def _read_alpha(
    source: OpenLevel, header: SourceHeader, choice: BandChoice, nodata: tuple[float | None, ...], windows: list[Window]
) -> AlphaReading:
    """Interpret an alpha band for the whole file, since some parts may have only small values."""
    assert choice.alpha is not None  # noqa: S101 - checked by the caller
    blocks: list[AlphaBlock] = []
    for window in windows:
        block = source.dataset.read([*choice.indexes, choice.alpha], window=window)
        mask = internal_mask(source, choice.indexes, window) if header.has_mask else None
        shown = validity(block[:-1], nodata, mask)
        counts = np.isfinite(block[-1])
        blocks.append((block[-1], block[:-1], counts if shown is None else counts & (shown > 0)))
    called = header.band(choice.alpha).colorinterp == "alpha"
    mixed = choice.color not in {Color.LAB, Color.PALETTE}
    declared = Declared(
        name=f"band {choice.alpha}",
        bits=header.band(choice.alpha).bits,
        premultiplied=header.alpha_premultiplied and called and mixed,
        lossy=any(word in header.compression for word in LOSSY),
        trusted=choice.alpha_asked,
    )
    return read_alpha(gather(blocks), declared)


def _collar(plane: NDArray[Any]) -> float | None:
    """Return the value of nearly all outermost pixels, if there is one."""
    outline = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
    first = outline[0]
    return float(first) if np.count_nonzero(outline == first) >= COLLAR_SHARE * outline.size else None


@dataclass(frozen=True, slots=True)
class OpenLevel:
    """A level open for reading, and the page's mask if GDAL does not find it."""

    dataset: Any
    mask: Any | None


@contextmanager
def open_level(path: Path, header: SourceHeader, level: Level, *, own: bool = False) -> Iterator[OpenLevel]:
    """Open a level of the header's page. `own` is as in `open_source`.

    Raises:
        rasterio.errors.RasterioIOError: GDAL's GTiff driver cannot open it.
    """
    with ExitStack() as opened:
        page = header.directory
        dataset = opened.enter_context(open_source(path, level.overview, page, raw=header.raw, own=own))
        mask = None
        if header.mask_directory is not None:
            mask = opened.enter_context(open_source(path, directory=header.mask_directory, own=own))
        yield OpenLevel(dataset, mask)


def read_window(
    source: OpenLevel, header: SourceHeader, choice: BandChoice, nodata: tuple[float | None, ...], window: Window
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Return (bands, rows, columns) of raw values of the shown bands, and the (rows, columns) opacity.

    Complex samples are converted to dB, L*a*b* samples to L*, a* and b*, and LogLuv samples to linear light.
    """
    indexes = [*choice.indexes, choice.alpha] if choice.alpha is not None else list(choice.indexes)
    block = source.dataset.read(indexes, window=window)
    mask: NDArray[np.uint8] | None = None
    alpha: NDArray[Any] | None = None
    if choice.alpha is not None:
        alpha, block = block[-1], block[:-1]
        mask = _opacity(alpha, block, choice)
    if header.has_mask:
        internal = internal_mask(source, choice.indexes, window)
        mask = internal if mask is None else np.minimum(mask, internal)
    opacity = validity(block, nodata, mask)
    if choice.premultiplied and alpha is not None:
        # Before any stretch, but after the check for nodata, which is declared for stored values.
        bytes_ = block.dtype == alpha.dtype == np.uint8 and choice.alpha_top == U8_TOP
        block = unpremultiply(block, alpha) if bytes_ else straightened(block, alpha, choice.alpha_top)
    if choice.color is Color.LAB and header.photometric is not None:
        return to_lab(block, header.photometric), opacity
    if is_logluv(header.photometric, choice.indexes):
        return to_light(block), opacity
    if block.dtype.kind != "c":
        return block, opacity
    power = decibels(block)
    return power, validity(power, (None,) * len(power), opacity)


def _opacity(alpha: NDArray[Any], block: NDArray[Any], choice: BandChoice) -> NDArray[np.uint8]:
    """Return (rows, columns) of opacity, from the alpha band, or from all bands if that marks a collar."""
    if choice.alpha_role is not Role.COLLAR:
        return alpha_to_byte(alpha, choice.alpha_top)
    return np.where((alpha != 0) | (block != 0).any(axis=0), np.uint8(255), np.uint8(0))


def internal_mask(source: OpenLevel, bands: tuple[int, ...], window: Window) -> NDArray[np.uint8]:
    """Return (rows, columns) of 0 where hidden, else 255. All mask values but 0 are visible.

    A mask with a sample for each band hides a pixel if it hides it in all of these `bands`.
    """
    if source.mask is None:
        visible = source.dataset.read_masks(1, window=window) != 0
    else:
        count = source.mask.count
        indexes = [index for index in bands if index <= count] if count > 1 else [1]
        visible = (source.mask.read(indexes or [1], window=window) != 0).any(axis=0)
    return np.where(visible, np.uint8(255), np.uint8(0))


def _windows(level: Level) -> list[Window]:
    """Return one window of a small level, else evenly spread blocks with enough pixels.

    Only stored blocks of a sparse level are used.
    """
    if level.width * level.height <= MAX_WHOLE_PIXELS:
        return [Window(0, 0, level.width, level.height)]
    across, down = -(-level.width // level.block_width), -(-level.height // level.block_height)
    if level.stored is not None and (places := level.stored.places()).size:
        some = places[np.unique(np.linspace(0, len(places) - 1, MAX_BLOCKS).astype(int))]
        return [_block(level, int(column), int(row)) for row, column in some]
    block = min(level.block_width, level.width) * min(level.block_height, level.height)
    wanted = max(9, min(MAX_BLOCKS, SAMPLED_PIXELS // block))
    columns = min(across, max(1, round(np.sqrt(wanted * across / down))))
    rows = min(down, max(1, -(-wanted // columns)))
    return [
        _block(level, int((i + 0.5) * across / columns), int((j + 0.5) * down / rows))
        for j in range(rows)
        for i in range(columns)
    ]


def _block(level: Level, across: int, down: int) -> Window:
    left, top = across * level.block_width, down * level.block_height
    # A strip can be the whole file. Only its first rows are read, or the sample would cost as much as the picture.
    rows = max(1, MAX_WHOLE_PIXELS // min(level.block_width, level.width))
    return Window(
        left, top, min(level.block_width, level.width - left), min(level.block_height, level.height - top, rows)
    )
