"""Read an archive of tiles as a viewer would, and compare some of its tiles with the file."""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from geoprocessing_worker.geo.crs import parse_crs
from geoprocessing_worker.output.pixel_check import ROUNDING, check_pixels
from geoprocessing_worker.output.stac import Json
from geoprocessing_worker.output.verify import failed
from geoprocessing_worker.render.options import OutputFormat
from geoprocessing_worker.render.picture import pack
from geoprocessing_worker.render.task_options import TilesOptions
from geoprocessing_worker.tasks.tiles.archive import TILE_TYPES, Archive
from geoprocessing_worker.tasks.tiles.grid import SIDE, Tile
from geoprocessing_worker.tasks.tiles.source import TileSource

CHECKED_TILES = 6  # tiles
LOSSY_LEEWAY = 40  # gray levels, at an edge that the codec has smeared


def check_archive(
    path: Path, made: Collection[Tile], tiles: TileSource, tilejson: Json, options: TilesOptions
) -> dict[str, int]:
    """Check the archive's header and metadata, and sixteen points in each of a few tiles of the highest zoom.

    Args:
        path: of the archive.
        made: the tiles that must be in it.
        tiles: their source.
        tilejson: the metadata that it must hold.
        options: of the job.

    Returns:
        The numbers of tiles, compared points and matches.

    Raises:
        JobError: `self_check_failed`, class internal.
    """
    with path.open("rb") as file:
        archive = Archive(file)
        found = archive.header()
        wanted = {
            "tile_type": TILE_TYPES[options.output_format],
            "addressed_tiles_count": tilejson["tileCount"],
            "max_zoom": tilejson["maxzoom"],
            "clustered": True,
        }
        wrong = [name for name, value in wanted.items() if found[name] != value]
        if wrong or archive.metadata() != tilejson:
            raise failed(f"it differs in its {', '.join(wrong) or 'metadata'}", path)
        compared = matching = looked = 0
        for tile in _spread_tiles(made):
            matches = _compare(archive, tile, tiles, options)
            compared, matching, looked = compared + matches[0], matching + matches[1], looked + 1
    return {"tilesLookedAt": looked, "placesCompared": compared, "matches": matching}


def _spread_tiles(made: Collection[Tile]) -> list[Tile]:
    """Return tiles of the highest zoom, spread over all tiles."""
    highest = max(tile.zoom for tile in made)
    there = [tile for tile in made if tile.zoom == highest]
    places = np.unique(np.linspace(0, len(there) - 1, CHECKED_TILES).astype(int))
    return [there[place] for place in places]


def _compare(archive: Archive, tile: Tile, tiles: TileSource, options: TilesOptions) -> tuple[int, int]:
    source, header = tiles.path, tiles.header
    content = archive.tile(tile)
    if content is None:
        raise failed(f"its tile {tile.zoom}/{tile.column}/{tile.row} is missing", source)
    image = Image.open(BytesIO(content), formats=("PNG", "JPEG", "WEBP"))
    if image.size != (SIDE, SIDE):
        raise failed(f"a tile of it has {image.width} x {image.height} pixels", source)
    if options.output_format is OutputFormat.JPEG and not image.has_transparency_data:
        return 0, 0  # hidden pixels are white here, the same as white ones
    grid = tile.grid(parse_crs("EPSG:3857"))
    picture = pack(np.asarray(image.convert("RGBA")), grid)
    lossless = options.output_format is OutputFormat.PNG
    matches = check_pixels(source, header, tiles.plan_for(grid), picture, leeway=ROUNDING if lossless else LOSSY_LEEWAY)
    return matches.compared, matches.matching
