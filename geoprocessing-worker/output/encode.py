"""Encode a picture as PNG, JPEG or WebP. Equal pictures give equal bytes."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geoprocessing_worker.color.arrays import downsample_sparse
from geoprocessing_worker.output.png_writer import color_png, palette_png
from geoprocessing_worker.raster import U8, Picture, all_or_nothing, counts
from geoprocessing_worker.render.options import OutputFormat

WHITE = 255
UNSUBSAMPLED = 90  # JPEG's quality from which chroma keeps its full size
WEBP_METHOD = 1  # half the time of 2, and its files are a little smaller
TRIANGLE = np.array([1, 3, 3, 1], dtype=np.float32) / 8  # at twice the thumbnail's size
BAND = 1 << 18  # bytes of a picture that are averaged at once
SPARSE = 0.05  # of the picture: if less is visible, averaging fades it out of a thumbnail

CONTENT_TYPES = {OutputFormat.PNG: "image/png", OutputFormat.JPEG: "image/jpeg", OutputFormat.WEBP: "image/webp"}
EXTENSIONS = {OutputFormat.PNG: "png", OutputFormat.JPEG: "jpg", OutputFormat.WEBP: "webp"}


def encode(picture: Picture, output_format: OutputFormat, quality: int) -> bytes:
    """Return the whole file. JPEG has no transparency: hidden pixels become white."""
    if output_format is OutputFormat.PNG:
        return _png(picture)
    image = Image.fromarray(_colors(picture).squeeze(2) if picture.mode == "L" else _colors(picture))
    file = BytesIO()
    if output_format is OutputFormat.JPEG:
        whole = quality >= UNSUBSAMPLED
        _opaque(image).save(file, "JPEG", quality=quality, optimize=True, subsampling=0 if whole else 2)
    else:
        image.save(file, "WEBP", quality=quality, method=WEBP_METHOD)
    return file.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if "A" not in image.mode:
        return image
    opaque = image.convert(image.mode[:-1])
    flat = Image.new(opaque.mode, image.size, "white")
    flat.paste(opaque, mask=image.getchannel("A"))
    return flat


def thumbnail(picture: Picture, size: int) -> bytes:
    """Return a PNG with a long side of at most `size` pixels, never enlarged, shrunk from the finished picture."""
    if picture.valid_fraction < SPARSE:
        return color_png(_downsample_sparse(picture, size))
    return color_png(_downsample(_coarser(picture, 3 * size), size))


def _downsample(picture: Picture, size: int) -> U8:
    """Return (rows, columns, channels), averaged over triangles two pixels wide, with color weighted by opacity."""
    pixels = _colors(picture)
    height, width, channels = pixels.shape
    scale = size / max(height, width)
    if scale >= 1:
        return pixels
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    # Whole steps are cheap. To three times the size, they blur no edge that remains.
    small = _shrunk(pixels, max(1, height // (3 * rows)), max(1, width // (3 * columns)))
    # One axis at a time: OpenCV averages only if neither axis is enlarged.
    halves = cv2.resize(small, (small.shape[1], 2 * rows), interpolation=cv2.INTER_AREA)
    halves = cv2.resize(halves, (2 * columns, 2 * rows), interpolation=cv2.INTER_AREA)
    means = cv2.sepFilter2D(halves, -1, TRIANGLE, TRIANGLE, anchor=(1, 1), borderType=cv2.BORDER_REPLICATE)
    found = np.asarray(means, dtype=np.float32)[::2, ::2].reshape(rows, columns, channels)
    if channels in {2, 4}:
        found[..., :-1] *= WHITE / np.maximum(found[..., -1:], np.float32(1 / WHITE))
    return np.rint(np.clip(found, 0, WHITE)).astype(np.uint8)


def _shrunk(pixels: U8, down: int, across: int) -> NDArray[np.float32]:
    """Return means of `down` rows and `across` columns, color times opacity. Works in bands that fit the cache."""
    rows, columns, channels = pixels.shape[0] // down, pixels.shape[1] // across, pixels.shape[2]
    small = np.empty((rows, columns, channels), dtype=np.float32)
    each = max(1, BAND // (down * pixels[0].size))
    for first in range(0, rows, each):
        part = small[first : first + each]
        band: NDArray[Any] = pixels[first * down : (first + len(part)) * down, : columns * across]
        if channels in {2, 4} and not all_or_nothing(band[..., -1]):  # hidden pixels are 0
            *colors, alpha = cv2.split(band)
            products = (cv2.multiply(plane, alpha, scale=1 / WHITE, dtype=cv2.CV_32F) for plane in colors)
            band = cv2.merge([*products, alpha.astype(np.float32)])
        part[:] = cv2.resize(band, part.shape[1::-1], interpolation=cv2.INTER_AREA).reshape(part.shape)
    return small


def _downsample_sparse(picture: Picture, size: int) -> U8:
    """Return (rows, columns, channels) in which sparse pixels stay visible. Averaging would fade them out."""
    pixels = _colors(picture)
    height, width, channels = pixels.shape
    if channels not in {2, 4} or max(height, width) <= size:
        return pixels
    scale = size / max(height, width)
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    fewer = max(1, round(height * scale)), max(1, round(width * scale))
    colors, alpha = downsample_sparse(planes[:-1], planes[-1], fewer, None)
    return np.concatenate([np.moveaxis(colors, 0, 2), np.asarray(alpha)[..., None]], axis=2)


def _coarser(picture: Picture, size: int) -> Picture:
    """Return a palette picture with every n-th pixel, its short side at least `size`, since look-ups cost."""
    every = max(1, min(picture.pixels.shape[:2]) // size) if picture.palette is not None else 1
    pixels = picture.pixels[every // 2 :: every, every // 2 :: every] if every > 1 else picture.pixels
    return replace(picture, pixels=pixels)


def _colors(picture: Picture) -> U8:
    """Return (height, width, channels), with palettes looked up."""
    if picture.palette is None:
        return picture.pixels
    table = picture.palette if (picture.palette[:, 3] != WHITE).any() else picture.palette[:, :3]
    colors: U8 = table[picture.pixels[:, :, 0]]
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
