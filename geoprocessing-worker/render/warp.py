"""Warp a read raster onto the output's grid: one pass by position, for shrinking, rotation and reprojection alike.

Averaging means to interpolate at the output pixel's center, with a kernel about as wide as an output pixel is in the
source (kernels.py). libvips works in parallel and in parts, so no temporary array has the source's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from geoprocessing_worker.geo.approx_transform import ApproxTransform, Positions, approx_transform
from geoprocessing_worker.raster import U8, Raster, SourceHeader, WarpedImage, all_or_nothing
from geoprocessing_worker.render.kernels import Kernel, choose_kernel
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.render.threads import in_order

BAND = 256  # output rows at a time and thread: 8 MB of positions at 4096 columns
DUST = 1e-3  # source pixels beyond an edge that count as inside. Without it a world map shows a seam where it closes.
MOST_VOTES = 5  # a side: larger cells are sampled at as many pixels
FORMATS = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}

# libvips rounds down except for splines, so bytes have a 256 times finer scale until the end.
FINER = 256

Take = Callable[[Positions], tuple[NDArray[Any], U8 | None]]
"""From (rows, columns, 2) positions, which it may overwrite, to samples with channels last, and their opacity."""


def place(raster: Raster, header: SourceHeader, plan: RenderPlan) -> WarpedImage:
    """Return the raster on the plan's target grid, bytes or wide indexes. Outside of the source all is hidden and 0."""
    channels, height, width = raster.samples.shape
    layout, target = plan.layout, plan.layout.target
    if not layout.warp and (width, height) == (target.width, target.height):
        return _turned(raster, layout.flip_rows, layout.flip_columns)
    mesh = approx_transform(header, layout, width, height)
    take = _taker(raster, mesh, plan.resampling)
    kept = np.uint8 if raster.table is not None else raster.samples.dtype
    samples = np.empty((target.height, target.width, channels), dtype=kept)
    alpha = np.empty((target.height, target.width), dtype=np.uint8)

    def fill(first: int) -> None:
        last = min(first + BAND, target.height)
        positions = mesh.rows(first, last)
        sure = mesh.surely_inside(first, last, width, height)
        inside = _inside(positions, sure, width, height)
        found, opacity = take(positions)
        if raster.table is not None:
            found = np.take(raster.table, found)
        shown = inside.view(np.uint8) * np.uint8(255) if opacity is None else opacity * inside
        alpha[first:last] = shown
        samples[first:last] = found
        for columns in _outside(sure) if opacity is None else (slice(None),):
            _hide(samples[first:last, columns], shown[:, columns] != 0)

    for _ in in_order(fill, range(0, target.height, BAND)):
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


def _inside(positions: Positions, sure: slice, width: int, height: int) -> NDArray[np.bool_]:
    """Return (rows, columns). `sure` columns are inside without a check."""
    inside = np.ones(positions.shape[:2], dtype=np.bool_)
    for columns in _outside(sure):
        xs, ys = positions[:, columns, 0], positions[:, columns, 1]
        inside[:, columns] = (xs >= -DUST) & (xs <= width + DUST) & (ys >= -DUST) & (ys <= height + DUST)
    return inside


def _outside(columns: slice) -> tuple[slice, slice]:
    """Return the columns to the left and to the right."""
    return slice(0, columns.start), slice(columns.stop, None)


def _hide(samples: U8, shown: NDArray[np.bool_]) -> None:
    if not shown.all():
        for channel in range(samples.shape[2]):  # twice as fast as all at once, where numpy's inner loop has length 3
            samples[..., channel] *= shown


def _taker(raster: Raster, mesh: ApproxTransform, method: str) -> Take:
    if method == "nearest":
        return lambda positions: _nearest(raster, positions)
    if method == "mode":
        return lambda positions: _commonest(raster, positions, mesh)
    kernel = choose_kernel(method, mesh.across, mesh.down)
    weighted = _weighted(raster, exact=kernel.rounds)
    image = _filtered(weighted, kernel)
    interpolate = pyvips.Interpolate.new(kernel.interpolator)

    def interpolated(positions: Positions) -> tuple[NDArray[Any], U8 | None]:
        # libvips counts from the center of the first pixel, and would weight by a band that it takes for alpha.
        positions -= np.float32(0.5)
        found = image.mapim(_index(positions), interpolate=interpolate, extend="copy", premultiplied=True)
        return weighted.straight(_array(found))

    return interpolated


def _nearest(raster: Raster, positions: Positions) -> tuple[NDArray[Any], U8 | None]:
    planes = [*raster.samples] if raster.alpha is None else [*raster.samples, raster.alpha]
    image = _joined([_image(plane) for plane in planes])
    kernel = pyvips.Interpolate.new("nearest")  # rounds down: the pixel that contains the corner-based position
    found = _array(image.mapim(_index(positions), interpolate=kernel, extend="copy", premultiplied=True))
    return (found, None) if raster.alpha is None else (found[..., :-1], found[..., -1])


