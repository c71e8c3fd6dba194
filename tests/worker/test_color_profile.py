"""Colors of a file with an ICC profile are converted by this profile."""

from __future__ import annotations

import base64
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageCms

from geoprocessing_worker.color.profile import ColorProfile, choose_profile, decoded
from tests.support.rasters import Tiff, picture_of, quarters, run
from tests.support.raw_tiff import ICC_PROFILE, SHORT, UNDEFINED, Tag, write_raw_tiff


def swapped() -> bytes:
    """Return sRGB with the primaries of red and blue exchanged."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = icc.index(b"rXYZ", 128), icc.index(b"bXYZ", 128)
    icc[red : red + 4], icc[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(icc)


def inks() -> bytes:
    """Return the profile of a printer with green inks only and white paper: two steps for each ink, to Lab."""
    paper, green = bytes((255, 128, 128)), bytes((128, 68, 190))
    colors = b"".join(green if any(ink) else paper for ink in itertools.product((0, 1), repeat=4))
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + straight * 4 + colors + straight * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, content, place = [], b"", 128 + 4 + 2 * 12
    for name, data in ((b"A2B0", table), (b"wtpt", white)):
        tags.append(name + struct.pack(">II", place + len(content), len(data)))
        content += data + bytes(-len(data) % 4)
    body = struct.pack(">I", len(tags)) + b"".join(tags) + content
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"test", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + body


def with_profile(icc: bytes, data: Any, folder: Path, photometric: str = "RGB") -> Path:
    told = {"photometric": photometric, "source_icc_profile": base64.b64encode(icc).decode()}
    return Tiff(data, profile=told).write(folder / "a.tif")


def test_colors_are_those_of_the_profile(tmp_path: Path) -> None:
    """Red by its numbers is blue by the profile. The picture shows blue, and the metadata name the profile."""
    result = run(with_profile(swapped(), quarters(64), tmp_path), tmp_path / "out")
    picture = picture_of(result)
    assert picture[16, 16, 2] > 240
    assert picture[16, 16, 0] < 15
    assert picture[48, 16, 0] > 240
    choices: Any = result.metadata["choices"]
    assert choices["colorProfile"] == "converted to sRGB"


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535)])
def test_inks_are_mixed_by_the_profile(dtype: str, full: int, tmp_path: Path) -> None:
    """Inks that the profile calls green are green, on white paper."""
    data = np.zeros((4, 40, 80), dtype=dtype)
    data[1, :, 40:] = full  # magenta, by the numbers
    picture = picture_of(run(with_profile(inks(), data, tmp_path, photometric="CMYK"), tmp_path / "out"))
    assert (picture[20, 20, :3] > 245).all()
    red, green, blue = picture[20, 60, :3].astype(int)
    assert green > red + 50
    assert green > blue + 50


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("icc", [None, inks()], ids=["without profile", "with profile"])
@pytest.mark.parametrize("associated", [False, True])
def test_alpha_beside_inks_stays(dtype: str, icc: bytes | None, associated: bool, tmp_path: Path) -> None:
    """A fifth sample declared as alpha hides pixels. Inks that are multiplied by it are divided first."""
    full = np.iinfo(dtype).max
    data = np.zeros((40, 60, 5), dtype=dtype)
    data[:, 20:, 1] = full  # magenta
    data[:, 40:, 4], data[:, :40, 4] = full // 5 * 2, full
    if associated:
        data[:, 40:, 1] = full // 5 * 2
    tags: dict[int, Tag] = {338: (SHORT, [1 if associated else 2])}
    if icc is not None:
        tags[ICC_PROFILE] = (UNDEFINED, icc)
    picture = picture_of(run(write_raw_tiff(tmp_path / "a.tif", data, 5, tags), tmp_path / "out")).astype(int)
    assert [picture[20, x, 3] for x in (10, 30, 50)] == [255, 255, 102]
    assert (picture[20, 10, :3] > 245).all()
    assert np.abs(picture[20, 50, :3] - picture[20, 30, :3]).max() <= 2
    assert picture[20, 30, :3].argmax() == (1 if icc is not None else 0)
    assert picture[20, 30, 1] < 5 or icc is not None


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535)])
def test_inks_with_overviews_and_a_mask_are_inks_too(dtype: str, full: int, tmp_path: Path) -> None:
    """By the same profile, whether overviews are read or, of bytes, left alone: GDAL fails on them."""
    data = np.zeros((4, 512, 512), dtype=dtype)
    data[1, :, 256:] = full
    mask = np.full((512, 512), 255, dtype=np.uint8)
    mask[:256] = 0
    told = {"photometric": "CMYK", "source_icc_profile": base64.b64encode(inks()).decode(), "tiled": True}
    source = Tiff(data, mask=mask, overviews=(2, 4), profile=told).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=128)
    choices: Any = result.metadata["choices"]
    assert (choices["read"]["overview"] is None) == (dtype == "uint8")
    picture = picture_of(result).astype(int)
    assert not picture[:60, :, 3].any()
    assert (picture[68:, :, 3] == 255).all()
    assert (picture[96, 30, :3] > 245).all()
    assert picture[96, 96, 1] > picture[96, 96, 0] + 50


def test_srgb_changes_nothing(tmp_path: Path) -> None:
    """A picture from a file with an sRGB profile equals, byte for byte, the one without a profile."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_it = run(with_profile(icc, quarters(64), tmp_path), tmp_path / "out")
    assert choose_profile(icc, 3) is None
    assert np.array_equal(np.unique(picture_of(with_it)), [0, 255])


def test_damage_is_passed_over() -> None:
    """Neither a broken profile, nor one of other colors, nor no base64 stops a picture."""
    assert choose_profile(b"not a profile", 3) is None
    assert choose_profile(swapped()[:300], 3) is None
    assert choose_profile(inks(), 3) is None
    assert choose_profile(None, 3) is None
    assert decoded("&&&") is None
    assert decoded(None) is None


def test_a_profile_that_the_library_refuses_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the library in the conversion does not fail the job."""

    def fail(*_: Any) -> Any:
        raise ImageCms.PyCMSError("cannot build transform")

    monkeypatch.setattr(ColorProfile, "to_srgb", fail)
    assert choose_profile(swapped(), 3) is None
