"""Convert colors by the file's own ICC profile to sRGB, which browsers and web maps assume."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from geoprocessing_worker.raster import U8

MAX_PROFILE_BYTES = 4 << 20  # bytes. Printers' profiles have one or two million.
SAME_LEVELS = 2  # gray levels: a profile that moves no color further is equivalent to sRGB
MODES = {3: "RGB", 4: "CMYK"}  # of Pillow, by channels
TEST_STEPS = {3: 17, 4: 9}  # test colors along each axis, by channels


@dataclass(frozen=True, slots=True)
class ColorProfile:
    """An ICC profile that changes colors, for samples of `channels`: 3 for red, green, blue, 4 for inks."""

    icc: bytes
    channels: int

    def to_srgb(self, samples: U8) -> U8:
        """Convert (channels, …) to (3, …)."""
        flat = np.ascontiguousarray(np.moveaxis(samples.reshape(self.channels, -1), 0, 1))
        image = Image.frombytes(MODES[self.channels], (len(flat), 1), flat.tobytes())
        found = np.asarray(_transform(self.icc, image.mode).apply(image))
        colors: U8 = np.moveaxis(found[0], 1, 0).reshape(3, *samples.shape[1:])
        return colors


@lru_cache(1)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def decoded(text: str | None) -> bytes | None:
    """Return the profile from GDAL's base64. `None` if there is none, or one of implausible size."""
    if not text or len(text) > MAX_PROFILE_BYTES * 4 // 3:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def choose_profile(icc: bytes | None, channels: int) -> ColorProfile | None:
    """Return the profile, unless it changes nothing, is damaged or has another number of channels."""
    if icc is None:
        return None
    profile = ColorProfile(icc, channels)
    colors = _palette(channels)
    try:
        found = profile.to_srgb(colors)
    except (ImageCms.PyCMSError, OSError):
        return None
    if channels == 3 and np.abs(found.astype(int) - colors).max() <= SAME_LEVELS:
        return None
    return profile


def _palette(channels: int) -> U8:
    """Return (channels, n) colors, evenly through the whole cube."""
    axis: NDArray[np.float64] = np.linspace(0, 255, TEST_STEPS[channels])
    cube = np.stack(np.meshgrid(*[axis] * channels)).reshape(channels, -1)
    return np.rint(cube).astype(np.uint8)
