"""What a file says about itself, as values: read once at the edge, used by everything after."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
class Level:
    """A resolution that can be read: `overview` is GDAL's 0-based overview level, `None` the full picture.

    With `left` and `top` it is the part of that, `width` x `height` pixels, that begins there.
    """

    overview: int | None
    width: int
    height: int
    block_width: int
    block_height: int
    left: int = 0
    top: int = 0


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
    def full(self) -> Level:
        """The level of the full picture."""
        return self.levels[0]

    def band(self, index: int) -> BandHeader:
        """The band with this 1-based index."""
        return self.bands[index - 1]
