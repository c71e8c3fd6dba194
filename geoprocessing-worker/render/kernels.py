"""How pixels between pixels are read, so that an output pixel is the mean of what it covers of the source.

The aim is a box as wide as an output pixel is in the source, `width` source pixels, over squares of one value each.
libvips has no such box at any position; these kernels come closest to it, by least squares over all places between two
pixels, for pictures whose detail falls off as that of photographs and of terrain does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
NONE: Weights = np.ones(1)

NARROWEST_SPLINE = 1.2  # the mean of both widths; below, what is left of the box is nearer to bilinear reading
WIDEST_FITTED = 2.05  # wider boxes are their own best weights
WIDEST_BOX = 64.0  # an output pixel that covers more is of a file whose place is absurd; work and memory have an end
NEGLIGIBLE = 0.03  # a filter's outer weight that changes less than 0.02 dB, for 60 % more time


@dataclass(frozen=True, slots=True)
class Kernel:
    """An interpolator of libvips, and the weights (sum 1, odd count) of the filter that runs before it, per axis.

    `rounds`: what is read off whole numbers is rounded, not cut off, to whole numbers.
    """

    interpolator: str
    across: Weights
    down: Weights
    rounds: bool


def choose_kernel(method: str, across: float, down: float) -> Kernel:
    """The kernel for a method that mixes values, where an output pixel covers `across` by `down` source pixels."""
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
    """The box's own weights would blur twice, since reading between pixels blurs too."""
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
    """A quadratic B-spline is as wide as a box of 1.38; narrower ones are sharpened, wider ones smoothed."""
    return _three((max(width, 1.0) ** 2 - 1.9) / 15)


def _three(side: float) -> Weights:
    return np.array([side, 1 - 2 * side, side])
