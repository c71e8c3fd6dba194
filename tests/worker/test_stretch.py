"""The choice of how values become 8 bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.color.stretch import choose_stretch, few_values

NOISE = np.random.default_rng(1).normal(1000, 100, 50_000)


def test_bytes_are_shown_as_they_are() -> None:
    """uint8 imagery is never stretched, dark or bright."""
    stretch = choose_stretch(np.arange(40, 90, dtype=np.uint8).repeat(9), None, None, color=True)
    assert stretch.identity


def test_wide_types_get_the_percentiles_of_the_sample() -> None:
    """uint16 and float run from the 2nd to the 98th percentile."""
    for dtype in ("uint16", "float32", "int32"):
        values = NOISE.astype(dtype)
        stretch = choose_stretch(values, None, None, color=False)
        assert (stretch.lo, stretch.hi) == pytest.approx(tuple(np.percentile(values, (2, 98))), rel=1e-3)


def test_one_outlier_does_not_flatten_the_picture() -> None:
    """A single dead pixel of 1e30 leaves the stretch where the data is."""
    stretch = choose_stretch(np.append(NOISE, 1e30).astype(np.float32), None, None, color=False)
    assert stretch.hi < 1500


def test_classes_are_kept_apart() -> None:
    """A few whole numbers are spread from lowest to highest, none clipped away."""
    classes = np.array([11, 21, 31, 95] * 50, dtype=np.uint8)
    assert choose_stretch(classes.astype(np.int16), None, None, color=False).kind == "minmax"
    assert choose_stretch(classes.astype(np.float32), None, None, color=False).kind == "minmax"
    halves = choose_stretch(classes.astype(np.float32) / 2 + 0.25, None, None, color=False)
    assert halves.kind == "percentile"
    low = choose_stretch((classes // 10).astype(np.uint8), None, None, color=False)
    assert (low.lo, low.hi) == (1.0, 9.0)


FLAGS = np.array([21762, 21824, 21952, 22280, 23888, 30048, 54596, 55052])
"""Bit flags, as of a satellite's quality band."""


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint64", "float32"])
def test_classes_whose_codes_lie_far_apart_are_classes(dtype: str) -> None:
    """By their number and not by their span, and each as often as the others they are all kept apart."""
    values = np.random.default_rng(3).permutation(FLAGS.repeat(50)).astype(dtype)
    assert few_values(values)
    stretch = choose_stretch(values, None, None, color=False)
    assert (stretch.lo, stretch.hi) == (21762, 55052)


def test_a_rare_code_far_away_does_not_hide_the_usual_ones() -> None:
    """A code in a thousandth of the pixels is clipped if the others would all be black."""
    values = np.append(np.arange(1, 18).repeat(1000), np.full(17, 9000)).astype(np.int32)
    assert few_values(values)
    assert choose_stretch(values, None, None, color=False).hi == 17


@pytest.mark.parametrize(
    "values",
    [
        np.arange(200, 2600, 40),
        np.append(np.zeros(20_000), np.arange(200, 2600, 40)),
        np.arange(200, 2600, 24).repeat(50),
        (FLAGS + 0.5).repeat(50),
    ],
    ids=["few pixels", "an island in the sea", "more than 64", "not whole"],
)
def test_measurements_of_a_wide_span_are_not_taken_for_classes(values: Any) -> None:
    """However few there are: hardly two of their pixels hold the same."""
    assert not few_values(values)


def test_mostly_one_value_still_shows_the_rest() -> None:
    """When both percentiles are one value, the range is used instead."""
    rain = np.zeros(10_000, dtype=np.float32)
    rain[:50] = 12.5
    stretch = choose_stretch(rain, None, None, color=False)
    assert (stretch.lo, stretch.hi) == (0.0, 12.5)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e30, 1e-30])
def test_constant_is_flat_and_finite(value: float) -> None:
    """A constant raster divides by nothing that is zero."""
    stretch = choose_stretch(np.full(100, value, dtype=np.float32), None, None, color=False)
    assert stretch.kind == "constant"
    assert stretch.lo < value < stretch.hi


def test_few_bits_use_all_of_eight() -> None:
    """A 4-bit 15 is white."""
    assert choose_stretch(np.arange(16, dtype=np.uint8), 4, None, color=True).hi == 15.0


@pytest.mark.parametrize(
    ("asked", "lo", "hi"),
    [
        ("minmax", 0.0, 100.0),
        ("percentile:10,90", 10.0, 90.0),
        ("range:-5,5", -5.0, 5.0),
        ("none", 0.0, 255.0),
        ("stddev:1", 50 - np.std(np.arange(101)), 50 + np.std(np.arange(101))),
    ],
)
def test_payload_decides(asked: str, lo: float, hi: float) -> None:
    """Each kind of stretch that a payload may ask for gives the numbers it promises."""
    stretch = choose_stretch(np.arange(101, dtype=np.float64), None, asked, color=False)
    assert (stretch.lo, stretch.hi) == pytest.approx((lo, hi))


def test_empty_sample_is_no_error() -> None:
    """All nodata in the sample: the choice is still made."""
    empty: Any = np.empty(0, dtype=np.float32)
    assert choose_stretch(empty, None, None, color=False).kind == "none"
