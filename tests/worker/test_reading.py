"""How a picture is divide, and read by two threads: all of it, once, in the same place, whatever the chunks."""

from __future__ import annotations

import threading
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.raster import Level
from geoprocessing_worker.render import chunks
from geoprocessing_worker.render.chunks import divide
from geoprocessing_worker.render.plan import ReadSize
from geoprocessing_worker.source.sampling import OpenLevel, read_window
from tests.support.rasters import Tiff, picture_of, ramp, run

TILES = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most two tiles of 16 pixels a side and three bytes each, so that a small file has many."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16 * 16 * 3)
    monkeypatch.setattr(chunks, "MAX_BYTES", 2 * 16 * 16 * 3)


def noise(height: int, width: int) -> Any:
    """(3, height, width) in which no pixel is like its neighbor."""
    return np.random.default_rng(5).integers(0, 255, (3, height, width), dtype=np.uint8)


SIDES = st.integers(1, 800)


@given(
    size=st.tuples(SIDES, SIDES),
    shrink=st.floats(0.1, 1),
    block=st.sampled_from([(800, 1), (800, 800), (256, 256), (512, 16), (16, 512)]),
    pixel_bytes=st.sampled_from([1, 4, 64, 2000]),
)
def test_every_pixel_is_in_one_piece(
    size: tuple[int, int], shrink: float, block: tuple[int, int], pixel_bytes: int
) -> None:
    """Whatever the sizes, each pixel of the picture and of the file is read once, and at most 32 MB at a time."""
    width, height = size
    level = Level(None, width, height, min(block[0], width), min(block[1], height))
    reduced = ReadSize(max(1, int(width * shrink)), max(1, int(height * shrink)))
    shown = np.zeros((reduced.height, reduced.width), dtype=np.uint8)
    source = np.zeros((height, width), dtype=np.uint8)
    for chunk in chain(*divide(level, reduced, pixel_bytes)):
        shown[chunk.place] += 1
        (_, _, top, bottom), (_, _, left, right) = chunk
        source[top:bottom, left:right] += 1
        # An output pixel more where the picture is made smaller: borders lie on output pixels.
        rows, columns = bottom - top - height / reduced.height, right - left - width / reduced.width
        one_column = columns <= level.block_width and rows <= 1
        assert one_column or max(0, rows) * max(0, columns) * pixel_bytes <= chunks.MAX_BYTES
    assert (shown == 1).all()
    assert (source == 1).all()


def test_a_run_reads_downwards() -> None:
    """One reader's chunks lie one below the other, so that a block across a border is decoded once."""
    level, size = Level(None, 60_000, 40_000, 512, 512), ReadSize(8000, 5333)
    runs = divide(level, size, 4)
    assert len(runs) >= 4
    for stack in runs:
        assert len({chunk.columns for chunk in stack}) == 1
        assert all(one.rows.end == below.rows.begin for one, below in pairwise(stack))


def test_a_block_too_large_to_share_is_read_by_one_reader() -> None:
    """Two would push each other's block out of GDAL's cache, and decode it for every chunk."""
    assert len(divide(Level(None, 20_000, 20_000, 20_000, 20_000), ReadSize(4000, 4000), 3)) == 1


@pytest.mark.usefixtures("small_pieces")
def test_pieces_make_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tile by tile or at once, a picture that is not reduced is the same to the last pixel, mask and all."""
    mask = np.where(np.arange(100 * 120).reshape(100, 120) % 7 < 3, 0, 255).astype("uint8")
    source = Tiff(noise(100, 120), mask=mask, profile=TILES).write(tmp_path / "a.tif")
    parts = picture_of(run(source, tmp_path / "parts"))
    monkeypatch.undo()
    whole = picture_of(run(source, tmp_path / "whole"))
    assert np.array_equal(parts, whole)
    assert (parts[..., 3] == 0).any()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("shape", [(1000, 40), (40, 1000), (300, 300)])
def test_pieces_join_without_a_seam(shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduced chunk by chunk or at once, the picture is the same to a few levels and in the same place."""
    source = Tiff(ramp(*shape), profile=TILES).write(tmp_path / "a.tif")
    size = max(shape) * 6 // 10
    parts = picture_of(run(source, tmp_path / "parts", max_size=size))
    monkeypatch.undo()
    whole = picture_of(run(source, tmp_path / "whole", max_size=size))
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 4


@pytest.mark.usefixtures("small_pieces")
def test_two_threads_never_read_from_one_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read at the same time, each from a handle of its own, of small files that are kept open too."""
    source = Tiff(noise(100, 100), profile=TILES).write(tmp_path / "a.tif")
    together = threading.Barrier(2)
    met: set[int] = set()
    busy: dict[int, int] = {}
    clashes: list[int] = []

    def watched(source: OpenLevel, *arguments: Any) -> Any:
        thread, handle = threading.get_ident(), id(source.dataset)
        # A thread that is done with a run of chunks may take the other's handle for the next one.
        clashes.extend(other for other, taken in list(busy.items()) if taken == handle and other != thread)
        busy[thread] = handle
        if thread not in met:
            met.add(thread)
            together.wait(10)
        try:
            return read_window(source, *arguments)
        finally:
            busy.pop(thread)

    monkeypatch.setattr("geoprocessing_worker.render.reading.read_window", watched)
    run(source, tmp_path / "out")
    assert (len(met), clashes) == (2, [])


@pytest.mark.usefixtures("small_pieces")
def test_damage_in_one_piece_is_the_pictures(tmp_path: Path) -> None:
    """A tile that cannot be decoded is named, whichever thread meets it, and the rest is not read for nothing."""
    source = Tiff(noise(200, 200), profile=TILES).write(tmp_path / "a.tif")
    content = bytearray(source.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    source.write_bytes(bytes(content))
    with pytest.raises(JobError) as raised:
        run(source, tmp_path / "out")
    assert raised.value.code == "corrupt_block"


@pytest.mark.usefixtures("small_pieces")
def test_after_an_error_the_rest_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in one thread the other stops, so that a large file is not decoded for nothing."""
    source = Tiff(noise(200, 200), profile=TILES).write(tmp_path / "a.tif")
    failed, together = threading.Event(), threading.Barrier(2)
    read: list[int] = []

    def watched(*arguments: Any) -> Any:
        read.append(threading.get_ident())
        if len(read) <= 2 and together.wait(10) == 0:
            raise invalid_input("corrupt_block", "A tile of it.")
        failed.wait(2)
        return read_window(*arguments)

    monkeypatch.setattr("geoprocessing_worker.render.reading.Event", lambda: failed)
    monkeypatch.setattr("geoprocessing_worker.render.reading.read_window", watched)
    with pytest.raises(JobError):
        run(source, tmp_path / "out")
    assert len(read) == 2


@pytest.mark.usefixtures("small_pieces")
def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    """The progress of two threads is one number that only rises."""
    source = Tiff(noise(200, 200), profile=TILES).write(tmp_path / "a.tif")
    told: list[float] = []
    run(source, tmp_path / "out", report=lambda stage, percent, _: told.append(percent) if stage == "render" else None)
    assert len(told) > 10
    assert told == sorted(told)
    assert told[-1] == 100.0
