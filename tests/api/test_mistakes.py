"""Unknown keys in requests are reported at once, each with its place and the nearest known key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of

JOB: dict[str, Any] = {"taskType": "geotiff_info"}
STAGES: list[dict[str, Any]] = [{"name": "s", "jobs": [JOB | {"name": "j"}]}]
ID = "01890000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("path", "body", "pointer", "meant"),
    [
        ("/geo-jobs", JOB | {"prioritty": 5}, "/prioritty", "priority"),
        ("/geo-jobs", {"taskTypes": "geotiff_info"}, "/taskTypes", "taskType"),
        ("/geo-jobs", JOB | {"payload": {}}, "/payload", "inputPayload"),
        ("/geo-jobs", {"task_type": "geotiff_info"}, "/task_type", "taskType"),
        ("/geo-jobs", JOB | {"input_payload": {}}, "/input_payload", "inputPayload"),
        ("/geo-jobs", JOB | {"await_upload": True}, "/await_upload", "awaitUpload"),
        ("/geo-jobs/ID/upload", {"file_name": "a.tif", "fileSize": 1}, "/file_name", "fileName"),
        ("/geo-jobs", JOB | {"dependOn": []}, "/dependOn", "dependsOn"),
        ("/geo-jobs", JOB | {"dependsOn": [{"job": ID}]}, "/dependsOn/0/job", "jobId"),
        ("/geo-jobs", JOB | {"inputFrom": {"jobId": ID, "outputs": ".tif"}}, "/inputFrom/outputs", "output"),
        ("/geo-jobs/batch", {"job": [JOB]}, "/job", "jobs"),
        ("/geo-jobs/batch", {"jobs": [JOB, JOB | {"runat": None}]}, "/jobs/1/runat", "runAt"),
        ("/geo-jobs/ID/upload", {"filename": "a.tif", "fileSize": 1}, "/filename", "fileName"),
        ("/geo-jobs/ID/cancel", {"reasons": "x"}, "/reasons", "reason"),
        ("/geo-jobs/ID/priority", {"prio": 1}, "/prio", "priority"),
        ("/geo-jobs/redrive", {"errorcode": "x"}, "/errorcode", "errorCode"),
        ("/pipelines", {"name": "p", "stage": STAGES}, "/stage", "stages"),
        ("/pipelines", {"name": "p", "stages": [{"name": "s", "job": []}]}, "/stages/0/job", "jobs"),
        (
            "/pipelines",
            {"name": "p", "stages": [{"name": "s", "jobs": [JOB | {"name": "j", "dedupkey": 1}]}]},
            "/stages/0/jobs/0/dedupkey",
            None,
        ),
        ("/schedules", {"name": "n", "crom": "0 6 * * *", "template": JOB}, "/crom", "cron"),
        ("/schedules", {"name": "n", "cron": "0 6 * * *", "timezone": "UTC", "template": JOB}, "/timezone", "timeZone"),
        (
            "/schedules",
            {"name": "n", "cron": "0 6 * * *", "template": JOB | {"priorty": 1}},
            "/template/priorty",
            "priority",
        ),
        (
            "/schedules",
            {"name": "n", "cron": "0 6 * * *", "template": {"name": "p", "stages": STAGES, "desc": ""}},
            "/template/desc",
            None,
        ),
        ("/schedules", {"name": "n", "rules": [{"time": ["06:00"]}], "template": JOB}, "/rules/0/time", "times"),
        ("/webhooks", {"url": "https://example.org/", "event": ["job.failed"]}, "/event", "events"),
    ],
)
def test_an_unknown_key_of_any_request_is_rejected_with_the_nearest_known_one(
    path: str, body: dict[str, Any], pointer: str, meant: str | None, person: Person
) -> None:
    """In jobs, batches, uploads, pipelines, schedules, their templates and webhooks."""
    path = path.replace("ID", str(person.create()["id"]))
    answer = person.http.post(f"/api{path}", json=body)
    assert code_of(answer) == (422, "validation"), answer.text
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error.get("nearest")) == (pointer, meant)
    assert (f"Did you mean {meant!r}?" if meant else "Known: ") in error["message"]
    assert error["message"] in answer.json()["detail"]


@pytest.mark.parametrize(
    ("address", "given", "meant"),
    [
        ("/geo-jobs?status=failed", "status", "state"),
        ("/geo-jobs?task_typ=geotiff_info", "task_typ", "taskType"),
        ("/pipelines?limits=3", "limits", "limit"),
        ("/schedules?curser=x", "curser", "cursor"),
    ],
)
def test_an_unknown_key_of_a_query_is_rejected_too(address: str, given: str, meant: str, person: Person) -> None:
    """An ignored filter would return everything."""
    answer = person.http.get(f"/api{address}")
    assert code_of(answer) == (422, "validation"), answer.text
    assert answer.json()["errors"][0]["pointer"] == f"/query/{given}"
    assert answer.json()["errors"][0]["nearest"] == meant


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([JOB], "body: must be a JSON object"),
        (JOB | {"inputPayload": "maxSize=100"}, "/inputPayload: must be a JSON object"),
        (JOB | {"dependsOn": ID}, "/dependsOn: must be a JSON list"),
        (JOB | {"runAt": "tomorrow"}, "/runAt: must be a time with its zone, such as 2030-01-31T12:00:00Z"),
        (JOB | {"priority": "high"}, "/priority: must be a number"),
        (JOB | {"awaitUpload": "bananas"}, "/awaitUpload: must be true or false"),
        ({}, "/taskType: is missing"),
        ({"taskType": 3}, "/taskType: must be text"),
    ],
)
def test_a_value_of_the_wrong_kind_is_reported_in_json_terms(body: Any, words: str, person: Person) -> None:
    answer = person.http.post("/api/geo-jobs", json=body)
    assert code_of(answer) == (422, "validation"), answer.text
    assert answer.json()["detail"] == words


def test_a_task_types_unknown_field_is_rejected_with_the_nearest_known_one(api: RunningApi) -> None:
    answer = Person(api, "root", admin=True).http.patch("/api/task-types/geotiff_info", json={"maxConcurentRuns": 1})
    assert answer.json()["errors"][0]["nearest"] == "maxConcurrentRuns"


def test_a_body_that_is_not_json_gets_the_reason(person: Person) -> None:
    answer = person.http.post("/api/geo-jobs", content=b"{'taskType': 1}")
    assert code_of(answer) == (422, "validation")
    assert "The body is not JSON: " in answer.json()["detail"]


def test_unknown_fields_of_workers_are_ignored(person: Person, worker: Worker) -> None:
    """Workers of later versions keep working, as the protocol requires."""
    person.submit()
    job = worker.claim(somethingNew=1)
    assert worker.call("heartbeat", job, {"somethingNew": 1}).is_success
    assert worker.call("progress", job, {"percent": 5, "somethingNew": 1}).is_success
