"""Invalid directory pointers are ignored with a note, and hide no directory."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyproj import CRS

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.source import known_crs
from geoprocessing_worker.source.gdal import gdal_environment, open_source
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO, GEOTIFF_TO_COG, GEOTIFF_TO_PNG, GEOTIFF_TO_TILES
from geoprocessing_worker.tiff.gate import admit
from geoprocessing_worker.tiff.structure import LIBTIFF_FIELDS, MAX_FIELDS, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import SIZES, VITAL
from tests.support.rasters import run
from tests.support.task_runs import perform_on
from tests.support.tiffs import ASCII, BYTE, DOUBLE, LONG, LONG8, SHORT, UNDEFINED, RawTiff, Value, gray, text

CASES = Path(__file__).parents[3] / "shared" / "cases"
HANDLERS = [GEOTIFF_TO_PNG, GEOTIFF_TO_COG, GEOTIFF_TO_TILES, GEOTIFF_INFO]
PLACED: dict[int, Value] = {
    33550: (DOUBLE, [1.0, 1.0, 0.0]),
    33922: (DOUBLE, [0.0, 0.0, 0.0, 44.0, 15.0, 0.0]),
    34735: (SHORT, [1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326]),
}
PIXELS = 40_000  # their offsets, after all other data

EVIL = '<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">/etc/hostname</Item></GDALMetadata>'


def file_with(*later: dict[int, Value], big: bool = False, **options: Any) -> bytes:
    """A picture of 16 by 16, followed by these directories."""
    first = gray(t273=(LONG, [PIXELS])) | PLACED
    return RawTiff([first, *later], big=big, **options).bytes().ljust(PIXELS, b"\x01") + bytes(range(256))


def without(tag: int) -> dict[int, Value]:
    return {key: value for key, value in gray().items() if key != tag}


POINTERS = {
    "beyond the end": 10**6,
    "at the end": PIXELS + 256,
    "last byte": PIXELS + 255,
    "in the pixels": PIXELS + 100,
    "at an odd byte": PIXELS - 999,
    "in the file's first bytes": 2,
    "as far as it goes": 2**32 - 1,
    "back to the first": -1,
}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pointer", POINTERS)
def test_an_invalid_pointer_is_ignored_with_a_note(pointer: str, order: str, big: bool, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_bytes(file_with(order=order, big=big, chain=POINTERS[pointer]))
    for validate_headers in (True, False):
        metadata: Any = run(source, tmp_path / "out", validate_headers=validate_headers).metadata
        assert metadata["validFraction"] == 1.0
        assert metadata["source"]["pages"] == 1
        assert ["ignored" in note for note in metadata["choices"]["notes"]] == [True]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)
@pytest.mark.parametrize("pointer", ["beyond the end", "in the pixels", "back to the first"])
def test_every_task_type_ignores_it_with_a_note(pointer: str, handler: Any, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_bytes(file_with(chain=POINTERS[pointer]))
    metadata: Any = perform_on(handler, source, tmp_path / "out").metadata
    assert ["ignored" in note for note in metadata["source"]["notes"]] == [True]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)
@pytest.mark.parametrize("pointer", ["beyond the end", "in the pixels", "back to the first"])
def test_a_bad_pointer_after_overviews_is_ignored_too(
    pointer: str, handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL reports it while it looks for overviews. With a common CRS no later call clears that error."""
    half, quarter = (gray(side, side, t254=(LONG, [1]), t273=(LONG, [PIXELS])) for side in (8, 4))
    source = tmp_path / "a.tif"
    source.write_bytes(file_with(half, quarter, chain=POINTERS[pointer]))
    with source.open("rb") as file:
        reader = TiffReader(file)
        monkeypatch.setitem(known_crs._known, known_crs._geo_tags(reader, next(reader.ifds())), CRS("EPSG:4326"))
    metadata: Any = perform_on(handler, source, tmp_path / "out").metadata
    assert ["ignored" in note for note in metadata["source"]["notes"]] == [True]
    assert metadata["source"]["overviews"] == (0 if handler is GEOTIFF_TO_COG else 2)


