"""A PMTiles archive: tiles are spooled as they come, then written in the order of reading."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pmtiles.reader import MmapSource, Reader
from pmtiles.tile import Compression, TileType, tileid_to_zxy, zxy_to_tileid
from pmtiles.writer import Writer

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.render.options import OutputFormat
from geoprocessing_worker.tasks.tiles.grid import Tile

TILE_TYPES = {OutputFormat.PNG: TileType.PNG, OutputFormat.JPEG: TileType.JPEG, OutputFormat.WEBP: TileType.WEBP}
DEGREE = 10_000_000  # the archive counts in ten-millionths


@dataclass
class Spool:
    """Tiles on disk, each distinct content once, in the order of arrival.

    Args:
        file: open for writing and reading.
        most_bytes: the limit.
    """

    file: IO[bytes]
    most_bytes: int
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    _known: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    _size: int = 0

    def put(self, tile: Tile, content: bytes) -> None:
        """Add a tile.

        Raises:
            JobError: `output_too_large`.
        """
        digest = hashlib.blake2b(content, digest_size=16).digest()
        place = self._known.get(digest)
        if place is None:
            self._size += len(content)
            if self._size > self.most_bytes:
                raise invalid_input(
                    "output_too_large",
                    f"The tiles come to more than {self.most_bytes / 1e6:,.0f} MB. "
                    "Ask for a lower maxZoom, or for webp or jpeg.",
                    max_bytes=self.most_bytes,
                )
            place = self._known[digest] = (self._size - len(content), len(content))
            self.file.write(content)
        self.places[zxy_to_tileid(tile.zoom, tile.column, tile.row)] = place

    def tiles(self) -> list[Tile]:
        """Return all tiles, in the archive's order."""
        return [Tile(*tileid_to_zxy(tile_id)) for tile_id in sorted(self.places)]

    def write(self, path: Path, header: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Write the archive: tiles in the order of their ids, so that neighbors are fetched together.

        Raises:
            OSError: the disk is full.
        """
        with path.open("wb") as file:
            writer = Writer(file)
            for tile_id, (offset, length) in sorted(self.places.items()):
                self.file.seek(offset)
                writer.write_tile(tile_id, self.file.read(length))
            writer.finalize(header, metadata)


def archive_header(
    output_format: OutputFormat, bounds: tuple[float, float, float, float], center: tuple[float, float, int]
) -> dict[str, Any]:
    """Return the archive's header. `bounds`: west, south, east, north. `center`: longitude, latitude, zoom."""
    west, south, east, north = (round(value * DEGREE) for value in bounds)
    return {
        "tile_type": TILE_TYPES[output_format],
        "tile_compression": Compression.NONE,
        "min_lon_e7": west,
        "min_lat_e7": south,
        "max_lon_e7": east,
        "max_lat_e7": north,
        "center_lon_e7": round(center[0] * DEGREE),
        "center_lat_e7": round(center[1] * DEGREE),
        "center_zoom": center[2],
    }


class Archive:
    """A reader of an archive.

    Args:
        file: open for reading.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._reader = Reader(MmapSource(file))

    def header(self) -> dict[str, Any]:
        """Return the archive's header."""
        return dict(self._reader.header())

    def metadata(self) -> dict[str, Any]:
        """Return the JSON beside the tiles."""
        return dict(self._reader.metadata())

    def tile(self, tile: Tile) -> bytes | None:
        """Return one tile, or None."""
        found: bytes | None = self._reader.get(tile.zoom, tile.column, tile.row)
        return found
