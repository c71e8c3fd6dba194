"""Chooses the curve through ground control points: a polynomial, or the thin-plate spline that meets every point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import TransformError
from rasterio.transform import GCPTransformer

CLOSE = 0.25  # pixels; a polynomial that misses its points by no more places the picture
FEW = 9  # points leave a polynomial little to average, so that its misses are no noise
MOST_SPLINE = 500  # points; a spline takes 0.1 s to solve for so many, and 0.7 s for twice as many
FOLDS = 5  # parts of the points that are left out in turn
MUCH_BETTER = 2.0  # times
FLAT = 1e-6  # breadth over length of points that lie on one line

Points = tuple[GroundControlPoint, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """Ground control points and the curve through them.

    `residual`: distance of the points from the curve in pixels, root mean square. `polynomial_residual`: that of the
    polynomial which a spline replaces; `None` without a spline, or if no polynomial could be solved.
    """

    points: Points
    residual: float | None
    spline: bool = False
    polynomial_residual: float | None = None


def fit_control(points: Points) -> Control | None:
    """Return the curve through the points; `None` if they lie on one line or in one place.

    Few points, such as corners, have to be met. Many points are met if they follow a shape that the polynomial cannot
    take, as those of a sensor model do. Errors of measurement are left to the polynomial, which averages them.
    """
    points = _distinct(points)
    if len(points) < 3 or _on_a_line(points):
        return None
    polynomial = _residual(points, points, spline=False)
    if polynomial is not None and (polynomial <= CLOSE or _averages(points, polynomial)):
        return Control(points, polynomial)
    spline = _residual(points, points, spline=True) if _can_be_met(points) else None
    if spline is not None and spline <= CLOSE:
        return Control(points, spline, spline=True, polynomial_residual=polynomial)
    return None if polynomial is None else Control(points, polynomial)


def _averages(points: Points, polynomial: float) -> bool:
    """Whether a polynomial with this residual averages errors of many points, rather than a shape it cannot take.

    Errors are independent of each other, so that no spline foretells a point by the others.
    """
    if len(points) <= FEW:
        return False
    return len(points) > MOST_SPLINE or _held_out(points) * MUCH_BETTER > polynomial


def _can_be_met(points: Points) -> bool:
    """Whether a spline can be solved in time, and no pixel has two places."""
    pixels, places = {(point.row, point.col) for point in points}, {(point.x, point.y) for point in points}
    return len(points) <= MOST_SPLINE and len(pixels) == len(places) == len(points)


def _held_out(points: Points) -> float:
    """Return the distance of points from splines that are made without them, root mean square."""
    total = 0.0
    for fold in range(FOLDS):
        held_out = points[fold::FOLDS]
        others = tuple(point for number, point in enumerate(points) if number % FOLDS != fold)
        error = _residual(others, held_out, spline=True)
        total += len(held_out) * (math.inf if error is None else error**2)
    return math.sqrt(total / len(points))


def _distinct(points: Points) -> Points:
    """Return the points without repetitions, which make a spline unsolvable."""
    return tuple({(point.row, point.col, point.x, point.y): point for point in points}.values())


def _on_a_line(points: Points) -> bool:
    pixels = np.array([(point.col, point.row) for point in points])
    places = np.array([(point.x, point.y) for point in points])
    return any(_is_flat(side) for side in (pixels, places))


def _is_flat(side: NDArray[np.float64]) -> bool:
    length, breadth = np.linalg.svd(side - side.mean(axis=0), compute_uv=False)[:2]
    return bool(breadth <= FLAT * length)


def _residual(made_of: Points, points: Points, *, spline: bool) -> float | None:
    """Return the distance of points from a curve in pixels, root mean square; `None` if it cannot be solved."""
    columns = np.array([point.col for point in points], dtype=np.float64)
    rows = np.array([point.row for point in points], dtype=np.float64)
    try:
        with GCPTransformer(list(made_of), tps=spline) as transformer:
            xs, ys = [point.x for point in points], [point.y for point in points]
            found = transformer.rowcol(xs, ys, op=np.positive)
    except (TransformError, CPLE_BaseError):
        return None
    off = np.hypot(np.asarray(found[0]) - rows, np.asarray(found[1]) - columns)
    residual = float(np.sqrt(np.mean(off**2)))
    return residual if math.isfinite(residual) else None
