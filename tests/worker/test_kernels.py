"""An output pixel is the mean of the source pixels under it, at any place and scale."""

from __future__ import annotations

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray

from geoprocessing_worker.render.kernels import Kernel, choose_kernel

SIZE = 400


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


def read_off(picture: NDArray[np.float32], kernel: Kernel, across: float, down: float) -> NDArray[np.float32]:
    image = pyvips.Image.new_from_array(picture)
    for weights in (kernel.across[None], kernel.down[:, None]):
        image = image.conv(pyvips.Image.new_from_array(weights), precision="float")
    xs, ys = np.meshgrid(centers(across) - 0.5, centers(down) - 0.5)
    index = pyvips.Image.new_from_array(np.stack([xs, ys], axis=-1).astype(np.float32))
    found = image.cast("float").mapim(index, interpolate=pyvips.Interpolate.new(kernel.interpolator))
    return found.numpy()  # type: ignore[no-any-return]  # pyvips has no types


def off(picture: NDArray[np.float32], kernel: Kernel, across: float, down: float) -> float:
    """The standard deviation from the true means, in gray levels."""
    return float(np.std(read_off(picture, kernel, across, down) - boxes(picture, across, down)))


@pytest.mark.parametrize(
    ("across", "down", "part"),
    [
        (1.05, 1.05, 0.8),
        (1.1, 1.3, 0.75),
        (1.0, 1.45, 0.6),
        (1.25, 1.3, 0.5),
        (1.47, 1.52, 0.4),
        (1.6, 1.7, 0.4),
        (1.9, 2.0, 0.7),
        (2.4, 2.4, 0.3),
        (3.0, 4.0, 0.2),
    ],
)
def test_reading_comes_closer_to_the_mean_than_reading_between_pixels(
    picture: NDArray[np.float32], across: float, down: float, part: float
) -> None:
    """The chosen kernel leaves no more than this part of the error of plain bilinear reading, narrow or wide."""
    one = np.ones(1)
    plain = off(picture, Kernel("bilinear", one, one, rounds=False), across, down)
    assert off(picture, choose_kernel("average", across, down), across, down) < part * plain


@pytest.mark.parametrize("width", [1.0, 1.15, 1.3, 1.47, 1.8, 2.0, 2.5, 5.0])
def test_no_kernel_changes_how_bright_a_picture_is(width: float) -> None:
    """A flat picture stays exactly as it is, whatever is chosen for it."""
    flat = np.full((SIZE, SIZE), 201, dtype=np.float32)
    for method in ("average", "bilinear", "cubic", "lanczos"):
        found = read_off(flat, choose_kernel(method, width, width), width, width)
        assert np.allclose(found, 201, atol=1e-3)


def test_bytes_read_by_a_kernel_that_rounds_are_rounded() -> None:
    """Values that stay bytes are rounded to the nearest, not truncated."""
    kernel = choose_kernel("average", 1.4, 1.4)
    assert kernel.rounds
    row = np.tile(np.array([[10, 11]], dtype=np.uint8), (8, 4))
    image = pyvips.Image.new_from_array(row)
    places = np.stack(np.meshgrid(np.linspace(2, 5, 31), np.full(2, 3.0)), axis=-1).astype(np.float32)
    index = pyvips.Image.new_from_array(places)
    interpolate = pyvips.Interpolate.new(kernel.interpolator)
    exact = image.cast("float").mapim(index, interpolate=interpolate).numpy()
    found = image.mapim(index, interpolate=interpolate).numpy()
    apart = np.abs(found - exact)
    assert apart.max() <= 0.51


@pytest.mark.parametrize("method", ["average", "cubic"])
def test_an_absurd_place_asks_for_a_few_pixels_and_no_more(method: str) -> None:
    """One control point that is far off can make an output pixel cover more of the source than there is memory for."""
    kernel = choose_kernel(method, 1e15, 0.5)
    assert kernel.across.size < 100
    assert kernel.across.sum() == pytest.approx(1)
