"""Write all outputs: picture, sidecars, thumbnail, metadata. Each file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from geoprocessing_worker.color.bands import Color
from geoprocessing_worker.geo.wkt import esri_wkt
from geoprocessing_worker.handlers import OutputFile, write_whole
from geoprocessing_worker.output.encode import CONTENT_TYPES, EXTENSIONS, encode, thumbnail
from geoprocessing_worker.output.metadata import Rendered
from geoprocessing_worker.output.sidecars import WORLD_EXTENSIONS, auxiliary_file, world_file
from geoprocessing_worker.output.stac import Json, write_item
from geoprocessing_worker.raster import Picture
from geoprocessing_worker.render.options import OutputFormat, RenderOptions
from geoprocessing_worker.render.plan import RenderPlan


def write_picture(folder: Path, stem: str, picture: Picture, options: RenderOptions) -> OutputFile:
    """Write the picture.

    Raises:
        OSError: the folder cannot be written.
    """
    kind = options.output_format
    return write_whole(
        folder, f"{stem}.{EXTENSIONS[kind]}", encode(picture, kind, options.quality), CONTENT_TYPES[kind]
    )


def picture_bands(picture: Picture, kind: OutputFormat, plan: RenderPlan) -> list[JsonValue]:
    """Return STAC's bands of the picture's file. If pixels represent source values, scale and offset recover these."""
    indexed = picture.palette is not None and kind is OutputFormat.PNG
    colored = picture.palette is not None or picture.mode.startswith("RGB") or kind is OutputFormat.WEBP
    names = ["palette"] if indexed else ["red", "green", "blue"] if colored else ["gray"]
    clear = picture.palette is not None and not indexed and bool((picture.palette[:, 3] < 255).any())
    value: Json = {"data_type": "uint8", "raster:sampling": "area"}
    alpha: list[JsonValue] = [{"name": "alpha", **value}] if (picture.mode in {"LA", "RGBA"} or clear) else []
    plain = plan.bands.color in {Color.GRAY, Color.RGB} and plan.colormap is None and plan.profile is None
    if plain and picture.palette is None:
        lo, hi = plan.stretch.lo, plan.stretch.hi
        first, last = (hi, lo) if plan.invert else (lo, hi)
        value |= {"raster:scale": (last - first) / 255, "raster:offset": first}
    return [*({"name": name, **value} for name in names), *(alpha if kind is not OutputFormat.JPEG else [])]


def write_companions(folder: Path, stem: str, rendered: Rendered, block: Json) -> tuple[OutputFile, ...]:
    """Write the files beside the picture: sidecars that place it, metadata, thumbnail.

    Raises:
        OSError: the folder cannot be written.
    """
    picture, options, grid = rendered.picture, rendered.options, rendered.picture.grid
    picture_name = f"{stem}.{EXTENSIONS[options.output_format]}"
    texts: list[tuple[str, str | None, str]] = []
    if grid.transform is not None:
        texts.append((f"{stem}.{WORLD_EXTENSIONS[options.output_format]}", world_file(grid.transform), "text/plain"))
        texts.append((f"{picture_name}.aux.xml", auxiliary_file(grid), "application/xml"))
    if grid.crs is not None:
        texts.append((f"{stem}.prj", esri_wkt(grid.crs), "text/plain"))
    asset: Json = {
        "href": picture_name,
        "type": CONTENT_TYPES[options.output_format],
        "roles": ["visual"],
        "bands": picture_bands(picture, options.output_format, rendered.plan),
    }
    outputs = [write_whole(folder, name, text.encode(), kind) for name, text, kind in texts if text is not None]
    outputs.append(write_item(folder / f"{stem}.json", rendered.header, grid, block, {"picture": asset}))
    if options.generate_thumbnails:
        small = thumbnail(picture, options.thumbnail_size)
        outputs.append(write_whole(folder, f"{stem}_thumb.png", small, "image/png"))
    return tuple(outputs)
