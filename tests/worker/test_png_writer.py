"""PNG files of several parts, compressed in different ways."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from geoprocessing_worker.output import png_writer
from geoprocessing_worker.output.png_writer import color_png, palette_png
from geoprocessing_worker.raster import U8
from geoprocessing_worker.render import threads

SHAPE = (1200, 1100, 4)  # 5 MB, three parts or more
NOISE = np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)
SMOOTH = (np.indices(SHAPE).sum(axis=0) // 7).astype(np.uint8)
PALETTE = np.random.default_rng(2).integers(0, 256, (200, 4), dtype=np.uint8)


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of a PNG, and check each checksum."""
    place = 8
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        yield kind, body
        place += 12 + length


def rows(content: bytes) -> U8:
    """Return the filtered bytes. zlib raises an error for a wrong checksum, which Pillow ignores."""
    deflated = b"".join(body for kind, body in chunks(content) if kind == b"IDAT")
    return np.frombuffer(zlib.decompress(deflated), dtype=np.uint8)


@pytest.mark.parametrize("pixels", [NOISE, SMOOTH])
def test_parts_are_one_stream_with_its_checksums(pixels: U8) -> None:
    """Huffman codes alone and both libraries' searches end in one zlib stream with the pixels' own bytes."""
    content = color_png(pixels)
    assert rows(content).size == SHAPE[0] * (1 + SHAPE[1] * SHAPE[2])
    with Image.open(BytesIO(content)) as image:
        assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize("pixels", [NOISE, SMOOTH])
def test_one_thread_writes_the_same_bytes_as_two(pixels: U8, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts and their order depend on the picture only."""
    expected = color_png(pixels)
    monkeypatch.setattr(png_writer, "in_order", map)
    assert color_png(pixels) == expected


def test_a_small_picture_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 2 MB of rows, the calling thread compresses the only part."""
    monkeypatch.delattr(threads, "ThreadPoolExecutor")
    assert color_png(NOISE[:400]).endswith(b"IEND\xaeB`\x82")
    with pytest.raises(NameError):
        color_png(NOISE)


def test_noise_is_not_searched_for_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search finds next to nothing in noise, and everything in repeated noise."""
    kept: list[png_writer._Method] = []
    choose = png_writer._best

    def remembered(*arguments: object) -> png_writer._Method:
        kept.append(choose(*arguments))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr(png_writer, "_best", remembered)
    color_png(NOISE)
    color_png(np.tile(NOISE[:, :10], (1, 110, 1)))
    assert [method.levels is None for method in kept] == [True, False]


@pytest.mark.parametrize("filtered", [True, False])
def test_palettes_are_filtered_only_where_it_saves(filtered: bool) -> None:
    """Rows alike to those above are stored as differences. Rows of unrelated values stay as they are."""
    random = np.random.default_rng(3)
    values = random.integers(0, 200, SHAPE[:2], dtype=np.uint8)
    if filtered:  # nine of ten pixels take the value above
        changed = np.where(random.random(SHAPE[:2]) < 0.1, np.arange(SHAPE[0])[:, None], 0)
        values = np.take_along_axis(values, np.maximum.accumulate(changed, axis=0), axis=0)
    content = palette_png(values, PALETTE)
    filters = rows(content).reshape(SHAPE[0], -1)[:, 0]
    assert (filters == (2 if filtered else 0)).all()
    with Image.open(BytesIO(content)) as image:
        assert (np.asarray(image) == values).all()
