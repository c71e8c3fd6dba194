"""Pure array functions: validity, 8 bit, color, and downsampling without aliasing or color that bleeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.color.stretch import Stretch
from geoprocessing_worker.raster import U8

Block = NDArray[Any]
"""(bands, rows, columns) in the file's own type."""

Samples = NDArray[Any]
"""(channels, rows, columns) of bytes, or of 16-bit codes."""

ENORMOUS, ABOUT = 1e30, 0.999
LARGE, SMALL = 1e37, 1e-30  # float32 ends at 3.4e38, and one divided by a 65,536th of a span must be below that
NEAR = 1e4  # times the span from 0, where lo rounded to float32 is off by less than a fifth of a gray level
U8_TOP = 255.0
LEAST = np.float32(1e-3)  # opacity: a pixel with less is hidden
PICKING = frozenset({"nearest", "mode"})
"""Methods that never mix values: they only pick."""


def is_nodata(plane: Block, nodata: float | None) -> NDArray[np.bool_] | None:
    """Return where a plane holds its nodata value, in the plane's own type. `None` if it cannot hold it."""
    if nodata is None or math.isnan(nodata):
        return None  # NaN is never valid
    if plane.dtype.kind in "iub":
        limits = np.iinfo(plane.dtype)
        if nodata == float(limits.max):
            nodata = limits.max  # as a double it is one more in 64 bits
        if nodata % 1 != 0 or not limits.min <= nodata <= limits.max:
            return None
        nodata = int(nodata)
    elif abs(nodata) > (largest := float(np.finfo(plane.dtype).max)) and np.isfinite(nodata):
        # Written as a decimal, the lowest float32 comes back a little below itself.
        nodata = float(np.copysign(largest, nodata))
    if plane.dtype.kind == "f" and ENORMOUS <= abs(nodata) < np.inf:
        # -3.4e38 and -3.40282e+38 mean the lowest float32. No measurement gets near.
        edge = plane.dtype.type(nodata * ABOUT)
        far: NDArray[np.bool_] = plane <= edge if nodata < 0 else plane >= edge
        return far
    same: NDArray[np.bool_] = np.equal(plane, plane.dtype.type(nodata))
    return same


def validity(block: Block, nodata: Sequence[float | None], mask: U8 | None) -> U8 | None:
    """Return the (rows, columns) opacity, or `None` if all is valid.

    A pixel is hidden if all bands hold nodata (real black is data) or any band is not a finite number. The file's own
    mask or alpha hides pixels too.
    """
    hidden: NDArray[np.bool_] | None = None
    planes = [is_nodata(plane, value) for plane, value in zip(block, nodata, strict=True)]
    if planes and all(plane is not None for plane in planes):
        hidden = np.logical_and.reduce(planes) if len(planes) > 1 else planes[0]  # type: ignore[arg-type]  # no None
    if block.dtype.kind in "fc":
        wrong: NDArray[np.bool_] = np.logical_not(np.isfinite(block).all(axis=0))
        hidden = wrong if hidden is None else np.logical_or(hidden, wrong)
    if hidden is None or not hidden.any():
        return mask
    opaque: U8 = np.where(hidden, np.uint8(0), np.uint8(255) if mask is None else mask)
    return opaque


def decibels(block: Block) -> NDArray[np.float32]:
    """Return the magnitude of complex samples in dB. A magnitude of 0 becomes NaN, which is never valid."""
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude: NDArray[np.float32] = np.abs(block).astype(np.float32)
        result: NDArray[np.float32] = np.where(magnitude > 0, 20.0 * np.log10(magnitude), np.nan).astype(np.float32)
    return result


def to_byte(block: Block, stretch: Stretch) -> U8:
    """Return values as 8 bit. lo becomes 0, hi becomes 255, and values outside are clipped. NaN becomes 0."""
    if block.dtype == np.uint8 and stretch.identity:
        return block
    if block.dtype in (np.uint8, np.uint16):
        table = scale_to_byte(np.arange(np.iinfo(block.dtype).max + 1, dtype=np.float64), stretch)
        looked_up: U8 = np.take(table, block)
        return looked_up
    near = abs(stretch.lo) < NEAR * (stretch.hi - stretch.lo)
    small = near and block.dtype in (np.float32, np.int8, np.int16) and fits_float32(stretch.lo, stretch.hi)
    return scale_to_byte(block.astype(np.float32 if small else np.float64), stretch)


def fits_float32(first: float, last: float) -> bool:
    """Whether float32 can hold these numbers and the divisor of their span."""
    return max(abs(first), abs(last)) < LARGE and last - first > SMALL


