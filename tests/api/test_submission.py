"""Inputs by URL, batches, and keys against duplicate jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of, rows

TYPE = {"taskType": "geotiff_to_png"}


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """An API that allows all source hosts."""
    return shared_linked_api


def linked(url: str = "https://maps.example.org/data/a%20map.tif?day=1") -> dict[str, Any]:
    return TYPE | {"inputPayload": {"sourceUrl": url}}


def batch(person: Person, *jobs: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = person.http.post("/api/geo-jobs/batch", json={"jobs": list(jobs)}, headers=headers).raise_for_status()
    told: dict[str, Any] = answer.json()
    return told


def test_a_job_with_a_source_is_queued_at_once_and_its_worker_gets_the_url(person: Person, worker: Worker) -> None:
    """As given. Without a name in its path the file gets a default one."""
    job = person.create(**linked())
    assert job["state"] == "queued"
    assert job["input"] == {
        "kind": "url", "fileName": "a map.tif", "sizeBytes": None, "contentType": None, "sha256": None
    }  # fmt: skip
    told = worker.claim()["input"]
    assert told["kind"] == "url"
    assert told["downloadUrl"] == "https://maps.example.org/data/a%20map.tif?day=1"
    assert (told["fileName"], told["sizeBytes"], told["etag"], told["lastModified"]) == ("a map.tif", None, None, None)
    assert person.create(**linked("https://maps.example.org/"))["input"]["fileName"] == "source.tif"


def test_the_reported_source_is_stored(person: Person, worker: Worker) -> None:
    """For the next conditional request, also when nothing has changed and there are no outputs."""
    job_id = person.create(**linked())["id"]
    source = {"etag": '"abc"', "lastModified": "Tue, 15 Nov 2022 12:45:26 GMT", "sizeBytes": 7, "unchanged": True}
    answer = worker.call("complete", worker.claim(), {"outputs": [], "metadata": {"unchanged": True}, "source": source})
    assert answer.json() == {"state": "succeeded", "replayed": False}
    assert person.look(job_id)["sourceValidators"] == source | {"sha256": None}


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example.com/map.tif",
        "https://maps.example.org.evil.example.com/map.tif",
        "http://127.0.0.1/map.tif",
        "http://[::1]/map.tif",
        "http://2130706433/",
    ],
)
def test_a_source_on_an_unlisted_host_is_rejected(person: Person, url: str) -> None:
    """The message contains the setting."""
    answer = person.http.post("/api/geo-jobs", json=linked(url))
    assert code_of(answer) == (422, "source_not_allowed")
    assert "SOURCE_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize(
    "url",
    ["ftp://maps.example.org/a", "file:///etc/passwd", "https://", "https://me:x@maps.example.org/a", "map.tif",
     "https://maps.example.org/a b", "https://maps.example.org\\@evil.example.com/", "https://[", 7],
)  # fmt: skip
def test_an_invalid_url_is_rejected(person: Person, url: Any) -> None:
    """Before the host is checked."""
    assert code_of(person.http.post("/api/geo-jobs", json=linked(url))) == (422, "validation")


def test_there_is_one_open_job_per_dedup_key(person: Person, worker: Worker) -> None:
    """Under concurrent requests too. Other callers, and later jobs, are not affected."""
    body = linked() | {"dedupKey": "daily"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: person.http.post("/api/geo-jobs", json=body), range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    worker.complete(worker.claim(), []).raise_for_status()
    assert person.http.post("/api/geo-jobs", json=body).status_code == 201


def test_the_key_is_the_callers_own_and_the_types(person: Person, api: RunningApi) -> None:
    """Two callers may use the same key."""
    body = linked() | {"dedupKey": "daily"}
    assert person.http.post("/api/geo-jobs", json=body).status_code == 201
    assert Person(api, "bob").http.post("/api/geo-jobs", json=body).status_code == 201


def test_a_failed_job_is_not_requeued_while_another_with_its_key_is_open(person: Person, worker: Worker) -> None:
    """It would be a duplicate."""
    body = linked() | {"dedupKey": "daily"}
    failed = person.create(**body)["id"]
    worker.fail(worker.claim(), "invalid_input").raise_for_status()
    other = person.create(**body)["id"]
    answer = person.http.post(f"/api/geo-jobs/{failed}/retry")
    assert code_of(answer) == (409, "invalid_state")
    assert "dedupKey" in answer.json()["detail"]
    person.cancel(other).raise_for_status()
    assert person.http.post(f"/api/geo-jobs/{failed}/retry").status_code == 200


def test_a_redrive_requeues_one_job_per_key_and_none_with_a_key_in_use(
    person: Person, worker: Worker, api: RunningApi
) -> None:
    """Three failures under two keys, and an open job with one of them: one is requeued."""
    for key in ("daily", "daily", "weekly"):
        person.create(**linked() | {"dedupKey": key})
        worker.fail(worker.claim(), "invalid_input").raise_for_status()
    person.create(**linked() | {"dedupKey": "weekly"})
    told = person.http.post("/api/geo-jobs/redrive", json={}).raise_for_status().json()
    assert told["jobs"] == {"geotiff_to_png": 1}
    told = person.http.post("/api/geo-jobs/redrive", json={}).raise_for_status().json()
    assert told["jobs"] == {}


def test_a_batch_is_created_in_order_and_whole(person: Person, worker: Worker) -> None:
    """The response keeps the order. An error contains the job's place, and then none is created."""
    told = batch(person, *[linked() | {"priority": number} for number in range(5)])
    assert [job["priority"] for job in told["jobs"]] == [0, 1, 2, 3, 4]
    assert told["created"] == [True] * 5
    wrong = {"jobs": [linked(), linked("https://evil.example.com/")]}
    answer = person.http.post("/api/geo-jobs/batch", json=wrong)
    assert code_of(answer) == (422, "source_not_allowed")
    assert answer.json()["errors"][0]["pointer"] == "/jobs/1/inputPayload/sourceUrl"
    unknown = {"jobs": [linked(), linked() | {"taskType": "no_such_type"}]}
    assert code_of(person.http.post("/api/geo-jobs/batch", json=unknown)) == (422, "unknown_task_type")
    assert len(person.http.get("/api/geo-jobs").json()["jobs"]) == 5