@pytest.mark.parametrize("pointer", ["beyond the end", "in the pixels", "back to the first"])
def test_an_open_file_keeps_no_error_of_its_pointers(pointer: str, tmp_path: Path) -> None:
    """rasterio raises an old error at the next call."""
    source = tmp_path / "a.tif"
    half = gray(8, 8, t254=(LONG, [1]), t273=(LONG, [PIXELS]))
    source.write_bytes(file_with(half, chain=POINTERS[pointer]))
    with gdal_environment(), open_source(source) as dataset:
        assert dataset.overviews(1) == [2]
        assert dataset.colorinterp[0].name == "gray"


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)
@pytest.mark.parametrize("name", ["next-ifd-beyond-the-end.tif", "next-ifd-in-the-pixels.tif"])
def test_real_files_with_bad_pointers_are_rendered(name: str, handler: Any, tmp_path: Path) -> None:
    if not (CASES / name).exists():
        pytest.skip("the cases are not beside this checkout")
    metadata: Any = perform_on(handler, CASES / name, tmp_path / "out").metadata
    assert ["ignored" in note for note in metadata["source"]["notes"]] == [True]


def test_a_truncated_pointer_ends_the_chain(tmp_path: Path) -> None:
    """libtiff takes a truncated pointer for the end of the chain."""
    whole = RawTiff([gray() | {273: (LONG, [8])}]).bytes()
    for cut in (1, 2, 4):
        (tmp_path / "a.tif").write_bytes(whole[:-cut])
        with gdal_environment(), open_source(tmp_path / "a.tif") as dataset:
            assert dataset.width == 16
        assert len(TiffStructure.read(tmp_path / "a.tif").ifds) == 1


@pytest.mark.parametrize("tag", [330, 34665, 34853, 40965])
@pytest.mark.parametrize("place", [10**6, PIXELS + 250, 3, 8], ids=str)
def test_invalid_pointers_to_nested_directories_are_skipped(place: int, tag: int, tmp_path: Path) -> None:
    """SubIFDs, EXIF, GPS and the like: beyond the end, into pixels or header, and to the directory itself."""
    source = tmp_path / "a.tif"
    first = gray(t273=(LONG, [PIXELS])) | {tag: (LONG, [place])}
    source.write_bytes(RawTiff([first]).bytes().ljust(PIXELS, b"\x01") + bytes(range(256)))
    assert run(source, tmp_path / "out").metadata["validFraction"] == 1.0


# Directories at which libtiff stops, and one at which it does not.
ENDS: dict[str, dict[int, Value]] = {
    "more fields than libtiff reads": gray()
    | dict.fromkeys(range(10_000, 10_000 + LIBTIFF_FIELDS - 8), (SHORT, [1])),  # 4097
    "no size": without(256) | {257: (ASCII, [0])},
    "no width": without(256),
    "no height": without(257),
    "width of letters": gray(t256=(ASCII, [20])),
    "height of doubles": gray(t257=(DOUBLE, [20.0])),
    "width of bytes without a type": gray(t256=(UNDEFINED, [20])),
    "two widths": gray(t256=(SHORT, [16, 16])),
    "a width of 0": gray(t256=(LONG, [0])),
}
GOES_ON: dict[str, dict[int, Value]] = {
    "plain": gray(),
    "as many fields as are read here": gray() | dict.fromkeys(range(10_000, 10_000 + MAX_FIELDS - 9), (SHORT, [1])),
    "as many fields as libtiff reads": gray() | dict.fromkeys(range(10_000, 10_000 + LIBTIFF_FIELDS - 9), (SHORT, [1])),
    "width of bytes": gray(t256=(BYTE, [16])),
    "width of 64 bits": gray(t256=(LONG8, [16])),
}


