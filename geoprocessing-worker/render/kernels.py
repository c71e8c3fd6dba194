"""Choose interpolation kernels, so that an output pixel is the mean of the source area under it.

The ideal is a box as wide as an output pixel is in the source, `width` source pixels, over pixels of constant value.
libvips has no such box at any position. These kernels are least squares fits to it over all positions between two
pixels. The fit assumes detail that falls off as in photographs and terrain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
NONE: Weights = np.ones(1)

NARROWEST_SPLINE = 1.2  # the mean of both widths. Below, bilinear interpolation is nearer to the box.
WIDEST_FITTED = 2.05  # wider boxes are their own best weights
WIDEST_BOX = 64.0  # bounds work and memory: a wider output pixel comes from an absurd georeference
NEGLIGIBLE = 0.03  # a filter's outer weight that changes less than 0.02 dB, for 60 % more time


@dataclass(frozen=True, slots=True)
class Kernel:
    """An interpolator of libvips, and the weights (sum 1, odd count) of the filter before it, per axis.

    `rounds`: interpolated integers are rounded, not truncated.
    """

    interpolator: str
    across: Weights
    down: Weights
    rounds: bool


def choose_kernel(method: str, across: float, down: float) -> Kernel:
    """Return the kernel for a method that mixes values, with `across` by `down` source pixels per output pixel."""
    across, down = min(across, WIDEST_BOX), min(down, WIDEST_BOX)
    if method not in {"average", "bilinear"}:
        return Kernel("bicubic", _for_bilinear(across), _for_bilinear(down), rounds=False)
    if across + down < 2 * NARROWEST_SPLINE or max(across, down) > WIDEST_FITTED:
        return Kernel("bilinear", _for_bilinear(across), _for_bilinear(down), rounds=False)
    filters = (_for_spline(across), _for_spline(down))
    if all(weights[0] < NEGLIGIBLE for weights in np.abs(filters)):
        return Kernel("vsqbs", NONE, NONE, rounds=True)
    return Kernel("vsqbs", *filters, rounds=False)


def _for_bilinear(width: float) -> Weights:
    """Return weights for bilinear interpolation. The box's own would blur twice, since interpolation blurs too."""
    if width <= 1.001:
        return NONE
    if width <= WIDEST_FITTED:
        return _three((width * width - 1) / 15)
    reach = int(np.ceil((width - 1) / 2))
    weights = np.ones(2 * reach + 1)
    weights[0] = weights[-1] = (width - (2 * reach - 1)) / 2
    weights /= weights.sum()
    return weights


def _for_spline(width: float) -> Weights:
    """Return weights for a quadratic B-spline, as wide as a box of 1.38: sharpening if narrower, else smoothing."""
    return _three((max(width, 1.0) ** 2 - 1.9) / 15)


def _three(side: float) -> Weights:
    return np.array([side, 1 - 2 * side, side])
