"""Invalid requests of every kind: a 4xx with the place and the rule, never a 500 or silent acceptance."""

from __future__ import annotations

from typing import Any

import pytest

from geo_jobs_api.errors import FieldError
from geo_jobs_api.jobs.payload_checks import RequestedJob, TaskRules, _errors_of
from tests.support.api import RunningApi
from tests.support.clients import Person

ID = "01890000-0000-7000-8000-000000000000"
URL = "https://maps.example.org/a.tif"
JOB: dict[str, Any] = {"taskType": "geotiff_to_png"}
FETCHED = JOB | {"inputPayload": {"sourceUrl": URL}}
HOOK = {"url": "https://hooks.example.org/x"}
ARABIC_ZERO = "\N{ARABIC-INDIC DIGIT ZERO}"
NOT_BOOLEANS = ["true", "no", "", 0, 1, None, []]
NOT_OBJECTS: list[Any] = [None, [], "{}", 1, True]
NOT_TIMES = [
    *("2030-01-31", "31.01.2030", "", "1893456000", " 1893456000.5", "2030-02-30T00:00:00Z", "غدا"),
    *(1893456000, True),
]


def in_payload(name: str, *values: Any) -> list[tuple[str, Any, str]]:
    return [("/geo-jobs", JOB | {"inputPayload": {name: value}}, f"/inputPayload/{name}") for value in values]


def in_job(name: str, *values: Any) -> list[tuple[str, Any, str]]:
    return [("/geo-jobs", JOB | {name: value}, f"/{name}") for value in values]


def in_schedule(name: str, *values: Any) -> list[tuple[str, Any, str]]:
    usual = {"name": "n", "cron": "0 6 * * *", "template": FETCHED}
    return [("/schedules", usual | {name: value}, f"/{name}") for value in values]


def in_rule(place: str, *rules: Any) -> list[tuple[str, Any, str]]:
    usual = {"name": "n", "template": FETCHED}
    return [("/schedules", usual | {"rules": [rule]}, f"/rules/0{place}") for rule in rules]


def in_stages(place: str, *jobs: Any) -> list[tuple[str, Any, str]]:
    made = [{"name": "j", "taskType": "geotiff_to_png"} | job for job in jobs]
    return [
        ("/pipelines", {"name": "p", "stages": [{"name": "s", "jobs": [job]}]}, f"/stages/0/jobs/0{place}")
        for job in made
    ]


def in_webhook(name: str, *values: Any, deeper: str = "") -> list[tuple[str, Any, str]]:
    return [("/webhooks", HOOK | {name: value}, f"/{name}{deeper}") for value in values]


def at(path: str, pointer: str, *bodies: Any) -> list[tuple[str, Any, str]]:
    return [(path, body, pointer) for body in bodies]


WRONG = [
    *in_payload("maxSize", "100", "100px", True, False, 0, -1, 1e30, 1.5, [100], {"v": 1}),
    *in_payload("maxsize", 100),
    *in_payload("حجم", 1),
    *in_payload("outputFormat", "PGN", "tiff", "", 1, ["png"], "صورة"),
    *in_payload("generateThumbnails", "false", "no", 0, 1, []),
    *in_payload("coordinateSystem", 4326, "4326", "EPSG:99999", " ", "WGS84", True, "خط"),
    *in_payload("bands", [], "1,2,3", 3, [1, 2, 3, 4, 5], {}),
    *in_payload("stretch", "persentile", "", "minmax:5,1", "2%", 2, [0, 100]),
    *in_payload("nodata", "0", True, [0]),
    *in_payload("quality", 0, 101, "85%", 85.5, False),
    *in_payload("sourceUrl", "", 1, "maps.example.org/a.tif", "ftp://maps.example.org/a", "file:///etc/passwd", [URL]),
    *in_payload("inputPayload", {"maxSize": 5}),
    *in_job("inputPayload", *NOT_OBJECTS),
    *in_job("priority", "5", 5.5, True, 101, 10**30, [1]),
    *in_job("runAt", *NOT_TIMES),
    *in_job("awaitUpload", *NOT_BOOLEANS),
    *in_job("dedupKey", "", 1, "x" * 300),
    *in_job("dependsOn", None, ID, {}),
    *in_job("maxSize", 100),
    *at("/geo-jobs", "/dependsOn/0/jobId", *(JOB | {"dependsOn": [{"jobId": value}]} for value in ("x", 1))),
    *at("/geo-jobs", "/taskType", {}, {"taskType": None}, {"taskType": ["geotiff_to_png"]}, {"taskType": "تحويل"}),
    *at("/geo-jobs", "", *NOT_OBJECTS),
    *at("/geo-jobs/batch", "/jobs", {}, {"jobs": []}, {"jobs": {}}, {"jobs": None}),
    *at("/geo-jobs/batch", "/jobs/0", {"jobs": [None]}, {"jobs": ["geotiff_to_png"]}, {"jobs": [[]]}),
    *in_stages("/taskType", {"taskType": "geotiff_to_pgn"}),
    *in_stages("/inputPayload/maxSize", {"inputPayload": {"maxSize": "1"}}),
    *in_stages("/onParentFailure", {"onParentFailure": "Cancel"}, {"onParentFailure": True}),
    *in_stages("/name", {"name": ""}, {"name": 1}, {"name": None}),
    *in_stages("/runAt", {"runAt": "2030-01-01T00:00:00Z"}),
    *at("/pipelines", "/stages", {"name": "p", "stages": []}, {"name": "p", "stages": {}}),
    *in_schedule("cron", "", "every day", "0 6 * *", "60 6 * * *", "@daily", 5, f"{ARABIC_ZERO} 6 * * *"),
    *in_schedule("timeZone", "Berlin", "europe/berlin", "UTC+3", "", 3, None, "../../etc/passwd"),
    *in_schedule("paused", *NOT_BOOLEANS),
    *in_schedule("skipUnchanged", *NOT_BOOLEANS),
    *in_schedule("jitterSeconds", "5m", True, -1, 1.5),
    *in_schedule("missedRuns", "Skip", True, 1),
    *in_schedule("overlap", "queue", False),
    *in_schedule("startAt", *NOT_TIMES),
    *in_schedule("template", None, []),
    *in_rule("/times", {"times": []}, {"times": "06:00"}, {}),
    *in_rule("/times/0", *({"times": [value]} for value in ("6:00", "24:00", "06:00:00", 600, f"06:0{ARABIC_ZERO}"))),
    *in_rule(
        "/daysOfWeek/0",
        *(
            {"times": ["06:00"], "daysOfWeek": [value]}
            for value in ("monday!", "funday", "monkeys", "sunny", "", 8, -1, 1.5, True, None, "1", [1])
        ),
    ),
    *in_webhook("url", "", None, 1, "hooks.example.org", "http://hooks.example.org/x", "https://10.0.0.1/"),
    *in_webhook("secret", "short", "", 1),
    *in_webhook("events", [], "job.failed", None),
    *in_webhook("events", ["job.fail"], ["job.Failed"], [1], deeper="/0"),
    *in_webhook("taskTypes", [], "geotiff_to_png"),
    *in_webhook("taskTypes", ["geotiff_to_pgn"], ["تحويل"], deeper="/0"),
    *in_webhook("paused", *NOT_BOOLEANS),
    *in_webhook("allOwners", *NOT_BOOLEANS),
    *at("/geo-jobs/JOB/upload", "/fileSize", *({"fileName": "a.tif", "fileSize": n} for n in ("1", True, 0, 1.5))),
    *at("/geo-jobs/JOB/priority", "/priority", {}, {"priority": "1"}, {"priority": True}, {"priority": None}),
    *at("/geo-jobs/JOB/cancel", "/reason", {"reason": 1}, {"reason": ["x"]}, {"reason": "x" * 5000}),
]
# Words of the validator, which mean little to readers.
INNER_WORDS = ("Input should", "Value should", "after validation", "Input", "validator", "str", "type=")


