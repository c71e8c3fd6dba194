"""Warp a read raster onto the output's grid, tile by tile, for shrinking, rotation and reprojection alike.

Averaging is the mean of a few bilinear samples within each output pixel. They are spaced so that their mean is as wide
as the pixel is in the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.color.arrays import LEAST, PICKING
from geoprocessing_worker.geo.approx_transform import (
    CENTER,
    OUTSIDE,
    ApproxTransform,
    Extent,
    Offsets,
    Positions,
    approx_transform,
)
from geoprocessing_worker.raster import U8, Raster, SourceHeader, WarpedImage
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.render.threads import in_order

TILE = 128, 512  # output rows and columns at a time: positions and samples then stay in the processor's cache
DUST = 1e-3  # source pixels beyond an edge that count as inside. Without it a world map shows a seam where it closes.
MARGIN = 2  # source pixels around a position that interpolation may need
LONGEST_SIDE = 32_000  # OpenCV counts pixels in 16 bits with a sign
SINGLE = 1.04  # source pixels per output pixel, up to which one sample is as near to the mean as several
MAX_SAMPLES = 16  # a side: bounds work and memory. A wider output pixel comes from an absurd georeference
WIDENED = 257
MAX_VOTES = 5  # a side: larger output pixels are sampled at as many places
INTERPOLATIONS = {"cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_CUBIC}

Planes = list[NDArray[Any]]
Sampled = tuple[NDArray[Any], U8 | None]
"""(rows, columns, channels), and the opacity unless all is visible."""
Part = tuple[slice, slice]


def place(raster: Raster, header: SourceHeader, plan: RenderPlan) -> WarpedImage:
    """Return the raster on the plan's target grid, bytes or wide indexes. Outside of the source all is hidden and 0."""
    channels, height, width = raster.samples.shape
    layout, target = plan.layout, plan.layout.target
    if not layout.warp and (width, height) == (target.width, target.height):
        return _turned(raster, layout.flip_rows, layout.flip_columns)
    sampler = _Sampler(raster, approx_transform(header, layout, width, height), plan.resampling)
    kept = np.uint8 if raster.table is not None else raster.samples.dtype
    samples = np.zeros((target.height, target.width, channels), dtype=kept)
    alpha = np.zeros((target.height, target.width), dtype=np.uint8)

    def fill(tile: Part) -> None:
        for part, (found, opacity) in sampler.parts(tile):
            samples[part] = found
            alpha[part] = 255 if opacity is None else opacity
            if opacity is not None:
                for channel in range(channels):  # twice as fast as all at once, with numpy's inner loop of length 3
                    samples[*part, channel] *= opacity != 0

    rows, columns = (
        [slice(first, min(first + step, size)) for first in range(0, size, step)]
        for size, step in zip(alpha.shape, TILE, strict=True)
    )
    for _ in in_order(fill, list(product(rows, columns))):
        pass
    return WarpedImage(samples, None if (alpha == 255).all() else alpha)


