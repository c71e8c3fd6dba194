"""LogLuv, TIFF's high dynamic range colors, as gamma-encoded RGB: from 16-bit codes or X, Y and Z."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOGLUV = 32845  # photometric interpretation
BANDS = 3
CODES_PER_STOP, DARKEST_STOP = 256, -64  # of Y, in powers of two
CHROMA = 1 << 15  # codes of u' and v' from 0 to 1
GAMMA = 2.2

# Gray has equal X, Y and Z, so sRGB's primaries are relative to that white.
XYZ_TO_RGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
) * np.array([0.95047, 1.0, 1.08883])


def is_logluv(photometric: int | None, indexes: tuple[int, ...]) -> bool:
    """Whether these bands are the colors of a LogLuv file."""
    return photometric == LOGLUV and indexes == tuple(range(1, BANDS + 1))


def to_light(block: NDArray[Any]) -> NDArray[np.float32]:
    """Convert (3, rows, columns) samples to red, green and blue, evenly spaced to the eye. 1 is the file's Y of 1."""
    xyz = block.astype(np.float32) if block.dtype.kind == "f" else _xyz(block)
    light = np.tensordot(XYZ_TO_RGB.astype(np.float32), xyz, axes=1)
    found: NDArray[np.float32] = np.power(np.maximum(light, 0), np.float32(1 / GAMMA))
    return found


def _xyz(block: NDArray[Any]) -> NDArray[np.float32]:
    """The highest bit of the first code is a sign. Negative light counts as 0."""
    codes = block.astype(np.int32) & 0xFFFF
    brightness = (codes[0].astype(np.float32) + np.float32(0.5)) / CODES_PER_STOP + DARKEST_STOP
    y = np.where((codes[0] > 0) & (codes[0] < CHROMA), np.exp2(brightness), np.float32(0))
    u, v = ((codes[channel] + np.float32(0.5)) / CHROMA for channel in (1, 2))
    return np.stack([9 * u / (4 * v) * y, y, (12 - 3 * u - 20 * v) / (4 * v) * y]).astype(np.float32)
