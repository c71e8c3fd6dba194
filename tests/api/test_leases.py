"""The guarantees for running jobs, over HTTP with the real database."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.api import RunningApi
from tests.support.clients import (
    Person,
    Worker,
    code_of,
    expire_leases,
    get,
    input_file,
    output_file,
    output_of,
    put,
    rows,
    storage_files,
)
from tests.support.waiting import wait_until


def rescued(person: Person, job_id: str, state: str = "queued") -> None:
    wait_until(lambda: person.look(job_id)["state"] == state, f"the job to become {state}")


def test_the_first_heartbeat_counts_the_attempt_and_lengthens_the_lease(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """A claim alone costs no attempt and lasts 15 s. After the first heartbeat it is attempt 1 and lasts 60 s."""
    job_id = person.submit()
    job = worker.claim()
    assert (job["attempt"], person.look(job_id)["attempt"]) == (1, 0)
    assert 14 < job["leaseSeconds"] <= 15
    assert worker.heartbeat(job)["leaseSeconds"] == 60
    assert worker.heartbeat(job)["cancel"] is None
    assert person.look(job_id)["attempt"] == 1
    assert person.event_types(job_id).count("started") == 1


def test_a_claim_whose_answer_was_lost_and_never_repeated_costs_no_attempt(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """The short lease expires and the job is queued again with unchanged attempts."""
    job_id = person.submit()
    worker.claim()
    expire_leases(api.settings.conninfo or "")
    rescued(person, job_id)
    job = person.look(job_id)
    assert (job["attempt"], job["error"]) == (0, None)
    assert "claim_lost" in person.event_types(job_id)
    assert worker.claim()["attempt"] == 1


def test_a_lost_worker_costs_one_attempt_and_its_job_is_queued_again(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """After its first heartbeat a silent worker loses the job, and the next one gets the reason."""
    job_id = person.submit()
    worker.heartbeat(worker.claim())
    expire_leases(api.settings.conninfo or "")
    rescued(person, job_id)
    again = worker.claim()
    assert again["attempt"] == 2
    assert [error["code"] for error in again["previousErrors"]] == ["worker_lost"]


def test_a_job_that_loses_three_workers_has_failed_whatever_attempts_are_left(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """Lost workers have their own limit: 3, with 5 attempts."""
    job_id = person.submit()
    for loss in range(3):
        worker.heartbeat(worker.claim(waitSeconds=10))
        expire_leases(api.settings.conninfo or "")
        rescued(person, job_id, "failed" if loss == 2 else "queued")
    job = person.look(job_id)
    assert (job["attempt"], job["maxAttempts"], job["error"]["code"]) == (3, 5, "worker_lost")


def test_a_stale_worker_can_change_nothing_and_its_files_are_never_seen(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """Stopped past its lease, while another one does the job: all calls get 409, only the winner's image is served."""
    job_id = person.submit()
    stale = worker.claim()
    worker.heartbeat(stale)
    stale_outputs = worker.upload(stale, b"stale picture")
    expire_leases(api.settings.conninfo or "")
    rescued(person, job_id)
    other = Worker(api, "worker-2")
    fresh = other.claim()
    for verb, body in (("heartbeat", {}), ("progress", {"percent": 99})):
        assert code_of(worker.call(verb, stale, body)) == (409, "lease_lost")
    assert code_of(worker.complete(stale, stale_outputs)) == (409, "lease_lost")
    assert code_of(worker.fail(stale, "internal")) == (409, "lease_lost")
    assert other.complete(fresh).json() == {"state": "succeeded", "replayed": False}
    assert code_of(worker.complete(stale, stale_outputs)) == (409, "lease_lost")
    links = person.http.get(f"/api/geo-jobs/{job_id}/download/output").json()["outputs"]
    assert [get(link["url"]).content for link in links] == [b"\x89PNG picture"]
    kept = [output_file(b"stale picture"), output_file(b"\x89PNG picture", lease_seq=2)]
    assert storage_files(api, job_id) == [input_file(), *kept]


