"""Tile sizes, overviews and further creation options of a cloud optimized GeoTIFF, and the verdict on its layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rio_cogeo.cogeo import cog_validate

from geoprocessing_worker.raster import SourceHeader
from geoprocessing_worker.render.task_options import LOSSY, CogOptions
from geoprocessing_worker.tiff.structure import TiffStructure
from geoprocessing_worker.tiff.tags import TILE_WIDTH

BLOCK = 512  # pixels: GDAL's default
SMALLEST_BLOCK = 128  # pixels: rio-cogeo and GDAL accept less, but readers fetch each tile by itself
LARGE_TILE = 64 << 20  # bytes of all bands
OVERVIEW_BLOCKS = (256, 512, 1024, 128, 2048)  # pixels, by preference. GDAL takes powers of two
SMALL = 512  # pixels a side: up to this size rio-cogeo requires neither tiles nor overviews
UNTILED = "not tiled"  # rio-cogeo's words
NO_OVERVIEWS = "recommended to include internal overviews"  # rio-cogeo's words


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The sides of tiles in pixels, of the picture and of its overviews, and the number of overviews.

    rio-cogeo takes a level exactly one tile wide for strips, since it does not read the TileWidth tag. Another tile
    size is preferred where it avoids that, so that `rio cogeo validate` accepts the file too.
    """

    block: int
    overview_block: int
    overviews: int

    @classmethod
    def of(cls, width: int, height: int, asked: int | None, pixel_bytes: int = 1) -> TileLayout:
        """Return the layout of a picture.

        Args:
            width: in pixels.
            height: in pixels.
            asked: the job's tile size.
            pixel_bytes: of all bands. Tiles of many bands are smaller, since GDAL has several in memory.
        """
        block = asked or (BLOCK if width != BLOCK or height <= SMALL else BLOCK // 2)
        while asked is None and block > SMALLEST_BLOCK and block * block * pixel_bytes > LARGE_TILE:
            block //= 2
        if width == 1:
            return cls(block, block, 0)  # rio-cogeo rejects overviews as wide as the picture
        levels = _levels(width, height, block)
        doubtful = {across for across, down in levels if max(across, down) > SMALL}
        fitting = [size for size in (block, *OVERVIEW_BLOCKS) if size not in doubtful]
        return cls(block, fitting[0] if fitting else block, len(levels))


WEB = TileLayout(256, 256, 1)
"""The tiles of the GoogleMapsCompatible scheme. GDAL decides the number of overviews."""


def _levels(width: int, height: int, block: int) -> list[tuple[int, int]]:
    """Return the sizes of the overviews: halved, rounded down, until one fits into a tile."""
    found: list[tuple[int, int]] = []
    largest = max(width, height)
    while largest > block or (largest > SMALL and not found):
        width, height = max(1, width // 2), max(1, height // 2)
        largest = max(width, height)
        found.append((width, height))
    return found


def creation_options(options: CogOptions, header: SourceHeader, tiles: TileLayout, method: str) -> dict[str, str]:
    """Return the options of GDAL's COG driver."""
    chosen = {
        "COMPRESS": options.compression.value.upper(),
        "BLOCKSIZE": str(tiles.block),
        # Where none are needed, GDAL 3.10 would copy those of the source, in their order.
        "OVERVIEWS": "IGNORE_EXISTING" if tiles.overviews else "NONE",
        "OVERVIEW_COUNT": str(tiles.overviews),
        "OVERVIEW_RESAMPLING": method.upper(),
        "WARP_RESAMPLING": "NEAREST" if method in {"nearest", "mode"} else "BILINEAR",
        "NUM_THREADS": "2",
        "BIGTIFF": "IF_SAFER",
        # Those of the source. GDAL computes them again where alpha becomes a mask or the copy is reprojected, and
        # removes them only through a VRT dataset.
        "STATISTICS": "AUTO",
    }
    if header.full.stored is not None:
        chosen["SPARSE_OK"] = "YES"
    if options.compression in LOSSY:
        chosen |= {"QUALITY": str(options.quality), "OVERVIEW_QUALITY": str(options.quality)}
    elif all(band.bits in {None, 8, 16, 32, 64} and np.dtype(band.dtype).kind != "c" for band in header.bands):
        chosen["PREDICTOR"] = "YES"  # libtiff has none for other numbers of bits, nor for complex ones
    whole = 8 * np.dtype(header.bands[0].dtype).itemsize
    if not options.web_optimized and len(header.bands) > 1 and header.bands[0].bits not in {None, whole}:
        # With fewer bits and several bands GDAL 3.10 leaves leftovers of memory in tiles, beyond the picture's edge.
        chosen["NBITS"] = str(whole)
    if options.web_optimized:
        del chosen["OVERVIEW_COUNT"]
        chosen["TILING_SCHEME"] = "GoogleMapsCompatible"
    return chosen


def faults_of_layout(path: Path, tiles: TileLayout) -> list[str]:
    """Return the faults that rio-cogeo finds, without false ones. A level is tiled if it has the TileWidth tag."""
    _, errors, warnings = cog_validate(str(path), strict=True, quiet=True)
    tiled = all(ifd.find(TILE_WIDTH) is not None for ifd in TiffStructure.read(path).ifds)
    harmless = [UNTILED] if tiled else []
    if not tiles.overviews:
        harmless.append(NO_OVERVIEWS)
    return [fault for fault in (*errors, *warnings) if not any(words in fault for words in harmless)]
