"""The endpoints for people: what they give, and how each wrong request is refused."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.support.api import RunningApi
from tests.support.clients import TIFF, Person, Worker, code_of, put, rows


def test_a_key_used_again_with_the_same_body_gives_the_same_job_and_with_another_a_conflict(person: Person) -> None:
    """Creating can be repeated safely; keys belong to their caller."""
    headers = {"Idempotency-Key": "k-1"}
    body = {"taskType": "geotiff_to_png", "inputPayload": {"maxSize": 10}}
    first = person.http.post("/api/geo-jobs", json=body, headers=headers)
    again = person.http.post("/api/geo-jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == f"/api/geo-jobs/{first.json()['id']}"
    other = person.http.post("/api/geo-jobs", json=body | {"priority": 5}, headers=headers)
    assert code_of(other) == (409, "idempotency_conflict")


def test_one_callers_key_means_nothing_to_another(api: RunningApi) -> None:
    """Two people may use the same key for different jobs."""
    body, headers = {"taskType": "geotiff_to_png"}, {"Idempotency-Key": "same"}
    made = [Person(api, name).http.post("/api/geo-jobs", json=body, headers=headers) for name in ("ada", "bob")]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json()["id"] != made[1].json()["id"]


@pytest.mark.parametrize(
    ("body", "expected", "pointer"),
    [
        ({"taskType": "make_coffee"}, (422, "unknown_task_type"), None),
        ({}, (422, "validation"), "/taskType"),
        ({"taskType": 7}, (422, "validation"), "/taskType"),
        ({"taskType": "geotiff_to_png", "priority": 101}, (422, "validation"), "/priority"),
        ({"taskType": "geotiff_to_png", "inputPayload": []}, (422, "validation"), "/inputPayload"),
        ({"taskType": "geotiff_to_png", "inputPayload": {"a": "x" * 70_000}}, (422, "validation"), "/inputPayload"),
        ({"taskType": "geo\0tiff"}, (422, "validation"), "/taskType"),
    ],
)
def test_a_malformed_job_is_refused_with_the_place_of_the_mistake(
    person: Person, body: dict[str, Any], expected: tuple[int, str], pointer: str | None
) -> None:
    """Each mistake has its code, and a pointer when it is a matter of a field."""
    answer = person.http.post("/api/geo-jobs", json=body)
    assert code_of(answer) == expected
    assert pointer is None or [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b"",
        b"[]",
        b'{"taskType":"geotiff_to_png","inputPayload":{"a":NaN}}',
        b'{"taskType":"geotiff_to_png","inputPayload":{"a":"\\u0000"}}',
        b'{"taskType":"geotiff_to_png","inputPayload":{"a":"\\ud800"}}',
        b'{"taskType":"geotiff_to_png","inputPayload":{"\\u0000":1}}',
        b'{"taskType":"geotiff_to_png","inputPayload":{"a":' + b"[" * 100 + b"]" * 100 + b"}}",
        b"[" * 200_000,
        b'{"taskType":"geotiff_to_png","priority":' + b"9" * 5000 + b"}",
        b"\xff\xfe{}",
    ],
)
def test_bodies_that_no_database_could_hold_are_refused_as_invalid(person: Person, body: bytes) -> None:
    """Never a 500: not JSON, not finite, NUL, surrogates, nested too deep, numbers too long."""
    assert code_of(person.http.post("/api/geo-jobs", content=body)) == (422, "validation")


def test_a_body_that_is_too_large_is_refused_with_and_without_a_length(person: Person) -> None:
    """1 MiB of JSON at most, also when the body comes in chunks."""
    large = b'{"taskType":"' + b"x" * 1_100_000 + b'"}'
    assert code_of(person.http.post("/api/geo-jobs", content=large)) == (413, "too_large")
    chunked = (large[place : place + 65536] for place in range(0, len(large), 65536))
    assert code_of(person.http.post("/api/geo-jobs", content=chunked)) == (413, "too_large")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fileSize": 0}, (422, "validation")),
        ({"fileSize": -1}, (422, "validation")),
        ({"fileSize": 104_857_601}, (413, "too_large")),
        ({"fileName": ""}, (422, "validation")),
        ({"fileName": "x" * 2000}, (422, "validation")),
    ],
)
def test_an_upload_that_cannot_be_taken_is_refused(
    person: Person, change: dict[str, Any], expected: tuple[int, str]
) -> None:
    """Size and name are checked before a URL is given out."""
    body = {"fileName": "map.tif", "fileSize": 10, "fileType": "image/tiff"} | change
    job_id = person.create()["id"]
    assert code_of(person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body)) == expected


def test_a_later_upload_request_replaces_the_name_and_a_queued_job_takes_none(person: Person) -> None:
    """Only the file that was asked for last is taken; after it, no other."""
    job_id = person.create()["id"]
    first = person.upload_url(job_id, "first.tif")
    second = person.upload_url(job_id, "../second.tif")
    assert code_of(put(first, content=TIFF)) == (409, "invalid_state")
    put(second, content=TIFF).raise_for_status()
    assert person.look(job_id)["input"]["fileName"] == "second.tif"
    body = {"fileName": "third.tif", "fileSize": 10}
    assert code_of(person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body)) == (409, "invalid_state")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/download/output"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("POST", "/upload"),
    ],
)
def test_somebody_elses_job_does_not_exist_but_for_an_administrator(api: RunningApi, method: str, path: str) -> None:
    """The same 404 as for a job that never was; the admin scope sees all."""
    job_id = Person(api, "ada").create()["id"]
    body = {"fileName": "a.tif", "fileSize": 10} if path == "/upload" else None
    stranger, admin = Person(api, "mallory"), Person(api, "root", admin=True)
    refused = stranger.http.request(method, f"/api/geo-jobs/{job_id}{path}", json=body)
    absent = stranger.http.request(method, f"/api/geo-jobs/{uuid4()}{path}", json=body)
    assert code_of(refused) == code_of(absent) == (404, "job_not_found")
    assert refused.json() == absent.json()
    assert admin.http.request(method, f"/api/geo-jobs/{job_id}{path}", json=body).status_code in {200, 409}


def test_lists_are_filtered_paged_and_each_callers_own(api: RunningApi) -> None:
    """Newest first; a cursor goes on where the page ended; strangers' jobs are not counted."""
    ada, bob = Person(api, "ada"), Person(api, "bob")
    made = [ada.create()["id"] for _ in range(5)]
    queued = ada.submit()
    bob.create()
    seen, cursor = [], None
    while True:
        parameters: dict[str, Any] = {"limit": 2, "state": "awaiting_upload"} | ({"cursor": cursor} if cursor else {})
        page = ada.http.get("/api/geo-jobs", params=parameters).raise_for_status().json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == made[::-1]
    everything = ada.http.get("/api/geo-jobs", params={"taskType": "geotiff_to_png"}).json()["jobs"]
    assert [job["id"] for job in everything] == [queued, *made[::-1]]
    assert ada.http.get("/api/geo-jobs", params={"taskType": "other"}).json()["jobs"] == []
    assert len(Person(api, "root", admin=True).http.get("/api/geo-jobs").json()["jobs"]) == 7


