"""The API's payload schemas match the worker's handlers, and both sides judge a payload alike."""

from __future__ import annotations

import json
from typing import Any

import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj.database import get_codes
from pyproj.enums import PJType

from geo_jobs_api.task_types.crs_codes import is_possible_crs
from geo_jobs_api.task_types.payload_schemas import check_schema, find_errors
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import parse_crs
from geoprocessing_worker.handlers import INTERFACE, Payload, TaskHandler, TaskType
from geoprocessing_worker.tasks import builtin
from scripts import payload_schemas

HANDLERS = {
    handler.task_type.name: handler
    for handler in (builtin.GEOTIFF_INFO, builtin.GEOTIFF_TO_COG, builtin.GEOTIFF_TO_PNG, builtin.GEOTIFF_TO_TILES)
}


def test_the_schema_files_are_up_to_date() -> None:
    """Run `make schemas` after a change of options or of PROJ."""
    for path, text in payload_schemas.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make schemas`"


def test_the_api_accepts_the_same_crs_codes_as_the_worker() -> None:
    """All codes of the listed authorities, and some that do not exist. A worker with an older PROJ has fewer."""
    codes = [f"{name}:{code}" for name in payload_schemas.AUTHORITIES for code in get_codes(name, PJType.CRS, True)]
    schema = json.dumps({"properties": {"c": HANDLERS["geotiff_info"].announced.payload_schema}})
    crs = json.dumps({"properties": {"c": json.loads(schema)["properties"]["c"]["properties"]["sourceCrs"]}})
    is_same_proj = (
        json.loads((payload_schemas.FOLDER / "crs_codes.json").read_text())["proj"] == pyproj.proj_version_str
    )
    wrong = []
    for code in [*codes, "EPSG:99999", "EPSG:1", "ESRI:4", "OGC:CRS99", "EPGS:4326", "IGNF:LAMB9"]:
        try:
            parse_crs(code)
            known = True
        except JobError:
            known = False
        listed = find_errors(crs, {"c": code}, "") == []
        if known != listed and (known or is_same_proj):
            wrong.append((code, known))
    assert wrong == []
    assert not is_possible_crs("EPSG:99999")


VALUES: dict[str, list[Any]] = {
    "maxSize": [1, 4096, 16384, 0, 16385, 1.5, "1", True],
    "outputFormat": ["png", "JPG", "Webp", "gif", 3],
    "coordinateSystem": ["EPSG:4326", "native", " NATIVE ", "EPSG:99999", "WGS 84", "", 4326],
    "sourceCrs": ["EPSG:32638", "native", "+proj=longlat", "ogc:CRS84", "+proj=longlat +nadgrids=x.gsb"],
    "bands": [[1], [1, 2, 3], [1, 2, 3, 4], [], [1, 2, 3, 4, 5], [0], ["1"], 1],
    "stretch": [
        "percentile:98,2",
        "range:5,5",
        "range:-3,-2",
        "range:1e3,-.5",
        *("percentile:2,101", "percentile:-1,50", "percentile:50,50", "percentile:0,100", "percentile:+.5,99.9"),
        *("stddev:0", "stddev:-1", "stddev:0.0", "stddev:.01", "stddev:100", "stddev:101", "stddev:10"),
        "minmax",
        "NONE",
        "percentile:2,98",
        "percentile: 2 , 98",
        "stddev:2",
        "range:-5,1e3",
        "foo",
        "range:1",
    ],
    "colormap": ["viridis", "Viridis_r", "SPECTRAL", "parula", ""],
    "resampling": ["nearest", "mode", "Nearest", "gauss"],
    "nodata": [0, -9999.5, 2**64 - 1, -(2**63), "0", True],
    "page": [1, 0, 65535, 65536],
    "generateThumbnails": [True, False],
    "thumbnailSize": [15, 16, 1024, 1025],
    "quality": [0, 1, 100, 101],
    "compression": ["deflate", "ZSTD", "lzw", "jpeg", "webp", "packbits"],
    "blockSize": [256, 512, 1024, 300, "256"],
    "webOptimized": [True, False],
    "minZoom": [0, 24, 25, -1, True],
    "maxZoom": [24],
}


@pytest.mark.parametrize("name", HANDLERS)
def test_schema_and_worker_judge_each_value_alike(name: str) -> None:
    """Each refuses exactly the values that the other refuses. A null counts as absent on both sides."""
    handler = HANDLERS[name]
    schema = json.dumps(handler.announced.payload_schema)
    for field in handler.payload.model_fields.values():
        assert field.alias in VALUES, "a new option needs values here"
        for value in [None, *VALUES[field.alias]]:
            try:
                handler.payload.from_payload({field.alias: value}).check()
                taken = True
            except JobError:
                taken = False
            assert (find_errors(schema, {field.alias: value}, "") == []) is taken, (field.alias, value)


@given(
    st.fixed_dictionaries(
        {},
        optional={name: st.sampled_from(values) for name, values in VALUES.items() if name != "minZoom"},
    )
)
def test_no_worker_refuses_a_payload_that_the_api_accepts(payload: dict[str, Any]) -> None:
    """Any mixture of values. Unknown keys are refused."""
    handler = HANDLERS["geotiff_to_png"]
    if find_errors(json.dumps(handler.announced.payload_schema), payload, "") == []:
        handler.payload.from_payload(payload).check()


class _Own(Payload):
    """Options of a package that uses pydantic's features."""

    depth: int = 3
    mode: str | None = None
    within: dict[str, list[int]] | None = None


def _handler(task_type: TaskType) -> TaskHandler:
    return TaskHandler(
        interface=INTERFACE, task_type=task_type, payload=_Own, stages={"s": 1}, work="a:b", self_test="a:b"
    )


def test_a_packages_own_options_become_a_schema_unless_it_gives_one() -> None:
    made = _handler(TaskType(name="own")).announced.payload_schema
    assert made is not None
    check_schema(made)
    assert find_errors(json.dumps(made), {"depth": 4, "mode": "x", "within": {"a": [1]}, "sourceUrl": None}, "") == []
    (error,) = find_errors(json.dumps(made), {"dept": 4}, "/inputPayload")
    assert error.nearest == "depth"
    assert _handler(TaskType(name="own", payload_schema={})).announced.payload_schema == {}