@pytest.mark.parametrize("number_is_right", [True, False])
def test_half_of_a_lease_token_is_worth_nothing(person: Person, worker: Worker, number_is_right: bool) -> None:
    """The number of a lease can be guessed, its secret cannot. Both must be those of the current lease."""
    person.submit()
    job = worker.claim()
    number, _, secret = job["leaseToken"].partition(".")
    forged = job | {"leaseToken": f"{number}.forged" if number_is_right else f"{int(number) + 1}.{secret}"}
    assert code_of(worker.call("heartbeat", forged)) == (409, "lease_lost")
    assert code_of(worker.complete(forged, [])) == (409, "lease_lost")
    assert code_of(worker.fail(forged, "internal")) == (409, "lease_lost")
    assert worker.heartbeat(job)["cancel"] is None


def test_a_repeated_complete_gets_its_first_answer_and_another_content_a_conflict(
    person: Person, worker: Worker
) -> None:
    """A lost response costs nothing. A second result, and a failure after success, are rejected."""
    job_id = person.submit()
    job = worker.claim()
    outputs = worker.upload(job)
    assert worker.complete(job, outputs).json() == {"state": "succeeded", "replayed": False}
    assert worker.complete(job, outputs).json() == {"state": "succeeded", "replayed": True}
    different = worker.call("complete", job, {"outputs": outputs, "metadata": {"other": True}})
    assert code_of(different) == (409, "already_finalized")
    assert code_of(worker.fail(job, "internal")) == (409, "already_finalized")
    assert code_of(worker.call("heartbeat", job)) == (409, "already_finalized")
    assert person.event_types(job_id).count("succeeded") == 1
    assert person.look(job_id)["metadata"] == {"crs": "EPSG:4326"}


