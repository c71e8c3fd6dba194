"""Texts in tags that are not UTF-8: each kind of job works, and other programs can read the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from geoprocessing_worker.handlers import TaskRequest, TaskResult
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.source import texts
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO, GEOTIFF_TO_COG, GEOTIFF_TO_PNG, GEOTIFF_TO_TILES
from geoprocessing_worker.tasks.child import perform
from geoprocessing_worker.tiff.structure import TiffStructure
from geoprocessing_worker.tiff.tags import SUB_IFDS
from tests.support.raw_tiff import ASCII, BYTE, DOUBLE, SHORT, Tag, write_raw_tiff
from tests.support.task_runs import perform_on
from tests.support.tiffs import LONG, RawTiff, Value, gray

CASES = Path(__file__).parents[3] / "shared" / "cases"
HANDLERS = [GEOTIFF_TO_PNG, GEOTIFF_TO_COG, GEOTIFF_TO_TILES, GEOTIFF_INFO]
by_name = pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)

LATIN, ARABIC, JAPANESE = "Höhe über".encode("latin-1"), "الارتفاع".encode("cp1256"), "標高".encode("shift_jis")
SHOWN = {LATIN: "Höhe über", ARABIC: "الارتفاع", JAPANESE: "\ufffdW\ufffd\ufffd"}

PLACE: dict[int, Tag] = {33550: (DOUBLE, [30, 30, 0]), 33922: (DOUBLE, [0, 0, 0, 400_000, 1_700_000, 0])}
UTM: dict[int, Tag] = {34735: (SHORT, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32638))}


def metadata(item: bytes, before: bytes = b"") -> Tag:
    return ASCII, b'<?xml version="1.0"?><GDALMetadata>' + before + item + b"</GDALMetadata>\0"


def role(name: bytes, text: bytes) -> bytes:
    return b'<Item name="' + name.upper() + b'" sample="0" role="' + name + b'">' + text + b"</Item>"


def declared_crs(name: bytes) -> dict[int, Tag]:
    """A transverse Mercator that no authority knows, by this name."""
    # fmt: off
    keys = (
        1, 1, 0, 15, 1024, 0, 1, 1, 1025, 0, 1, 1, 1026, 34737, 7, 0, 2048, 0, 1, 4326, 3072, 0, 1, 32767,
        3073, 34737, len(name) + 1, 7, 3074, 0, 1, 32767, 3075, 0, 1, 1, 3076, 0, 1, 9001, 3080, 34736, 1, 0,
        3081, 34736, 1, 1, 3082, 34736, 1, 2, 3083, 34736, 1, 3, 3092, 34736, 1, 4, 2054, 0, 1, 9102,
    )
    # fmt: on
    return {34735: (SHORT, keys), 34736: (DOUBLE, [44.0, 0, 500_000, 0, 1]), 34737: (ASCII, b"a name|" + name + b"|\0")}


def described(tags: dict[str, Any]) -> Any:
    return tags["bands"][0]["description"]


def item(text: bytes, attributes: bytes = b'name="A"') -> dict[int, Tag]:
    return UTM | {42112: metadata(b"<Item " + attributes + b">" + text + b"</Item>")}


# Where a text stands.
PLACES: dict[str, Callable[[bytes], dict[int, Tag]]] = {
    "description": lambda text: UTM | {42112: metadata(role(b"description", text))},
    "unit": lambda text: UTM | {42112: metadata(role(b"unittype", text))},
    "band name": lambda text: item(text, b'name="BandName" sample="0"'),
    "item": item,
    "name of an item": lambda text: item(b"x", b'name="' + text + b'"'),
    "structure": lambda text: item(text, b'name="A" domain="IMAGE_STRUCTURE"'),
    "camera model": lambda text: item(text, b'name="LINE_OFF" domain="RPC"'),
    "image description": lambda text: UTM | {270: (ASCII, text + b"\0")},
    "software": lambda text: UTM | {305: (ASCII, text + b"\0")},
    "copyright": lambda text: UTM | {33432: (ASCII, text + b"\0")},
    "artist": lambda text: UTM | {315: (ASCII, text + b"\0")},
    "system": declared_crs,
}
# Place of each text in the metadata. The other texts have none.
LOOKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "description": described,
    "unit": lambda told: told["bands"][0]["unit"],
    "band name": described,
    "image description": lambda told: told["tags"]["TIFFTAG_IMAGEDESCRIPTION"],
    "software": lambda told: told["tags"]["TIFFTAG_SOFTWARE"],
    "copyright": lambda told: told["tags"]["TIFFTAG_COPYRIGHT"],
    "system": lambda told: told["crs"]["name"],
}


def source_with(place: str, text: bytes, path: Path) -> Path:
    pixels = (np.arange(64 * 64).reshape(64, 64, 1) % 251).astype(np.uint8)
    return write_raw_tiff(path / "a.tif", pixels, tags=PLACE | PLACES[place](text))


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@by_name
@pytest.mark.parametrize("codec", WIDE)
def test_metadata_in_wide_letters_are_read_with_a_note(codec: str, handler: Any, tmp_path: Path) -> None:
    """With a byte order mark or without: description and unit are those of the file."""
    words = (
        '<?xml version="1.0" encoding="UTF-16"?>\n<GDALMetadata>'
        '<Item name="DESCRIPTION" sample="0" role="description">الارتفاع</Item>'
        '<Item name="UNITTYPE" sample="0" role="unittype">Höhe</Item></GDALMetadata>\0'
    )
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64, 1)
    for end in (b"", b"\0"):
        tags = PLACE | UTM | {42112: (ASCII, words.encode(codec) + end)}
        source = write_raw_tiff(tmp_path / "a.tif", pixels, tags=tags)
        made = perform_on(handler, source, tmp_path / "out")
        told: Any = made.metadata["source"]
        assert (described(told), told["bands"][0]["unit"]) == ("الارتفاع", "Höhe")
        name = codec[:6].upper()
        assert told["notes"] == [f"texts in the file that are not UTF-8 are read as {name}"]
        if handler is GEOTIFF_TO_COG:
            with gdal_environment(), rasterio.open(made.outputs[0].path) as copy:
                assert copy.descriptions == ("الارتفاع",)


@pytest.mark.parametrize("codec", WIDE)
def test_a_description_of_the_picture_in_wide_letters_is_read(codec: str, tmp_path: Path) -> None:
    """Without a mark they are no different from a text of one letter, so the mark is needed."""
    mark = "" if codec in {"utf-16", "utf-32"} else "\ufeff"
    source = source_with("image description", (mark + "خريطة").encode(codec), tmp_path)
    assert dict(inspect_file(source).tags)["TIFFTAG_IMAGEDESCRIPTION"] == "خريطة"


@by_name
@pytest.mark.parametrize(
    ("place", "text"),
    [*((place, LATIN) for place in PLACES), ("description", ARABIC), ("unit", JAPANESE), ("system", ARABIC)],
)
def test_a_text_that_is_not_utf_8_is_shown_with_a_note(place: str, text: bytes, handler: Any, tmp_path: Path) -> None:
    """Wherever it stands: decoded or replaced, in strict JSON, and the file keeps its place."""
    made = perform_on(handler, source_with(place, text, tmp_path), tmp_path / "out")
    told: Any = made.metadata
    look = LOOKS.get(place)
    if look is not None:
        assert look(told["source"]) == SHOWN[text]
    assert told["source"]["crs"] is not None
    assert [note for note in told["source"]["notes"] if "not UTF-8" in note]
    assert "\\u0000" not in json.dumps(told)
    companion = next(output for output in made.outputs if output.name == "a.json")
    assert look is None or json.dumps(SHOWN[text], ensure_ascii=False)[1:-1] in companion.path.read_text("utf-8")


@pytest.mark.parametrize("place", ["description", "unit", "image description", "system"])
def test_a_cog_has_its_texts_in_utf_8(place: str, tmp_path: Path) -> None:
    """GDAL copies the bytes as they are. Then rasterio could read the COG no better than the file."""
    source = source_with(place, ARABIC, tmp_path)
    made = perform_on(GEOTIFF_TO_COG, source, tmp_path / "out").outputs[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.tif"]
    with rasterio.open(made.path) as dataset:
        system = dataset.crs.to_wkt()
        told = [dataset.descriptions[0], dataset.units[0], dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION"), system]
    assert any(SHOWN[ARABIC] in (text or "") for text in told)


@by_name
@pytest.mark.parametrize("name", ["latin1-band.tif", "latin1-unit.tif"])
def test_files_with_latin_1_are_done(name: str, handler: Any, tmp_path: Path) -> None:
    if not (CASES / name).exists():
        pytest.skip("the cases are not beside this checkout")
    told: Any = perform_on(handler, CASES / name, tmp_path / "out").metadata
    texts = [text for band in told["source"]["bands"] for text in (band["description"], band["unit"]) if text]
    assert any(not text.isascii() for text in texts)


@by_name
async def test_it_works_in_the_sandbox(handler: Any, tmp_path: Path) -> None:
    """The stand-in lives in memory, and the copy for a COG in the output folder: nothing else can be written."""
    source, out = source_with("description", LATIN, tmp_path), tmp_path / "out"
    out.mkdir()
    request = TaskRequest(source=source, output_folder=out, stem="a", options=handler.payload(), source_name="a.tif")
    box: Sandbox[Call, TaskResult] = Sandbox(perform, TaskResult, preload=("geoprocessing_worker.tasks.preload",))
    made = await box.run(Call.of(handler, request), lambda *_: None, AllowedPaths((source,), (out,)))
    assert described(made.metadata["source"]) == SHOWN[LATIN]  # type: ignore[arg-type]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_every_layout_of_a_tiff_and_later_pages_are_read(order: str, big: bool, tmp_path: Path) -> None:
    """The second page's description, between pages with others, in classic and BigTIFF of either byte order."""

    def page(text: bytes, size: int) -> dict[int, Value]:
        content = b"<GDALMetadata>" + role(b"description", text) + b"</GDALMetadata>\0"
        return gray(size, size, t273=(LONG, [9000]), t42112=(2, list(content)))

    pages = [page(b"first", 16), page(LATIN, 20), page(b"third", 18)]
    (tmp_path / "a.tif").write_bytes(
        RawTiff(pages, order=order, big=big).bytes().ljust(9000, b"\0") + bytes(range(200)) * 4
    )
    with gdal_environment():
        told = [inspect_file(tmp_path / "a.tif", page).bands[0].description for page in (1, 2, 3)]
    assert told == ["first", "Höhe über", "third"]
    made = perform_on(GEOTIFF_TO_COG, tmp_path / "a.tif", tmp_path / "out", page=2).outputs[0]
    with rasterio.open(made.path) as dataset:
        assert (dataset.width, dataset.descriptions) == (20, ("Höhe über",))


