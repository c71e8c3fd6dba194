"""CIE L*a*b* as TIFF stores it, converted to sRGB from its D50 white."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.raster import U8

CIE, ICC, ITU = 8, 9, 10  # photometric interpretations
CHROMA = 128.0  # the largest a* and b* that a TIFF of integers holds
LINEAR_BELOW = 6 / 29  # of the cube roots of CIE's definition
# From X, Y and Z relative to D50 to linear sRGB: the inverse of its primaries, adapted to D50 by Bradford's matrix.
XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]],
    dtype=np.float32,
) * np.array([0.9642, 1.0, 0.8249], dtype=np.float32)
LARGEST_OF_PARTS = 1.5  # L* ends at 100. Some programs write floats from 0 to 1, with a* and b* on an unknown scale.


class _Scale(NamedTuple):
    """L* = sample * lightness, and a*, b* = sample * chroma - zero. `signed` is the type of a* and b*, if set."""

    lightness: float
    chroma: float
    zero: float
    signed: str | None


_SCALES = {
    (CIE, "uint8"): _Scale(100 / 255, 1.0, 0.0, "int8"),
    (CIE, "uint16"): _Scale(100 / 65535, 1 / 256, 0.0, "int16"),
    # ICC's own: a* and b* with an offset. The white of 16 bits is 0xFF00.
    (ICC, "uint8"): _Scale(100 / 255, 1.0, 128.0, None),
    (ICC, "uint16"): _Scale(100 / 65280, 1 / 256, 128.0, None),
    **{(kind, dtype): _Scale(1.0, 1.0, 0.0, None) for kind in (CIE, ICC) for dtype in ("float32", "float64")},
}


def is_lab(photometric: int | None) -> bool:
    """Whether a file declares its samples as L*a*b* of any kind."""
    return photometric in {CIE, ICC, ITU}


def is_known_lab(photometric: int | None, dtype: str) -> bool:
    """Whether samples of this type can be converted to L*a*b*. ITU's have a scale of the file's own."""
    return photometric is not None and (photometric, dtype) in _SCALES


def check_scale(values: NDArray[Any], dtype: str) -> None:
    """Refuse floats that never get near the range of L*, since a TIFF has no field for their scale.

    `dtype` is the file's own: integers have the scale of their type, however dark they are.

    Raises:
        JobError: `unsupported_data_type`.
    """
    if dtype.startswith("float") and values.size and float(values.max()) < LARGEST_OF_PARTS:
        raise invalid_input(
            "unsupported_data_type",
            "The file declares L*a*b*, but its largest number is "
            f"{float(values.max()):.3g}, and it does not declare their scale. Save it as RGB.",
        )


def to_lab(block: NDArray[Any], photometric: int) -> NDArray[np.float32]:
    """Convert (3, rows, columns) samples to L* from 0 to 100, a* and b*. Floats are these already."""
    scale = _SCALES[photometric, block.dtype.name]
    found = np.empty(block.shape, dtype=np.float32)
    found[0] = block[0] * np.float32(scale.lightness)
    chroma = block[1:] if scale.signed is None else np.ascontiguousarray(block[1:]).view(scale.signed)
    found[1:] = chroma * np.float32(scale.chroma) - np.float32(scale.zero)
    return found


def lab_to_srgb(lab: NDArray[Any]) -> U8:
    """Convert (3, …) L*a*b* to (3, …) sRGB. Colors outside of sRGB become the nearest ones."""
    lightness, across, along = np.clip(np.nan_to_num(lab.astype(np.float32, copy=False)), -CHROMA, CHROMA)
    middle = (lightness + 16) / 116
    roots = np.stack([middle + across / 500, middle, middle - along / 200])
    xyz = np.where(roots > LINEAR_BELOW, roots**3, (roots - 4 / 29) * (3 * LINEAR_BELOW**2))
    light = np.clip(np.einsum("ij,j...->i...", XYZ_TO_SRGB, xyz), 0, 1)
    coded = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    colors: U8 = np.rint(coded * 255).astype(np.uint8)
    return colors