def test_a_repeated_fail_gets_its_first_answer_even_when_the_job_runs_again_elsewhere(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """The response is stored per lease, so the next lease does not hide it."""
    person.submit()
    job = worker.claim()
    first = worker.fail(job, "interrupted", "worker_shutdown").json()
    assert (first["state"], first["replayed"]) == ("queued", False)
    Worker(api, "worker-2").claim()
    assert worker.fail(job, "interrupted", "worker_shutdown").json() == first | {"replayed": True}
    assert code_of(worker.fail(job, "interrupted", "another_code")) == (409, "already_finalized")


def test_an_interruption_is_queued_at_once_and_costs_no_attempt(person: Person, worker: Worker) -> None:
    """A worker that shuts down returns its job without cost, before and after its first heartbeat."""
    job_id = person.submit()
    for beats in (0, 1):
        job = worker.claim()
        for _ in range(beats):
            worker.heartbeat(job)
        assert worker.fail(job, "interrupted", "worker_shutdown").json()["state"] == "queued"
        assert person.look(job_id)["attempt"] == 0


def test_a_transient_failure_waits_and_then_runs_again_until_attempts_are_spent(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """Each failure spends an attempt. The last one is final and stored with its error."""
    rows(api.settings.conninfo or "", "UPDATE task_types SET max_attempts = 2, backoff_seconds = '{0.1}'")
    job_id = person.submit()
    first = worker.fail(worker.claim(), "transient").json()
    assert first["state"] == "queued"
    assert first["nextAttemptAt"] is not None
    second = worker.claim(waitSeconds=10)
    assert (second["attempt"], second["previousErrors"][0]["code"]) == (2, "went_wrong")
    assert worker.fail(second, "transient").json() == {"state": "failed", "nextAttemptAt": None, "replayed": False}
    assert person.look(job_id)["error"]["code"] == "went_wrong"


def test_a_job_that_times_out_twice_has_failed_whatever_attempts_are_left(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """Other failures in between change nothing. A manual retry allows both timeouts again."""
    rows(api.settings.conninfo or "", "UPDATE task_types SET max_attempts = 9, backoff_seconds = '{0}'")
    job_id = person.submit()
    for _ in range(2):
        states = [
            worker.fail(worker.claim(waitSeconds=10), error_class).json()["state"]
            for error_class in ("timeout", "internal", "timeout")
        ]
        assert states == ["queued", "queued", "failed"]
        assert person.http.post(f"/api/geo-jobs/{job_id}/retry").json()["state"] == "queued"


def test_retry_after_holds_the_job_back(person: Person, worker: Worker) -> None:
    """A job with a pause of an hour is not claimable before."""
    person.submit()
    worker.fail(worker.claim(), "transient", retryAfterSeconds=3600)
    assert worker.claim_all() == []


def test_invalid_input_fails_at_once_and_can_be_requeued_by_hand(person: Person, worker: Worker) -> None:
    """A dead letter is kept. A manual retry restores all attempts. Only failed jobs can be retried."""
    job_id = person.submit()
    assert worker.fail(worker.claim(), "invalid_input", "not_a_tiff").json()["state"] == "failed"
    assert person.look(job_id)["error"]["class"] == "invalid_input"
    retried = person.http.post(f"/api/geo-jobs/{job_id}/retry").json()
    assert (retried["state"], retried["attempt"], retried["error"]) == ("queued", 0, None)
    assert code_of(person.http.post(f"/api/geo-jobs/{job_id}/retry")) == (409, "invalid_state")
    assert worker.complete(worker.claim()).json()["state"] == "succeeded"


def test_progress_renews_the_lease_and_never_falls(api: RunningApi, person: Person, worker: Worker) -> None:
    """Older progress that arrives later changes nothing, and equal progress adds no event."""
    job_id = person.submit()
    job = worker.claim()
    for percent, stage in ((40, "render"), (10, "download"), (40, "render")):
        answer = worker.call("progress", job, {"percent": percent, "stage": stage, "message": "m"})
        assert answer.raise_for_status().json()["leaseSeconds"] == 60
    seen = person.look(job_id)
    assert (seen["percent"], seen["stage"]) == (40, "render")
    assert person.event_types(job_id).count("progress") == 1


def test_a_heartbeat_just_after_expiry_still_holds_the_lease(
    api_server: Callable[..., RunningApi],
) -> None:
    """No other worker has the job, so a rejection would gain nothing."""
    api = api_server(rescue_grace_seconds=3600)
    person, worker = Person(api), Worker(api)
    person.submit()
    job = worker.claim()
    expire_leases(api.settings.conninfo or "")
    assert worker.heartbeat(job)["leaseSeconds"] == 60
    assert worker.complete(job).json()["state"] == "succeeded"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other.png"}, "must have a name from"),
        ({"name": "map_thumb.png"}, "was not uploaded"),
        ({"sizeBytes": 3}, "bytes"),
        ({"sha256": "0" * 64}, "was not uploaded with SHA-256 000"),
    ],
)
def test_a_complete_with_other_files_than_uploaded_is_rejected(
    person: Person, worker: Worker, change: dict[str, object], words: str
) -> None:
    """Names, presence, size and digest are checked before publishing. The job keeps running."""
    job_id = person.submit()
    job = worker.claim()
    outputs = [output | change for output in worker.upload(job)]
    answer = worker.complete(job, outputs)
    assert code_of(answer) == (422, "output_mismatch")
    assert words in answer.json()["detail"]
    assert person.look(job_id)["state"] == "running"


def test_of_two_concurrent_completes_the_winners_images_are_served(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """Under one lease with other content: the loser changes nothing of the winner's report."""
    for number in range(20):
        job_id = person.submit()
        job = worker.claim()
        pictures = [b"%d of the one" % number, b"%d of the other" % number]
        told = [[output_of("map.png", pictures[0])], worker.upload(job, pictures[1])]
        told[0][0]["content"] = base64.b64encode(pictures[0]).decode()
        twin = Worker(api)
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda who, outputs: who.complete(job, outputs), (worker, twin), told))  # noqa: B023
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        (link,) = person.http.get(f"/api/geo-jobs/{job_id}/download/output").json()["outputs"]
        assert get(link["url"]).content == pictures[0 if answers[0].is_success else 1]


