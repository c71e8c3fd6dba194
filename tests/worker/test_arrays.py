"""Pure array functions: validity, conversion of values, downsampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.color.arrays import (
    decibels,
    downsample,
    inks_to_light,
    is_nodata,
    to_byte,
    unpremultiply,
    validity,
)
from geoprocessing_worker.color.stretch import Stretch

NAN = float("nan")


def block(*planes: list[list[float]], dtype: str = "float32") -> Any:
    return np.array(planes, dtype=dtype)


def test_rgb_is_hidden_only_where_all_bands_hold_nodata() -> None:
    """Pure red over nodata 0 is red, not a hole."""
    rgb = block([[255, 0]], [[0, 0]], [[0, 0]], dtype="uint8")
    assert np.asarray(validity(rgb, (0, 0, 0), None)).tolist() == [[255, 0]]


def test_nan_and_infinity_are_never_valid() -> None:
    """Not-a-number is hidden whether or not the header names it."""
    values = block([[1, NAN, np.inf, -np.inf]])
    for nodata in (None, NAN, 5.0):
        assert np.asarray(validity(values, (nodata,), None)).tolist() == [[255, 0, 0, 0]]


@pytest.mark.parametrize(
    ("dtype", "stored", "told", "found"),
    [
        ("float32", -3.4028226550889045e38, -3.4028226550889045e38, True),
        ("float32", np.float32(0.1), 0.1, True),
        ("float32", np.finfo("float32").min, -3.4028234663852886e38 * 1.0000001, True),
        ("float32", np.finfo("float32").min, -3.4e38, True),
        ("float32", np.finfo("float32").max, 3.40282e38, True),
        ("float64", -1.7976931348623157e308, -1.797693e308, True),
        ("float32", np.finfo("float32").max, -3.40282e38, False),
        ("float32", -1e29, -1e30, False),
        ("uint8", 255, 256.0, False),
        ("uint8", 0, 0.5, False),
        ("uint8", 255, -1.0, False),
        ("int16", -9999, -9999.0, True),
    ],
)
def test_nodata_is_compared_in_the_bands_own_type(dtype: str, stored: Any, told: float, found: bool) -> None:
    """A decimal nodata equals its float32. One beyond the type hides no pixel."""
    same = is_nodata(np.array([[stored]], dtype=dtype), told)
    assert bool(same is not None and same.all()) is found


def test_each_band_has_its_own_nodata() -> None:
    """Hidden where every band holds its own value, not where all hold the first one's."""
    bands = block([[1, 1, 2]], [[2, 1, 2]])
    assert np.asarray(validity(bands, (1, 2), None)).tolist() == [[0, 255, 255]]
    assert validity(bands, (1, None), None) is None


def test_mask_and_nodata_count_together() -> None:
    """A pixel shows only if the mask and the nodata value both let it."""
    values = block([[1, 1, 9, 9]])
    mask = np.array([[255, 0, 255, 0]], dtype=np.uint8)
    assert np.asarray(validity(values, (9.0,), mask)).tolist() == [[255, 0, 0, 0]]


def test_all_valid_costs_no_plane() -> None:
    """Without anything hidden there is no opacity at all, so the picture needs no alpha."""
    assert validity(block([[1, 2]]), (None,), None) is None


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_stretched_values_can_be_read_back(dtype: str) -> None:
    """value = lo + pixel / 255 * (hi - lo), to half a step, in every type. Values outside are clipped."""
    values = np.linspace(-100 if np.dtype(dtype).kind != "u" else 0, 120, 50).astype(dtype)
    stretch = Stretch("range", 10.0, 110.0, "")
    pixels = to_byte(values[None, None], stretch)[0, 0]
    back = 10.0 + pixels / 255 * 100
    assert np.abs(back - np.clip(values.astype(float), 10, 110)).max() <= 100 / 255 / 2 + 1e-4


def test_large_offsets_keep_their_steps() -> None:
    """Values around two billion stay distinct: the arithmetic is wide enough."""
    values = np.array([[[2_000_000_000, 2_000_000_128, 2_000_000_255]]], dtype=np.int32)
    assert to_byte(values, Stretch("range", 2e9, 2e9 + 255, "")).tolist() == [[[0, 128, 255]]]


def test_decibels_of_nothing_are_not_a_number() -> None:
    """A complex zero has no logarithm and is hidden later."""
    assert np.allclose(decibels(np.array([1, 10j, 0], dtype="complex64")), [0, 20, NAN], equal_nan=True)


def test_inks_become_light() -> None:
    """No ink is white, full black ink is black, cyan takes the red away."""
    inks = np.array([[0, 0, 255], [0, 0, 0], [0, 0, 0], [0, 255, 0]], dtype=np.uint8)
    assert inks_to_light(inks).T.tolist() == [[255, 255, 255], [0, 0, 0], [0, 255, 255]]


def test_stored_premultiplied_color_is_made_straight() -> None:
    """Half-transparent red that is stored as 128 is full red."""
    assert unpremultiply(np.array([128, 0], dtype=np.uint8), np.array([128, 0], dtype=np.uint8)).tolist() == [255, 0]


@pytest.mark.parametrize("method", ["average", "bilinear", "cubic", "lanczos"])
def test_hidden_pixels_never_tint_their_neighbors(method: str) -> None:
    """Green under a mask does not bleed into the red beside it, however it is reduced while it is read."""
    samples = np.zeros((3, 90, 90), dtype=np.uint8)
    samples[0, :, :47], samples[1, :, 47:] = 255, 255
    alpha = np.where(np.arange(90) < 47, 255, 0).astype(np.uint8)[None].repeat(90, axis=0)
    small, opacity = downsample(samples, alpha, 31, 31, method)
    assert opacity is not None
    shown = opacity > 8
    assert small[0][shown].min() >= 250
    assert small[1][shown].max() <= 5
