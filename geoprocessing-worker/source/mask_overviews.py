"""Whether the overviews of a mask agree with it: a mask that is edited later leaves them behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

SIDE = 512  # pixels of a square that is compared
MOST_PIXELS = 1 << 25  # of the full mask: 0.1 s of a slow core; of larger ones every other square, or fewer
CHECKED = 64  # differences of a square that are looked into
WRONG = 1e-4  # of the pixels of an overview
FEWEST_WRONG = 2
REACH = 1.5  # overview pixels: as far as resampling and alignment move an edge


class _Square(NamedTuple):
    """A part of the full mask: its place, whether each pixel is visible, and whether all are, or none."""

    left: int
    top: int
    visible: NDArray[np.bool_]
    full: bool
    empty: bool


def contradicting(full: Any, overviews: Sequence[Any]) -> list[float]:
    """For each overview the share of its compared pixels that no resampling makes of the full mask; 0 if it agrees.

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
        float(share) if share > WRONG and count > FEWEST_WRONG else 0.0
        for share, count in zip(shares, wrong, strict=True)
    ]


def _squares(full: Any) -> Iterator[_Square]:
    across, down = -(-full.width // SIDE), -(-full.height // SIDE)
    step = max(1, -(-across * down * SIDE * SIDE // MOST_PIXELS))
    for row in range(down):
        # Each row begins elsewhere, so that the squares lie like those of a chessboard.
        for column in range(row * (step // 2 + 1) % step, across, step):
            left, top = column * SIDE, row * SIDE
            window = Window(left, top, min(SIDE, full.width - left), min(SIDE, full.height - top))
            visible = full.read_masks(1, window=window) != 0
            yield _Square(left, top, visible, bool(visible.all()), not visible.any())


def _compare(full: Any, overview: Any, square: _Square) -> tuple[int, float]:
    """How many pixels of the overview lie in a square, and how many of them are wrong."""
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
    chosen = np.random.default_rng(0).permutation(len(different))[:CHECKED]  # no pattern in which all lie on one side
    looked_into, wrong = 0, 0
    for row, column in different[chosen]:
        around = _around(square, ys[row], xs[column], REACH * scale_y, REACH * scale_x)
        looked_into += around is not None
        wrong += around is not None and not (around == shown[row, column]).any()
    return shown.size, len(different) * wrong / max(1, looked_into)


def _centers(size: int, full: int, first: int, length: int) -> NDArray[np.int_]:
    """The overview's rows or columns whose centers lie in a part of the full picture."""
    scale = full / size
    begin, end = np.ceil(first / scale - 0.5), np.ceil((first + length) / scale - 0.5)
    return np.arange(max(0, int(begin)), min(size, int(end)))


def _around(square: _Square, y: int, x: int, down: float, across: float) -> NDArray[np.bool_] | None:
    """The full mask round a pixel; `None` where that reaches beyond the square."""
    top, bottom = int(y - down), int(y + down) + 1
    left, right = int(x - across), int(x + across) + 1
    height, width = square.visible.shape
    if top < 0 or left < 0 or bottom > height or right > width:
        return None
    return square.visible[top:bottom, left:right]