def test_published_outputs_cannot_be_overwritten_by_the_still_valid_upload_url(person: Person, worker: Worker) -> None:
    """Published content always matches its digest."""
    person.submit()
    job = worker.claim()
    worker.complete(job).raise_for_status()
    slot = next(slot for slot in job["uploads"] if slot["name"] == "map.png")
    assert code_of(put(slot["url"], content=b"other")) == (409, "already_finalized")


def test_a_running_job_is_cancelled_through_its_heartbeat(person: Person, worker: Worker) -> None:
    """The worker gets reason and grace, and its `cancelled` ends the job. A repeated request changes nothing."""
    job_id = person.submit()
    job = worker.claim()
    worker.heartbeat(job)
    for _ in range(2):
        assert person.cancel(job_id, "wrong file").json()["state"] == "running"
    assert worker.heartbeat(job)["cancel"] == {"reason": "wrong file", "graceSeconds": 10}
    assert worker.fail(job, "cancelled", "job_cancelled").json()["state"] == "cancelled"
    assert code_of(worker.call("heartbeat", job)) == (409, "job_cancelled")
    assert person.event_types(job_id).count("cancel_requested") == 1


@pytest.mark.parametrize("error_class", ["transient", "interrupted", "invalid_input"])
def test_no_failure_resurrects_a_job_that_was_asked_to_stop(person: Person, worker: Worker, error_class: str) -> None:
    """After a cancellation, any report of the worker cancels the job."""
    job_id = person.submit()
    job = worker.claim()
    person.cancel(job_id)
    assert worker.fail(job, error_class).json()["state"] == "cancelled"
    assert person.look(job_id)["state"] == "cancelled"


def test_a_complete_after_a_cancellation_publishes_nothing(person: Person, worker: Worker) -> None:
    """The job becomes cancelled, also when the complete is repeated."""
    job_id = person.submit()
    job = worker.claim()
    outputs = worker.upload(job)
    person.cancel(job_id)
    for _ in range(2):
        assert code_of(worker.complete(job, outputs)) == (409, "job_cancelled")
    assert (person.look(job_id)["state"], person.look(job_id)["outputs"]) == ("cancelled", None)