@pytest.mark.parametrize("query", ["limit=0", "limit=1000", "state=lost", "cursor=x", "taskType=%00"])
def test_a_wrong_query_is_refused(person: Person, query: str) -> None:
    """Queries are checked like bodies."""
    assert code_of(person.http.get(f"/api/geo-jobs?{query}")) == (422, "validation")


def test_a_waiting_job_is_cancelled_at_once_and_its_upload_refused(person: Person) -> None:
    """Cancelling twice is the same as once; the reason is kept; a late file is not taken."""
    job_id = person.create()["id"]
    url = person.upload_url(job_id)
    for _ in range(2):
        cancelled = person.cancel(job_id, "changed my mind").json()
        assert (cancelled["state"], cancelled["cancelReason"]) == ("cancelled", "changed my mind")
    assert code_of(put(url, content=TIFF)) == (409, "invalid_state")
    assert person.event_types(job_id)[-1] == "cancelled"
    assert code_of(person.http.post(f"/api/geo-jobs/{job_id}/retry")) == (409, "invalid_state")


def test_cancelling_needs_no_body(person: Person) -> None:
    """A bare POST will do."""
    job_id = person.submit()
    assert person.http.post(f"/api/geo-jobs/{job_id}/cancel").json()["state"] == "cancelled"


