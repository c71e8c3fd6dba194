"""Read an alpha band: its top value, whether it holds opacity, and whether colors are premultiplied."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8_TOP = 255.0
KNOWN_TOPS = (*(float(2**bits - 1) for bits in range(9, 17)), 1_000.0, 10_000.0)
"""Values above 255 at which an alpha band of a wider type ends, beside the largest of its type."""

NEAR_TOP = 0.98  # of the top: lossy codecs and resampling leave alpha a little below it
FAINT_SHARE = 1 / 16  # of a wide type's range: an alpha that ends below it has a top of its own
MANY_LEVELS = 32  # different values: soft edges of few levels and uniform alphas hold fewer
MOSTLY, SOME = 0.5, 0.1  # of the pixels near the top
CLIPPED_SHARE = 0.75  # of the pixels near the top have the highest value: a saturated sensor. A vignette has fewer
MAX_ZERO_SHARE = 0.02  # of the pixels: water and shadow in infrared
MIN_CORRELATION = 0.3  # of differences of neighbors: 0 for gradients and noise, higher for bands of one photograph
ROUGH_SHARE = 0.02  # of alpha's variance lies between neighbors: 0 for soft edges and gradients, 1 for noise
EDGE_DISTANCES = ((2, 8), (8, 32))  # pixels: soft edges rise between both, infrared beside a collar does not
RISING_SHARE = 0.6  # of the farther value
MIN_PARTIAL = 16  # pixels
ROUNDING, LOSS = 0.02, 0.1  # of the top, by which colors may exceed alpha
BLACK_SHARE = 0.1  # of the top: lossy codecs leave a black collar and its edge above 0
STRAY_SHARE = 0.001  # of the pixels may be exceptions
COUNTED_VALUES = 1 << 16  # values in which distinct ones are counted
SAMPLED_PIXELS = 1 << 18  # pixels


class Role(StrEnum):
    """The meaning of an alpha band's values."""

    OPACITY = "opacity"
    PRESENCE = "visible where it is not 0"
    COLLAR = "no opacity, but hidden where it and all colors are 0"
    NONE = "no opacity"


@dataclass(frozen=True, slots=True)
class AlphaReading:
    """`top`: the value at which a pixel is fully visible. `premultiplied`: colors are stored multiplied by alpha.

    `note` explains a reading that differs from the file's own declaration.
    """

    role: Role
    top: float
    premultiplied: bool = False
    note: str | None = None


AlphaBlock = tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]
"""(rows, columns) alpha, (bands, rows, columns) colors, (rows, columns) of pixels that count."""


@dataclass(frozen=True, slots=True)
class AlphaSample:
    """Pixels of an alpha band that neither nodata nor a mask hides: `alpha` is (pixels,), `colors` (bands, pixels)."""

    alpha: NDArray[Any]
    colors: NDArray[Any]
    blocks: tuple[AlphaBlock, ...]


@dataclass(frozen=True, slots=True)
class Declared:
    """The declarations of the file and the job about an alpha band.

    `name` is for notes. `bits` is set where it has fewer bits than its type. `premultiplied`: colors are multiplied by
    it. `lossy`: the codec changes values a little. `trusted`: the job names this band as alpha.
    """

    name: str
    bits: int | None = None
    premultiplied: bool = False
    lossy: bool = False
    trusted: bool = False


def gather(blocks: list[AlphaBlock]) -> AlphaSample:
    """Return a sample of blocks, thinned by rows to some 300,000 pixels."""
    step = max(1, sum(alpha.size for alpha, _, _ in blocks) // SAMPLED_PIXELS)
    thinned = tuple((alpha[::step], colors[:, ::step], shown[::step]) for alpha, colors, shown in blocks)
    alpha = np.concatenate([alpha[shown] for alpha, _, shown in thinned])
    colors = np.concatenate([colors[:, shown] for _, colors, shown in thinned], axis=1)
    return AlphaSample(alpha, colors, thinned)


def _details(blocks: tuple[AlphaBlock, ...]) -> tuple[bool, bool]:
    """Return whether alpha has the details of a color band, and whether it has any, by differences of neighbors.

    Only neighbors in a row count, both with an alpha above 0.
    """
    bands = len(blocks[0][1])
    products, squares, own, spread = np.zeros(bands), np.zeros(bands), 0.0, 0.0
    for alpha, colors, shown in blocks:
        both = shown & (alpha != 0)
        pairs = both[:, 1:] & both[:, :-1]
        if not pairs.any():
            continue
        steps = _steps(alpha, pairs)
        own += float(steps @ steps)
        spread += 2 * steps.size * float(np.var(alpha[both].astype(np.float64)))
        for band, plane in enumerate(colors):
            others = _steps(plane, pairs)
            products[band] += float(steps @ others)
            squares[band] += float(others @ others)
    scale = np.sqrt(squares * own)
    correlation = np.abs(np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0)).max(initial=0.0)
    return bool(correlation >= MIN_CORRELATION), spread > 0 and own / spread >= ROUGH_SHARE


