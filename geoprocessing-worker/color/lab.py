"""CIE L*a*b* as TIFF stores it, and the light that it means: sRGB, from the D50 white that all of it is told in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyvips
from numpy.typing import NDArray

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.raster import U8

CIE, ICC, ITU = 8, 9, 10  # photometric interpretations
LARGEST_OF_PARTS = 1.5  # L* runs to 100; some programs write floats from 0 to 1, with a* and b* who knows how


class _Scale(NamedTuple):
    """L* = sample * lightness; a*, b* = sample * chroma - zero, the sample read as `signed` where that is a type."""

    lightness: float
    chroma: float
    zero: float
    signed: str | None


_SCALES = {
    (CIE, "uint8"): _Scale(100 / 255, 1.0, 0.0, "int8"),
    (CIE, "uint16"): _Scale(100 / 65535, 1 / 256, 0.0, "int16"),
    # ICC's own: a* and b* with an offset, and a white of 16 bits that ends where its high byte does.
    (ICC, "uint8"): _Scale(100 / 255, 1.0, 128.0, None),
    (ICC, "uint16"): _Scale(100 / 65280, 1 / 256, 128.0, None),
    **{(kind, dtype): _Scale(1.0, 1.0, 0.0, None) for kind in (CIE, ICC) for dtype in ("float32", "float64")},
}


def is_lab(photometric: int | None) -> bool:
    """Whether a file says that its samples are L*a*b* of any kind."""
    return photometric in {CIE, ICC, ITU}


def is_known_lab(photometric: int | None, dtype: str) -> bool:
    """Whether samples of this type can be turned into L*a*b*. ITU's are numbers on a scale of the file's own."""
    return photometric is not None and (photometric, dtype) in _SCALES


def check_scale(values: NDArray[Any], dtype: str) -> None:
    """Refuse floats of which none is as large as L* gets: nothing in a TIFF says what else they would be parts of.

    `dtype` is the file's own: whole numbers have the scale of their type, however dark they are.

    Raises:
        JobError: `unsupported_data_type`.
    """
    if dtype.startswith("float") and values.size and float(values.max()) < LARGEST_OF_PARTS:
        raise invalid_input(
            "unsupported_data_type",
            "The file says that its numbers are L*a*b*, but none is larger than "
            f"{float(values.max()):.3g}, and nothing says on what scale they are. Save it as RGB.",
        )


def to_lab(block: NDArray[Any], photometric: int) -> NDArray[np.float32]:
    """(3, rows, columns) samples as L* from 0 to 100, a* and b*; floats are these already."""
    scale = _SCALES[photometric, block.dtype.name]
    found = np.empty(block.shape, dtype=np.float32)
    found[0] = block[0] * np.float32(scale.lightness)
    chroma = block[1:] if scale.signed is None else np.ascontiguousarray(block[1:]).view(scale.signed)
    found[1:] = chroma * np.float32(scale.chroma) - np.float32(scale.zero)
    return found


def lab_to_srgb(lab: NDArray[Any]) -> U8:
    """(3, …) L*a*b* → (3, …) sRGB; colors that it does not have become the nearest ones."""
    flat = np.ascontiguousarray(np.moveaxis(lab.reshape(3, -1), 0, 1), dtype=np.float32)
    np.nan_to_num(flat, copy=False)
    image = pyvips.Image.new_from_memory(flat.data, len(flat), 1, 3, "float").copy(interpretation="lab")
    found: Any = image.icc_export(output_profile="srgb", pcs="lab", intent="relative", depth=8)
    colors: U8 = np.moveaxis(found.numpy().reshape(-1, 3), 1, 0).reshape(3, *lab.shape[1:])
    return colors