def _commonest(raster: Raster, positions: Positions, mesh: ApproxTransform) -> tuple[NDArray[Any], U8 | None]:
    """Return the commonest value under each output pixel. Hidden pixels vote for hiding."""
    votes = int(min(MOST_VOTES, max(2, np.ceil(max(mesh.across, mesh.down)))))
    steps = (np.arange(votes, dtype=np.float32) + 0.5) / votes - 0.5
    ballots, shown = [], []
    for down in steps * np.float32(mesh.down):
        for across in steps * np.float32(mesh.across):
            samples, alpha = _nearest(raster, positions + np.array([across, down], dtype=np.float32))
            ballots.append(samples)
            shown.append(np.full(samples.shape[:2], True) if alpha is None else alpha >= 128)
    visible = np.stack(shown)
    opacity = np.where(visible.sum(axis=0) * 2 >= len(shown), np.uint8(255), np.uint8(0))
    winner = _majority(np.stack(ballots), visible[..., None])
    return winner, None if raster.alpha is None else opacity


def _majority(ballots: U8, counted: NDArray[np.bool_]) -> U8:
    """Reduce (votes, …) to (…): the commonest of the ballots that count, the first of them on a draw."""
    best, most = ballots[0], np.zeros(ballots.shape[1:], dtype=np.int16)
    for ballot, valid in zip(ballots, counted, strict=True):
        votes = ((ballots == ballot) & counted).sum(axis=0, dtype=np.int16) * valid
        better = votes > most
        best, most = np.where(better, ballot, best), np.maximum(votes, most)
    found: U8 = best
    return found


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Premultiplied color as a libvips image, with opacity as its last band, so that hidden pixels weigh nothing.

    `finer`: the factor by which numbers are scaled up. Then color = `gain` * band / opacity. `top` is
    the opacity of fully visible pixels, 0 without opacity.
    """

    image: Any
    finer: int
    gain: float
    top: float

    def straight(self, found: NDArray[Any]) -> tuple[NDArray[Any], U8 | None]:
        if not self.top:
            return self._coarse(found), None
        weight = found[..., -1]
        opacity: U8 = np.rint(weight * np.float32(255 / self.top)).astype(np.uint8)
        color = self._coarse(found[..., :-1])
        # Where all is visible and nothing was multiplied, the band is the color.
        partly = (opacity > 0) & ((weight < self.top - self.finer) | (self.gain * self.finer != self.top))
        if partly.any():
            exact = found[..., :-1][partly].astype(np.float32) * np.float32(self.gain) / weight[partly][:, None]
            color[partly] = np.minimum(exact, 255 if self.gain == 255 else 65535) + np.float32(0.5)
        return color, opacity

    def _coarse(self, found: NDArray[Any]) -> NDArray[Any]:
        if self.finer == 1:
            return found if found.dtype == np.uint8 else found.astype(np.uint16, copy=False)
        return ((found + np.uint16(self.finer // 2)) >> np.uint16(8)).astype(np.uint8)


def _weighted(raster: Raster, exact: bool) -> _Weighted:
    """Premultiply. `exact`: interpolated bytes are rounded, so that opaque ones need no finer scale."""
    planes, alpha = raster.samples, raster.alpha
    byte = planes.dtype == np.uint8
    colors = [_image(plane) for plane in planes]
    if alpha is None:
        return _Weighted(_joined(colors), FINER if byte and not exact else 1, 0.0, 0.0)
    opacity = _image(alpha)
    if all_or_nothing(alpha):
        # Hidden samples are 0 already.
        if byte:
            return _Weighted(_joined([*colors, opacity]), FINER, 255.0, 255.0 * FINER)
        return _Weighted(_joined([*colors, (opacity * 257).cast("ushort")]), 1, 65535.0, 65535.0)
    if byte:
        products = [(color * opacity).cast("ushort") for color in colors]
        return _Weighted(_joined([*products, (opacity * 255).cast("ushort")]), 1, 255.0, 65025.0)
    products = [(color.cast("float") * opacity).cast("float") for color in colors]
    return _Weighted(_joined([*products, opacity.cast("float")]), 1, 1.0, 255.0)


def _filtered(weighted: _Weighted, kernel: Kernel) -> Any:
    """Return the interpolator's input. libvips computes it for requested parts only."""
    image, finer = weighted.image, weighted.finer
    kept = "float" if image.format == "float" else "ushort"
    filters = [
        weights[:, None] if turned else weights[None]
        for weights, turned in ((kernel.across, False), (kernel.down, True))
        if weights.size > 1
    ]
    if not filters:
        return image if finer == 1 else (image * finer).cast(kept)
    filters[-1] = filters[-1] * finer
    for weights in filters:
        image = image.conv(pyvips.Image.new_from_array(weights), precision="float")
    return image.cast(kept)


def _image(plane: NDArray[Any]) -> Any:
    plane = np.asarray(plane, order="C")
    return pyvips.Image.new_from_memory(plane.data, plane.shape[1], plane.shape[0], 1, FORMATS[plane.dtype.name])


def _joined(images: list[Any]) -> Any:
    return images[0].bandjoin(images[1:]) if len(images) > 1 else images[0]


def _index(positions: Positions) -> Any:
    rows, columns = positions.shape[:2]
    return pyvips.Image.new_from_memory(np.ascontiguousarray(positions).data, columns, rows, 2, "float")


def _array(image: Any) -> NDArray[Any]:
    """Return (rows, columns, bands)."""
    types = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
    found = np.frombuffer(image.write_to_memory(), dtype=types[image.format])
    return found.reshape(image.height, image.width, image.bands)
