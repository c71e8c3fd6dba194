"""Payloads are checked against their task type's schema before the job is created."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from geo_jobs_api.task_types.payload_schemas import check_schema, find_errors
from tests.support.api import RunningApi
from tests.support.clients import Person, code_of, rows

OPEN: dict[str, Any] = {"name": "open", "input": "optional", "outputs": []}
CLOSED: dict[str, Any] = {"type": "object", "properties": {"depth": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture
def admin(api: RunningApi) -> Person:
    return Person(api, "root", admin=True)


def refusal(person: Person, payload: object, task_type: str = "geotiff_to_png") -> dict[str, Any]:
    """The problem of a payload. No job was created."""
    answer = person.http.post("/api/geo-jobs", json={"taskType": task_type, "inputPayload": payload})
    assert code_of(answer) == (422, "validation"), answer.text
    assert person.http.get("/api/geo-jobs").json()["jobs"] == []
    (error,) = answer.json()["errors"]
    assert error["message"] in answer.json()["detail"]
    return dict(error)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("maxsize", "maxSize"),
        ("max_size", "maxSize"),
        ("MaxSize", "maxSize"),
        ("maxSzie", "maxSize"),
        ("format", "outputFormat"),
        ("colourmap", "colormap"),
        ("coordinate_system", "coordinateSystem"),
        ("sourceURL", "sourceUrl"),
        ("no-data", "nodata"),
        ("thumbnail", "thumbnailSize"),
    ],
)
def test_an_unknown_key_is_rejected_with_the_nearest_known_one(given: str, meant: str, person: Person) -> None:
    """Misspelled keys, in another case or style: the message contains the key and the nearest known one."""
    error = refusal(person, {given: 1})
    assert error["pointer"] == f"/inputPayload/{given}"
    assert error["nearest"] == meant
    assert f"Did you mean {meant!r}?" in error["message"]


def test_a_key_that_is_like_none_is_rejected_with_all_known_ones(person: Person) -> None:
    error = refusal(person, {"zzz": 1}, "geotiff_info")
    assert error["allowed"] == ["page", "sourceCrs", "sourceUrl"]
    assert error["message"] == "Unknown key 'zzz'. Known: page, sourceCrs, sourceUrl."


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("outputFormat", "gif", "Allowed: png, jpeg, jpg, webp."),
        ("outputFormat", "wepb", "Did you mean 'webp'?"),
        ("colormap", "virdis", "Did you mean 'viridis'?"),
        ("colormap", "zzzz", "and 184 more."),
        ("resampling", "bicubic", "Did you mean 'cubic'?"),
        ("maxSize", "2048", "It must be a whole number."),
        ("maxSize", 2048.5, "It must be a whole number."),
        ("maxSize", True, "It must be a whole number."),
        ("maxSize", 0, "0 is less than the minimum of 1."),
        ("maxSize", 99999, "99999 is greater than the maximum of 16384."),
        ("generateThumbnails", "no", "It must be true or false."),
        ("bands", "1,2,3", "It must be a list."),
        ("bands", [], "[] has less than 1 item."),
        ("bands", [0], "0 is less than the minimum of 1."),
        (
            "stretch",
            "percentil:2,98",
            "Allowed: percentile:lo,hi (0 to 100) | minmax | stddev:n (above 0 to 100) | range:lo,hi",
        ),
        ("stretch", "percentile:98,2", "must have ascending numbers"),
        ("stretch", "percentile:2,101", "Allowed: percentile:lo,hi (0 to 100)"),
        ("stretch", "percentile:-1,50", "Allowed: percentile:lo,hi (0 to 100)"),
        ("stretch", "percentile:50,50", "must have ascending numbers"),
        ("stretch", "stddev:0", "stddev:n (above 0 to 100)"),
        ("stretch", "stddev:0.00", "stddev:n (above 0 to 100)"),
        ("stretch", "stddev:-1", "stddev:n (above 0 to 100)"),
        ("stretch", "stddev:100.5", "stddev:n (above 0 to 100)"),
        ("sourceCrs", "+proj=longlat +nadgrids=us.gsb", "a PROJ string without grids."),
        ("coordinateSystem", "+proj=utm +zone=3 +geoidgrids=x.gtx", "a PROJ string without grids or native."),
        ("coordinateSystem", "+proj=pipeline +step +proj=utm", "a PROJ string without grids or native."),
        ("coordinateSystem", "+proj=longlat +init=epsg:4326", "a PROJ string without grids or native."),
        ("nodata", "none", "It must be a number."),
        ("coordinateSystem", "EPSG:99999", 'Unknown coordinate system "EPSG:99999". Give an authority\'s code such as'),
        ("coordinateSystem", "EPGS:4326", "Unknown coordinate system"),
        ("coordinateSystem", "WGS84", "Unknown coordinate system"),
        ("coordinateSystem", "+init=epsg:4326", "Unknown coordinate system"),
        ("coordinateSystem", "EPSG:5773", "Unknown coordinate system"),
        ("coordinateSystem", "3857", "Did you mean 'EPSG:3857'?"),
        ("coordinateSystem", "EPSG: 3857", "Did you mean 'EPSG:3857'?"),
        ("coordinateSystem", "epsg3857", "Did you mean 'EPSG:3857'?"),
        ("coordinateSystem", "WGS 84", "Did you mean 'EPSG:4326'?"),
        ("coordinateSystem", 3857, "Did you mean 'EPSG:3857'?"),
        ("sourceCrs", "native", "WKT, PROJJSON or a PROJ string without grids."),
    ],
)
def test_an_invalid_value_is_rejected_with_the_allowed_ones(
    key: str, value: object, words: str, person: Person
) -> None:
    """Formats, color maps, coordinate systems, numbers: the message contains the place and the allowed values."""
    error = refusal(person, {key: value})
    assert error["pointer"].startswith(f"/inputPayload/{key}")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("task_type", "key", "others"),
    [
        ("geotiff_to_tiles", "maxSize", "geotiff_to_png"),
        ("geotiff_to_tiles", "coordinateSystem", "geotiff_to_png"),
        ("geotiff_to_tiles", "thumbnailSize", "geotiff_to_png"),
        ("geotiff_to_tiles", "generateThumbnails", "geotiff_to_png"),
        ("geotiff_to_cog", "sourceCrs", "geotiff_info, geotiff_to_png, geotiff_to_tiles"),
        ("geotiff_to_cog", "outputFormat", "geotiff_to_png, geotiff_to_tiles"),
        ("geotiff_info", "maxZoom", "geotiff_to_tiles"),
        ("geotiff_to_png", "blockSize", "geotiff_to_cog"),
    ],
)
def test_a_key_of_another_task_type_is_rejected_with_that_type(
    task_type: str, key: str, others: str, person: Person
) -> None:
    """A key without effect is rejected, and a similar key of the right type would mislead."""
    error = refusal(person, {key: 1}, task_type)
    assert error["message"].startswith(f"{key!r} is not for {task_type}. It is for {others}. Known here: ")
    assert "nearest" not in error


def test_a_number_as_text_is_one_error_about_its_type(person: Person) -> None:
    error = refusal(person, {"blockSize": "512"}, "geotiff_to_cog")
    assert error["message"] == '"512" is not allowed. It must be a whole number, one of 256, 512, 1024.'


@pytest.mark.parametrize(
    "payload",
    [
        {"stretch": "percentile:0,100", "sourceCrs": "+proj=merc +a=6378137 +nadgrids=@null +wktext"},
        {"stretch": "stddev:0.5"},
        {"stretch": "percentile:.5,99.50"},
        {"stretch": "stddev:100"},
        {"stretch": "percentile:2e0,9.8e1"},
        {"maxSize": 2048.0, "outputFormat": "JPG", "quality": 1, "page": 1, "bands": [3, 2, 1]},
        {"colormap": "Viridis_R", "nodata": -9999.5, "generateThumbnails": False, "resampling": "mode"},
        {"nodata": 18446744073709551615, "stretch": "Percentile: 2, 98"},
        {"coordinateSystem": " native ", "sourceCrs": "urn:ogc:def:crs:EPSG::32638", "stretch": "range:-1e-3,.5"},
        {"coordinateSystem": "ogc:CRS84", "sourceCrs": "ESRI:102001", "stretch": "MinMax"},
        {"coordinateSystem": 'PROJCS["anything", GEOGCS["x"]]', "sourceCrs": '{"type": "ProjectedCRS"}'},
        {"coordinateSystem": "IAU:30100", "sourceCrs": "IGNF:LAMB93"},
        dict.fromkeys(["maxSize", "outputFormat", "bands", "colormap", "sourceCrs", "sourceUrl", "nodata"]),
    ],
)
def test_valid_payloads_are_accepted(payload: dict[str, Any], person: Person) -> None:
    """Names in any case, whole floats, nulls, codes, WKT and PROJJSON. The worker checks free text."""
    assert person.create(payload)["inputPayload"] == payload


def test_all_errors_of_a_batch_are_reported_at_once_with_their_places(person: Person) -> None:
    """None of the jobs is created."""
    jobs = [
        {"taskType": "geotiff_to_png", "inputPayload": {"maxSize": 100}},
        {"taskType": "geotiff_to_cog", "inputPayload": {"compresion": "zstd", "blockSize": 300}},
        {"taskType": "geotiff_info", "inputPayload": {"page": 0}},
    ]
    answer = person.http.post("/api/geo-jobs/batch", json={"jobs": jobs})
    assert code_of(answer) == (422, "validation")
    assert sorted(error["pointer"] for error in answer.json()["errors"]) == [
        "/jobs/1/inputPayload/blockSize", "/jobs/1/inputPayload/compresion", "/jobs/2/inputPayload/page",
    ]  # fmt: skip
    assert person.http.get("/api/geo-jobs").json()["jobs"] == []


def test_jobs_of_pipelines_and_schedules_are_checked_at_creation(person: Person) -> None:
    """Otherwise a schedule would create failing jobs every night."""
    job = {"taskType": "geotiff_to_png", "inputPayload": {"maxsize": 5}}
    pipeline = {"name": "p", "stages": [{"name": "s", "jobs": [job | {"name": "j"}]}]}
    answer = person.http.post("/api/pipelines", json=pipeline)
    assert answer.json()["errors"][0]["pointer"] == "/stages/0/jobs/0/inputPayload/maxsize"
    for template, pointer in ((job, ""), (pipeline, "/stages/0/jobs/0")):
        answer = person.http.post("/api/schedules", json={"name": "n", "cron": "0 6 * * *", "template": template})
        assert code_of(answer) == (422, "validation")
        assert answer.json()["errors"][0]["pointer"] == f"/template{pointer}/inputPayload/maxsize"
    assert person.http.get("/api/schedules").json()["schedules"] == []


def test_an_unknown_task_type_is_rejected_with_the_nearest_known_one(person: Person) -> None:
    answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_pgn"})
    assert code_of(answer) == (422, "unknown_task_type")
    assert "Did you mean 'geotiff_to_png'?" in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "/taskType"


def test_a_type_without_a_schema_takes_any_payload(person: Person, admin: Person) -> None:
    """Task types of plug-ins need not have one."""
    admin.http.put("/api/task-types/open", json=OPEN).raise_for_status()
    assert person.create({"anything": [1, {"x": None}]}, taskType="open")["state"] == "queued"


def test_an_operators_schema_applies_and_null_restores_the_built_in_one(person: Person, admin: Person) -> None:
    """For a custom type and a built-in one. An empty schema disables the check."""
    admin.http.put("/api/task-types/open", json=OPEN | {"payloadSchema": CLOSED}).raise_for_status()
    assert refusal(person, {"dept": 1}, "open")["nearest"] == "depth"
    shipped = admin.http.get("/api/task-types/geotiff_to_png").json()["payloadSchema"]
    assert shipped["properties"]["maxSize"] == {"minimum": 1, "maximum": 16384, "type": ["integer", "null"]}
    for schema, allows in (({}, True), (CLOSED, False), (None, False)):
        changed = admin.http.patch("/api/task-types/geotiff_to_png", json={"payloadSchema": schema}).raise_for_status()
        assert changed.json()["payloadSchema"] == (shipped if schema is None else schema)
        answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {"x": 1}})
        assert answer.is_success is allows


def test_a_changed_limit_leaves_the_built_in_schema_to_the_program(api: RunningApi, admin: Person) -> None:
    """Only a differing schema is stored, so that new keys of the next version are accepted."""
    admin.http.patch("/api/task-types/geotiff_to_png", json={"maxConcurrentRuns": 3}).raise_for_status()
    assert api.settings.conninfo is not None
    kept = rows(
        api.settings.conninfo, "SELECT payload_schema, input_types FROM task_types WHERE changed_at IS NOT NULL"
    )
    assert kept == [{"payload_schema": None, "input_types": None}]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "is not a JSON Schema"),
        ({"pattern": "("}, "is not a JSON Schema"),
        ({"pattern": "(?=a)b"}, "is not a JSON Schema"),
        ({"pattern": "(a{1000}){1000}"}, "is not a JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "must refer only to its own parts"),
        ({"$ref": "#"}, "must refer only to its own parts"),
        ({"$ref": "#/$defs/none"}, "which is not a schema"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "must not refer to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/%61"}}, "$ref": "#/$defs/a"}, "must refer only to its own parts"),
        ({"$id": "x"}, r"must not have \$id"),
        ({"$dynamicRef": "#a"}, r"must not have \$dynamicRef"),
        (
            {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(9)}
             | {"d9": {}}},
            "more than 5000 subschemas",
        ),
        ({"enum": ["x" * 70_000]}, "larger than 65536 bytes"),
    ],
)  # fmt: skip
def test_a_schema_that_costs_too_much_or_refers_elsewhere_is_rejected(schema: dict[str, Any], words: str) -> None:
    """Payloads are untrusted: no backtracking, no recursion, no request."""
    with pytest.raises(ValueError, match=words):
        check_schema(schema)


def test_no_schema_makes_the_api_send_requests() -> None:
    """Neither by a reference, which is rejected, nor by the URL of its dialect, which is not fetched (SSRF)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/schema"
        check_schema({"$schema": address, "type": "object"})
        for schema in ({"$ref": address}, {"properties": {"$ref": {"$ref": address}}}):
            with pytest.raises(ValueError, match="must refer only to its own parts"):
                check_schema(schema)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_an_invalid_schema_is_rejected_by_the_api_with_its_place(admin: Person) -> None:
    answer = admin.http.put("/api/task-types/open", json=OPEN | {"payloadSchema": {"type": "strin"}})
    assert code_of(answer) == (422, "validation")
    assert answer.json()["errors"][0]["pointer"] == "/payloadSchema"


