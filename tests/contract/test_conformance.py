"""The examination that any server may take: the one that ships here passes, and one that breaks the rules does not."""

import dataclasses
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.contract.conformance import CHECKS, Check, Server, examined, report
from tests.support.api import WORKER_TOKEN, RunningApi, make_jwt


@pytest.fixture
def server(api_server: Callable[..., RunningApi]) -> Iterator[Server]:
    """The API that ships here, with leases short enough to wait for."""
    api = api_server(lease_seconds=1.5, first_lease_seconds=1, heartbeat_seconds=0.7)
    with examined(api.base_url, WORKER_TOKEN, make_jwt()) as server:
        yield server


def test_the_api_that_ships_here_passes(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(server) == 0
    said = capsys.readouterr().out
    assert "✗" not in said
    assert f"{len(CHECKS)} of {len(CHECKS)} hold" in said


class Forgetful(httpx.HTTPTransport):
    """A server whose answers to one kind of call are other than they should be."""

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
def test_a_server_that_breaks_a_rule_is_found_out(
    server: Server, ending: str, change: Callable[[httpx.Response], httpx.Response], check: str
) -> None:
    broken = httpx.Client(
        base_url=server.worker.base_url, headers=server.worker.headers, transport=Forgetful(ending, change), timeout=60
    )
    named: dict[str, Check] = {one.__name__: one for one in CHECKS}
    with broken, pytest.raises(AssertionError):
        named[check](dataclasses.replace(server, worker=broken))