def test_results_that_are_not_there_yet_are_refused_with_the_state(person: Person) -> None:
    """The words tell where the job stands."""
    answer = person.http.get(f"/api/geo-jobs/{person.submit()}/download/output")
    assert code_of(answer) == (409, "invalid_state")
    assert "queued" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nowhere", (404, "not_found")),
        ("DELETE", "/api/geo-jobs", (405, "method_not_allowed")),
        ("GET", "/api/geo-jobs/not-an-id", (422, "validation")),
        ("GET", "/api/geo-jobs/%00", (422, "validation")),
    ],
)
def test_addresses_that_lead_nowhere_are_problems_too(
    person: Person, method: str, path: str, expected: tuple[int, str]
) -> None:
    """Even the framework's own refusals have a code."""
    assert code_of(person.http.request(method, path)) == expected


def test_the_documentation_is_served_and_names_every_endpoint(person: Person) -> None:
    """OpenAPI lists the protocol's endpoints."""
    assert "/api/geo-jobs/{job_id}/download/output" in person.http.get("/docs").text
    paths = person.http.get("/openapi.json").json()["paths"]
    internal = {f"/api/internal/geo-jobs/{{job_id}}/{verb}" for verb in ("heartbeat", "progress", "complete", "fail")}
    assert internal | {"/api/geo-jobs", "/api/internal/geo-jobs/claim", "/health", "/metrics"} <= paths.keys()


def test_a_dead_letter_is_listed_explained_and_sent_back(api: RunningApi, person: Person, worker: Worker) -> None:
    """Its owner sees why it is not tried again, and how each lease ended; afterwards it waits like any other."""
    rows(api.settings.conninfo or "", "UPDATE task_types SET max_attempts = 2, backoff_seconds = '{0}'")
    job_id = person.submit()
    for _ in range(2):
        worker.fail(worker.claim(), "transient", "storage_away").raise_for_status()
    listed = person.http.get("/api/geo-jobs", params={"state": "failed"}).json()["jobs"]
    assert [job["id"] for job in listed] == [job_id]
    told = person.http.get(f"/api/geo-jobs/{job_id}/explain").json()
    assert told["why"].startswith("It was tried 2 times, and no attempts are left. Last error: storage_away:")
    assert [(lease["attempt"], lease["endedBy"], lease["state"]) for lease in told["leases"]] == [
        (2, "fail", "failed"),
        (1, "fail", "queued"),
    ]
    person.http.post(f"/api/geo-jobs/{job_id}/retry").raise_for_status()
    assert "has waited for a worker" in person.http.get(f"/api/geo-jobs/{job_id}/explain").json()["why"]
    assert code_of(Person(api, "somebody-else").http.get(f"/api/geo-jobs/{job_id}/explain")) == (404, "job_not_found")


def test_every_state_has_its_sentence(person: Person, worker: Worker) -> None:
    """What it waits for, who works on it, how it ended."""

    def why(job_id: str) -> str:
        return str(person.http.get(f"/api/geo-jobs/{job_id}/explain").raise_for_status().json()["why"])

    job_id = str(person.create()["id"])
    assert why(job_id) == "It waits for its file."
    put(person.upload_url(job_id), content=TIFF).raise_for_status()
    job = worker.claim()
    assert why(job_id) == "worker-1 has claimed it and has not begun."
    worker.heartbeat(job)
    assert why(job_id) == "worker-1 works on it: 1 of 5 attempts, 0 %."
    worker.fail(job, "transient", retryAfterSeconds=600).raise_for_status()
    assert why(job_id).startswith("It is tried again at ")
    person.cancel(job_id, "Wrong file.")
    assert why(job_id) == "It was cancelled. Wrong file."
    invalid = person.submit()
    worker.fail(worker.claim(), "invalid_input", "not_a_tiff").raise_for_status()
    assert why(invalid).startswith("The file cannot be used")