def test_a_pattern_that_would_take_others_for_ever_costs_milliseconds() -> None:
    started = time.perf_counter()
    (error,) = find_errors('{"properties": {"a": {"pattern": "^(a+)+$"}}}', {"a": "a" * 60_000 + "!"}, "")
    assert error.pointer == "/a"
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("file_type", "is_taken"),
    [
        ("image/tiff", True), ("IMAGE/TIFF; application=geotiff", True), ("", True), ("application/octet-stream", True),
        ("image/x-geotiff", True), ("application/pdf", False), ("image/png", False), ("text/csv", False),
        ("tif", False),
    ],
)  # fmt: skip
def test_a_file_of_another_type_is_rejected_before_its_upload(file_type: str, is_taken: bool, person: Person) -> None:
    """By media type. The name is only a hint."""
    job_id = person.create()["id"]
    body = {"fileName": "scan.pdf", "fileSize": 9, "fileType": file_type}
    answer = person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body)
    assert answer.is_success is is_taken
    if not is_taken:
        assert code_of(answer) == (422, "validation")
        assert answer.json()["errors"][0]["pointer"] == "/fileType"
        assert "image/tiff" in answer.json()["errors"][0]["allowed"]


def test_zooms_in_the_wrong_order_are_rejected(person: Person) -> None:
    """Two keys that are valid separately."""
    error = refusal(person, {"minZoom": 5, "maxZoom": 3}, "geotiff_to_tiles")
    assert (error["pointer"], error["message"]) == ("/inputPayload/maxZoom", "maxZoom 3 is less than minZoom 5.")
    person.create({"minZoom": 3, "maxZoom": 3}, taskType="geotiff_to_tiles")
    person.create({"minZoom": None, "maxZoom": 3}, taskType="geotiff_to_tiles")


