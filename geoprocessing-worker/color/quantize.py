"""Quantization to sixteen bits between the file and the last step, so that averaging precedes clipping and rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.color.arrays import LARGE, Block, fits_float32, scale_to_byte
from geoprocessing_worker.color.stretch import Stretch
from geoprocessing_worker.raster import U8

U16 = NDArray[np.uint16]
CODES = 65536
WHOLE_SPAN = 2048  # integers: a stretch over at least so many can be averaged as integers
MARGIN_SPANS = 1.5  # times the stretch's span on either side. Values farther out are clipped to it.


@dataclass(frozen=True, slots=True)
class Quantizer:
    """value = first + code * step."""

    first: float
    step: float

    def encode(self, block: Block) -> U16:
        """Return values as codes. Values out of range become the nearest code, and NaN becomes 0."""
        if block.dtype == np.uint16 and self == PLAIN:
            return block
        if block.dtype == np.int16 and self == SIGNED:
            return block.view(np.uint16) ^ np.uint16(0x8000)
        wide: NDArray[Any] = block.astype(
            np.float64 if block.dtype.itemsize > 2 and not self._fits_float32(block.dtype) else np.float32
        )
        with np.errstate(over="ignore", invalid="ignore"):
            wide -= wide.dtype.type(self.first)
            wide *= wide.dtype.type(1 / self.step)
            np.clip(wide, 0, CODES - 1, out=wide)
            wide += wide.dtype.type(0.5)
            np.nan_to_num(wide, copy=False, nan=0.0)
        return wide.astype(np.uint16)

    def _fits_float32(self, dtype: Any) -> bool:
        """Whether float32 is exact enough for the codes of float32 values."""
        return dtype == np.float32 and fits_float32(self.first, self.first + self.step * CODES)

    def table(self, stretch: Stretch, invert: bool) -> U8:
        """Return the (65536,) byte of each code."""
        values = self.first + np.arange(CODES, dtype=np.float64) * self.step
        pixels = scale_to_byte(values, stretch)
        return np.uint8(255) - pixels if invert else pixels


PLAIN = Quantizer(0.0, 1.0)
SIGNED = Quantizer(-32768.0, 1.0)


def choose_quantizer(dtype: Any, stretch: Stretch) -> Quantizer:
    """Return the values themselves where they are fine enough, else steps of about a hundredth of a gray level."""
    span = stretch.hi - stretch.lo
    kind = np.dtype(dtype)
    if span >= WHOLE_SPAN and kind == np.uint16:
        return PLAIN
    if span >= WHOLE_SPAN and kind == np.int16:
        return SIGNED
    first = stretch.lo - MARGIN_SPANS * span
    if kind == np.float32 and abs(first) < LARGE:
        first = float(np.float32(first))  # exact, so that subtraction from values far from 0 is too
    return Quantizer(first, (1 + 2 * MARGIN_SPANS) * span / (CODES - 1))
