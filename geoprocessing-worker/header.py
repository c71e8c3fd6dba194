"""What a file says about itself, as values: read once at the edge, used by everything after."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC


class Georeferencing(StrEnum):
    """How a file says where it lies."""

    AFFINE = "affine"
    GCPS = "gcps"
    RPC = "rpc"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class BandHeader:
    """One band: 1-based index, numpy's name of its type, GDAL's word for its colour, and what its values mean."""

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

    def band(self, index: int) -> BandHeader:
        """The band with this 1-based index."""
        return self.bands[index - 1]
