"""Check any server against the protocol over plain HTTP, and report line by line.

    python -m tests.contract.conformance --api URL --worker-token TOKEN --make-job COMMAND
    python -m tests.contract.conformance --api URL --worker-token TOKEN --jwt JWT

The server should be idle: no other workers, no waiting jobs. With --make-job it needs the five endpoints only, and the
command queues one job and prints its id. With --jwt the public endpoints of README make the jobs.
"""

import argparse
import base64
import hashlib
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from geoprocessing_worker.wire.messages import ClaimedJob, LeaseAnswer
from tests.contract.making import (
    TASK_TYPE,
    TIFF,
    Maker,
    MakingFailed,
    NotPossible,
    PublicEndpoints,
    commands,
    uninterrupted,
)

JOBS = "/api/internal/geo-jobs"
# Seconds beyond its lease until a lost job is claimed again. After a start or an outage a server first gives living
# workers the minute of a lease.
RESCUE_PATIENCE = 70.0
# Seconds, twice the protocol's minute.
LONGEST_LEASE = 120.0
FINAL = ("succeeded", "failed", "cancelled")


class Violation(AssertionError):  # noqa: N818 - a verdict
    """The server breaks a rule of the protocol. The message has its answer."""


def demand(holds: object, words: str) -> None:
    """Raise a `Violation` unless the rule holds."""
    if not holds:
        raise Violation(words)


@dataclass(frozen=True)
class Server:
    """A server under examination.

    Attributes:
        maker: makes the jobs.
        worker: a client with a worker token. Paths begin at the host.
        storage: a client without a token.
        open: open jobs of the kit by id, each with its last lease if it was claimed.
    """

    maker: Maker
    worker: httpx.Client
    storage: httpx.Client
    open: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def tidy(self) -> list[str]:
        """End the open jobs of a check, by their leases, by cancelling or by claims. Return those that remain."""
        for job_id, lease in list(self.open.items()):
            if lease is not None:
                self.open[job_id] = None
                with suppress(httpx.HTTPError):
                    self.call("fail", lease, failure("invalid_input"))
        deadline = time.monotonic() + LONGEST_LEASE
        while self.open and time.monotonic() < deadline:
            for job_id in list(self.open):
                with suppress(NotPossible, MakingFailed, httpx.HTTPError):
                    self.maker.cancel(job_id, "the conformance kit is done with it")
                    del self.open[job_id]
            if self.open:
                self._drain()
        return list(self.open)

    def _drain(self) -> None:
        """Claim waiting jobs and end them. Jobs of other owners go back unchanged."""
        try:
            answer = self.claim_raw(waitSeconds=1, maxJobs=10)
        except httpx.HTTPError:
            time.sleep(1)
            return
        for job in answer.json()["jobs"] if answer.status_code == 200 else []:
            kind = "invalid_input" if str(job["id"]) in self.open else "interrupted"
            self.call("fail", job, failure(kind))

    def submit(self) -> str:
        """Queue a job. Return its id."""
        with uninterrupted():
            job_id = self.maker.make()
            self.open[job_id] = None
        return job_id

    def claim_raw(self, *, sent: threading.Event | None = None, **fields: Any) -> httpx.Response:
        """Send one claim, with a fresh id by default. `sent` is set once the request is sent."""

        def trace(step: str, _: object) -> None:
            if sent is not None and step.endswith("send_request_body.complete"):
                sent.set()

        usual = {"claimId": str(uuid.uuid4()), "workerId": str(uuid.uuid4()), "workerName": "conformance"}
        body = usual | {"taskTypes": [TASK_TYPE], "maxJobs": 1, "waitSeconds": 10} | fields
        answer = self.worker.post(f"{JOBS}/claim", json=body, extensions={"trace": trace})
        for job in answer.json()["jobs"] if answer.status_code == 200 else []:
            if str(job["id"]) in self.open:
                self.open[str(job["id"])] = job
        return answer

    def claim(self, **fields: Any) -> dict[str, Any]:
        """Claim exactly one job."""
        answer = self.claim_raw(**fields)
        demand(answer.status_code == 200, f"a claim while a job waits was answered with {answer.status_code}")
        jobs = answer.json()["jobs"]
        demand(len(jobs) == 1, f"a claim of one job returned {len(jobs)}")
        job: dict[str, Any] = jobs[0]
        return job

    def confirmed(self) -> dict[str, Any]:
        """Queue, claim and confirm a job."""
        job_id = self.submit()
        job = self.claim()
        demand(job["id"] == job_id, "another job was claimed, so the server is not idle")
        _ok(self.call("heartbeat", job))
        return job

    def call(self, verb: str, job: dict[str, Any], body: object = None, **headers: str) -> httpx.Response:
        """Send a call on a job with its lease."""
        usual = {"Lease-Token": str(job["leaseToken"])} | headers
        path = f"{JOBS}/{job['id']}/{verb}"
        answer = self.worker.patch(path, json={} if body is None else body, headers=usual)
        if verb in ("complete", "fail") and answer.status_code == 200:
            state = answer.json().get("state")
            if state in FINAL:
                self.open.pop(str(job["id"]), None)
            elif str(job["id"]) in self.open:
                self.open[str(job["id"])] = None  # queued again
        return answer

    def uploaded(self, job: dict[str, Any], content: bytes = b"picture") -> dict[str, Any]:
        """Upload one output. Return its entry for `complete`."""
        slot = next(slot for slot in job["uploads"] if slot["name"].endswith("map.png"))
        put = self.storage.request(slot["method"], slot["url"], content=content, headers=slot["headers"])
        demand(put.is_success, f"an upload to a slot was answered with {put.status_code}")
        digest = hashlib.sha256(content).hexdigest()
        return {"name": slot["name"], "sizeBytes": len(content), "sha256": digest, "contentType": slot["contentType"]}

    def inlined(self, job: dict[str, Any], suffix: str, content: bytes) -> dict[str, Any]:
        """Return the entry of an inline output."""
        slot = next(slot for slot in job["uploads"] if slot["name"] == f"map{suffix}")
        digest, text = hashlib.sha256(content).hexdigest(), base64.b64encode(content).decode()
        entry = {"name": slot["name"], "sizeBytes": len(content), "sha256": digest, "contentType": slot["contentType"]}
        return entry | {"content": text}

    def published(self, job_id: str) -> dict[str, bytes]:
        """Return a job's published outputs by name."""
        return {name: self.storage.get(url).content for name, url in self.maker.results(job_id).items()}

    def clear(self, job: dict[str, Any]) -> None:
        """End a job after a check."""
        self.call("fail", job, failure("invalid_input"))