def _turned(raster: Raster, rows: bool, columns: bool) -> WarpedImage:
    turn = (slice(None, None, -1 if rows else None), slice(None, None, -1 if columns else None))
    samples = raster.samples if raster.table is None else np.take(raster.table, raster.samples)
    pixels: U8 = np.stack([plane[turn] for plane in samples], axis=2)
    if raster.alpha is None:
        return WarpedImage(pixels, None)
    alpha = np.ascontiguousarray(raster.alpha[turn])
    pixels *= (alpha != 0)[..., None]
    return WarpedImage(pixels, alpha)


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Computes parts of the output by a method of resampling."""

    raster: Raster
    mesh: ApproxTransform
    method: str

    def parts(self, tile: Part) -> Iterator[tuple[Part, Sampled]]:
        """Yield the parts of a tile in which pixels may be visible. Hidden pixels have any sample."""
        down, across = (offsets(width, self.method) for width in (self.mesh.down, self.mesh.across))
        extent, inside = self.mesh.extent(*tile), None
        if extent is None or not self._holds(extent):
            inside = self._inside(tile)
            if not inside.any():
                return
            extent = _extent(self.mesh.positions(*tile, down, across), inside)
        rows, columns = self._needed(extent)
        if max(rows.stop - rows.start, columns.stop - columns.start) > LONGEST_SIDE:
            for quarter in _quarters(tile):
                yield from self.parts(quarter)
            return
        visible = None if self.raster.alpha is None else self.raster.alpha[rows, columns]
        if visible is not None and not visible.any():
            return
        nudge = DUST if self.method in PICKING else 0.0  # the right one of two pixels at the same distance
        center = 0.5 - nudge  # OpenCV counts from the center of the first pixel
        places = self.mesh.positions(*tile, down, across, (columns.start + center, rows.start + center))
        found, opacity = self._sampled(
            [plane[rows, columns] for plane in self.raster.samples],
            None if visible is None or (visible == 255).all() else visible,
            places,
            (tile[0].stop - tile[0].start, tile[1].stop - tile[1].start),
        )
        if self.raster.table is not None:
            found = np.take(self.raster.table, found)
        if inside is not None:
            opacity = inside * (np.uint8(255) if opacity is None else opacity)
        yield tile, (found, opacity)

    def _holds(self, extent: Extent) -> bool:
        """Whether all of an extent is inside the source."""
        height, width = self.raster.samples.shape[1:]
        left, top, right, bottom = extent
        return left >= 0 and top >= 0 and right < width and bottom < height

    def _inside(self, tile: Part) -> NDArray[np.bool_]:
        """Return (rows, columns): whether the centers of pixels are inside the source."""
        height, width = self.raster.samples.shape[1:]
        xs, ys = self.mesh.positions(*tile)
        found: NDArray[np.bool_] = (xs >= -DUST) & (xs <= width + DUST) & (ys >= -DUST) & (ys <= height + DUST)
        return found

    def _needed(self, extent: Extent) -> Part:
        """Return the part of the source for the samples of pixels whose centers, or samples, have this extent."""
        height, width = self.raster.samples.shape[1:]
        left, top, right, bottom = extent
        return (
            _side(top, bottom, (bottom - top) / self.mesh.step, height),
            _side(left, right, (right - left) / self.mesh.step, width),
        )

    def _sampled(self, planes: Planes, visible: U8 | None, places: Positions, size: tuple[int, int]) -> Sampled:
        if self.method == "nearest":
            return _nearest(planes, visible, places)
        if self.method == "mode":
            return _commonest(planes, visible, places, size)
        kernel = INTERPOLATIONS.get(self.method, cv2.INTER_LINEAR)
        if visible is None:
            found = means(planes, places, size, kernel)
            return found if len(planes) != 3 else cv2.cvtColor(found, cv2.COLOR_RGBA2RGB), None
        weights = visible.astype(np.float32)
        found = means([*(plane * weights for plane in planes), weights], places, size, kernel)
        return _straight(found, len(planes), planes[0].dtype)


def offsets(width: float, method: str) -> Offsets:
    """Return places of samples along one axis, in output pixels from the pixel's center.

    The mean of n bilinear samples that are `step` source pixels apart has a variance of (n² - 1) step² / 12 + 1 / 6.
    The ideal has width² / 12 + 1 / 12: a box as wide as the output pixel, over pixels of constant value.
    """
    if method == "nearest" or (method != "mode" and width <= SINGLE):
        return CENTER
    if method == "mode":
        count = min(MAX_VOTES, max(2, ceil(width)))
        step = 1 / count
    else:
        count = min(MAX_SAMPLES, max(2, round(width)))
        step = np.sqrt((width**2 - 1) / (count**2 - 1)) / width
    return (np.arange(count) - (count - 1) / 2) * step


def _side(first: float, last: float, reach: float, size: int) -> slice:
    """Return the pixels of one side of the source that interpolation between these positions needs, at least one."""
    return slice(
        int(np.clip(first - reach - MARGIN, 0, size - 1)), int(np.clip(last + reach + MARGIN, 0, size - 1)) + 1
    )


def _extent(places: Positions, inside: NDArray[np.bool_]) -> Extent:
    """Return the extent of the samples of all pixels, or of those inside if others are undefined."""
    xs, ys = places
    if xs.min() <= OUTSIDE:
        every = inside.repeat(xs.shape[0] // inside.shape[0], axis=0).repeat(xs.shape[1] // inside.shape[1], axis=1)
        xs, ys = xs[every], ys[every]
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _quarters(tile: Part) -> Iterator[Part]:
    """Divide a tile with parts that are far from each other in the source, such as one around a pole."""
    halves = []
    for side in tile:
        middle = (side.start + side.stop + 1) // 2
        halves.append(
            [half for half in (slice(side.start, middle), slice(middle, side.stop)) if half.start < half.stop]
        )
    yield from product(*halves)


def _nearest(planes: Planes, visible: U8 | None, places: Positions) -> Sampled:
    """Return the pixels that contain these places."""
    found = [_remap(plane, places, cv2.INTER_NEAREST) for plane in planes]
    return np.stack(found, axis=-1), None if visible is None else _remap(visible, places, cv2.INTER_NEAREST)


def _commonest(planes: Planes, visible: U8 | None, places: Positions, size: tuple[int, int]) -> Sampled:
    """Return the commonest value under each output pixel. Hidden pixels vote for hiding."""
    samples, alpha = _nearest(planes, visible, places)
    ballots = _by_pixel(samples, size)
    if alpha is None:
        return _majority(ballots, np.ones((len(ballots), 1, 1, 1), dtype=np.bool_)), None
    shown = _by_pixel(alpha[..., None], size) >= 128
    opacity = np.where(shown[..., 0].sum(axis=0) * 2 >= len(shown), np.uint8(255), np.uint8(0))
    return _majority(ballots, shown), opacity


def _by_pixel(samples: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return (votes, rows, columns, channels): the samples of each output pixel, row by row."""
    rows, columns = size
    split = samples.reshape(rows, -1, columns, samples.shape[1] // columns, samples.shape[2])
    return np.moveaxis(split, (1, 3), (0, 1)).reshape(-1, rows, columns, samples.shape[2])


def _majority(ballots: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[Any]:
    """Reduce (votes, …) to (…): the commonest of the ballots that count, the first of them on a draw."""
    best: NDArray[Any] = ballots[0]
    most = np.zeros(ballots.shape[1:], dtype=np.int16)
    for ballot, valid in zip(ballots, counted, strict=True):
        votes = ((ballots == ballot) & counted).sum(axis=0, dtype=np.int16) * valid
        better = votes > most
        best, most = np.where(better, ballot, best), np.maximum(votes, most)
    return best


def means(planes: Planes, places: Positions, size: tuple[int, int], interpolation: int) -> NDArray[Any]:
    """Return the mean of each output pixel's samples, (rows, columns, channels), with the planes as first channels."""
    # Four channels take as long as one, and a third of the time of three.
    image: NDArray[Any] = planes[0] if len(planes) == 1 else cv2.merge((planes * 2)[:4])
    if places.shape[1:] == size:
        return _remap(image, places, interpolation).reshape(*size, -1)
    wide = _widened(image) if image.dtype == np.uint8 else image
    found = np.asarray(cv2.resize(_remap(wide, places, interpolation), size[::-1], interpolation=cv2.INTER_AREA))
    return (found if wide is image else cv2.convertScaleAbs(found, alpha=1 / WIDENED)).reshape(*size, -1)


def _widened(image: U8) -> NDArray[np.uint16]:
    """Return 257 times a picture, so that a mean is rounded once only. The rounded mean of rounded bytes costs 1 dB."""
    flat = image.reshape(len(image), -1)
    return np.asarray(cv2.merge([flat, flat])).view(np.uint16).reshape(image.shape)


def _straight(found: NDArray[np.float32], channels: int, dtype: np.dtype[Any]) -> Sampled:
    """Return straight color and opacity from premultiplied floats, with opacity after the color."""
    weight = found[..., channels]
    opacity: U8 = np.clip(np.rint(weight), 0, 255).astype(np.uint8)
    color = found[..., :channels] / np.maximum(weight, LEAST)[..., None]
    color += np.float32(0.5)
    return np.clip(color, 0, np.iinfo(dtype).max, out=color).astype(dtype), opacity


def _remap(image: NDArray[Any], places: Positions, interpolation: int) -> NDArray[Any]:
    xs, ys = places
    found: NDArray[Any] = cv2.remap(image, xs, ys, interpolation, borderMode=cv2.BORDER_REPLICATE)
    return found
