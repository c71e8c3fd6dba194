"""Encode a picture as PNG, JPEG or WebP. Equal pictures give equal bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyvips

from geoprocessing_worker.color.arrays import downsample_sparse
from geoprocessing_worker.output.png_writer import color_png, palette_png
from geoprocessing_worker.raster import U8, Picture, all_or_nothing, counts
from geoprocessing_worker.render.options import OutputFormat

WHITE = 255
SPARSE = 0.05  # of the picture: if less is visible, averaging fades it out of a thumbnail

CONTENT_TYPES = {OutputFormat.PNG: "image/png", OutputFormat.JPEG: "image/jpeg", OutputFormat.WEBP: "image/webp"}
EXTENSIONS = {OutputFormat.PNG: "png", OutputFormat.JPEG: "jpg", OutputFormat.WEBP: "webp"}


def encode(picture: Picture, output_format: OutputFormat, quality: int) -> bytes:
    """Return the whole file. JPEG has no transparency: hidden pixels become white."""
    if output_format is OutputFormat.PNG:
        return _png(picture)
    image = as_vips(picture)
    if output_format is OutputFormat.JPEG:
        image = image.flatten(background=WHITE) if image.hasalpha() else image
        return bytes(image.jpegsave_buffer(Q=quality, keep="none", optimize_coding=True))
    return bytes(image.webpsave_buffer(Q=quality, keep="none", effort=2))


def thumbnail(picture: Picture, size: int) -> bytes:
    """Return a PNG with a long side of at most `size` pixels, never enlarged, shrunk from the finished picture."""
    if picture.valid_fraction < SPARSE:
        return color_png(_downsample_sparse(picture, size))
    image = _shrunk(picture, size)
    small = _weighted(image, size) if image.hasalpha() else image.thumbnail_image(size, height=size, size="down")
    # Takes a quarter of libvips's time for compression, which is most of the cost of a small thumbnail.
    return color_png(small.numpy().reshape(small.height, small.width, small.bands))


def _weighted(image: Any, size: int) -> Any:
    """Return bytes shrunk from premultiplied color, so that edges have no dark or light fringe.

    All steps are in floats. libvips's own thumbnails round and clip in between, and are 14 gray levels off at edges.
    """
    scale = min(1.0, size / max(image.width, image.height))
    width, height = (max(1, round(side * scale)) for side in (image.width, image.height))
    small = image.resize(width / image.width, vscale=height / image.height, kernel="linear")
    return small.unpremultiply().rint().cast("uchar").copy(interpretation=image.interpretation)


def _downsample_sparse(picture: Picture, size: int) -> U8:
    """Return (rows, columns, channels) in which sparse pixels stay visible. Averaging would fade them out."""
    pixels = picture.pixels if picture.palette is None else _looked_up(picture.pixels[:, :, 0], picture.palette)
    height, width, channels = pixels.shape
    if channels not in {2, 4} or max(height, width) <= size:
        return pixels
    scale = size / max(height, width)
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    fewer = max(1, round(height * scale)), max(1, round(width * scale))
    colors, alpha = downsample_sparse(planes[:-1], planes[-1], fewer, None)
    return np.concatenate([np.moveaxis(colors, 0, 2), np.asarray(alpha)[..., None]], axis=2)


def _shrunk(picture: Picture, size: int) -> Any:
    """Shrink cheaply to a libvips image of at least twice the thumbnail's size.

    With an alpha band it has premultiplied floats.
    """
    picture = _coarser(picture, 3 * size)
    image = as_vips(picture)
    times = min(picture.pixels.shape[:2]) // (2 * size)
    if not image.hasalpha():
        return image if times < 2 else image.shrink(times, times)
    if times < 2 or not all_or_nothing(image[-1].numpy()):
        return image.premultiply()
        # Hidden pixels are 0. Without partial opacity the color is premultiplied already.
    return image.shrink(times, times).cast("float")


def _coarser(picture: Picture, size: int) -> Picture:
    """Return a palette picture with every n-th pixel, its short side at least `size`, since look-ups cost."""
    every = max(1, min(picture.pixels.shape[:2]) // size) if picture.palette is not None else 1
    pixels = picture.pixels[every // 2 :: every, every // 2 :: every] if every > 1 else picture.pixels
    return replace(picture, pixels=pixels)


def as_vips(picture: Picture) -> Any:
    """Return the picture as a libvips image of 1 to 4 bands, with palettes looked up."""
    pixels = picture.pixels if picture.palette is None else _looked_up(picture.pixels[:, :, 0], picture.palette)
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    image = pyvips.Image.new_from_memory(pixels.data, width, height, channels, "uchar")
    return image.copy(interpretation="srgb" if channels >= 3 else "b-w")


def _looked_up(indexes: U8, palette: U8) -> U8:
    table = palette if (palette[:, 3] != WHITE).any() else palette[:, :3]
    colors: U8 = table[indexes]
    return colors


def _png(picture: Picture) -> bytes:
    if picture.palette is not None:
        return palette_png(picture.pixels[:, :, 0], picture.palette)
    return color_png(picture.pixels, _depth(picture))


def _depth(picture: Picture) -> int:
    """Return 1, 2 or 4 bits for gray that needs no more, such as scans and masks."""
    if picture.mode != "L":
        return 8
    used = np.flatnonzero(counts(picture.pixels))
    return next((bits for bits, step in ((1, 255), (2, 85), (4, 17)) if not (used % step).any()), 8)