def test_a_lost_worker_whose_job_was_cancelled_is_not_waited_for(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """The rescuer ends such a job as cancelled, not as lost."""
    job_id = person.submit()
    worker.heartbeat(worker.claim())
    person.cancel(job_id)
    expire_leases(api.settings.conninfo or "")
    rescued(person, job_id, "cancelled")


def test_a_worker_that_ignores_its_cancellation_loses_the_job(
    api_server: Callable[..., RunningApi],
) -> None:
    """Heartbeats do not keep a cancelled job alive forever."""
    api = api_server(cancel_grace_seconds=0, heartbeat_seconds=0.05)
    person, worker = Person(api), Worker(api)
    job_id = person.submit()
    job = worker.claim()
    worker.heartbeat(job)
    person.cancel(job_id)
    rescued(person, job_id, "cancelled")
    assert code_of(worker.call("heartbeat", job)) == (409, "job_cancelled")


def test_signed_urls_near_their_end_come_back_fresh(api_server: Callable[..., RunningApi]) -> None:
    """After half of their lifetime, a heartbeat returns new ones that work."""
    api = api_server(signed_url_seconds=3600)
    person, worker = Person(api), Worker(api)
    person.submit()
    job = worker.claim()
    assert worker.heartbeat(job)["uploads"] is None
    rows(api.settings.conninfo or "", "UPDATE jobs SET claimed_at = claimed_at - interval '1801 seconds'")
    fresh = worker.heartbeat(job)["uploads"]
    assert [slot["name"] for slot in fresh] == [slot["name"] for slot in job["uploads"]]
    assert worker.complete(job, worker.upload(job | {"uploads": fresh})).json()["state"] == "succeeded"


def test_hostile_text_of_a_worker_is_stored_in_a_clean_form(person: Person, worker: Worker) -> None:
    """NUL and lone surrogates in a message do not prevent the report of a failure."""
    job_id = person.submit()
    job = worker.claim()
    body = '{"error":{"class":"invalid_input","code":"x","message":"a\\u0000b\\ud800c","detail":null}}'
    headers = {"Lease-Token": job["leaseToken"]}
    assert worker.http.patch(f"/{job_id}/fail", content=body, headers=headers).json()["state"] == "failed"
    assert person.look(job_id)["error"]["message"] == "a�b?c"


def race(*calls: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """Send requests at the same instant. Return their responses in order."""
    barrier = threading.Barrier(len(calls))
    answers: dict[int, httpx.Response] = {}

    def run(place: int, call: Callable[[], httpx.Response]) -> None:
        barrier.wait(timeout=10)
        answers[place] = call()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return [answers[place] for place in range(len(calls))]


def test_cancel_and_complete_at_the_same_instant_have_one_outcome(api: RunningApi) -> None:
    """Either the results are published or the job is cancelled, and both callers see the same."""
    person, worker = Person(api), Worker(api)
    for _ in range(12):
        job_id = person.submit()
        job = worker.claim()
        outputs = worker.upload(job)
        cancelled, completed = race(
            lambda job_id=job_id: person.cancel(job_id),  # type: ignore[misc]  # bound now, called at once
            lambda job=job, outputs=outputs: worker.complete(job, outputs),  # type: ignore[misc]  # the same
        )
        final = person.look(job_id)
        assert final["state"] in {"succeeded", "cancelled"}
        assert (completed.status_code == 200) == (final["state"] == "succeeded")
        assert (final["outputs"] is not None) == (final["state"] == "succeeded")
        if final["state"] == "succeeded":
            assert code_of(cancelled) == (409, "invalid_state")


def test_the_same_complete_twice_at_the_same_instant_counts_once(api: RunningApi) -> None:
    """One is first, the other is its replay, and there is one event."""
    person, worker, twin = Person(api), Worker(api), Worker(api)
    for _ in range(8):
        job_id = person.submit()
        job = worker.claim()
        outputs = worker.upload(job)
        answers = race(
            lambda job=job, outputs=outputs: worker.complete(job, outputs),  # type: ignore[misc]  # as above
            lambda job=job, outputs=outputs: twin.complete(job, outputs),  # type: ignore[misc]  # as above
        )
        assert sorted(answer.json()["replayed"] for answer in answers) == [False, True]
        assert person.event_types(job_id).count("succeeded") == 1


def test_outputs_outside_the_slots_are_rejected(person: Person, worker: Worker) -> None:
    """A worker cannot publish an unassigned name, nor one name twice."""
    person.submit()
    job = worker.claim()
    told = worker.upload(job)
    assert code_of(worker.complete(job, told + told)) == (422, "output_mismatch")
    assert code_of(worker.complete(job, [output_of("../x", b"")])) == (422, "output_mismatch")


def test_the_last_stats_of_a_worker_are_shown_to_the_jobs_owner(person: Person, worker: Worker) -> None:
    """A heartbeat without stats keeps them. The next lease starts without."""
    job_id = person.submit()
    job = worker.claim()
    for stats in ({"rssMb": 100}, {"rssMb": 200}, None):
        worker.call("heartbeat", job, {"stats": stats}).raise_for_status()
    assert person.look(job_id)["workerStats"] == {"rssMb": 200}
    worker.fail(job, "interrupted").raise_for_status()
    worker.claim()
    assert person.look(job_id)["workerStats"] is None