def test_a_repeated_batch_gives_the_same_jobs(person: Person) -> None:
    """By the Idempotency-Key. Another body under it is a conflict. A dedup key works within the batch."""
    key = {"Idempotency-Key": "batch-1"}
    jobs = [linked(), linked() | {"dedupKey": "k"}, linked() | {"dedupKey": "k"}]
    first, again = batch(person, *jobs, **key), batch(person, *jobs, **key)
    assert first["created"] == [True, True, False]
    assert [job["id"] for job in first["jobs"]] == [job["id"] for job in again["jobs"]]
    assert first["jobs"][1]["id"] == first["jobs"][2]["id"]
    assert again["created"] == [False] * 3
    answer = person.http.post("/api/geo-jobs/batch", json={"jobs": [linked("https://maps.example.org/2")]}, headers=key)
    assert code_of(answer) == (409, "idempotency_conflict")


def test_a_job_for_later_is_not_claimed_before(person: Person, worker: Worker, api: RunningApi) -> None:
    """Until its time comes."""
    job = person.create(**linked(), runAt="2100-01-01T00:00:00Z")
    assert (job["state"], worker.claim_all()) == ("queued", [])
    rows(api.settings.conninfo or "", "UPDATE jobs SET run_at = now() WHERE id = %s", job["id"])
    assert worker.claim()["id"] == job["id"]


def test_the_task_type_decides_whether_a_job_needs_an_input(person: Person, worker: Worker, api: RunningApi) -> None:
    """Without input it is queued at once. With an optional input it waits only if `awaitUpload` is set."""
    add = "INSERT INTO task_types (name, input_rule) VALUES (%s, %s)"
    for name, rule in (("draw", "none"), ("either", "optional")):
        rows(api.settings.conninfo or "", add, name, rule)
    job = person.create(taskType="draw")
    assert (job["state"], job["input"]) == ("queued", None)
    assert worker.claim(taskTypes=["draw"])["input"] is None
    assert code_of(person.http.post("/api/geo-jobs", json=linked() | {"taskType": "draw"})) == (422, "validation")
    jobs = [linked() | {"taskType": "draw"}, linked()]
    assert code_of(person.http.post("/api/geo-jobs/batch", json={"jobs": jobs})) == (422, "validation")
    assert person.create(taskType="either")["state"] == "queued"
    assert person.create(taskType="either", awaitUpload=True)["state"] == "awaiting_upload"
    assert person.create(**linked() | {"taskType": "either"})["input"]["kind"] == "url"


def test_jobs_of_a_batch_take_turns_like_others(person: Person, worker: Worker, api: RunningApi) -> None:
    """A hundred jobs in one request do not delay another caller's single job."""
    batch(person, *[linked()] * 100)
    (other,) = [Person(api, "bob").create(**linked())["id"]]
    first = [job["id"] for job in worker.claim_all(maxJobs=3)]
    assert other in first


def test_a_job_for_later_does_not_push_its_owners_others_back(person: Person, worker: Worker, api: RunningApi) -> None:
    """Jobs for now are not ordered after a job for next year."""
    person.create(**linked(), runAt="2100-01-01T00:00:00Z")
    now = person.create(**linked())["id"]
    other = Person(api, "bob").create(**linked())["id"]
    assert [job["id"] for job in worker.claim_all(maxJobs=2)] == [now, other]
