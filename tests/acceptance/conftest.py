"""Fixtures of the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import Programs, programs
from tests.support.rasters import Tiff


@pytest.fixture
def stack(postgres_url: str, tmp_path: Path) -> Iterator[Programs]:
    """An API process on a fresh database, without workers."""
    with programs(postgres_url, tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def small_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GeoTIFF: three bands of 80 x 60 pixels near 44° E 16° N."""
    pixels = np.random.default_rng(1).integers(0, 255, (3, 60, 80), "uint8")
    return Tiff(pixels).write(tmp_path_factory.mktemp("maps") / "small.tif")


@pytest.fixture(scope="session")
def large_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GeoTIFF that takes about a second to render: 4000 x 4000 pixels."""
    pixels = np.random.default_rng(1).integers(0, 255, (3, 4000, 4000), "uint8")
    return Tiff(pixels, profile={"tiled": True}).write(tmp_path_factory.mktemp("maps") / "large.tif")
