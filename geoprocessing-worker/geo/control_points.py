"""Fits ground control points with a polynomial, or with a thin-plate spline through every point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import TransformError
from rasterio.transform import GCPTransformer

CLOSE_RESIDUAL = 0.25  # pixels. A polynomial with a residual up to this is good enough
FEW_POINTS = 9  # points. With so few a polynomial averages little, so that its residual is no noise
MAX_SPLINE_POINTS = 500  # points. A spline takes 0.1 s to solve for so many, and 0.7 s for twice as many
FOLDS = 5  # of the cross-validation
MIN_IMPROVEMENT = 2.0  # times
LINE_BREADTH = 1e-6  # breadth over length of points on one line
MAX_RESIDUAL = 0.05  # of the diagonal of the points in pixels. A curve with a larger residual is rejected
GRID_SIDE = 33  # points a side at which a curve is checked for folds
MAX_NAMED = 4  # points in a message
NAMED_SHARE = 0.8  # of the largest residual. Such points are named too

Points = tuple[GroundControlPoint, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """Ground control points and the curve through them.

    `residual`: RMS distance of the points from the curve, in pixels. `polynomial_residual`: that of the polynomial
    replaced by a spline. It is `None` without a spline, or if no polynomial could be solved.
    """

    points: Points
    residual: float | None
    spline: bool = False
    polynomial_residual: float | None = None


@dataclass(frozen=True, slots=True)
class Misfit:
    """Ground control points that no curve fits without folding.

    `residual`: that of a polynomial, if one could be solved. `worst`: the points farthest from it.
    """

    residual: float | None
    worst: Points

    @property
    def message(self) -> str:
        """The sentence for the file's owner."""
        cure = f"Correct these, or {WARP}" if self.worst else WARP.capitalize()
        off = ""
        if self.residual is not None:
            named = ", ".join(f"column {point.col:.10g} row {point.row:.10g}" for point in self.worst)
            off = (
                f": a polynomial misses them by {self.residual:.2f} pixels (RMS){f', most at {named}' if named else ''}"
            )
        return f"no curve meets the file's ground control points without folding{off}. {cure}"


WARP = "warp the file with gdalwarp and upload that"


def fit_control(points: Points) -> Control | Misfit | None:
    """Fit a curve to the points. Return `None` if they lie on one line or in one place.

    Few points, such as corners, need an exact fit. So do many points of a shape that no polynomial fits, such as those
    of a sensor model. Measurement errors are left to the polynomial, which averages them.
    """
    points = _distinct(points)
    if len(points) < 3 or _on_a_line(points):
        return None
    polynomial = _residual(points, points, spline=False)
    if polynomial is not None and (polynomial <= CLOSE_RESIDUAL or _averages(points, polynomial)):
        return _averaged(points, polynomial)
    spline = _residual(points, points, spline=True) if _has_exact_fit(points) else None
    if spline is not None and spline <= CLOSE_RESIDUAL and not _folds(points, spline=True):
        return Control(points, spline, spline=True, polynomial_residual=polynomial)
    return _averaged(points, polynomial)


def _averaged(points: Points, polynomial: float | None) -> Control | Misfit:
    if polynomial is None:
        return Misfit(None, ())
    columns, rows = [point.col for point in points], [point.row for point in points]
    if polynomial <= MAX_RESIDUAL * math.hypot(np.ptp(columns), np.ptp(rows)) and not _folds(points, spline=False):
        return Control(points, polynomial)
    residuals = _residuals(points, points, spline=False)
    least = max(CLOSE_RESIDUAL, NAMED_SHARE * float(residuals.max()))
    worst = [points[number] for number in np.argsort(-residuals) if residuals[number] >= least]
    return Misfit(polynomial, tuple(worst[:MAX_NAMED]))


def _folds(points: Points, *, spline: bool) -> bool:
    """Whether a curve folds: some of its parts are mirrored and others are not."""
    columns, rows = (
        np.linspace(min(side), max(side), GRID_SIDE)
        for side in ([point.col for point in points], [point.row for point in points])
    )
    across, down = np.meshgrid(columns, rows)
    try:
        with GCPTransformer(list(points), tps=spline) as transformer:
            xs, ys = transformer.xy(down.ravel().tolist(), across.ravel().tolist(), offset="ul")
    except (TransformError, CPLE_BaseError):
        return True
    x, y = (np.asarray(side, dtype=np.float64).reshape(across.shape) for side in (xs, ys))
    # Twice the signed areas of the grid cells, from their diagonals.
    (x1, x2), (y1, y2) = ((side[1:, 1:] - side[:-1, :-1], side[1:, :-1] - side[:-1, 1:]) for side in (x, y))
    turned = x1 * y2 - y1 * x2
    return not (bool((turned > 0).all()) or bool((turned < 0).all()))


def _averages(points: Points, polynomial: float) -> bool:
    """Whether a polynomial with this residual averages errors of many points, rather than a shape it cannot fit.

    Errors are independent of each other, so that no spline predicts a point from the others.
    """
    if len(points) <= FEW_POINTS:
        return False
    return len(points) > MAX_SPLINE_POINTS or _held_out(points) * MIN_IMPROVEMENT > polynomial


def _has_exact_fit(points: Points) -> bool:
    """Whether a spline can be solved in time, and no pixel has two positions."""
    pixels, places = {(point.row, point.col) for point in points}, {(point.x, point.y) for point in points}
    return len(points) <= MAX_SPLINE_POINTS and len(pixels) == len(places) == len(points)


def _held_out(points: Points) -> float:
    """Return the RMS distance of points from splines fitted without them."""
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
    return bool(breadth <= LINE_BREADTH * length)


def _residual(fitted: Points, points: Points, *, spline: bool) -> float | None:
    """Return the RMS distance of points from a curve in pixels, or `None` if it cannot be solved."""
    residual = float(np.sqrt(np.mean(_residuals(fitted, points, spline=spline) ** 2)))
    return residual if math.isfinite(residual) else None


def _residuals(fitted: Points, points: Points, *, spline: bool) -> NDArray[np.float64]:
    """Return the distance of each point from a curve in pixels. NaN if it cannot be solved."""
    columns = np.array([point.col for point in points], dtype=np.float64)
    rows = np.array([point.row for point in points], dtype=np.float64)
    try:
        with GCPTransformer(list(fitted), tps=spline) as transformer:
            xs, ys = [point.x for point in points], [point.y for point in points]
            found = transformer.rowcol(xs, ys, op=np.positive)
    except (TransformError, CPLE_BaseError):
        return np.full(len(points), np.nan)
    residuals: NDArray[np.float64] = np.hypot(np.asarray(found[0]) - rows, np.asarray(found[1]) - columns)
    return residuals
