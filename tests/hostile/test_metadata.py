"""Metadata that name another file or URL are refused, and neither is opened."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.source import inspection
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.tiff.gate import admit
from geoprocessing_worker.tiff.structure import TiffStructure
from tests.support.canary import Canary
from tests.support.rasters import DEGREES, run
from tests.support.tiffs import ASCII, BYTE, LONG, SHORT, RawTiff, Value, gray, text

INLINE_VRT = (
    '<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
    '<SourceFilename relativeToVRT="0">{path}</SourceFilename></VRTRasterBand></VRTDataset>'
)
RAW = '<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{path}</Item></GDALMetadata>'


def hostile(path: Path, domain: str, **items: str) -> Path:
    """A file written by GDAL, with items in a metadata domain."""
    with (
        gdal_environment(),
        rasterio.open(
            path, "w", driver="GTiff", width=600, height=600, count=1, dtype="uint8", crs="EPSG:4326", transform=DEGREES
        ) as dataset,
    ):
        dataset.write(np.full((1, 600, 600), 7, np.uint8))
        dataset.update_tags(ns=domain, **items)
    return path


def aims(bird: Canary) -> dict[str, str]:
    return {
        "path": str(bird.path),
        "address": f"/vsicurl/{bird.url}",
        "plain address": bird.url,
        "inline VRT": INLINE_VRT.format(path=bird.path),
    }


@pytest.mark.parametrize("aim", ["path", "address", "plain address", "inline VRT"])
@pytest.mark.parametrize(
    ("domain", "items"),
    [("OVERVIEWS", ("OVERVIEW_FILE",)), ("GEOLOCATION", ("X_DATASET", "Y_DATASET")), ("ANY_LATER_ONE", ("FILE",))],
)
def test_metadata_that_name_another_file_are_refused(
    domain: str, items: tuple[str, ...], aim: str, bird: Canary, tmp_path: Path
) -> None:
    path = hostile(tmp_path / "a.tif", domain, **dict.fromkeys(items, aims(bird)[aim]))
    with pytest.raises(JobError) as caught:
        run(path, tmp_path / "out", max_size=64)
    assert caught.value.code == "hostile_metadata"
    assert domain in caught.value.message
    assert bird.touched() == []


@pytest.mark.parametrize("validate_headers", [True, False])
def test_the_domains_that_gdal_found_are_checked_again(
    validate_headers: bool, bird: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second gate, before overviews and pixels, works alone."""
    monkeypatch.setattr(inspection, "admit", lambda path, **_: TiffStructure.read(path))
    path = hostile(tmp_path / "a.tif", "OVERVIEWS", OVERVIEW_FILE=str(bird.path))
    with pytest.raises(JobError) as caught:
        inspection.inspect_file(path, validate_headers=validate_headers)
    assert caught.value.code == "hostile_metadata"
    assert bird.touched() == []


