"""An output pixel is the mean of the source pixels under it, at any place and scale."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray

from geoprocessing_worker.render.warp import MAX_SAMPLES, means, offsets
from tests.support.rasters import Tiff, picture_of, run

SIZE = 400
UTM = Affine(30.0, 0.0, 400_000.0, 0.0, -30.0, 1_700_000.0)
PACIFIC = "+proj=eqc +lon_0=180 +datum=WGS84"


@pytest.fixture(scope="module")
def picture() -> NDArray[np.float32]:
    """Return detail at every scale, as in a photograph: noise with an amplitude that falls with frequency."""
    noise = np.fft.rfft2(np.random.default_rng(7).standard_normal((SIZE, SIZE)))
    frequency: NDArray[np.float64] = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    shaped: NDArray[np.float64] = np.fft.irfft2(noise / np.maximum(frequency, 1 / SIZE) ** 1.2)
    return np.asarray((shaped - shaped.mean()) / shaped.std() * 40 + 128, dtype=np.float32)


def centers(width: float) -> NDArray[np.float64]:
    return np.arange(8 + width, SIZE - 8 - width, width)


def boxes(picture: NDArray[np.float32], across: float, down: float) -> NDArray[np.float64]:
    """The true means: whole pixels and parts of pixels, each weighted by how much of it lies in the box."""

    def weights(width: float) -> NDArray[np.float64]:
        pixels, middle = np.arange(SIZE), centers(width)[:, None]
        overlap: NDArray[np.float64] = np.minimum(pixels + 1, middle + width / 2) - np.maximum(
            pixels, middle - width / 2
        )
        clipped: NDArray[np.float64] = np.clip(overlap, 0, None) / width
        return clipped

    means: NDArray[np.float64] = weights(down) @ picture.astype(np.float64) @ weights(across).T
    return means


def off(picture: NDArray[np.float32], across: float, down: float, method: str) -> float:
    """Return the standard deviation of mean samples from the true means, in gray levels."""
    xs, ys = (
        ((centers(width)[:, None] + offsets(width, method) * width).ravel() - 0.5).astype(np.float32)
        for width in (across, down)
    )
    columns, rows = np.meshgrid(xs, ys)
    found = cv2.remap(picture, columns, rows, cv2.INTER_LINEAR)
    mean = cv2.resize(found, (centers(across).size, centers(down).size), interpolation=cv2.INTER_AREA)
    return float(np.std(mean - boxes(picture, across, down)))


@pytest.mark.parametrize(
    ("across", "down", "part"),
    [
        (1.05, 1.05, 0.95),
        (1.1, 1.3, 0.75),
        (1.0, 1.45, 0.6),
        (1.25, 1.3, 0.55),
        (1.47, 1.52, 0.4),
        (1.6, 1.7, 0.25),
        (1.9, 2.0, 0.1),
        (2.4, 2.4, 0.2),
        (3.0, 4.0, 0.1),
        (9.7, 12.3, 0.1),
    ],
)
def test_several_samples_come_closer_to_the_mean_than_one(
    picture: NDArray[np.float32], across: float, down: float, part: float
) -> None:
    """They leave no more than this part of the error of plain bilinear interpolation, narrow or wide."""
    assert off(picture, across, down, "average") < part * off(picture, across, down, "nearest")


@pytest.mark.parametrize("channels", [1, 3])
def test_means_of_bytes_are_rounded_once(channels: int) -> None:
    """The mean of four samples is the byte nearest to the one in floats. Rounded samples would be off by up to one."""
    random = np.random.default_rng(3)
    planes = list(random.integers(0, 256, (channels, 90, 90), dtype=np.uint8))
    places = random.uniform(2, 88, (2, 128, 128)).astype(np.float32)
    exact = means([plane.astype(np.float32) for plane in planes], places, (64, 64), cv2.INTER_LINEAR)
    assert np.abs(means(planes, places, (64, 64), cv2.INTER_LINEAR) - exact).max() < 0.51


@pytest.mark.parametrize("method", ["average", "cubic", "mode"])
def test_an_absurd_place_has_a_few_samples_within_its_pixel(method: str) -> None:
    """One control point that is far off cannot make an output pixel cost without bounds."""
    absurd = offsets(1e15, method)
    assert absurd.size <= MAX_SAMPLES
    assert np.abs(absurd).max() <= 0.5


@pytest.mark.parametrize("method", ["average", "bilinear", "cubic", "lanczos", "nearest", "mode"])
def test_a_flat_picture_keeps_its_value_beside_hidden_pixels(method: str, tmp_path: Path) -> None:
    """Hidden pixels of another value weigh nothing, and weights add up to one at any scale."""
    data = np.full((3, 300, 300), 201, dtype=np.uint8)
    data[:, 100:140, 100:140] = 7
    path = Tiff(data, crs="EPSG:32638", transform=UTM, nodata=7).write(tmp_path / "flat.tif")
    for size in (300, 170, 60):
        shown = picture_of(run(path, tmp_path / f"{size}", max_size=size, resampling=method))
        visible = shown[..., 3] > 0
        assert (shown[visible, :3] == 201).all()
        assert 0.9 < visible.mean() < 1


def test_a_source_longer_than_opencv_counts_is_read_where_its_pixels_are(tmp_path: Path) -> None:
    """A tile that crosses the date line needs both ends of a row of 40,000 pixels."""
    row = np.linspace(0, 255, 40_000).astype(np.uint8)
    path = Tiff(np.tile(row, (1, 4, 1)), transform=Affine(0.009, 0, -180, 0, -0.009, 0.018)).write(
        tmp_path / "long.tif"
    )
    shown = picture_of(run(path, tmp_path / "out", max_size=16_384, resampling="nearest", coordinate_system=PACIFIC))
    middle = shown[shown.shape[0] // 2, :, 0].astype(int)
    jumps = np.flatnonzero(np.abs(np.diff(middle)) > 1)
    assert jumps.size == 1
    assert middle[jumps[0]] >= 254
    assert middle[jumps[0] + 1] == 0


def test_a_child_forked_after_a_warp_warps_too() -> None:
    """OpenCV starts no thread, since the project limits it to the caller's, so a fork loses none."""
    picture = np.random.default_rng(1).integers(0, 255, (2000, 2000, 4), dtype=np.uint8)
    xs, ys = np.meshgrid(np.arange(0, 1990, 1.1, dtype=np.float32), np.arange(0, 1990, 1.1, dtype=np.float32))
    threads = len(list(Path("/proc/self/task").iterdir()))
    expected = cv2.remap(picture, xs, ys, cv2.INTER_LINEAR)
    assert len(list(Path("/proc/self/task").iterdir())) == threads
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(cv2.remap(picture, xs, ys, cv2.INTER_LINEAR), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