def failure(error_class: str) -> dict[str, Any]:
    """Return the body of a fail."""
    return {"error": {"class": error_class, "code": "conformance", "message": "A check.", "detail": {"n": 1}}}


def completion(*outputs: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Return the body of a complete."""
    return {"outputs": list(outputs), "metadata": metadata, "timings": {"render": 0.5}}


def _ok(answer: httpx.Response) -> dict[str, Any]:
    demand(answer.status_code in (200, 201), f"{answer.request.url.path} was answered with {answer.status_code}")
    body: dict[str, Any] = answer.json()
    return body


def _refused(answer: httpx.Response, status: int, *codes: str) -> None:
    demand(answer.status_code == status, f"{answer.status_code} instead of {status}")
    code = answer.json().get("code")
    demand(code in codes, f"the problem's code is {code!r} and not {' or '.join(codes)}")
    kind = answer.headers.get("Content-Type", "")
    demand(kind.startswith("application/problem+json"), f"a problem came as {kind!r}")


# -- the checks. The first line of each docstring is printed -----------------------------------------------------------


def an_idle_claim_waits_and_is_answered_204(server: Server) -> None:
    """A claim on an empty queue is parked for waitSeconds, then answered 204."""
    begun = time.monotonic()
    answer = server.claim_raw(waitSeconds=1)
    demand(answer.status_code == 204, f"{answer.status_code}: the server is not idle, or does not answer 204")
    demand(time.monotonic() - begun > 0.9, "it did not wait")


def a_parked_claim_gets_a_new_job(server: Server) -> None:
    """A parked claim is answered when a job is queued, long before its wait ends."""
    sent = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        parked = pool.submit(server.claim, sent=sent, waitSeconds=20)
        demand(sent.wait(10), "the claim could not be sent within 10 s")
        server.submit()
        queued = time.monotonic()
        job = parked.result()
    demand(time.monotonic() - queued < 10, "it was answered only after 10 s")
    server.clear(job)


def a_claimed_job_is_complete(server: Server) -> None:
    """A claimed job has every field. Its file can be fetched without credentials, also in parts."""
    server.submit()
    job = server.claim()
    parsed = ClaimedJob.model_validate(job)
    demand(
        parsed.input is not None and parsed.input.kind == "upload",
        "the input of an uploaded file is missing or has another kind",
    )
    url = job["input"]["downloadUrl"]
    got = server.storage.get(url)
    demand(got.content == TIFF, "the download URL does not return the file")
    headers = {"Range": "bytes=10-", "If-Range": got.headers.get("ETag", "")}
    part = server.storage.get(url, headers=headers)
    demand(part.status_code == 206 and part.content == TIFF[10:], "a download cannot be resumed")
    demand(len(job["uploads"]) == 6, f"{len(job['uploads'])} upload slots instead of six")
    server.clear(job)


def the_same_claim_id_brings_the_same_lease(server: Server) -> None:
    """A repeated claim returns the same leases, since its first answer may be lost."""
    server.submit()
    claim_id = str(uuid.uuid4())
    first, second = server.claim(claimId=claim_id), server.claim(claimId=claim_id)
    demand(first["leaseToken"] == second["leaseToken"], "the lease is another one")
    server.clear(first)


def max_jobs_is_kept_and_no_job_is_given_twice(server: Server) -> None:
    """Concurrent claims return at most maxJobs each, and no job twice."""
    queued_ids = {server.submit() for _ in range(5)}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.claim_raw(maxJobs=2, waitSeconds=0.3), range(4)))
    batches = [answer.json()["jobs"] for answer in answers if answer.status_code == 200]
    demand(all(len(batch) <= 2 for batch in batches), "more than maxJobs")
    ids = [job["id"] for batch in batches for job in batch]
    demand(len(ids) == len(set(ids)), "a job was given twice")
    demand(set(ids) == queued_ids, "a waiting job was not given")
    for batch in batches:
        for job in batch:
            server.clear(job)


def a_claim_brings_only_its_task_types(server: Server) -> None:
    """A claim of other task types returns no job."""
    server.submit()
    answer = server.claim_raw(taskTypes=["conformance_other_type"], waitSeconds=0)
    demand(answer.status_code == 204, f"it was answered with {answer.status_code}")
    server.clear(server.claim())


def heartbeat_and_progress_renew(server: Server) -> None:
    """Heartbeat and progress renew the lease, also with unknown fields and without a Content-Type."""
    job = server.confirmed()
    answer = LeaseAnswer.model_validate(_ok(server.call("heartbeat", job, {"unknown": True})))
    demand(answer.lease_seconds > job["heartbeatSeconds"], "a lease is shorter than the time between heartbeats")
    _ok(server.call("progress", job, {"percent": 40, "stage": "render", "message": "Rendering"}))
    path = f"{JOBS}/{job['id']}/heartbeat"
    _ok(server.worker.patch(path, content=b"{}", headers={"Lease-Token": job["leaseToken"], "Content-Type": ""}))
    server.clear(job)


def complete_is_idempotent(server: Server) -> None:
    """A complete ends the job. A repetition is replayed, other content is 409 already_finalized."""
    job = server.confirmed()
    body = completion(server.uploaded(job), width=1)
    first, again = _ok(server.call("complete", job, body)), _ok(server.call("complete", job, body))
    demand((first["state"], first["replayed"]) == ("succeeded", False), f"the first answer is {first}")
    demand((again["state"], again["replayed"]) == ("succeeded", True), f"the second answer is {again}")
    _refused(server.call("complete", job, body | {"metadata": {"width": 2}}), 409, "already_finalized")
    _refused(server.call("heartbeat", job), 409, "already_finalized", "lease_lost")


def outputs_are_checked(server: Server) -> None:
    """A complete with a missing or different output is 422 output_mismatch, and the lease remains."""
    job = server.confirmed()
    output = server.uploaded(job)
    for change in ({"sha256": "0" * 64}, {"sizeBytes": 1}, {"name": "map.pgw"}, {"name": "elsewhere.png"}):
        _refused(server.call("complete", job, completion(output | change)), 422, "output_mismatch")
    _ok(server.call("complete", job, completion(output)))


def small_results_come_with_the_report(server: Server) -> None:
    """If inlineBytes are offered, complete may contain results. They are checked and published."""
    job = server.confirmed()
    if not job.get("inlineBytes"):
        server.clear(job)
        return
    picture, world = server.uploaded(job), server.inlined(job, ".pgw", b"1")
    change = world | {"sha256": "0" * 64}
    _refused(server.call("complete", job, completion(picture, change)), 422, "output_mismatch")
    _ok(server.call("complete", job, completion(picture, world)))
    demand(
        server.published(job["id"]) == {"map.png": b"picture", "map.pgw": b"1"}, "they differ from the inline results"
    )
    del world["content"]
    again = _ok(server.call("complete", job, completion(picture, world)))
    demand(again["replayed"], "a repetition is compared by more than the digests")


def fail_is_idempotent(server: Server) -> None:
    """A fail of class transient queues the job again. A repetition is replayed."""
    job = server.confirmed()
    first, again = (_ok(server.call("fail", job, failure("transient"))) for _ in range(2))
    demand(first["state"] == "queued" and first["nextAttemptAt"], f"the first answer is {first}")
    demand(again["replayed"] and again["nextAttemptAt"] == first["nextAttemptAt"], f"the second answer is {again}")


def invalid_input_is_final(server: Server) -> None:
    """A fail of class invalid_input ends the job."""
    answer = _ok(server.call("fail", server.confirmed(), failure("invalid_input")))
    demand((answer["state"], answer["nextAttemptAt"]) == ("failed", None), f"the answer is {answer}")


def interruption_costs_no_attempt(server: Server) -> None:
    """A fail of class interrupted queues the job at once and costs no attempt."""
    job = server.confirmed()
    demand(_ok(server.call("fail", job, failure("interrupted")))["state"] == "queued", "it is not queued")
    again = server.claim()
    demand((again["id"], again["attempt"]) == (job["id"], job["attempt"]), "it cost an attempt, or was not at once")
    server.clear(again)


def cancelling_reaches_the_worker(server: Server) -> None:
    """The heartbeat returns the cancellation of a job. The worker's answer ends the job."""
    job = server.confirmed()
    server.maker.cancel(job["id"], "a check")
    order = _ok(server.call("heartbeat", job))["cancel"]
    demand(order is not None and order.get("reason"), f"the heartbeat has cancel: {order}")
    answer = _ok(server.call("fail", job, failure("cancelled")))
    demand(answer["state"] == "cancelled", f"the answer is {answer}")
    _refused(server.call("heartbeat", job), 409, "job_cancelled")


def strangers_are_refused(server: Server) -> None:
    """A wrong token is 401, a lease that is not held 409 lease_lost, an unknown job 404 job_not_found."""
    wrong = {"Authorization": "Worker wrong-token-of-some-length"}
    body = {"claimId": str(uuid.uuid4()), "workerId": "x", "workerName": "x", "taskTypes": [TASK_TYPE]}
    answer = server.worker.post(f"{JOBS}/claim", json=body, headers=wrong)
    demand(answer.status_code == 401, f"{answer.status_code} for a wrong token")
    job = server.confirmed()
    # With another last character, whichever it is.
    altered = str(job["leaseToken"])[:-1] + ("y" if str(job["leaseToken"]).endswith("x") else "x")
    for token in ("nonsense", altered, ""):
        _refused(server.call("heartbeat", job | {"leaseToken": token}), 409, "lease_lost")
    _refused(server.call("heartbeat", job | {"id": str(uuid.uuid4())}), 404, "job_not_found")
    server.clear(job)


def an_unconfirmed_claim_comes_back(server: Server) -> None:
    """A claim without a heartbeat ends after its short first lease, and costs no attempt."""
    server.submit()
    job = server.claim()
    again = _claimed_again(server, job)
    demand(again["attempt"] == job["attempt"], "it cost an attempt")
    _refused(server.call("heartbeat", job), 409, "lease_lost")
    server.clear(again)


def a_stale_worker_changes_nothing(server: Server) -> None:
    """After the end of a lease another claim gets the job. Later calls and uploads of the first have no effect."""
    job = server.confirmed()
    lease = LeaseAnswer.model_validate(_ok(server.call("heartbeat", job)))
    again = _claimed_again(server, job | {"leaseSeconds": lease.lease_seconds})
    _ok(server.call("heartbeat", again))
    stale = server.uploaded(job, b"stale picture")
    _refused(server.call("complete", job, completion(stale)), 409, "lease_lost")
    _refused(server.call("fail", job, failure("internal")), 409, "lease_lost")
    _ok(server.call("complete", again, completion(server.uploaded(again, b"fresh picture"))))
    demand(server.published(job["id"]) == {"map.png": b"fresh picture"}, "it was seen")


def _claimed_again(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + float(job["leaseSeconds"]) + RESCUE_PATIENCE
    while time.monotonic() < deadline:
        answer = server.claim_raw(waitSeconds=2)
        if answer.status_code == 200:
            (again,) = answer.json()["jobs"]
            demand(again["id"] == job["id"], "another job was claimed, so the server is not idle")
            result: dict[str, Any] = again
            return result
    raise Violation(f"no claim got it within its lease of {job['leaseSeconds']} s and {RESCUE_PATIENCE:g} s")


Check = Callable[[Server], None]
CHECKS: tuple[Check, ...] = (
    an_idle_claim_waits_and_is_answered_204,
    a_claimed_job_is_complete,
    a_parked_claim_gets_a_new_job,
    the_same_claim_id_brings_the_same_lease,
    max_jobs_is_kept_and_no_job_is_given_twice,
    a_claim_brings_only_its_task_types,
    heartbeat_and_progress_renew,
    complete_is_idempotent,
    outputs_are_checked,
    small_results_come_with_the_report,
    fail_is_idempotent,
    invalid_input_is_final,
    interruption_costs_no_attempt,
    cancelling_reaches_the_worker,
    strangers_are_refused,
    an_unconfirmed_claim_comes_back,
    a_stale_worker_changes_nothing,
)


@contextmanager
def examined(base_url: str, worker_token: str, maker: Maker) -> Iterator[Server]:
    """Yield clients for a server. On exit, also by Ctrl-C, end the checks' open jobs."""
    worker = {"Authorization": f"Worker {worker_token}"}
    with (
        httpx.Client(base_url=base_url, headers=worker, timeout=60) as internal,
        httpx.Client(timeout=60) as storage,
    ):
        server = Server(maker, internal, storage)
        try:
            yield server
        finally:
            if remaining := server.tidy():
                print(f"Jobs that could not be ended: {', '.join(remaining)}", flush=True)  # noqa: T201


@contextmanager
def public_endpoints(base_url: str, jwt: str) -> Iterator[PublicEndpoints]:
    """Yield a maker with a caller's token."""
    with httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {jwt}"}, timeout=60) as http:
        yield PublicEndpoints(http)


def report(server: Server) -> int:
    """Run all checks and print one line for each. Return the number of failed ones."""
    broken, skipped = 0, 0
    for check in CHECKS:
        sentence = (check.__doc__ or "").splitlines()[0]
        try:
            check(server)
        except NotPossible as reason:
            skipped += 1
            print(f"○ {sentence}\n    {check.__name__} is not tested to its end: {reason}", flush=True)  # noqa: T201
        except Exception as error:  # noqa: BLE001 - a server may cause any error
            broken += 1
            words = str(error) if isinstance(error, Violation) else traceback.format_exception_only(error)[-1].strip()
            print(f"✗ {sentence}\n    {words}", flush=True)  # noqa: T201 - a command's output
        else:
            print(f"✓ {sentence}", flush=True)  # noqa: T201
        server.tidy()
    held = len(CHECKS) - broken - skipped
    print(f"{held} of {len(CHECKS)} hold" + (f", {skipped} not tested to the end" if skipped else ""))  # noqa: T201
    return broken


def main() -> int:
    """Examine a server. Return 0 if all checks hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", required=True, help="base URL")
    parser.add_argument("--worker-token", required=True)
    parser.add_argument("--jwt", default="", help="a token for the public endpoints")
    parser.add_argument(
        "--make-job",
        default="",
        metavar="COMMAND",
        help="shell command that queues one job and prints its id. It gets CONFORMANCE_TASK_TYPE, CONFORMANCE_PAYLOAD "
        "(JSON) and CONFORMANCE_FILE (a path)",
    )
    parser.add_argument(
        "--cancel-job", default="", metavar="COMMAND", help="shell command that cancels the job CONFORMANCE_JOB_ID"
    )
    parsed = parser.parse_args()
    if bool(parsed.jwt) == bool(parsed.make_job):
        parser.error("give either --make-job or --jwt")
    base_url = parsed.api.rstrip("/")
    making: AbstractContextManager[Maker] = (
        commands(parsed.make_job, parsed.cancel_job) if parsed.make_job else public_endpoints(base_url, parsed.jwt)
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with making as maker, examined(base_url, parsed.worker_token, maker) as server:
            return 1 if report(server) else 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
