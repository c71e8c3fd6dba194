"""Writes everything that leaves: picture, sidecars, thumbnail, metadata. Each file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geoprocessing_worker.encode import CONTENT_TYPES, EXTENSIONS, encode, thumbnail
from geoprocessing_worker.handlers import OutputFile, write_whole
from geoprocessing_worker.options import RenderOptions
from geoprocessing_worker.raster import Picture
from geoprocessing_worker.sidecars import WORLD_EXTENSIONS, auxiliary_file, projection_file, world_file
from geoprocessing_worker.stac import item, json_bytes


def write_picture(folder: Path, stem: str, picture: Picture, options: RenderOptions) -> OutputFile:
    """The picture itself.

    Raises:
        OSError: the folder cannot be written.
    """
    kind = options.output_format
    return write_whole(
        folder, f"{stem}.{EXTENSIONS[kind]}", encode(picture, kind, options.quality), CONTENT_TYPES[kind]
    )


def write_companions(
    folder: Path, stem: str, picture: Picture, options: RenderOptions, block: dict[str, Any]
) -> tuple[OutputFile, ...]:
    """All that stands beside the picture: sidecars that place it, metadata, thumbnail.

    Raises:
        OSError: the folder cannot be written.
    """
    grid, picture_name = picture.grid, f"{stem}.{EXTENSIONS[options.output_format]}"
    texts: list[tuple[str, str | None, str]] = []
    if grid.transform is not None:
        texts.append((f"{stem}.{WORLD_EXTENSIONS[options.output_format]}", world_file(grid.transform), "text/plain"))
        texts.append((f"{picture_name}.aux.xml", auxiliary_file(grid), "application/xml"))
    if grid.crs is not None:
        texts.append((f"{stem}.prj", projection_file(grid.crs), "text/plain"))
    asset = {"href": picture_name, "type": CONTENT_TYPES[options.output_format], "roles": ["visual"]}
    told = item(stem, grid, block, {"picture": asset})
    outputs = [write_whole(folder, name, text.encode(), kind) for name, text, kind in texts if text is not None]
    outputs.append(write_whole(folder, f"{stem}.json", json_bytes(told), "application/json"))
    if options.generate_thumbnails:
        small = thumbnail(picture, options.thumbnail_size)
        outputs.append(write_whole(folder, f"{stem}_thumb.png", small, "image/png"))
    return tuple(outputs)
