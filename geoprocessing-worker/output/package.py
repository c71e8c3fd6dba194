"""Writes everything that leaves: picture, sidecars, thumbnail, metadata. Each file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoprocessing_worker.geo.wkt import esri_wkt
from geoprocessing_worker.handlers import OutputFile, write_whole
from geoprocessing_worker.output.encode import CONTENT_TYPES, EXTENSIONS, encode, thumbnail
from geoprocessing_worker.output.sidecars import WORLD_EXTENSIONS, auxiliary_file, world_file
from geoprocessing_worker.output.stac import item, json_bytes
from geoprocessing_worker.raster import Picture
from geoprocessing_worker.render.options import OutputFormat, RenderOptions


def write_picture(folder: Path, stem: str, picture: Picture, options: RenderOptions) -> OutputFile:
    """The picture itself.

    Raises:
        OSError: the folder cannot be written.
    """
    kind = options.output_format
    return write_whole(
        folder, f"{stem}.{EXTENSIONS[kind]}", encode(picture, kind, options.quality), CONTENT_TYPES[kind]
    )


def picture_bands(picture: Picture, kind: OutputFormat, choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """STAC's bands of the picture's file; where its pixels stand for the source's values, how to get these back."""
    indexed = picture.palette is not None and kind is OutputFormat.PNG
    colored = picture.palette is not None or picture.mode.startswith("RGB") or kind is OutputFormat.WEBP
    names = ["palette"] if indexed else ["red", "green", "blue"] if colored else ["gray"]
    clear = picture.palette is not None and not indexed and bool((picture.palette[:, 3] < 255).any())
    value: dict[str, Any] = {"data_type": "uint8", "raster:sampling": "area"}
    alpha = [{"name": "alpha", **value}] if (picture.mode in {"LA", "RGBA"} or clear) else []
    plain = choices["bands"]["shownAs"] in {"gray", "rgb"} and not (choices["colormap"] or choices["colorProfile"])
    if plain and picture.palette is None:
        lo, hi = choices["stretch"]["lo"], choices["stretch"]["hi"]
        first, last = (hi, lo) if choices["inverted"] else (lo, hi)
        value |= {"raster:scale": (last - first) / 255, "raster:offset": first}
    return [{"name": name, **value} for name in names] + (alpha if kind is not OutputFormat.JPEG else [])


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
        texts.append((f"{stem}.prj", esri_wkt(grid.crs), "text/plain"))
    asset = {
        "href": picture_name,
        "type": CONTENT_TYPES[options.output_format],
        "roles": ["visual"],
        "bands": picture_bands(picture, options.output_format, block["choices"]),
    }
    told = item(stem, grid, block, {"picture": asset})
    outputs = [write_whole(folder, name, text.encode(), kind) for name, text, kind in texts if text is not None]
    outputs.append(write_whole(folder, f"{stem}.json", json_bytes(told), "application/json"))
    if options.generate_thumbnails:
        small = thumbnail(picture, options.thumbnail_size)
        outputs.append(write_whole(folder, f"{stem}_thumb.png", small, "image/png"))
    return tuple(outputs)
