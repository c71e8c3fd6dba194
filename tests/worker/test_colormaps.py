"""Colormaps are the published ones, and each name that a payload may have has a table."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from geoprocessing_worker.color.colormaps import COLLECTIONS, NAMES, color_table


def test_every_name_has_a_table_and_its_reverse() -> None:
    """A name that `cmap` lacks, or that means several colormaps, would fail or warn here."""
    names = [name for listed in COLLECTIONS.values() for name in listed.split()]
    assert len(names) == len(set(names)) == len(NAMES) // 2
    with warnings.catch_warnings(action="error"):
        for name in names:
            table = color_table(name)
            assert table.shape == (256, 3)
            assert table.dtype == np.uint8
            assert (color_table(f"{name}_r") == table[::-1]).all()


@pytest.mark.parametrize(
    ("name", "entry", "color"),
    [
        ("gray", 100, (100, 100, 100)),
        ("viridis", 128, (33, 145, 140)),
        ("terrain", 32, (8, 136, 238)),
        ("jet", 128, (125, 255, 122)),
        ("rdylgn", 0, (165, 0, 38)),
        ("thermal", 255, (232, 250, 91)),
        ("batlow", 0, (1, 25, 89)),
    ],
)
def test_colors_are_the_published_ones(name: str, entry: int, color: tuple[int, int, int]) -> None:
    assert tuple(color_table(name)[entry].tolist()) == color
