"""The endpoints for people: responses, and the problem of each invalid request."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.support.api import RunningApi
from tests.support.clients import TIFF, Person, Worker, code_of, put, rows


def test_a_key_used_again_with_the_same_body_gives_the_same_job_and_with_another_a_conflict(person: Person) -> None:
    """Creation is idempotent. Keys belong to their caller."""
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
    """Two callers may use the same key for different jobs."""
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
def test_a_malformed_job_is_rejected_with_the_place_of_the_mistake(
    person: Person, body: dict[str, Any], expected: tuple[int, str], pointer: str | None
) -> None:
    """Each mistake has its code, and a pointer to an invalid field."""
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
def test_bodies_that_no_database_could_store_are_rejected(person: Person, body: bytes) -> None:
    """No 500 for invalid JSON, non-finite numbers, NUL, surrogates, deep nesting and long numbers."""
    assert code_of(person.http.post("/api/geo-jobs", content=body)) == (422, "validation")


def test_a_too_large_body_is_rejected_with_and_without_a_length(person: Person) -> None:
    """At most 1 MiB of JSON, in chunks too."""
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
def test_an_unacceptable_upload_is_rejected(person: Person, change: dict[str, Any], expected: tuple[int, str]) -> None:
    """Size and name are checked before a URL is returned."""
    body = {"fileName": "map.tif", "fileSize": 10, "fileType": "image/tiff"} | change
    job_id = person.create()["id"]
    assert code_of(person.http.post(f"/api/geo-jobs/{job_id}/upload", json=body)) == expected


def test_a_later_upload_request_replaces_the_name_and_a_queued_job_takes_none(person: Person) -> None:
    """Only the latest announced file is accepted, and none after it."""
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
def test_another_owners_job_exists_for_administrators_only(api: RunningApi, method: str, path: str) -> None:
    """The same 404 as for an unknown job. The admin scope sees all."""
    job_id = Person(api, "ada").create()["id"]
    body = {"fileName": "a.tif", "fileSize": 10} if path == "/upload" else None
    stranger, admin = Person(api, "mallory"), Person(api, "root", admin=True)
    refused = stranger.http.request(method, f"/api/geo-jobs/{job_id}{path}", json=body)
    absent = stranger.http.request(method, f"/api/geo-jobs/{uuid4()}{path}", json=body)
    assert code_of(refused) == code_of(absent) == (404, "job_not_found")
    assert refused.json() == absent.json()
    assert admin.http.request(method, f"/api/geo-jobs/{job_id}{path}", json=body).status_code in {200, 409}


def test_lists_are_filtered_paged_and_each_callers_own(api: RunningApi) -> None:
    """Newest first. A cursor continues at the end of the page. Other owners' jobs are not counted."""
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
def test_an_invalid_query_is_rejected(person: Person, query: str) -> None:
    """Queries are checked like bodies."""
    assert code_of(person.http.get(f"/api/geo-jobs?{query}")) == (422, "validation")


def test_a_waiting_job_is_cancelled_at_once_and_its_upload_rejected(person: Person) -> None:
    """A repeated cancellation changes nothing, the reason is stored, and a late upload is rejected."""
    job_id = person.create()["id"]
    url = person.upload_url(job_id)
    for _ in range(2):
        cancelled = person.cancel(job_id, "changed my mind").json()
        assert (cancelled["state"], cancelled["cancelReason"]) == ("cancelled", "changed my mind")
    assert code_of(put(url, content=TIFF)) == (409, "invalid_state")
    assert person.event_types(job_id)[-1] == "cancelled"
    assert code_of(person.http.post(f"/api/geo-jobs/{job_id}/retry")) == (409, "invalid_state")


def test_cancelling_needs_no_body(person: Person) -> None:
    """A POST without body is accepted."""
    job_id = person.submit()
    assert person.http.post(f"/api/geo-jobs/{job_id}/cancel").json()["state"] == "cancelled"


def test_a_download_before_the_end_gets_the_state(person: Person) -> None:
    """The message contains the state of the job."""
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
def test_unknown_paths_are_problems_too(person: Person, method: str, path: str, expected: tuple[int, str]) -> None:
    """The framework's own errors have a code too."""
    assert code_of(person.http.request(method, path)) == expected


def test_the_documentation_is_served_and_names_every_endpoint(person: Person) -> None:
    """OpenAPI lists the protocol's endpoints."""
    assert "/api/geo-jobs/{job_id}/download/output" in person.http.get("/docs").text
    paths = person.http.get("/openapi.json").json()["paths"]
    internal = {f"/api/internal/geo-jobs/{{job_id}}/{verb}" for verb in ("heartbeat", "progress", "complete", "fail")}
    assert internal | {"/api/geo-jobs", "/api/internal/geo-jobs/claim", "/health", "/metrics"} <= paths.keys()


def test_a_dead_letter_is_listed_explained_and_requeued(api: RunningApi, person: Person, worker: Worker) -> None:
    """Its owner sees the reason, and the end of each lease. After a retry it waits like any other job."""
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
    """The reason for waiting, the worker, or the end."""

    def why(job_id: str) -> str:
        return str(person.http.get(f"/api/geo-jobs/{job_id}/explain").raise_for_status().json()["why"])

    job_id = str(person.create()["id"])
    assert why(job_id) == "It waits for its upload."
    put(person.upload_url(job_id), content=TIFF).raise_for_status()
    job = worker.claim()
    assert why(job_id) == "worker-1 has claimed it and has not started."
    worker.heartbeat(job)
    assert why(job_id) == "worker-1 works on it: 1 of 5 attempts, 0 %."
    worker.fail(job, "transient", retryAfterSeconds=600).raise_for_status()
    assert why(job_id).startswith("It is tried again at ")
    person.cancel(job_id, "Wrong file.")
    assert why(job_id) == "It was cancelled. Wrong file."
    invalid = person.submit()
    worker.fail(worker.claim(), "invalid_input", "not_a_tiff").raise_for_status()
    assert why(invalid).startswith("The file cannot be used")