def seen_by_gdal(path: Path) -> int:
    """The indexes of the pictures that GDAL reads, as pages or by directory number."""
    found = 0
    with gdal_environment():
        with open_source(path) as dataset:
            found = max(1, len(dataset.subdatasets) + len(dataset.overviews(1)))
        for number in (2, 3):
            try:
                with open_source(path, directory=number):
                    found = max(found, number)
            except Exception:  # noqa: BLE001, S112 - any failure means that GDAL cannot read it
                continue
    return found


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", [*ENDS, *GOES_ON, "no fields"])
def test_no_directory_is_hidden_behind_an_invalid_one(kind: str, big: bool, tmp_path: Path) -> None:
    """Our walk ends where GDAL's does. Where GDAL continues, hostile metadata are found."""
    path = tmp_path / "a.tif"
    evil = gray(20, 20, t42112=text(EVIL))
    path.write_bytes(file_with((ENDS | GOES_ON).get(kind, {}), evil, big=big))
    if kind in GOES_ON:
        assert seen_by_gdal(path) == 3
        with pytest.raises(JobError) as caught:
            admit(path)
        refused_sooner = kind == "as many fields as libtiff reads"
        assert caught.value.code == ("too_large" if refused_sooner else "hostile_metadata")
        return
    assert seen_by_gdal(path) == 1
    assert admit(path).remark is not None


@pytest.mark.parametrize("kind", [6, 8, 9, 17])
def test_a_width_of_signed_numbers_does_not_end_the_walk(kind: int, tmp_path: Path) -> None:
    """libtiff accepts it. If our walk ended there, later directories would reach GDAL unchecked."""
    path = tmp_path / "a.tif"
    content = file_with(gray(), gray(20, 20, t42112=text(EVIL)))
    second = content.index(b"\x00\x01\x04\x00\x01\x00\x00\x00\x10", 200)  # its width: tag 256, type 4, one of 16
    path.write_bytes(content[: second + 2] + bytes([kind]) + content[second + 3 :])
    with pytest.raises(JobError):
        admit(path)
    if kind in {6, 8, 9}:  # 8 bytes do not fit in the place of these 4
        assert seen_by_gdal(path) == 3


def test_gdal_ignores_a_truncated_directory_too(tmp_path: Path) -> None:
    """Hostile metadata in a complete directory table are found. GDAL ignores an incomplete one too."""
    room = file_with() + EVIL.encode() + b"\0"
    start = RawTiff([gray()], chain=len(room)).bytes()
    table = RawTiff([gray(20, 20, t42112=text(EVIL))], places={42112: room.index(EVIL.encode())}).bytes()[8:]
    table = table[: 2 + 12 * (len(gray()) + 1) + 4]
    head = replace(RawTiff([gray(t273=(LONG, [PIXELS])) | PLACED]), chain=len(room)).bytes()
    assert len(start) < len(head)
    path = tmp_path / "a.tif"
    for cut in (0, 1, 4, 5, 12, 13, 20):
        path.write_bytes(head + room[len(head) :] + table[: len(table) - cut])
        if cut <= 4:
            assert seen_by_gdal(path) == 2
            with pytest.raises(JobError) as caught:
                admit(path)
            assert caught.value.code == "hostile_metadata"
        else:
            assert seen_by_gdal(path) == 1
            assert admit(path).remark is not None


def file_with_values_lost(second: dict[int, Value], tag: int, kind: int = LONG, count: int = 10) -> bytes:
    """A picture, a second directory with a value beyond the end for this tag, and hostile metadata in a third."""
    evil = gray(20, 20, t42112=text(EVIL))
    content = bytearray(file_with({**second, tag: (LONG, [1] * 10)}, evil))
    at = content.index(struct.pack("<HHI", tag, LONG, 10))
    struct.pack_into("<HHII", content, at, tag, kind, count, 10**6)
    return bytes(content)


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind < LONG8], ids=str)
@pytest.mark.parametrize("tag", [*sorted(VITAL), 256, 257], ids=str)
def test_the_walk_ends_at_lost_values_exactly_like_gdal(tag: int, kind: int, tmp_path: Path) -> None:
    """libtiff reads neither a directory without its bits, samples or tiles, nor later ones."""
    path = tmp_path / "a.tif"
    for count in (10, 1) if SIZES[kind] == 8 else (10,):
        path.write_bytes(file_with_values_lost(gray(), tag, kind, count))
        assert seen_by_gdal(path) == 1
        assert admit(path).remark is not None


