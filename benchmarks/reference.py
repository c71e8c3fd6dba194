"""The accuracy of a picture: its distance from dense sampling of the source at full resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window

SUPERSAMPLES = 6  # per pixel and direction
WINDOW = 96  # pixels on a side of each compared place
PLACES = ((0.2, 0.3), (0.5, 0.5), (0.75, 0.35), (0.35, 0.7), (0.7, 0.75))


def psnr(source: Path, picture: Path, metadata: dict[str, Any], bands: tuple[int, ...]) -> float:
    """Return decibels over all places, on pixels fully valid in both. Grays and palettes count as RGB."""
    stretch = metadata["choices"]["stretch"]
    squares, count = 0.0, 0
    with rasterio.open(source) as truth, rasterio.open(picture) as made:
        for across, down in PLACES:
            window = Window(int(made.width * across), int(made.height * down), WINDOW, WINDOW)
            expected, valid = _expected(truth, made, window, bands)
            if truth.colorinterp[0].name != "palette":
                expected = np.clip((expected - stretch["lo"]) * 255 / (stretch["hi"] - stretch["lo"]), 0, 255)
            found, shown = _found(made, window, len(expected))
            compared = valid & shown
            squares += float(((expected - found)[:, compared] ** 2).sum())
            count += int(compared.sum()) * len(expected)
    return float(10 * np.log10(255**2 / max(squares / count, 1e-9)))


def _expected(
    truth: Any, made: Any, window: Window, bands: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (bands, rows, columns) means over each output pixel's ground square, and where all of it is valid."""
    steps = (np.arange(WINDOW * SUPERSAMPLES) + 0.5) / SUPERSAMPLES
    columns, rows = np.meshgrid(window.col_off + steps, window.row_off + steps)
    xs, ys = made.transform @ (columns.ravel(), rows.ravel())
    xs, ys = Transformer.from_crs(made.crs, truth.crs, always_xy=True).transform(xs, ys)
    across, down = (np.floor(part).astype(int) for part in ~truth.transform @ (xs, ys))
    left, top = int(across.min()), int(down.min())
    box = Window(left, top, int(across.max()) - left + 1, int(down.max()) - top + 1)
    indexes = list(bands) or list(truth.indexes)[:3]
    values = truth.read(indexes, window=box, boundless=True, fill_value=0)
    mask = truth.read_masks(1, window=box, boundless=True) > 0
    shape = (WINDOW, SUPERSAMPLES, WINDOW, SUPERSAMPLES)
    samples = _colored(truth, values)[:, down - top, across - left].astype(np.float64)
    valid: NDArray[np.bool_] = mask[down - top, across - left].reshape(shape).all(axis=(1, 3))
    if truth.colorinterp[0].name == "palette":
        return samples.reshape(-1, *shape)[:, :, SUPERSAMPLES // 2, :, SUPERSAMPLES // 2], valid
    means: NDArray[np.float64] = samples.reshape(-1, *shape).mean(axis=(2, 4))
    return means, valid


def _colored(dataset: Any, values: NDArray[Any]) -> NDArray[Any]:
    if dataset.colorinterp[0].name != "palette":
        return values
    table = np.zeros((256, 3), dtype=np.uint8)
    for value, color in dataset.colormap(1).items():
        table[value] = color[:3]
    return np.moveaxis(table[values[0]], 2, 0)


def _found(made: Any, window: Window, count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = _colored(made, made.read(window=window))
    mask = made.dataset_mask(window=window) == 255
    return values[:count].astype(np.float64), mask
