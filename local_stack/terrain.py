"""The demonstration's map: hill-shaded highland around 15.35° N 44.2° E, as a GeoTIFF in UTM zone 38N."""

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.warp import transform

Grid = NDArray[np.float32]

SIDE = 3072  # pixels
PIXEL = 10.0  # meters
CENTER = (44.2, 15.35)  # longitude, latitude, in degrees
CRS = "EPSG:32638"
SEED = 38

# Height above the lowest point (share of the range) and the color of the ground there: fields in the valleys, ochre
# slopes, bare rock.
GROUND = (
    (0.00, (96, 122, 70)),
    (0.10, (134, 146, 90)),
    (0.22, (186, 168, 118)),
    (0.45, (188, 148, 104)),
    (0.70, (150, 112, 84)),
    (0.88, (168, 146, 128)),
    (1.00, (226, 218, 208)),
)


def make(path: Path) -> Path:
    """Write the map, with the same bytes each time."""
    heights = _heights(np.random.default_rng(SEED))
    picture = _colored(heights, _shade(heights))
    (x,), (y,) = transform("EPSG:4326", CRS, [CENTER[0]], [CENTER[1]])
    half = SIDE / 2 * PIXEL
    profile = {
        "driver": "GTiff",
        "width": SIDE,
        "height": SIDE,
        "count": 3,
        "dtype": "uint8",
        "crs": CRS,
        "transform": from_origin(round(x - half, -1), round(y + half, -1), PIXEL, PIXEL),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "zlevel": 1,
        "photometric": "rgb",
        "interleave": "pixel",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(picture)
    return path


def _noise(random: np.random.Generator, roughness: float, coarsest: float) -> Grid:
    """Return fractal noise with zero mean and unit deviation, (SIDE, SIDE).

    Args:
        random: the generator.
        roughness: exponent of the amplitude's fall with frequency. 1 is rough, 2 smooth.
        coarsest: lowest frequency, in waves per width.
    """
    # Larger than needed, then cut, since the result of a Fourier transform repeats at its edges.
    side = SIDE * 5 // 4
    fx, fy = np.fft.rfftfreq(side) * side, np.fft.fftfreq(side) * side
    frequency = np.hypot(fx[None, :], fy[:, None]).astype(np.float32)
    frequency[0, 0] = 1
    amplitude = frequency**-roughness / (1 + (coarsest / frequency) ** 4)
    spectrum = amplitude * np.exp(2j * np.pi * random.random(frequency.shape, dtype=np.float32))
    field = np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32)[:SIDE, :SIDE]
    scaled: Grid = (field - field.mean()) / field.std()
    return scaled


def _heights(random: np.random.Generator) -> Grid:
    """Return heights in meters, (SIDE, SIDE): ridges and valleys, rougher at greater height."""
    massif = _noise(random, 2.6, 1.5)
    ridges = 1 - np.minimum(np.abs(_noise(random, 2.35, 3.5)), 2.2) / 2.2
    spurs = 1 - np.minimum(np.abs(_noise(random, 2.2, 11)), 2.2) / 2.2
    shape = massif + 3.2 * ridges**1.8 + 0.9 * ridges * spurs**1.5
    share = (shape - shape.min()) / np.ptp(shape)
    # Low ground is flat, high rock is rough.
    share = np.maximum(share - 0.22, 0) / 0.78 + 0.012 * _noise(random, 2.0, 40) * share
    heights: Grid = (1900 + 1700 * np.maximum(share, 0) ** 1.2).astype(np.float32)
    return heights


def _shade(heights: Grid) -> Grid:
    """Return the brightness under light from the north-west and ambient light, (SIDE, SIDE)."""
    down, right = np.gradient(heights, PIXEL)
    steepness = np.sqrt(1 + (1.6 * right) ** 2 + (1.6 * down) ** 2)
    light = np.array([-0.5, -0.5, 0.7071])  # x right, y down, z up; of length 1
    lit = (-1.6 * right * light[0] - 1.6 * down * light[1] + light[2]) / steepness
    shade: Grid = np.clip(0.25 + 0.95 * lit, 0, 1.15).astype(np.float32)
    return shade


def _colored(heights: Grid, shade: Grid) -> NDArray[np.uint8]:
    """Return the picture, (3, SIDE, SIDE)."""
    share = (heights - heights.min()) / np.ptp(heights)
    stops = [stop for stop, _ in GROUND]
    bands = [np.interp(share, stops, [color[band] for _, color in GROUND]) * shade for band in range(3)]
    picture: NDArray[np.uint8] = np.clip(np.stack(bands), 0, 255).astype(np.uint8)
    return picture
