"""A new job's payload is held against its task type's schema before the job is made."""

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
    """What is wrong with a payload; no job may have been made."""
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
def test_an_unknown_key_is_refused_with_the_nearest_known_one(given: str, meant: str, person: Person) -> None:
    """Misspelt, in another case or style: the key is named, and the one that was meant."""
    error = refusal(person, {given: 1})
    assert error["pointer"] == f"/inputPayload/{given}"
    assert error["nearest"] == meant
    assert f"Did you mean {meant!r}?" in error["message"]


def test_a_key_that_is_like_none_is_refused_with_all_known_ones(person: Person) -> None:
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
        ("stretch", "percentile:98,2", "numbers that do not ascend"),
        ("stretch", "percentile:2,101", "Allowed: percentile:lo,hi (0 to 100)"),
        ("stretch", "percentile:-1,50", "Allowed: percentile:lo,hi (0 to 100)"),
        ("stretch", "percentile:50,50", "numbers that do not ascend"),
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
def test_a_value_that_no_worker_takes_is_refused_with_what_is_allowed(
    key: str, value: object, words: str, person: Person
) -> None:
    """Formats, color maps, coordinate systems, numbers: the place is named, and the cure."""
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
def test_a_key_of_another_task_type_is_refused_with_that_type(
    task_type: str, key: str, others: str, person: Person
) -> None:
    """A key without effect is no key, and a similar one of the right type would mislead."""
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
def test_what_a_worker_takes_is_let_pass(payload: dict[str, Any], person: Person) -> None:
    """Any case of names, whole floats, nulls, codes, WKT and PROJJSON: free text is the worker's to judge."""
    assert person.create(payload)["inputPayload"] == payload


def test_all_faults_are_told_at_once_with_their_places_in_a_batch(person: Person) -> None:
    """None of the jobs is made."""
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


def test_jobs_of_pipelines_and_schedules_are_looked_at_when_those_are_made(person: Person) -> None:
    """Else a schedule would make jobs that fail, every night."""
    job = {"taskType": "geotiff_to_png", "inputPayload": {"maxsize": 5}}
    pipeline = {"name": "p", "stages": [{"name": "s", "jobs": [job | {"name": "j"}]}]}
    answer = person.http.post("/api/pipelines", json=pipeline)
    assert answer.json()["errors"][0]["pointer"] == "/stages/0/jobs/0/inputPayload/maxsize"
    for template, pointer in ((job, ""), (pipeline, "/stages/0/jobs/0")):
        answer = person.http.post("/api/schedules", json={"name": "n", "cron": "0 6 * * *", "template": template})
        assert code_of(answer) == (422, "validation")
        assert answer.json()["errors"][0]["pointer"] == f"/template{pointer}/inputPayload/maxsize"
    assert person.http.get("/api/schedules").json()["schedules"] == []


def test_an_unknown_task_type_is_refused_with_the_nearest_known_one(person: Person) -> None:
    answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_pgn"})
    assert code_of(answer) == (422, "unknown_task_type")
    assert "Did you mean 'geotiff_to_png'?" in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "/taskType"


def test_a_type_without_a_schema_takes_any_payload(person: Person, admin: Person) -> None:
    """Kinds of job that other packages add need not have one."""
    admin.http.put("/api/task-types/open", json=OPEN).raise_for_status()
    assert person.create({"anything": [1, {"x": None}]}, taskType="open")["state"] == "queued"


def test_an_operators_schema_holds_and_is_undone_by_null(person: Person, admin: Person) -> None:
    """Of a type of one's own and of a shipped one; an empty schema switches the check off."""
    admin.http.put("/api/task-types/open", json=OPEN | {"payloadSchema": CLOSED}).raise_for_status()
    assert refusal(person, {"dept": 1}, "open")["nearest"] == "depth"
    shipped = admin.http.get("/api/task-types/geotiff_to_png").json()["payloadSchema"]
    assert shipped["properties"]["maxSize"] == {"minimum": 1, "maximum": 16384, "type": ["integer", "null"]}
    for schema, allows in (({}, True), (CLOSED, False), (None, False)):
        changed = admin.http.patch("/api/task-types/geotiff_to_png", json={"payloadSchema": schema}).raise_for_status()
        assert changed.json()["payloadSchema"] == (shipped if schema is None else schema)
        answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {"x": 1}})
        assert answer.is_success is allows