def test_a_format_without_outputs_is_rejected_whatever_the_schema_allows(person: Person, admin: Person) -> None:
    """The formats of the outputs are the allowed ones. A type without formats has any."""
    outputs = [
        {"suffix": f".{name}", "contentType": "x/y", "maxBytes": 9, "formats": [name]} for name in ("csv", "jpeg")
    ]
    admin.http.put("/api/task-types/open", json=OPEN | {"outputs": outputs}).raise_for_status()
    error = refusal(person, {"outputFormat": "cvs"}, "open")
    assert (error["pointer"], error["allowed"]) == ("/inputPayload/outputFormat", ["csv", "jpeg"])
    assert error["message"] == "\"cvs\" is not allowed. Did you mean 'csv'? Allowed: csv, jpeg."
    for given in ("CSV", "jpg", None):
        person.create({"outputFormat": given}, taskType="open")
    admin.http.put("/api/task-types/open", json=OPEN).raise_for_status()
    person.create({"outputFormat": "cvs"}, taskType="open")


def test_a_type_without_input_types_takes_any_file(person: Person, admin: Person) -> None:
    admin.http.put("/api/task-types/open", json=OPEN).raise_for_status()
    job_id = person.create(taskType="open", awaitUpload=True)["id"]
    body = {"fileName": "scan.pdf", "fileSize": 9, "fileType": "application/pdf"}
    person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body).raise_for_status()