def scale_to_byte(values: NDArray[Any], stretch: Stretch) -> U8:
    """Return floats as bytes by a stretch. Overwrites `values`: a band of float rows is the largest array."""
    with np.errstate(over="ignore", invalid="ignore"):
        values -= values.dtype.type(stretch.lo)
        values *= values.dtype.type(255.0 / (stretch.hi - stretch.lo))
    np.nan_to_num(values, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(values, 0.0, 255.0, out=values)
    np.rint(values, out=values)
    return values.astype(np.uint8)


def alpha_to_byte(plane: Block, top: float) -> U8:
    """Return an alpha band of any type as 8 bit. From `top` up, all is visible."""
    if plane.dtype == np.uint8 and top == U8_TOP:
        return plane
    return scale_to_byte(plane.astype(np.float64), Stretch("range", 0.0, top, ""))


def straightened(block: Block, alpha: Block, top: float) -> Block:
    """Return straight values, in their own type, of premultiplied ones. 0 where alpha is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        straight = block * (top / alpha.astype(np.float64))
    whole = np.nan_to_num(straight, nan=0.0, posinf=0.0, neginf=0.0)
    if block.dtype.kind in "iu":
        limits = np.iinfo(block.dtype)
        whole = np.clip(np.rint(whole), limits.min, limits.max)
    return whole.astype(block.dtype)


def unpremultiply(samples: U8, alpha: U8) -> U8:
    """Return straight color from premultiplied color."""
    whole = np.maximum(alpha, 1).astype(np.uint16)
    straight: U8 = np.minimum((samples.astype(np.uint16) * 255 + whole // 2) // whole, 255).astype(np.uint8)
    return straight


def inks_to_light(inks: U8) -> U8:
    """Convert (4, …) cyan, magenta, yellow, black to (3, …) red, green, blue, without a profile."""
    light = 255 - inks.astype(np.uint16)
    rgb: U8 = ((light[:3] * light[3] + 127) // 255).astype(np.uint8)
    return rgb


def downsample(samples: Samples, alpha: U8 | None, height: int, width: int, method: str) -> tuple[Samples, U8 | None]:
    """Downsample (channels, rows, columns) and its opacity before warping.

    Color is averaged weighted by opacity, so a hidden pixel never tints its neighbors.
    """
    if samples.shape[1:] == (height, width):
        return samples, alpha
    if method in PICKING:
        rows, columns = _centers(samples.shape[1], height), _centers(samples.shape[2], width)
        return _pick(samples, rows, columns), None if alpha is None else _pick(alpha[None], rows, columns)[0]
    size = width, height
    if alpha is None:
        return np.stack([_means(plane, size) for plane in samples]), None
    opacity = alpha.astype(np.float32)
    weight = _means(opacity, size)
    top = np.iinfo(samples.dtype).max
    planes = [_means(plane * opacity, size) / np.maximum(weight, LEAST) for plane in samples]
    return np.clip(np.rint(planes), 0, top).astype(samples.dtype), np.rint(weight).astype(np.uint8)


def _means(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return the means of the areas under `size` (width, height) pixels, in the plane's own type."""
    return np.asarray(cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_AREA))


def downsample_sparse(
    samples: Samples, alpha: U8 | None, size: tuple[int, int], yielding: int | None
) -> tuple[Samples, U8 | None]:
    """Downsample (channels, rows, columns) and its opacity to `size` (rows, columns), keeping sparse pixels.

    A pixel is fully visible if any pixel under it is. It holds the mean of the visible ones. With `yielding`, it picks
    the highest of them, and the sample `yielding` only where there is no other.
    """
    if samples.shape[1:] == size:
        return samples, alpha
    starts = [np.arange(few) * many // few for few, many in zip(size, samples.shape[1:], strict=True)]
    visible = np.ones(samples.shape[1:], dtype=np.bool_) if alpha is None else alpha > 0
    shown = None if alpha is None else np.where(_over(np.logical_or, visible, starts), np.uint8(255), np.uint8(0))
    if yielding is None:
        weight = np.maximum(_over(np.add, visible.astype(np.float32), starts), 1)
        means = [_over(np.add, np.where(visible, plane, 0).astype(np.float32), starts) / weight for plane in samples]
        return np.rint(np.stack(means)).astype(samples.dtype), shown
    planes = []
    for plane in samples:
        # Hidden, then `yielding`, then all others by their value.
        wide = np.uint16 if plane.dtype == np.uint8 else np.uint32
        rank = np.where(plane == yielding, wide(1), plane.astype(wide) + wide(2))
        best = _over(np.maximum, np.where(visible, rank, wide(0)), starts)
        planes.append(np.where(best == 1, max(yielding, 0), np.maximum(best, 2) - 2).astype(samples.dtype))
    return np.stack(planes), shown


def _over(function: np.ufunc, plane: NDArray[Any], starts: list[NDArray[np.intp]]) -> NDArray[Any]:
    """Apply a function over the cells that begin at these rows and columns."""
    found: NDArray[Any] = function.reduceat(function.reduceat(plane, starts[0], axis=0), starts[1], axis=1)
    return found


def _centers(size: int, count: int) -> NDArray[np.intp]:
    """Return the source index under the center of each of `count` output pixels."""
    return ((np.arange(count) + 0.5) * size / count).astype(np.intp)


def _pick(planes: Samples, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Samples:
    picked: Samples = np.ascontiguousarray(planes[:, rows][:, :, columns])
    return picked
