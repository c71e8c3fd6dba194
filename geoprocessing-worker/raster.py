"""What travels from reading to packing: samples, what is valid, where it lies, what the colours mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]


class Meaning(StrEnum):
    """What the samples of a picture stand for."""

    GRAY = "gray"
    RGB = "rgb"
    INDEXED = "indexed"


@dataclass(frozen=True, slots=True)
class Grid:
    """A raster's size in pixels, and the affine from pixel corners (column, row) to `crs`; both may be unknown."""

    width: int
    height: int
    transform: Affine | None
    crs: CRS | None


@dataclass(frozen=True, slots=True)
class Raster:
    """What was read: (channels, height, width) samples, straight (never premultiplied), and (height, width) opacity.

    `alpha` is 0 where a pixel is not valid and 255 where it wholly is; `None` means valid everywhere. A sample that is
    not valid is 0. Samples of 16 bits are codes, and `table`, (65536,), is the byte that each is shown as;
    without a table they are indexes.
    """

    samples: U8 | U16
    alpha: U8 | None
    table: U8 | None


@dataclass(frozen=True, slots=True)
class Placed:
    """What lies on the output's grid: (height, width, channels) bytes, straight, and (height, width) opacity.

    Indexes of a colour table may have 16 bits.
    """

    samples: NDArray[Any]
    alpha: U8 | None


def counts(plane: U8) -> NDArray[np.intp]:
    """(256,) how often each byte occurs; in pieces, since numpy widens what it counts to eight times its size."""
    total = np.zeros(256, dtype=np.intp)
    flat = plane.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        total += np.bincount(flat[start : start + (1 << 20)], minlength=256)
    return total


def all_or_nothing(alpha: U8) -> bool:
    """Whether no pixel is partly hidden. In a byte 255 + 1 is 0: both ends come out as 0 or 1, all else larger."""
    return alpha.size == 0 or int((alpha + np.uint8(1)).max()) <= 1


@dataclass(frozen=True, slots=True)
class Picture:
    """What is written: (height, width, channels) with 1 gray, 2 gray+alpha, 3 RGB or 4 RGBA channels.

    With `palette`, (entries, 4) RGBA, the one channel holds indexes; hidden pixels hold a transparent entry.
    """

    pixels: U8
    palette: U8 | None
    grid: Grid
    valid_fraction: float

    @property
    def mode(self) -> str:
        """Pillow's word for the layout: L, LA, RGB, RGBA or P."""
        return "P" if self.palette is not None else ("L", "LA", "RGB", "RGBA")[self.pixels.shape[2] - 1]