def test_a_limit_that_is_changed_leaves_the_shipped_schema_to_the_program(api: RunningApi, admin: Person) -> None:
    """Only a schema that differs is kept, so that the next version's new keys are not refused."""
    admin.http.patch("/api/task-types/geotiff_to_png", json={"maxConcurrentRuns": 3}).raise_for_status()
    assert api.settings.conninfo is not None
    kept = rows(
        api.settings.conninfo, "SELECT payload_schema, input_types FROM task_types WHERE changed_at IS NOT NULL"
    )
    assert kept == [{"payload_schema": None, "input_types": None}]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "is no JSON Schema"),
        ({"pattern": "("}, "is no JSON Schema"),
        ({"pattern": "(?=a)b"}, "is no JSON Schema"),
        ({"pattern": "(a{1000}){1000}"}, "is no JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "must refer only to places within"),
        ({"$ref": "#"}, "must refer only to places within"),
        ({"$ref": "#/$defs/none"}, "where there is no schema"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "must not refer to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/%61"}}, "$ref": "#/$defs/a"}, "must refer only to places within"),
        ({"$id": "x"}, r"must not have \$id"),
        ({"$dynamicRef": "#a"}, r"must not have \$dynamicRef"),
        (
            {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(9)}
             | {"d9": {}}},
            "more than 5000 schemas",
        ),
        ({"enum": ["x" * 70_000]}, "larger than 65536 bytes"),
    ],
)  # fmt: skip
def test_a_schema_that_costs_too_much_or_leads_elsewhere_is_refused(schema: dict[str, Any], words: str) -> None:
    """Payloads are strangers' text: no backtracking, no endless reference, no request to anywhere."""
    with pytest.raises(ValueError, match=words):
        check_schema(schema)


def test_no_schema_makes_the_api_ask_anybody_for_anything() -> None:
    """Not by a reference, which is refused, nor by the name of its dialect, which is not looked up (SSRF)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/schema"
        check_schema({"$schema": address, "type": "object"})
        for schema in ({"$ref": address}, {"properties": {"$ref": {"$ref": address}}}):
            with pytest.raises(ValueError, match="must refer only to places within"):
                check_schema(schema)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_wrong_schema_is_refused_by_the_api_with_its_place(admin: Person) -> None:
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
def test_a_file_of_another_type_is_refused_before_its_upload(file_type: str, is_taken: bool, person: Person) -> None:
    """By its media type; the name is only a hint."""
    job_id = person.create()["id"]
    body = {"fileName": "scan.pdf", "fileSize": 9, "fileType": file_type}
    answer = person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body)
    assert answer.is_success is is_taken
    if not is_taken:
        assert code_of(answer) == (422, "validation")
        assert answer.json()["errors"][0]["pointer"] == "/fileType"
        assert "image/tiff" in answer.json()["errors"][0]["allowed"]


def test_zooms_that_are_the_wrong_way_round_are_refused(person: Person) -> None:
    """Two keys that are right by themselves."""
    error = refusal(person, {"minZoom": 5, "maxZoom": 3}, "geotiff_to_tiles")
    assert (error["pointer"], error["message"]) == ("/inputPayload/maxZoom", "maxZoom 3 is less than minZoom 5.")
    person.create({"minZoom": 3, "maxZoom": 3}, taskType="geotiff_to_tiles")
    person.create({"minZoom": None, "maxZoom": 3}, taskType="geotiff_to_tiles")


def test_a_type_without_input_types_takes_any_file(person: Person, admin: Person) -> None:
    admin.http.put("/api/task-types/open", json=OPEN).raise_for_status()
    job_id = person.create(taskType="open", awaitUpload=True)["id"]
    body = {"fileName": "scan.pdf", "fileSize": 9, "fileType": "application/pdf"}
    person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body).raise_for_status()


def test_the_openapi_document_has_the_payload_of_each_type_that_there_is(person: Person, admin: Person) -> None:
    """Also of those that came while the API ran, with their references in the right place."""
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
        ("geotiff_to_cog", {}, ".tiff", "Did you mean '.tif'? geotiff_to_cog makes .tif, .json."),
        ("geotiff_info", {}, ".tif", "geotiff_info makes .json."),
        ("geotiff_to_png", {"outputFormat": "webp"}, ".png", "geotiff_to_png makes .webp, "),
    ],
)
def test_an_output_that_the_parent_never_makes_is_refused_at_creation(
    task_type: str, payload: dict[str, Any], output: str, words: str, person: Person
) -> None:
    """In single jobs, pipelines and schedules, with the outputs that exist; by suffix or by name."""
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
