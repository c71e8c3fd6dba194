"""Values shared by all packages: a file's header, and the rasters and pictures made from it."""

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
    """The kind of georeference that a file declares."""

    AFFINE = "affine"
    GCPS = "gcps"
    RPC = "rpc"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class BandHeader:
    """One band: 1-based index, NumPy type, GDAL color interpretation, and the meaning of its values."""

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
    """The stored blocks of a level. Reading any other block costs nothing.

    `sums`, (rows + 1, columns + 1), has the number of stored blocks above and left of each block corner.
    """

    block_width: int
    block_height: int
    sums: NDArray[np.int32]

    @classmethod
    def of(cls, present: NDArray[np.bool_], block_width: int, block_height: int) -> Self:
        """Create it from (rows, columns) of blocks."""
        sums = np.zeros((present.shape[0] + 1, present.shape[1] + 1), dtype=np.int32)
        np.cumsum(np.cumsum(present, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
        return cls(block_width, block_height, sums)

    def count(self) -> int:
        """Return the number of stored blocks."""
        return int(self.sums[-1, -1])

    def count_in(self, left: float, top: float, right: float, bottom: float) -> int:
        """Return the number of stored blocks that overlap this pixel rectangle."""
        rows, columns = self.sums.shape[0] - 1, self.sums.shape[1] - 1
        first_row, first = max(0, int(top // self.block_height)), max(0, int(left // self.block_width))
        last_row = min(rows, math.ceil(bottom / self.block_height))
        last = min(columns, math.ceil(right / self.block_width))
        if last <= first or last_row <= first_row:
            return 0
        sums = self.sums
        return int(sums[last_row, last] - sums[first_row, last] - sums[last_row, first] + sums[first_row, first])

    def places(self) -> NDArray[np.intp]:
        """Return (blocks, 2): row and column of each stored block."""
        present = np.diff(np.diff(self.sums, axis=0), axis=1)
        return np.argwhere(present > 0)


@dataclass(frozen=True, slots=True)
class Level:
    """A readable resolution. `overview` is GDAL's 0-based overview level, or `None` for the full picture.

    `sequential`: all rows are one compressed strip, so reading a row decodes all rows above it.
    `left` and `top` are the offset of a cropped level of `width` x `height` pixels. `stored` counts from the
    corner of the whole level. Without it, all blocks are stored.
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
    """A GeoTIFF's header. Sizes in pixels. `transform` maps pixel corners (column, row) to `crs`.

    Pages:
        `page` counts pictures from 1. `directory` counts all IFDs of the file, overviews included.
    Ground control points:
        `gcp_residual` is the RMS distance of the points from the fitted curve, in pixels. `gcp_spline`: the curve is a
        thin-plate spline, since the polynomial's residual is `gcp_polynomial_residual`.
    Georeference:
        `crs` is the horizontal part, used for placing. `full_crs` is the declared CRS, heights included. `crs_given`:
        the CRS is the job's. `crs_would_place`: a CRS is all that the file lacks for a place on Earth. `displaced` is
        the reason why the declared georeference is unused. `caveat` is the reason why it can be inaccurate.
    Masks:
        `mask_directory` is the IFD of the page's mask, if GDAL does not find it or returns it band by band.
        `mask_overviews_unlike` is the share of wrong pixels in the worst mask overview, which is not used.
    Samples:
        `photometric` is TIFF's photometric interpretation. `raw`: samples are read as stored, where GDAL would convert
        them to RGB.
    `remarks`: sentences on oddities of the file, for its owner.
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
        """Sentences for the file's owner: doubts about its georeference, then `remarks`."""
        return *(note for note in (self.displaced, self.caveat) if note), *self.remarks

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
        """Return the band with this 1-based index."""
        return self.bands[index - 1]


class SampleKind(StrEnum):
    """The meaning of a picture's samples."""

    GRAY = "gray"
    RGB = "rgb"
    INDEXED = "indexed"


@dataclass(frozen=True, slots=True)
class Grid:
    """A raster's size in pixels, and the affine from pixel corners (column, row) to `crs`. Both may be unknown."""

    width: int
    height: int
    transform: Affine | None
    crs: CRS | None


@dataclass(frozen=True, slots=True)
class Raster:
    """Source pixels: (channels, height, width) samples with straight alpha, and (height, width) opacity.

    `alpha` is 0 for invalid and 255 for valid pixels. `None` means valid everywhere. An invalid sample is 0. Samples of
    16 bits are codes, which `table`, (65536,), maps to bytes. Without a table they are indexes.
    """

    samples: U8 | U16
    alpha: U8 | None
    table: U8 | None


@dataclass(frozen=True, slots=True)
class WarpedImage:
    """Pixels on the output's grid: (height, width, channels) bytes with straight alpha, and (height, width) opacity.

    Indexes of a color table may have 16 bits.
    """

    samples: NDArray[Any]
    alpha: U8 | None


def counts(plane: U8) -> NDArray[np.intp]:
    """Return (256,) counts of each byte. Works in chunks, since NumPy widens its input to eight times the size."""
    total = np.zeros(256, dtype=np.intp)
    flat = plane.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        total += np.bincount(flat[start : start + (1 << 20)], minlength=256)
    return total


def all_or_nothing(alpha: U8) -> bool:
    """Whether no pixel is partly transparent. In a byte 255 + 1 is 0, so 0 and 255 become 1 and 0."""
    return alpha.size == 0 or int((alpha + np.uint8(1)).max()) <= 1


@dataclass(frozen=True, slots=True)
class Picture:
    """The output: (height, width, channels) with 1 gray, 2 gray+alpha, 3 RGB or 4 RGBA channels.

    With `palette`, (entries, 4) RGBA, the only channel holds indexes. Hidden pixels have a transparent entry.
    """

    pixels: U8
    palette: U8 | None
    grid: Grid
    valid_fraction: float

    @property
    def mode(self) -> str:
        """Pillow's name of the layout: L, LA, RGB, RGBA or P."""
        return "P" if self.palette is not None else ("L", "LA", "RGB", "RGBA")[self.pixels.shape[2] - 1]