def test_texts_in_utf_8_beside_others_stay(tmp_path: Path) -> None:
    """Each text is decoded by itself, including UTF-8 texts and XML escapes."""
    items = [
        role(b"description", LATIN),
        role(b"description", "Höhe &amp;lt; 5".encode()).replace(b'"0"', b'"1"'),
        role(b"unittype", "м".encode()),
    ]
    pixels = np.zeros((16, 16, 2), np.uint8)
    source = write_raw_tiff(tmp_path / "a.tif", pixels, tags=PLACE | UTM | {42112: metadata(b"".join(items))})
    with gdal_environment():
        bands = inspect_file(source).bands
    assert [(band.description, band.unit) for band in bands] == [("Höhe über", "м"), ("Höhe < 5", None)]


def test_a_jpeg_file_with_such_texts_is_read(tmp_path: Path) -> None:
    """The stand-in has no pixels, and GDAL reads none for the texts, with any codec."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(
        tmp_path / "a.tif", compression="jpeg", tiffinfo={270: "placeholder"}
    )
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(b"placeholder", b"H\xf6he       "))
    told: Any = perform_on(GEOTIFF_TO_PNG, tmp_path / "a.tif", tmp_path / "out").metadata
    assert told["source"]["tags"]["TIFFTAG_IMAGEDESCRIPTION"].strip() == "Höhe"


@by_name
@pytest.mark.parametrize("words", [b"none", LATIN, b"N/A"])
def test_words_for_nodata_are_none(words: bytes, handler: Any, tmp_path: Path) -> None:
    """Also in a COG, into which GDAL would write 0 for them."""
    pixels = np.zeros((16, 16, 1), np.uint8)
    source = write_raw_tiff(tmp_path / "a.tif", pixels, tags=PLACE | UTM | {42113: (ASCII, words + b"\0")})
    told: Any = perform_on(handler, source, tmp_path / "out").metadata
    assert told["source"]["bands"][0]["nodata"] is None
    assert told["source"]["notes"] == []


def test_control_characters_are_replaced(tmp_path: Path) -> None:
    """An escape sequence in a description reaches no console."""
    tags = PLACE | UTM | {42112: metadata(role(b"description", b"a\x1b[31mb")), 305: (ASCII, b"c\x07\0")}
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((16, 16, 1), np.uint8), tags=tags)
    with gdal_environment():
        header = inspect_file(source)
    assert header.bands[0].description == "a\ufffd[31mb"
    assert dict(header.tags)["TIFFTAG_SOFTWARE"] == "c\ufffd"


def test_nothing_is_read_through_a_directory_hidden_in_a_text(tmp_path: Path) -> None:
    """In the stand-in other bytes stand at the offsets of nested directories, so it has no pointers to any."""
    tags: dict[int, Any] = {
        **UTM,
        270: (ASCII, LATIN + b"\0"),
        700: (BYTE, b"x" * 9),
        **dict.fromkeys(SUB_IFDS, (4, [8])),
    }
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((16, 16, 1), np.uint8), tags=tags)
    structure = TiffStructure.read(source)
    with structure.open() as reader:
        converter = texts._converter(reader, structure, 1)
        assert converter is not None
        alone = texts._alone(converter, converter.contents())
    (tmp_path / "b.tif").write_bytes(alone)
    made = TiffStructure.read(tmp_path / "b.tif").ifds
    assert len(made) == 1
    assert not {field.tag for field in made[0].fields} & set(SUB_IFDS)
