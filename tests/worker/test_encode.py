"""Pictures become bytes: thumbnails."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from geoprocessing_worker.output.encode import thumbnail
from geoprocessing_worker.raster import Grid, Picture


@pytest.mark.parametrize("opacity", [255, 128])
def test_thumbnail_of_a_large_picture_has_the_colors_of_the_whole_one(opacity: int) -> None:
    """Shrinking by whole steps first changes no color, at an edge neither, whether opacity is all or half."""
    pixels = np.zeros((1600, 1600, 4), dtype=np.uint8)
    pixels[:, 100:, 3] = opacity
    pixels[:800, 100:, 0] = pixels[800:, 100:, 2] = 240
    picture = Picture(pixels, None, Grid(1600, 1600, None, None), 1.0)
    with Image.open(BytesIO(thumbnail(picture, 64))) as image:
        found = np.asarray(image).astype(int)
    assert found.shape == (64, 64, 4)
    assert (found[:, :3, 3] <= 1).all()
    assert np.abs(found[:28, 8:] - (240, 0, 0, opacity)).max() <= 1
    assert np.abs(found[36:, 8:] - (0, 0, 240, opacity)).max() <= 1
    edge = found[:28, 4]
    assert (edge[:, 3] > 0).all()
    assert (edge[:, 3] < opacity + 8).all()
    assert np.abs(edge[:, 0] - 240).max() <= 3


def test_thumbnail_of_a_line_keeps_its_mean_brightness() -> None:
    """A picture of one row is averaged along the row, although its height cannot shrink."""
    pixels = np.zeros((1, 5120, 1), dtype=np.uint8)
    pixels[:, ::2] = 200
    with Image.open(BytesIO(thumbnail(Picture(pixels, None, Grid(5120, 1, None, None), 1.0), 64))) as image:
        found = np.asarray(image)
    assert found.shape == (1, 64)
    assert (found == 100).all()