@pytest.mark.parametrize(("path", "body", "pointer"), WRONG, ids=range(len(WRONG)))
def test_an_invalid_request_is_rejected_with_its_place(
    path: str, body: Any, pointer: str, shared_linked_api: RunningApi
) -> None:
    """One mistake gives one error in JSON terms. Its pointer leads to the invalid key."""
    person = Person(shared_linked_api)
    if "JOB" in path:
        path = path.replace("JOB", str(person.create()["id"]))
    answer = person.http.post(f"/api{path}", json=body)
    assert answer.status_code == 422, answer.text
    errors = answer.json()["errors"]
    assert [error["pointer"] for error in errors] == [pointer], errors
    message = errors[0]["message"]
    assert message
    assert not [word for word in INNER_WORDS if word in message.split() or message.startswith(word)], message


@pytest.mark.parametrize(
    ("path", "body", "meant"),
    [
        (*in_webhook("events", ["job.fail"])[0][:2], "job.failed"),
        (*in_webhook("taskTypes", ["geotiff_to_pgn"])[0][:2], "geotiff_to_png"),
        (*in_schedule("overlap", "Skip")[0][:2], "skip"),
        (*in_stages("", {"onParentFailure": "canceled"})[0][:2], "cancel"),
        (*in_payload("outputFormat", "PGN")[0][:2], "png"),
    ],
)
def test_a_misspelled_value_is_rejected_with_the_nearest_one(
    path: str, body: Any, meant: str, shared_linked_api: RunningApi
) -> None:
    (error,) = Person(shared_linked_api).http.post(f"/api{path}", json=body).json()["errors"]
    assert error["nearest"] == meant
    assert meant in error["allowed"] or meant == "geotiff_to_png"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "image/tiff"]
)
def test_a_body_that_is_not_json_is_rejected_with_any_content_type(kind: str, shared_linked_api: RunningApi) -> None:
    person = Person(shared_linked_api)
    for content in (b"taskType=geotiff_to_png", b"", b"II*\0", b"\xff\xfe{", b"{'taskType': 1}", b"NaN", b"{" * 2000):
        answer = person.http.post("/api/geo-jobs", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 422, (content, answer.text)


def test_a_key_of_another_type_is_recognized_by_the_error_and_not_by_its_text() -> None:
    """The message of a rule may have any words, and an unknown key may be nested."""
    schema = (
        '{"properties": {"minZoom": {"pattern": "^x$", "description": "Unknown key"}, '
        '"deep": {"properties": {}, "additionalProperties": false}}, "additionalProperties": false}'
    )
    rules = {"own": TaskRules("none", schema, None, "[]")}

    def fault(payload: dict[str, Any]) -> FieldError:
        (error,) = _errors_of([RequestedJob("", "own", payload)], rules)
        return error

    assert "is not for own. It is for geotiff_to_tiles" in fault({"maxZoom": 1}).message
    assert fault({"minZoom": "y"}).message.startswith('"y" is not allowed')
    assert fault({"deep": {"maxZoom": 1}}).message.startswith("Unknown key")
