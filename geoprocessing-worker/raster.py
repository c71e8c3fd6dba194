"""Values shared by all rooms: a file's header, and the rasters and pictures made from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]


class Georeferencing(StrEnum):
    """How a file says where it lies."""

    AFFINE = "affine"
    GCPS = "gcps"
    RPC = "rpc"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class BandHeader:
    """One band: 1-based index, numpy's name of its type, GDAL's word for its color, and what its values mean."""

    index: int
    dtype: str
    colorinterp: str
    description: str | None
    nodata: float | None
    bits: int | None
    scale: float
    offset: float
    unit: str | None


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Which blocks of a level are stored; reading any other one costs nothing.

    `sums`, (rows + 1, columns + 1), has the number of stored blocks above and left of each corner between blocks.
    """

    block_width: int
    block_height: int
    sums: NDArray[np.int32]

    @classmethod
    def of(cls, present: NDArray[np.bool_], block_width: int, block_height: int) -> Self:
        """From (rows, columns) of blocks."""
        sums = np.zeros((present.shape[0] + 1, present.shape[1] + 1), dtype=np.int32)
        np.cumsum(np.cumsum(present, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
        return cls(block_width, block_height, sums)

    def count(self) -> int:
        """The number of stored blocks."""
        return int(self.sums[-1, -1])

    def count_in(self, left: float, top: float, right: float, bottom: float) -> int:
        """The number of stored blocks that pixels from `left`, `top` up to `right`, `bottom` lie in."""
        rows, columns = self.sums.shape[0] - 1, self.sums.shape[1] - 1
        first_row, first = max(0, int(top // self.block_height)), max(0, int(left // self.block_width))
        last_row = min(rows, math.ceil(bottom / self.block_height))
        last = min(columns, math.ceil(right / self.block_width))
        if last <= first or last_row <= first_row:
            return 0
        sums = self.sums
        return int(sums[last_row, last] - sums[first_row, last] - sums[last_row, first] + sums[first_row, first])

    def places(self) -> NDArray[np.intp]:
        """(blocks, 2): row and column of each stored block."""
        present = np.diff(np.diff(self.sums, axis=0), axis=1)
        return np.argwhere(present > 0)


@dataclass(frozen=True, slots=True)
class Level:
    """A resolution that can be read: `overview` is GDAL's 0-based overview level, `None` the full picture.

    `sequential`: all rows are one compressed strip, so reading a row means decoding all rows above it.
    With `left` and `top` it is the part of that, `width` x `height` pixels, that begins there. `stored` counts from the
    whole level's corner; without it all blocks are stored.
    """

    overview: int | None
    width: int
    height: int
    block_width: int
    block_height: int
    left: int = 0
    top: int = 0
    stored: StoredBlocks | None = field(default=None, compare=False, repr=False)
    sequential: bool = False


@dataclass(frozen=True, slots=True)
class SourceHeader:
    """A GeoTIFF's header. Sizes in pixels; `transform` maps pixel corners (column, row) to `crs`.

    `page` counts pictures from 1, `directory` all of the file's directories, overviews among them. `gcp_residual`: how
    far the control points lie from the curve fitted through them, root mean square, in pixels. `gcp_spline`: the curve
    is a thin-plate spline, since the polynomial misses them by `gcp_polynomial_residual`. `displaced`: the reason why
    the file's own words about its place are not used. `caveat`: the reason why its place can be off.
    `mask_directory` is that of the page's mask, where GDAL does not find it or hands it out band by band.
    `mask_overviews_unlike` is the share of wrong pixels in the worst of the mask's overviews, which are not used.
    `photometric` is TIFF's number for what the samples mean; `raw`: they are read as they stand in the file, where GDAL
    would rather hand out light of its own making.
    `crs` is the horizontal part, in which the picture is placed; `full_crs` is what the file says, heights included;
    `crs_given`: the job says it, since the file says none that can be.
    `crs_would_place`: a coordinate system is all that the file lacks for a place on Earth.
    `remarks`: sentences on what is odd in the file, for its owner.
    """

    width: int
    height: int
    bands: tuple[BandHeader, ...]
    levels: tuple[Level, ...]
    pixel_interleaved: bool
    compression: str
    miniswhite: bool
    alpha_premultiplied: bool
    has_mask: bool
    palette: NDArray | None  # type: ignore[type-arg]  # (entries, 4) uint8
    crs: CRS | None
    full_crs: CRS | None
    georeferencing: Georeferencing
    transform: Affine | None
    gcps: tuple[GroundControlPoint, ...]
    rpc: RPC | None
    pixel_is_point: bool
    pages: int
    page: int = 1
    directory: int = 1
    mask_directory: int | None = None
    mask_overviews_unlike: float = 0.0
    gcp_residual: float | None = None
    gcp_spline: bool = False
    gcp_polynomial_residual: float | None = None
    displaced: str | None = None
    caveat: str | None = None
    crs_given: bool = False
    crs_would_place: bool = False
    tags: tuple[tuple[str, str], ...] = ()
    icc_profile: bytes | None = None
    photometric: int | None = None
    raw: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the file's owner: doubts about its place, then `remarks`."""
        return *(words for words in (self.displaced, self.caveat) if words), *self.remarks

    @property
    def full(self) -> Level:
        """The level of the full picture."""
        return self.levels[0]

    def level_for(self, width: float = 0, height: float = 0, *, side: float = 0) -> Level:
        """Return the smallest level with at least this width, height and longer side, else the full picture."""
        enough = [
            level
            for level in self.levels
            if level.width >= width and level.height >= height and max(level.width, level.height) >= side
        ]
        return min(enough, key=lambda level: level.width * level.height, default=self.full)

    def band(self, index: int) -> BandHeader:
        """The band with this 1-based index."""
        return self.bands[index - 1]


class SampleKind(StrEnum):
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
class WarpedImage:
    """What lies on the output's grid: (height, width, channels) bytes, straight, and (height, width) opacity.

    Indexes of a color table may have 16 bits.
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