def test_the_openapi_document_has_the_payload_of_each_type_that_there_is(person: Person, admin: Person) -> None:
    """Also for types created while the API runs, with adjusted references."""
    schema = {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer"}}}
    admin.http.put("/api/task-types/own", json=OPEN | {"payloadSchema": schema}).raise_for_status()
    document = person.http.get("/openapi.json").raise_for_status().json()
    schemas = document["components"]["schemas"]
    assert schemas["Payload_geotiff_to_png"]["properties"]["outputFormat"]["enum"][:2] == ["png", "jpeg"]
    assert schemas["Payload_own"]["properties"]["a"] == {"$ref": "#/components/schemas/Payload_own/$defs/x"}
    for body in ("CreateJob", "PipelineJob", "ScheduledJob"):
        assert {"$ref": "#/components/schemas/Payload_own"} in schemas[body]["properties"]["inputPayload"]["anyOf"]


@pytest.mark.parametrize(
    ("task_type", "payload", "output", "words"),
    [
        ("geotiff_to_cog", {}, ".tiff", "Did you mean '.tif'? geotiff_to_cog has .tif, .json."),
        ("geotiff_info", {}, ".tif", "geotiff_info has .json."),
        ("geotiff_to_png", {"outputFormat": "webp"}, ".png", "geotiff_to_png has .webp, "),
    ],
)
def test_an_impossible_output_of_the_parent_is_rejected_at_creation(
    task_type: str, payload: dict[str, Any], output: str, words: str, person: Person
) -> None:
    """In jobs, pipelines and schedules, with the existing outputs, by suffix or by name."""
    parent = person.create(payload, taskType=task_type)
    for given in (output, f"map{output}"):
        one = {"taskType": "geotiff_info", "inputFrom": {"jobId": parent["id"], "output": given}}
        answer = person.http.post("/api/geo-jobs", json=one)
        assert code_of(answer) == (422, "validation"), answer.text
        assert answer.json()["errors"][0]["pointer"] == "/inputFrom/output"
    first = {"name": "a", "taskType": task_type, "inputPayload": payload}
    second = {"name": "b", "taskType": "geotiff_info", "inputFrom": {"job": "a", "output": output}}
    pipeline = {"name": "p", "stages": [{"name": "s", "jobs": [first]}, {"name": "t", "jobs": [second]}]}
    answer = person.http.post("/api/pipelines", json=pipeline)
    assert code_of(answer) == (422, "validation"), answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/stages/1/jobs/0/inputFrom/output"
    assert words in error["message"]
    schedule = {"name": "n", "cron": "0 6 * * *", "template": pipeline}
    answer = person.http.post("/api/schedules", json=schedule)
    assert answer.json()["errors"][0]["pointer"] == "/template/stages/1/jobs/0/inputFrom/output"
    for given in (".json", "map.json"):
        one = {"taskType": "geotiff_info", "inputFrom": {"jobId": parent["id"], "output": given}}
        assert person.http.post("/api/geo-jobs", json=one).is_success