@pytest.mark.parametrize("tag", [254, 262, 273, 279, 305, 324, 330, 700, 42112, 42113, 65000], ids=str)
def test_no_directory_is_hidden_behind_one_with_lost_values(tag: int, tmp_path: Path) -> None:
    """GDAL continues to the third directory, so its hostile metadata are found."""
    path = tmp_path / "a.tif"
    path.write_bytes(file_with_values_lost(gray(), tag))
    assert seen_by_gdal(path) == 3
    for validate_headers in (True, False):
        with pytest.raises(JobError) as caught:
            admit(path, validate_headers=validate_headers)
        assert caught.value.code == "hostile_metadata"


def with_lost(kind: int, side: int, tag: int) -> bytes:
    """A white picture of 16 by 16, and a directory of this subfile type with a value beyond the file's end."""
    content = bytearray(file_with(gray(side, side, t254=(LONG, [kind])) | {tag: (LONG, [1] * 10)}))
    at = content.index(struct.pack("<HHI", tag, LONG, 10))
    struct.pack_into("<I", content, at + 8, 10**6)
    return bytes(content)


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)
@pytest.mark.parametrize("tag", [258, 273, 279, 305], ids=str)
@pytest.mark.parametrize("kind", [0, 1, 5], ids=["page", "overview", "mask of an overview"])
def test_every_task_type_ignores_a_directory_with_lost_values(
    kind: int, tag: int, handler: Any, tmp_path: Path
) -> None:
    """It is neither a page nor an overview. The intact picture is rendered, with one note."""
    source = tmp_path / "a.tif"
    source.write_bytes(with_lost(kind, 8, tag))
    metadata: Any = perform_on(handler, source, tmp_path / "out").metadata
    assert ["ignored" in note for note in metadata["source"]["notes"]] == [True]
    assert metadata["source"]["overviews"] == 0
    assert metadata["source"]["pages"] == 1


def test_no_overview_is_used_beside_one_with_lost_values(tmp_path: Path) -> None:
    """GDAL numbers broken overviews too, so none is used."""
    whole = gray(8, 8, t254=(LONG, [1]), t273=(LONG, [PIXELS]))
    broken = gray(4, 4, t254=(LONG, [1]), t273=(LONG, [1] * 10))
    content = bytearray(file_with(broken, whole))
    struct.pack_into("<I", content, content.index(struct.pack("<HHI", 273, LONG, 10)) + 8, 10**6)
    source = tmp_path / "a.tif"
    source.write_bytes(bytes(content))
    with gdal_environment(), open_source(source) as dataset:
        assert sorted(dataset.overviews(1)) == [2, 4]
    for validate_headers in (True, False):
        assert len(inspect_file(source, validate_headers=validate_headers).levels) == 1


@pytest.mark.parametrize(("kind", "side"), [(4, 16), (0, 20)], ids=["mask", "larger page"])
def test_a_mask_or_a_larger_page_with_lost_values_refuses_the_file(kind: int, side: int, tmp_path: Path) -> None:
    """A picture without its mask shows hidden pixels, and the larger page would be the rendered one."""
    source = tmp_path / "a.tif"
    source.write_bytes(with_lost(kind, side, 273))
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("tag", [258, 273, 305, 42112], ids=str)
def test_lost_values_of_the_first_directory_refuse_the_file(tag: int, tmp_path: Path) -> None:
    first = gray(t273=(LONG, [PIXELS])) | {tag: (LONG, [1] * 10)}
    content = bytearray(RawTiff([first, gray(8, 8)]).bytes().ljust(PIXELS, b"\x01") + bytes(256))
    struct.pack_into("<I", content, content.index(struct.pack("<HHI", tag, LONG, 10)) + 8, 10**6)
    source = tmp_path / "a.tif"
    source.write_bytes(bytes(content))
    with pytest.raises(JobError) as caught:
        admit(source)
    assert caught.value.code == "truncated"
