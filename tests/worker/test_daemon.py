"""Claims while there is room, and an orderly way out. Real HTTP, real child processes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from geoprocessing_worker.jobs import daemon as daemon_module
from geoprocessing_worker.jobs.daemon import Daemon
from geoprocessing_worker.jobs.runner import WorkerContext
from tests.support.bench import Bench
from tests.support.child_work import FOR_EVER, PACK_FOR_EVER
from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.support.waiting import until

NOTHING = answer(status=204)


@pytest.fixture
async def bench(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(server, http, tmp_path, FOR_EVER)
    yield bench
    await bench.api.aclose()
    assert bench.folders() == [], "a folder was left behind"


def daemon(bench: Bench, **settings: Any) -> Daemon:
    changed = bench.tools.settings.model_copy(update={"poll_interval": 0.01, **settings})
    return Daemon(WorkerContext(**{**vars(bench.tools), "settings": changed}), jitter=lambda: 0.0)


def claimed(bench: Bench, *ids: str) -> Any:
    return answer({"serverTime": "2030-01-01T00:00:00Z", "jobs": [bench.job(id=one) for one in ids]})


def rendering(bench: Bench) -> set[str]:
    return {call.path.split("/")[-2] for call in bench.server.calls("progress") if call.json["stage"] == "render"}


async def test_as_many_jobs_are_claimed_as_there_is_room_for_and_each_keeps_its_own_heartbeat(bench: Bench) -> None:
    bench.server.on("claim", claimed(bench, "a", "b"), claimed(bench, "c"), NOTHING)
    working = daemon(bench, concurrent_jobs=3)
    running = asyncio.create_task(working.run())
    await until(lambda: rendering(bench) == {"a", "b", "c"})
    assert [call.json["maxJobs"] for call in bench.server.calls("claim")] == [3, 1]
    seen = len(bench.server.asked)

    def beating() -> set[str]:
        return {asked.path.split("/")[-2] for asked in bench.server.asked[seen:] if asked.path.endswith("heartbeat")}

    await until(lambda: beating() == {"a", "b", "c"})
    working.stop()
    working.stop()
    await running


async def test_the_next_job_is_claimed_while_results_are_uploaded_and_no_more_than_one_ahead(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    bench = Bench(server, http, tmp_path)
    link_is_up = asyncio.Event()

    async def slow_storage(_: Request) -> Response:
        await link_is_up.wait()
        return Response()

    server.on("map.png", slow_storage)
    server.on("claim", claimed(bench, "a"), claimed(bench, "b"), claimed(bench, "c"), NOTHING)
    working = daemon(bench, concurrent_jobs=1)
    running = asyncio.create_task(working.run())
    await server.until_asked("map.png", 2)
    # Two leases are held, so nothing more is asked for however long that takes.
    await server.until_asked("heartbeat", len(server.calls("heartbeat")) + 4)
    assert [call.json["maxJobs"] for call in server.calls("claim")] == [1, 1]
    link_is_up.set()
    await server.until_asked("complete", 3)
    working.stop()
    await running
    await bench.api.aclose()


async def test_the_next_job_is_fetched_while_a_child_packs_and_gets_its_process_after_it(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    bench = Bench(server, http, tmp_path, PACK_FOR_EVER, most=1)
    server.on("claim", claimed(bench, "a"), claimed(bench, "b"), claimed(bench, "c"), NOTHING)
    working = daemon(bench, concurrent_jobs=1)
    running = asyncio.create_task(working.run())
    work = bench.folder / "work"
    await until(lambda: len([*work.glob("geojob_*/outputs/begun")]) == 1)
    await until(lambda: len([*work.glob("geojob_*/source.tif")]) == 2)
    await server.until_asked("heartbeat", len(server.calls("heartbeat")) + 8)
    assert [call.json["maxJobs"] for call in server.calls("claim")] == [1, 1]
    assert len([*work.glob("geojob_*/outputs/begun")]) == 1
    working.stop()
    working.stop()
    await running
    await bench.api.aclose()


async def test_a_long_stage_makes_no_room(bench: Bench) -> None:
    """A job that would wait here could begin at once on an idle worker."""
    bench.server.on("claim", claimed(bench, "a"), claimed(bench, "b"), NOTHING)
    working = daemon(bench, concurrent_jobs=1)
    running = asyncio.create_task(working.run())
    await until(lambda: rendering(bench) == {"a"})
    await bench.server.until_asked("heartbeat", len(bench.server.calls("heartbeat")) + 4)
    assert len(bench.server.calls("claim")) == 1
    working.stop()
    working.stop()
    await running


async def test_every_claim_has_a_fresh_id_and_the_worker_keeps_its_own(bench: Bench) -> None:
    bench.server.on("claim", NOTHING)
    working = daemon(bench)
    running = asyncio.create_task(working.run())
    await bench.server.until_asked("claim", 3)
    working.stop()
    await running
    bodies = [call.json for call in bench.server.calls("claim")]
    assert len({body["claimId"] for body in bodies}) == len(bodies)
    assert {body["workerId"] for body in bodies} == {working.worker_id}


async def test_stopping_ends_claims_gives_jobs_the_grace_period_and_then_gives_them_back(bench: Bench) -> None:
    bench.server.on("claim", claimed(bench, "a"), NOTHING)
    working = daemon(bench, shutdown_grace=0.3)
    running = asyncio.create_task(working.run())
    await until(lambda: rendering(bench) == {"a"})
    working.stop()
    await running
    (report,) = bench.server.calls("fail")
    assert report.json["error"]["class"] == "interrupted"


async def test_a_second_signal_gives_jobs_back_at_once(bench: Bench) -> None:
    bench.server.on("claim", claimed(bench, "a"), NOTHING)
    working = daemon(bench, shutdown_grace=3600)
    running = asyncio.create_task(working.run())
    await until(lambda: rendering(bench) == {"a"})
    working.stop()
    assert bench.server.calls("fail") == []
    working.stop()
    await running
    assert len(bench.server.calls("fail")) == 1


async def test_a_refused_token_is_logged_once_and_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "REFUSED_PAUSE", 0.02)
    bench.server.on("claim", *[problem(401, "token_invalid")] * 3, NOTHING)
    working = daemon(bench)
    with capture_logs() as said:
        running = asyncio.create_task(working.run())
        await bench.server.until_asked("claim", 5)
        working.stop()
        await running
    told = [(line["event"], line["log_level"]) for line in said if line["event"].startswith("token")]
    assert told == [("token_refused", "error"), ("token_accepted", "info")]


async def test_an_api_that_is_away_is_claimed_from_again_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "PAUSE_FIRST", 0.02)
    bench.server.on("claim", *[problem(500, "internal")] * 20, claimed(bench, "a"), NOTHING)
    working = daemon(bench)
    running = asyncio.create_task(working.run())
    await until(lambda: rendering(bench) == {"a"})
    working.stop()
    working.stop()
    await running


async def test_a_disabled_worker_stays_up_without_claiming(bench: Bench) -> None:
    working = daemon(bench, disable_workers=True)
    with capture_logs() as said:
        running = asyncio.create_task(working.run())
        await until(lambda: any(line["event"] == "worker_disabled" for line in said))
        working.stop()
        await running
    assert bench.server.calls("claim") == []


async def test_folders_of_a_crashed_worker_are_removed_at_the_next_start(bench: Bench) -> None:
    (bench.folder / "work" / "geojob_dead_x").mkdir(parents=True)
    bench.server.on("claim", NOTHING)
    working = daemon(bench)
    running = asyncio.create_task(working.run())
    await bench.server.until_asked("claim", 1)
    working.stop()
    await running
