"""The conformance kit: our API passes, and servers that break a rule do not."""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.contract.conformance import (
    CHECKS,
    FINAL,
    Check,
    Server,
    Violation,
    cancelling_reaches_the_worker,
    examined,
    public_endpoints,
    report,
)
from tests.contract.making import MakingFailed, commands
from tests.support.api import WORKER_TOKEN, RunningApi, make_jwt
from tests.support.five_endpoints import TOKEN, FiveEndpoints, five_endpoints
from tests.support.processes import ROOT
from tests.support.waiting import wait_until


@pytest.fixture
def server(api_server: Callable[..., RunningApi]) -> Iterator[Server]:
    """Our API, with leases short enough to wait for."""
    api = api_server(lease_seconds=1.5, first_lease_seconds=1, heartbeat_seconds=0.7)
    with public_endpoints(api.base_url, make_jwt()) as maker, examined(api.base_url, WORKER_TOKEN, maker) as server:
        yield server


def test_our_api_passes(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(server) == 0
    output = capsys.readouterr().out
    assert "✗" not in output
    assert f"{len(CHECKS)} of {len(CHECKS)} hold" in output


MAKE_JOB = 'curl -s --data-binary @"$CONFORMANCE_FILE" "{url}/queue?type=$CONFORMANCE_TASK_TYPE&name=map.tif"'
CANCEL_JOB = 'curl -s -X POST "{url}/cancel?id=$CONFORMANCE_JOB_ID"'


def kit(app: FiveEndpoints, *more: str) -> list[str]:
    """The command line for a server that has only the five endpoints."""
    make_job = MAKE_JOB.format(url=app.base_url)
    command = [sys.executable, "-m", "tests.contract.conformance", "--api", app.base_url]
    return [*command, "--worker-token", TOKEN, "--make-job", make_job, *more]


def unfinished(app: FiveEndpoints) -> list[str]:
    return [job.state for job in app.jobs.values() if job.state not in FINAL]


def test_a_server_with_only_the_five_endpoints_passes() -> None:
    """--make-job makes the jobs. Checks that need more are named, and each job ends."""
    with five_endpoints() as app:
        ran = subprocess.run(kit(app), cwd=ROOT, capture_output=True, text=True, timeout=110)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "cancelling_reaches_the_worker is not tested to its end: cancelling needs --cancel-job" in ran.stdout
        assert "a_stale_worker_changes_nothing is not tested to its end" in ran.stdout
        assert f"{len(CHECKS) - 2} of {len(CHECKS)} hold, 2 not tested to the end" in ran.stdout
        assert len(app.jobs) > 15
        assert unfinished(app) == []


def test_cancelling_is_tested_if_there_is_a_command() -> None:
    with five_endpoints() as app, commands(MAKE_JOB.format(url=app.base_url), CANCEL_JOB.format(url=app.base_url)) as m:
        with examined(app.base_url, TOKEN, m) as server:
            cancelling_reaches_the_worker(server)
        app.fault = "hides_cancelling"
        with examined(app.base_url, TOKEN, m) as server, pytest.raises(Violation):
            cancelling_reaches_the_worker(server)
        assert unfinished(app) == []


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("forgets_claims", "the_same_claim_id_brings_the_same_lease"),
        ("gives_twice", "max_jobs_is_kept_and_no_job_is_given_twice"),
        ("gives_too_many", "max_jobs_is_kept_and_no_job_is_given_twice"),
        ("ignores_types", "a_claim_brings_only_its_task_types"),
        ("no_fence", "strangers_are_refused"),
        ("one_lease_token", "an_unconfirmed_claim_comes_back"),
        ("believes_anyone", "strangers_are_refused"),
        ("plain_errors", "strangers_are_refused"),
        ("unconfirmed_costs", "an_unconfirmed_claim_comes_back"),
        ("replays_anything", "complete_is_idempotent"),
        ("denies_replays", "fail_is_idempotent"),
        ("believes_digests", "outputs_are_checked"),
        ("retries_everything", "invalid_input_is_final"),
        ("interruption_costs", "interruption_costs_no_attempt"),
        ("answers_empty_lists", "an_idle_claim_waits_and_is_answered_204"),
        ("no_ranges", "a_claimed_job_is_complete"),
    ],
)
def test_each_broken_rule_of_five_endpoints_is_found(fault: str, check: str) -> None:
    """The check of each broken rule finds it. All jobs end nevertheless."""
    named: dict[str, Check] = {one.__name__: one for one in CHECKS}
    with five_endpoints(fault) as app, commands(MAKE_JOB.format(url=app.base_url)) as maker:
        with examined(app.base_url, TOKEN, maker) as server:
            with pytest.raises(Violation):
                named[check](server)
            app.fault = ""  # Some faults would keep jobs from ending.
        assert unfinished(app) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_kit_leaves_no_job_behind(number: signal.Signals) -> None:
    """After Ctrl-C in the middle of a check, the kit ends its jobs first."""
    with five_endpoints() as app, subprocess.Popen(kit(app), cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        wait_until(lambda: bool(unfinished(app)), "a check to be under way", 60, pause=0.01)
        running.send_signal(number)
        assert running.wait(60) == 130
        assert app.jobs
        assert unfinished(app) == []


def test_a_command_without_a_job_is_reported_with_its_output() -> None:
    with commands("echo out of order >&2; exit 3") as failing, pytest.raises(MakingFailed, match="out of order"):
        failing.make()
    with commands("true") as silent, pytest.raises(MakingFailed, match="printed no id"):
        silent.make()


class ChangedAnswers(httpx.HTTPTransport):
    """A server with changed answers to one kind of call."""

    def __init__(self, ending: str, change: Callable[[httpx.Response], httpx.Response]) -> None:
        super().__init__()
        self._ending = ending
        self._change = change

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if not request.url.path.endswith(self._ending):
            return answer
        answer.read()
        return self._change(answer)


def without_code(answer: httpx.Response) -> httpx.Response:
    return answer if answer.is_success else httpx.Response(answer.status_code, json={})


def never_replayed(answer: httpx.Response) -> httpx.Response:
    return httpx.Response(200, json=answer.json() | {"replayed": False}) if answer.is_success else answer


def always_well(answer: httpx.Response) -> httpx.Response:
    return answer if answer.is_success else httpx.Response(200, json={"state": "succeeded", "replayed": False})


@pytest.mark.parametrize(
    ("ending", "change", "check"),
    [
        ("/heartbeat", without_code, "strangers_are_refused"),
        ("/complete", never_replayed, "complete_is_idempotent"),
        ("/fail", never_replayed, "fail_is_idempotent"),
        ("/complete", always_well, "outputs_are_checked"),
        ("/complete", always_well, "small_results_come_with_the_report"),
        ("/complete", never_replayed, "small_results_come_with_the_report"),
        ("/complete", always_well, "a_stale_worker_changes_nothing"),
    ],
)
def test_each_changed_answer_of_our_api_is_found(
    server: Server, ending: str, change: Callable[[httpx.Response], httpx.Response], check: str
) -> None:
    broken = httpx.Client(
        base_url=server.worker.base_url,
        headers=server.worker.headers,
        transport=ChangedAnswers(ending, change),
        timeout=60,
    )
    named: dict[str, Check] = {one.__name__: one for one in CHECKS}
    with broken, pytest.raises(AssertionError):
        named[check](dataclasses.replace(server, worker=broken))
