"""Compares the overviews of a mask with the mask. They can be outdated if it was edited later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

SIDE = 512  # pixels of a square that is compared
MAX_PIXELS = 1 << 25  # of the full mask: 0.1 s on a slow core. Of larger masks only some squares are compared
CHECKED_DIFFERENCES = 64  # differences examined per square
WRONG_SHARE = 1e-4  # of the pixels of an overview
MIN_WRONG = 2
REACH = 1.5  # overview pixels by which resampling and alignment can move an edge


class _Square(NamedTuple):
    """A part of the full mask: its offset, the visibility of each pixel, and whether all are visible, or none."""

    left: int
    top: int
    visible: NDArray[np.bool_]
    full: bool
    empty: bool


def contradicting(full: Any, overviews: Sequence[Any]) -> list[float]:
    """Return the share of wrong pixels of each overview: those that no resampling of the full mask gives.

    Args:
        full: the dataset of the full picture.
        overviews: datasets of its overviews, each with a mask.
    """
    compared, wrong = np.zeros(len(overviews)), np.zeros(len(overviews))
    for square in _squares(full):
        for number, overview in enumerate(overviews):
            found = _compare(full, overview, square)
            compared[number] += found[0]
            wrong[number] += found[1]
    shares = wrong / np.maximum(compared, 1)
    return [
        float(share) if share > WRONG_SHARE and count > MIN_WRONG else 0.0
        for share, count in zip(shares, wrong, strict=True)
    ]


def _squares(full: Any) -> Iterator[_Square]:
    across, down = -(-full.width // SIDE), -(-full.height // SIDE)
    step = max(1, -(-across * down * SIDE * SIDE // MAX_PIXELS))
    for row in range(down):
        # The offset differs by row, so that the squares form a chessboard.
        for column in range(row * (step // 2 + 1) % step, across, step):
            left, top = column * SIDE, row * SIDE
            window = Window(left, top, min(SIDE, full.width - left), min(SIDE, full.height - top))
            visible = full.read_masks(1, window=window) != 0
            yield _Square(left, top, visible, bool(visible.all()), not visible.any())


def _compare(full: Any, overview: Any, square: _Square) -> tuple[int, float]:
    """Return the number of overview pixels in a square, and an estimate of the wrong ones."""
    height, width = square.visible.shape
    rows, columns = (
        _centers(overview.height, full.height, square.top, height),
        _centers(overview.width, full.width, square.left, width),
    )
    if not rows.size or not columns.size:
        return 0, 0.0
    scale_y, scale_x = full.height / overview.height, full.width / overview.width
    window = Window(columns[0], rows[0], columns.size, rows.size)
    shown = overview.read_masks(1, window=window) != 0
    if (square.full and shown.all()) or (square.empty and not shown.any()):
        return shown.size, 0.0
    ys = ((rows + 0.5) * scale_y).astype(int) - square.top
    xs = ((columns + 0.5) * scale_x).astype(int) - square.left
    different = np.argwhere(square.visible[np.ix_(ys, xs)] != shown)
    if not len(different):
        return shown.size, 0.0
    chosen = np.random.default_rng(0).permutation(len(different))[:CHECKED_DIFFERENCES]  # not all from one side
    examined, wrong = 0, 0
    for row, column in different[chosen]:
        around = _around(square, ys[row], xs[column], REACH * scale_y, REACH * scale_x)
        examined += around is not None
        wrong += around is not None and not (around == shown[row, column]).any()
    return shown.size, len(different) * wrong / max(1, examined)


def _centers(size: int, full: int, first: int, length: int) -> NDArray[np.int_]:
    """Return the overview's rows or columns with centers in a part of the full picture."""
    scale = full / size
    begin, end = np.ceil(first / scale - 0.5), np.ceil((first + length) / scale - 0.5)
    return np.arange(max(0, int(begin)), min(size, int(end)))


def _around(square: _Square, y: int, x: int, down: float, across: float) -> NDArray[np.bool_] | None:
    """Return the full mask around a pixel, or `None` if that extends beyond the square."""
    top, bottom = int(y - down), int(y + down) + 1
    left, right = int(x - across), int(x + across) + 1
    height, width = square.visible.shape
    if top < 0 or left < 0 or bottom > height or right > width:
        return None
    return square.visible[top:bottom, left:right]