def _steps(plane: NDArray[Any], pairs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return differences of neighbors without their mean, so that even gradients have none."""
    steps: NDArray[np.float64] = np.diff(plane.astype(np.float64), axis=1)[pairs]
    steps -= steps.mean()
    return steps


def alpha_top(dtype: Any, largest: float, bits: int | None = None) -> float:
    """Return the value at which a pixel is fully visible, of an alpha band with the largest value `largest`.

    Whole numbers end at the largest of their bits, floats at 1. Programs also write masks of 0 and 1, widen 8 bits
    without scaling, and use scales such as 0 to 10000.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return 1.0 if largest * NEAR_TOP <= 1 else _known_top(largest) or largest
    limit = float(np.iinfo(kind).max)
    if bits is not None and bits < 8 * kind.itemsize and largest < 2**bits:
        limit = min(limit, float(2**bits - 1))
    if largest == 1:
        return 1.0
    if kind.itemsize == 1 or largest <= 0:
        return limit
    if limit < np.iinfo(kind).max:  # as many bits as declared
        return limit if largest > U8_TOP else min(U8_TOP, limit)
    return _known_top(largest) or (largest if largest < limit * FAINT_SHARE else limit)


def _known_top(largest: float) -> float | None:
    if largest <= U8_TOP:
        return U8_TOP
    return next((top for top in sorted(KNOWN_TOPS) if top * NEAR_TOP <= largest <= top), None)


def read_alpha(sample: AlphaSample, declared: Declared) -> AlphaReading:
    """Decide how to read an alpha band by its values and those of the colors beside it."""
    alpha = sample.alpha
    if alpha.size == 0 or alpha.dtype.kind == "c":
        return AlphaReading(Role.OPACITY, alpha_top(alpha.dtype, 0, declared.bits), declared.premultiplied)
    top = alpha_top(alpha.dtype, float(alpha.max()), declared.bits)
    excess = _excess(sample, top, declared) if declared.premultiplied else 0.0
    straight = excess > STRAY_SHARE
    multiplied = declared.premultiplied and not straight
    if not declared.trusted and (found := _no_opacity(sample, declared, top, multiplied=multiplied)):
        return found
    if not straight:
        return AlphaReading(Role.OPACITY, top, multiplied)
    weak = not declared.trusted and float(np.mean(alpha[alpha > 0] >= top * NEAR_TOP)) < STRAY_SHARE
    words = (
        f"{declared.name} is called premultiplied alpha, but colors exceed it in {excess:.1%} of its partly visible "
        "pixels: colors are shown as stored"
    )
    if not weak:
        return AlphaReading(Role.OPACITY, top, note=words)
    words += f", and since no value gets near {top:g}, each but 0 is fully visible"
    return AlphaReading(Role.PRESENCE, _least(alpha.dtype), note=words)


def _least(dtype: Any) -> float:
    """Return the smallest value above 0: as a top it makes all others fully visible."""
    return 1.0 if np.dtype(dtype).kind in "iu" else float(np.finfo(np.float32).tiny)


def _excess(sample: AlphaSample, top: float, declared: Declared) -> float:
    """Return the share of partly visible pixels with brighter colors than premultiplication allows."""
    alpha = sample.alpha.astype(np.float64) / top
    colors = sample.colors.max(axis=0, initial=0).astype(np.float64)
    highest = max(top, alpha_top(sample.colors.dtype, float(colors.max(initial=0)), declared.bits))
    partial = (alpha > 0) & (alpha < NEAR_TOP)
    if np.count_nonzero(partial) < MIN_PARTIAL:
        partial = alpha < NEAR_TOP
    if not partial.any():
        return 0.0
    exceeding = colors / highest > alpha + (LOSS if declared.lossy else ROUNDING)
    return float(np.mean(exceeding[partial]))


def _no_opacity(sample: AlphaSample, declared: Declared, top: float, *, multiplied: bool) -> AlphaReading | None:
    """Return the reading of a declared alpha band that holds values of its own, such as infrared.

    Such a band has many values, less than half of them near the top, and is 0 only where all colors are black. Opacity
    with soft edges may do the same, but rises gradually from its zeros. A few zeros elsewhere are shadow and water, if
    the band has the details of the colors. A band without zeros needs those or texture, if a
    tenth of its values is near the top and not clipped there.

    `multiplied`: no color exceeds it, so it may well be opacity.
    """
    alpha, colors = sample.alpha, sample.colors
    different = np.unique(alpha[:: max(1, alpha.size // COUNTED_VALUES)]).size
    if different <= MANY_LEVELS:
        return None
    black = _blackness(top, colors, lossy=declared.lossy)
    empty = _is_black(alpha, colors, black)
    rest = alpha[~empty]
    zeros, full = (float(np.mean(found)) if rest.size else 1.0 for found in (rest <= 0, rest >= top * NEAR_TOP))
    if full >= MOSTLY or zeros > MAX_ZERO_SHARE or (multiplied and (zeros > 0 or empty.any())):
        return None
    visible = colors[:, ~empty]
    if (visible == visible[:, :1]).all():
        return None  # a uniform color under an alpha that varies is an overlay, such as a shaded relief
    alike, textured = _details(sample.blocks)
    if zeros > STRAY_SHARE:
        own_values = alike and textured
    elif empty.any():
        own_values = (alike or full < SOME) if textured else not _rises(sample.blocks, black)
    else:
        clipped = float(np.mean(rest == rest.max())) >= CLIPPED_SHARE * full
        own_values = textured or ((alike or full < SOME or clipped) and not multiplied)
    if not own_values:
        return None
    numbers = (
        f"{rest.min():g} to {rest.max():g}, at least {different} different values, {zeros:.1%} of them 0, "
        f"{full:.1%} near {top:g}"
    )
    if empty.any():
        note = (
            f"{declared.name} is called alpha, but holds no opacity ({numbers}): "
            "it hides only pixels where all bands are 0"
        )
        return AlphaReading(Role.COLLAR, top, False, note)
    return AlphaReading(
        Role.NONE, top, False, f"{declared.name} is called alpha, but holds no opacity ({numbers}): ignored"
    )


def _blackness(top: float, colors: NDArray[Any], *, lossy: bool) -> tuple[float, float]:
    """Return the largest values of alpha and of colors that count as black."""
    if not lossy:
        return 0.0, 0.0
    return BLACK_SHARE * top, BLACK_SHARE * alpha_top(colors.dtype, float(colors.max(initial=0)))


def _is_black(alpha: NDArray[Any], colors: NDArray[Any], black: tuple[float, float]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (alpha <= black[0]) & (colors <= black[1]).all(axis=0)
    return found


def _rises(blocks: tuple[AlphaBlock, ...], black: tuple[float, float]) -> bool:
    """Return whether alpha rises gradually beside black pixels, by medians over all rows and columns."""
    found: dict[tuple[int, int], list[NDArray[Any]]] = {pair: [] for pair in EDGE_DISTANCES}
    for alpha, colors, shown in blocks:
        dark = shown & _is_black(alpha, colors, black)
        lit = shown & ~dark
        for turns in range(4):
            plane, before, after = (np.rot90(each, turns) for each in (alpha, dark, lit))
            rows, columns = np.nonzero(before[:, :-1] & after[:, 1:])
            for pair in EDGE_DISTANCES:
                there = columns + pair[1] < plane.shape[1]
                row, near, far = rows[there], columns[there] + pair[0], columns[there] + pair[1]
                both = after[row, near] & after[row, far]
                found[pair].append(np.stack([plane[row, near][both], plane[row, far][both]]))
    for parts in found.values():
        values = np.concatenate(parts, axis=1).astype(np.float64)
        if values.size and np.median(values[0]) < RISING_SHARE * np.median(values[1]):
            return True
    return False