def test_the_attack_works_without_the_gates(bird: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without both gates GDAL opens the named file, so the tests above prove something."""
    monkeypatch.setattr(inspection, "admit", lambda path, **_: TiffStructure.read(path))
    monkeypatch.setattr(inspection, "check_domain", lambda _: None)
    path = hostile(tmp_path / "a.tif", "OVERVIEWS", OVERVIEW_FILE=str(bird.path))
    run(path, tmp_path / "out", max_size=64)
    assert bird.touched() != []


EVASIONS = {
    "quotes": "<GDALMetadata><Item name='OVERVIEW_FILE' domain='OVERVIEWS'>{path}</Item></GDALMetadata>",
    "capitals": '<GDALMetadata><Item NAME="OVERVIEW_FILE" DOMAIN="OVERVIEWS">{path}</Item></GDALMetadata>',
    "entity": '<GDALMetadata><Item name="OVERVIEW_FILE" domain="&#79;VERVIEWS">{path}</Item></GDALMetadata>',
    "element": '<GDALMetadata><Item name="OVERVIEW_FILE"><domain>OVERVIEWS</domain>{path}</Item></GDALMetadata>',
    "two domains": '<GDALMetadata><Item name="OVERVIEW_FILE" domain="" domain="OVERVIEWS">{path}</Item></GDALMetadata>',
    "comment": '<GDALMetadata><!-- > --><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{path}</Item></GDALMetadata>',
    "document type": '<!DOCTYPE a [<!ENTITY b "OVERVIEWS">]>' + RAW.replace("OVERVIEWS", "&b;"),
    "two roots": "<GDALMetadata></GDALMetadata>" + RAW,
    "no end": '<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{path}',
    "nested": '<x><GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{path}</Item></GDALMetadata></x>',
    "lower case": '<GDALMetadata><Item name="OVERVIEW_FILE" domain="overviews">{path}</Item></GDALMetadata>',
    "root's": '<GDALMetadata a="b"><Item x-y="z" name="OVERVIEW_FILE" domain="OVERVIEWS">{path}</Item></GDALMetadata>',
    "none": '<GDALMetadata/><GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{path}</Item></GDALMetadata>',
    "spaces": '<GDALMetadata><Item name="OVERVIEW_FILE"\n domain =\t"OVERVIEWS" >{path}</Item></GDALMetadata>',
}


def write_with_metadata(path: Path, value: Value, order: str = "<") -> Path:
    return RawTiff([gray(t42112=value)], data=bytes(256), order=order).write(path)


@pytest.mark.parametrize("evasion", EVASIONS)
@pytest.mark.parametrize("validate_headers", [True, False])
def test_no_spelling_hides_a_domain(evasion: str, validate_headers: bool, bird: Canary, tmp_path: Path) -> None:
    path = write_with_metadata(tmp_path / "a.tif", text(EVASIONS[evasion].format(path=bird.path)))
    with pytest.raises(JobError) as caught:
        admit(path, validate_headers=validate_headers)
    assert caught.value.code == "hostile_metadata"
    assert bird.touched() == []


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("kind", [ASCII, BYTE])
@pytest.mark.parametrize("codec", WIDE)
@pytest.mark.parametrize("evasion", ["raw", *EVASIONS])
def test_utf_16_and_32_do_not_hide_a_domain(evasion: str, codec: str, kind: int, bird: Canary, tmp_path: Path) -> None:
    """UTF-16 and UTF-32 are decoded and held to the same grammar and domains."""
    words = (EVASIONS | {"raw": RAW})[evasion].format(path=bird.path)
    path = write_with_metadata(tmp_path / "a.tif", (kind, [*words.encode(codec), 0, 0]))
    for validate_headers in (True, False):
        with pytest.raises(JobError) as caught:
            inspection.inspect_file(path, validate_headers=validate_headers)
        assert caught.value.code == "hostile_metadata"
    assert bird.touched() == []


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("codec", WIDE)
def test_gdal_itself_reads_no_metadata_in_utf_16_or_32(codec: str, begin: str, tmp_path: Path) -> None:
    """So only the decoded text counts: GDAL finds no other behind the first NUL."""
    words = (begin + RAW).encode(codec)
    path = write_with_metadata(tmp_path / "a.tif", (ASCII, [*words, 0, *RAW.encode(), 0]))
    with gdal_environment(), rasterio.open(path) as dataset:
        assert "OVERVIEWS" not in dataset.tag_namespaces()


def test_utf_8_after_a_utf_16_beginning_is_refused(bird: Canary, tmp_path: Path) -> None:
    """A difference between our decoder and GDAL hides no domain."""
    narrow = RAW.format(path=bird.path).encode() + b"\0"
    for begin in (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"<\0", b"\0<", b"\xff\xfe\0\0"):
        path = write_with_metadata(tmp_path / "a.tif", (ASCII, [*begin, *narrow]))
        with pytest.raises(JobError) as caught:
            inspection.inspect_file(path)
        assert caught.value.code == "hostile_metadata"
    assert bird.touched() == []


def test_text_stored_as_wider_numbers_is_refused(bird: Canary, tmp_path: Path) -> None:
    """libtiff makes a text of 16-bit numbers, in which a reader of bytes finds an early end."""
    letters = RAW.format(path=bird.path).encode()
    for order in "<>":
        path = write_with_metadata(tmp_path / "a.tif", (SHORT, list(letters)), order)
        with pytest.raises(JobError) as caught:
            admit(path)
        assert caught.value.code == "hostile_metadata"


@pytest.mark.parametrize("place", ["second page", "SubIFD", "second page's"])
def test_metadata_are_checked_in_every_directory(place: str, bird: Canary, tmp_path: Path) -> None:
    value = text(RAW.format(path=bird.path))
    content = {
        "second page": lambda: RawTiff([gray(), gray(t42112=value)]).bytes(),
        "SubIFD": lambda: hung_off(value),
        "second page's": lambda: RawTiff([gray(t42112=(ASCII, [0])), gray(t42112=value)], order=">", big=True).bytes(),
    }[place]()
    (tmp_path / "a.tif").write_bytes(content + bytes(256))
    with pytest.raises(JobError) as caught:
        admit(tmp_path / "a.tif")
    assert caught.value.code == "hostile_metadata"


def hung_off(value: Value) -> bytes:
    """A second directory referenced from the first by tag 330, after the end of the chain."""
    first = gray(t330=(LONG, [0x7FFF1234]))
    content = RawTiff([first, gray(t42112=value)]).bytes()
    link = 8 + 2 + 12 * len(first)
    following = content[link : link + 4]
    return (content[:link] + bytes(4) + content[link + 4 :]).replace(struct.pack("<I", 0x7FFF1234), following)


@pytest.mark.parametrize("size", [1_000_000, 2_000_000])
def test_long_metadata_do_not_slow_the_gate(size: int, tmp_path: Path) -> None:
    """Text that causes backtracking elsewhere is refused at once, or is too large."""
    for filling in ("<Item " * (size // 6), " " * size, '<Item a="' + "b" * size, "<Item a='1'" * (size // 11)):
        path = write_with_metadata(tmp_path / "a.tif", text("<GDALMetadata>" + filling))
        with pytest.raises(JobError) as caught:
            admit(path)
        assert caught.value.code in {"hostile_metadata", "too_large"}


@pytest.mark.parametrize(
    "words",
    [
        '<GDALMetadata>\n  <Item name="a" sample="0" role="description">b &lt; c</Item>\n</GDALMetadata>\n',
        '<GDALMetadata><Item name="NBITS" domain="IMAGE_STRUCTURE">7</Item><Item name="x"/></GDALMetadata>',
        '<?xml version="1.0"?><GDALMetadata></GDALMetadata>',
        '<GDALMetadata xmlns="http://www.gdal.org" ><Item name="a" long-name="b">c</Item></GDALMetadata >',
        "<GDALMetadata/>",
        '<?xml version="1.0"?>\n<GDALMetadata />\n',
        '\ufeff<GDALMetadata><Item name="a">b</Item></GDALMetadata>',
        '<GDALMetadata><Item name="PyramidResamplingType" domain="Esri">NEAREST</Item></GDALMetadata>',
        '<GDALMetadata><Item name="CLOUDCOVER" domain="IMD">0</Item></GDALMetadata>',
        "",
    ],
)
def test_usual_metadata_pass(words: str, tmp_path: Path) -> None:
    """GDAL's own, ArcGIS', and those copied from other formats, written at once or by hand."""
    admit(write_with_metadata(tmp_path / "a.tif", text(words)))
    admit(write_with_metadata(tmp_path / "b.tif", (BYTE, list(words.encode()) or [0])))
