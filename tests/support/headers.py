"""Headers without a file, for decisions made from the header alone."""

from __future__ import annotations

from affine import Affine
from pyproj import CRS

from geoprocessing_worker.raster import BandHeader, Georeferencing, Level, SourceHeader


def header_of(width: int, height: int, transform: Affine | None, epsg: int | None) -> SourceHeader:
    """One band of bytes in this place, or without a place if `epsg` is missing."""
    crs = CRS.from_epsg(epsg) if epsg else None
    return SourceHeader(
        width=width,
        height=height,
        bands=(BandHeader(1, "uint8", "gray", None, None, None, 1.0, 0.0, None),),
        levels=(Level(None, width, height, 256, 256),),
        pixel_interleaved=False,
        compression="NONE",
        miniswhite=False,
        alpha_premultiplied=False,
        has_mask=False,
        palette=None,
        crs=crs,
        full_crs=crs,
        georeferencing=Georeferencing.AFFINE if crs else Georeferencing.NONE,
        transform=transform,
        gcps=(),
        rpc=None,
        pixel_is_point=False,
        pages=1,
    )
