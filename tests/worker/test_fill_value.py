"""Undeclared nodata are found where they would wash out the picture, noted, and never hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoprocessing_worker.color.fill_value import find_byte_fill, find_fill_values, without
from tests.support.rasters import Tiff, picture_of, ramp, run

HEIGHTS = np.random.default_rng(5).normal(1400, 300, 20_000)
LOWEST = float(np.finfo(np.float32).min)


def mixed(values: Any, *fills: float, share: float = 0.3, dtype: str = "float32") -> Any:
    count = int(len(values) * share)
    return np.concatenate([values, *(np.full(count, fill) for fill in fills)]).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("int16", -9999), ("int16", -32768), ("int32", -2147483648), ("uint16", 65535), ("uint16", 0),
        ("float32", LOWEST), ("float32", -LOWEST), ("float64", 1e20), ("float32", -9999.0), ("float64", -123456.0),
    ],
)  # fmt: skip
def test_value_far_from_all_others_is_found(dtype: str, fill: float) -> None:
    """Usual nodata values of programs are named with their share, in every type."""
    (found,) = find_fill_values(mixed(HEIGHTS.clip(900, 2200), fill, dtype=dtype))
    assert found.value == fill
    assert found.share == pytest.approx(0.3 / 1.3, abs=0.01)


def test_one_below_and_one_above_are_both_found() -> None:
    """A mosaic of two sources can hold two."""
    assert {fill.value for fill in find_fill_values(mixed(HEIGHTS, -9999, 1e30))} == {-9999, float(np.float32(1e30))}


@pytest.mark.parametrize(
    "values",
    [
        HEIGHTS,
        np.maximum(HEIGHTS - 1400, 0),  # sea level, and heights that begin right above it
        mixed(np.random.default_rng(2).exponential(3, 20_000), 0, share=9),  # rain, and mostly none
        np.repeat([0.0, 1.0], 5000),
        np.repeat([0.0, 65535.0], 5000),
        np.repeat([0.0, 12.5], [9950, 50]),
        np.repeat([1.0, 2.0, 5.0, 90.0], [400, 500, 50, 50]),  # classes that are stored as floats
        np.repeat([0.0, 30.0, 31.0], 500),
        np.full(1000, -9999.0),
        np.empty(0),
        np.linspace(-9999, 3000, 20_000),  # -9999 is a value like any other here
        mixed(HEIGHTS, 5000, share=0.0001),
    ],
    ids=[
        "heights",
        "sea",
        "rain",
        "mask",
        "mask of 16 bits",
        "rare",
        "classes",
        "classes from 0",
        "constant",
        "empty",
        "bathymetry",
        "one outlier",
    ],
)
def test_real_values_are_left_alone(values: Any) -> None:
    """Zero rain, sea level, masks and a constant are data."""
    assert find_fill_values(np.asarray(values, dtype=np.float32)) == ()


@given(st.lists(st.floats(width=32), min_size=0, max_size=60), st.integers(1, 40))
def test_most_values_are_always_kept(values: list[float], times: int) -> None:
    """Whatever is found, at least sixteen pixels with other values remain, and nothing found remains."""
    array = np.array([value for value in values if np.isfinite(value)] * times, dtype=np.float32)
    fills = find_fill_values(array)
    rest = without(array, fills)
    assert len(fills) <= 2
    assert not fills or rest.size >= 16
    assert not np.isin(rest, [fill.value for fill in fills]).any()


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -9999), ("float32", LOWEST), ("uint16", 0)])
def test_undeclared_nodata_is_left_out_of_the_stretch_with_a_note(dtype: str, fill: float, tmp_path: Path) -> None:
    """The stretch is that of the real values. The others are clipped but visible, and a note names the option."""
    data = ramp(60, 100, "float64", 1000, 1500)
    data[:, :, :40] = fill
    result = run(Tiff(data.astype(dtype)).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert 1000 <= choices["stretch"]["lo"] < choices["stretch"]["hi"] <= 1500
    assert choices["stretch"]["excludedValues"] == [{"value": fill, "share": pytest.approx(0.4)}]
    assert any(f'"nodata": {fill:.17g}' in note for note in choices["notes"])
    picture = picture_of(result)
    assert (picture[..., 3] == 255).all()
    assert np.ptp(picture[:, 45:, 0]) > 250
    assert not picture[:, :35, :3].any()


@pytest.mark.parametrize("place", ["collar", "island"])
def test_a_collar_of_any_value_is_left_out(place: str, tmp_path: Path) -> None:
    """A value all round the picture is nodata, whatever its number. As an island it is a measurement."""
    data = (np.arange(10_000).reshape(1, 100, 100) % 25 * 60 + 9000).astype(np.uint16)
    if place == "collar":
        data[:, :10] = data[:, -10:] = data[:, :, :10] = data[:, :, -10:] = 1
    else:
        data[:, 20:60, 20:60] = 1
    result = run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert [fill["value"] for fill in choices["stretch"]["excludedValues"]] == ([1.0] if place == "collar" else [])
    assert (choices["stretch"]["lo"] >= 9000) == (place == "collar")


def test_stretch_that_was_asked_for_by_its_ends_takes_all_values(tmp_path: Path) -> None:
    """`minmax` means lowest to highest of all, whatever they look like."""
    data = ramp(60, 100, "int16", 1000, 1500)
    data[:, :, :40] = -9999
    result = run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out", stretch="minmax")
    choices: Any = result.metadata["choices"]
    assert (choices["stretch"]["lo"], choices["stretch"]["excludedValues"]) == (-9999, [])


def test_classes_beside_undeclared_nodata_are_still_classes(tmp_path: Path) -> None:
    """Ten classes and -9999: not mixed, and spread over all of gray."""
    data = (np.indices((100, 100)).sum(axis=0) // 20 + 1).astype(np.int16)[None]
    data[:, :30] = -9999
    result = run(Tiff(data, crs="EPSG:3857").write(tmp_path / "a.tif"), tmp_path / "out", max_size=64)
    choices: Any = result.metadata["choices"]
    assert choices["resampling"]["method"] == "nearest"
    assert (choices["stretch"]["kind"], choices["stretch"]["lo"]) == ("minmax", 2)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32"])
def test_mask_whose_white_is_the_largest_of_its_type_is_black_and_white(dtype: str, tmp_path: Path) -> None:
    """Beside nothing but 0 the largest number is no fill value, though programs write it for no data as well."""
    data = np.zeros((1, 60, 60), dtype=dtype)
    data[:, :, 20:] = np.iinfo(dtype).max
    result = run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["excludedValues"] == []
    assert np.array_equal(np.unique(picture_of(result)[..., 0]), [0, 255])


@pytest.mark.parametrize("codes", [range(1, 18), range(9), range(1, 45), (0, 1), range(0, 64, 9)])
def test_255_beside_small_classes_of_bytes_is_left_out(codes: Any, tmp_path: Path) -> None:
    """Land cover of small codes is spread over all grays instead of nearly black, with a note."""
    blocks = np.random.default_rng(1).choice(np.array(codes, dtype=np.uint8), (20, 20))
    data = blocks.repeat(5, axis=0).repeat(5, axis=1)
    data[:, :20] = 255
    result = run(Tiff(data[None]).write(tmp_path / "a.tif"), tmp_path / "out", coordinate_system="native")
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["excludedValues"] == [{"value": 255, "share": pytest.approx(0.2)}]
    assert choices["resampling"]["method"] == "nearest"
    assert any('{"nodata": 255}' in note for note in choices["notes"])
    gray = picture_of(result)[..., 0]
    assert (gray[:, :20] == 255).all()
    assert (gray[:, 20:].min(), gray[:, 20:].max(), np.unique(gray[:, 20:]).size) == (0, 255, len(codes))


@pytest.mark.parametrize(
    "values",
    [
        np.repeat([0, 255], 500),
        np.repeat([0, 127, 255], 500),
        np.repeat([0, 50, 255], 500),
        np.repeat([0, 1, 255], [50_000, 20, 50_000]),
        np.repeat([1, 2, 255], [200, 200, 99_600]),
        np.repeat([1, 2, 3], 500),
        np.append(np.arange(1, 18).repeat(99), [200, 255, 255]),
        np.arange(256).repeat(9),
    ],
    ids=[
        "mask",
        "trimap",
        "three grays",
        "mask with mistakes",
        "lines on white",
        "no 255",
        "bright codes",
        "photograph",
    ],
)
def test_255_of_other_bytes_is_a_value(values: Any) -> None:
    """Masks stay black and white, and codes that are already distinct stay as they are."""
    assert find_byte_fill(values.astype(np.uint8)) == ()


def test_255_of_a_dark_photograph_is_a_value(tmp_path: Path) -> None:
    """Grays that run into each other are no classes, however dark, and white letters on them are white."""
    rows, columns = np.indices((200, 200))
    data = (20 + 18 * np.sin(rows / 60) * np.cos(columns / 45)).astype(np.uint8)
    data[90:100, 50:150] = 255
    choices: Any = run(Tiff(data[None]).write(tmp_path / "a.tif"), tmp_path / "out").metadata["choices"]
    assert (choices["stretch"]["kind"], choices["stretch"]["excludedValues"]) == ("none", [])


@pytest.mark.parametrize(
    "inside", [(7000.25,), (1000.5, 7000.5), (5000,), (4000, 9000, 30_000), tuple(range(2000, 30_000, 2000))]
)
@pytest.mark.parametrize("collar", [1, 40_000])
def test_collar_beside_few_other_values_is_a_value(inside: tuple[float, ...], collar: float, tmp_path: Path) -> None:
    """Codes of classes of which one runs round the picture are all shown, and apart from each other."""
    blocks = np.random.default_rng(3).choice(inside, (12, 12)).repeat(5, axis=0).repeat(5, axis=1)
    data = np.pad(blocks, 10, constant_values=collar)[None].astype(np.float32)
    result = run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out", coordinate_system="native")
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["excludedValues"] == []
    assert np.unique(picture_of(result)[..., 0]).size == 1 + len(inside)


@pytest.mark.parametrize(
    ("values", "excluded_values"),
    [
        (np.repeat([-9999.0, 1.5], 500), False),
        (np.repeat([-9999.0, 1.5, 2.5], 500), True),
        (np.repeat([65535.0, 4000.0], 500), False),
        (np.repeat([0.0, 4000.0], 500), False),
    ],
    ids=["known and one", "known and two", "largest and one", "zero and one"],
)
def test_one_value_beside_another_is_data(values: Any, excluded_values: bool) -> None:
    """A value that programs write for no data needs two other values before it is left out."""
    assert bool(find_fill_values(values.astype(np.float32))) == excluded_values
    assert bool(find_fill_values(values.astype(np.float32), collar=float(values[0]))) == excluded_values
