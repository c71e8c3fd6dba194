"""One job from claim to report: one report, the last call, whatever happens. Real HTTP, real child processes."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from geoprocessing_worker.jobs.runner import Ending, JobRunner, WorkerContext
from geoprocessing_worker.plugins.registry import Tasks, bind
from geoprocessing_worker.wire.messages import ClaimedJob
from geoprocessing_worker.wire.transfer import MAX_MISMATCHES
from tests.support.bench import SUCCEEDED, SUFFIXES, Bench
from tests.support.broken_systems import BROKEN_SYSTEMS
from tests.support.child_work import FOR_EVER, LIED_OF, LIES
from tests.support.processes import ROOT
from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.support.waiting import until
from tests.support.wire import renewed


@pytest.fixture
async def bench(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(server, http, tmp_path)
    yield bench
    await bench.api.aclose()
    assert bench.folders() == [], "a folder was left behind"


@pytest.fixture
async def endless(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench with a conversion that never ends by itself."""
    bench = Bench(server, http, tmp_path, FOR_EVER)
    yield bench
    await bench.api.aclose()
    assert bench.folders() == [], "a folder was left behind"


@pytest.fixture
async def lying(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench with a conversion that reports missing files, and has no sandbox against writing others."""
    bench = Bench(server, http, tmp_path, LIES, confine=False)
    yield bench
    await bench.api.aclose()


async def test_a_job_is_done_from_download_to_upload_and_completed_last(bench: Bench) -> None:
    assert await bench.run() is Ending.COMPLETED
    words = [asked.path.rsplit("/", 1)[-1] for asked in bench.server.asked]
    assert words[0] == "heartbeat"
    assert words[-1] == "complete"
    assert words.count("complete") == 1
    completion = bench.server.calls("complete")[0].json
    assert {output["name"] for output in completion["outputs"]} == {f"map{suffix}" for suffix in SUFFIXES}
    assert set(completion["timings"]) == {"download", "inspect", "render", "package", "upload"}
    assert completion["metadata"]["width"] > 0
    for output in completion["outputs"]:
        (put,) = bench.server.calls(output["name"])
        assert len(put.body) == output["sizeBytes"]
    percents = [asked.json["percent"] for asked in bench.server.calls("progress")]
    assert percents == sorted(percents)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"taskType": "read_tea_leaves"}, "unknown_task_type"),
        ({"inputPayload": {"maxSize": 0}}, "invalid_payload"),
        ({"inputPayload": {"maxSize": 10**9}}, "invalid_payload"),
        ({"inputPayload": {"bands": "red"}}, "invalid_payload"),
        ({"inputPayload": {"coordinateSystem": "EPSG:999999"}}, "bad_crs"),
        ({"inputPayload": {"sourceCrs": BROKEN_SYSTEMS["without a vertical part"]}}, "bad_crs"),
    ],
)
async def test_a_job_that_asks_for_the_impossible_fails_once_by_name(
    bench: Bench, more: dict[str, Any], code: str
) -> None:
    assert await bench.run(**more) is Ending.FAILED
    assert (bench.failure()["code"], bench.failure()["class"]) == (code, "invalid_input")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"<html>", "not_a_tiff"), (b"", "not_a_tiff"), (b"II*\0\x08\0\0\0", "truncated")],
    ids=["no TIFF", "empty", "only a head"],
)
async def test_a_file_that_is_none_fails_the_job_once_by_name(bench: Bench, content: bytes, code: str) -> None:
    bench.source = content
    bench.server.on("in", Response(content))
    assert await bench.run() is Ending.FAILED
    assert (bench.failure()["code"], bench.failure()["class"]) == (code, "invalid_input")


@pytest.mark.parametrize(("state", "errors"), [("failed", 1), ("queued", 0), ("cancelled", 0)])
async def test_only_a_failure_that_is_not_retried_is_logged_as_an_error(bench: Bench, state: str, errors: int) -> None:
    """The API decides whether a failure is final, and the log's ERROR lines follow its answer."""
    bench.server.on("fail", answer({"state": state, "nextAttemptAt": None, "replayed": False}))
    bench.serve(b"<html>")
    with capture_logs() as records:
        assert await bench.run() is Ending.FAILED
    final = [record for record in records if record["log_level"] == "error"]
    assert [record["event"] for record in final] == ["job_failed_for_good"] * errors
    assert all(record["code"] == "not_a_tiff" and "failed for good" in record["message"] for record in final)


async def test_a_job_that_takes_too_long_is_killed_and_fails_as_timed_out(endless: Bench) -> None:
    assert await endless.run(timeoutSeconds=0.5) is Ending.FAILED
    assert (endless.failure()["code"], endless.failure()["class"]) == ("timed_out", "timeout")
    assert endless.failure()["message"].endswith("Try a smaller maxSize, or add overviews to the file.")


async def test_a_timeout_of_a_packages_own_kind_of_job_advises_nothing_of_ours(endless: Bench) -> None:
    """A plug-in without `maxSize` is not advised to make it smaller."""
    ours = endless.tools.tasks.usable["geotiff_to_png"].handler
    own = bind(dataclasses.replace(ours, lighter=None), endless.tools.settings, (ROOT,))
    endless.tools = endless.with_tools(tasks=Tasks({"geotiff_to_png": own}))
    assert await endless.run(timeoutSeconds=0.5) is Ending.FAILED
    assert endless.failure()["message"].endswith("(it was at: render).")


async def test_timeouts_can_be_turned_off(endless: Bench) -> None:
    settings = endless.tools.settings.model_copy(update={"enable_job_timeouts": False})
    endless.tools = WorkerContext(**{**vars(endless.tools), "settings": settings})
    running = asyncio.create_task(endless.run(timeoutSeconds=0.01))
    await until(lambda: any(call.json["stage"] == "render" for call in endless.server.calls("progress")))
    endless.interrupt.set()
    assert await running is Ending.INTERRUPTED


async def test_a_timeout_that_the_api_shortens_ends_a_job_that_runs(endless: Bench) -> None:
    """A new timeout of a task type applies to its running jobs."""
    endless.server.on("heartbeat", answer(renewed()), answer(renewed()), answer(renewed() | {"timeoutSeconds": 0.2}))
    assert await endless.run(timeoutSeconds=600) is Ending.FAILED
    assert (endless.failure()["code"], endless.failure()["detail"]["limit_seconds"]) == ("timed_out", 0.2)


@pytest.mark.parametrize("told", [None, 3600], ids=["none", "longer"])
async def test_a_timeout_that_the_api_lifts_lets_a_job_go_on(told: int | None, endless: Bench) -> None:
    endless.server.on("heartbeat", answer(renewed() | {"timeoutSeconds": told}))
    running = asyncio.create_task(endless.run(timeoutSeconds=0.5))
    await until(lambda: len(endless.server.calls("heartbeat")) > 20)
    endless.interrupt.set()
    assert await running is Ending.INTERRUPTED


async def test_an_answer_without_a_timeout_changes_none(endless: Bench) -> None:
    assert await endless.run(timeoutSeconds=0.6) is Ending.FAILED
    assert len(endless.server.calls("heartbeat")) > 2
    assert endless.failure()["code"] == "timed_out"


async def test_a_job_without_a_timeout_of_the_apis_still_has_the_operators(endless: Bench) -> None:
    settings = endless.tools.settings.model_copy(update={"max_processing_time": 0.3})
    endless.tools = endless.with_tools(settings=settings)
    assert await endless.run(timeoutSeconds=None) is Ending.FAILED
    assert endless.failure()["detail"]["limit_seconds"] == 0.3


async def test_an_interrupted_job_is_given_back_as_interrupted(endless: Bench) -> None:
    running = asyncio.create_task(endless.run())
    await until(lambda: any(call.json["stage"] == "render" for call in endless.server.calls("progress")))
    endless.interrupt.set()
    assert await running is Ending.INTERRUPTED
    assert (endless.failure()["code"], endless.failure()["class"]) == ("worker_shutdown", "interrupted")


async def test_a_cancelled_job_stops_and_is_reported(endless: Bench) -> None:
    order = answer(renewed() | {"cancel": {"reason": "wrong file", "graceSeconds": 5}})
    endless.server.on("heartbeat", answer(renewed()), answer(renewed()), order)
    assert await endless.run() is Ending.CANCELLED
    assert endless.failure()["class"] == "cancelled"


@pytest.mark.parametrize("told", LIED_OF)
async def test_a_child_cannot_make_the_worker_upload_a_file_of_its_choice(lying: Bench, told: str) -> None:
    server = lying.server
    server.on(Path(told).name, Response(status_code=200))
    message = lying.job()
    message["inputPayload"] = {"nodata": LIED_OF.index(told)}
    message["uploads"].append({"name": told, "url": f"{server.base_url}/{Path(told).name}", "maxBytes": 10**6})
    runner = JobRunner(ClaimedJob.model_validate(message), lying.tools, lying.interrupt)
    assert await runner.run() is Ending.FAILED
    assert lying.failure()["code"] == "crashed"
    assert server.calls(Path(told).name) == []


async def test_a_download_never_leaves_the_folder_of_its_job_whatever_takes_its_place(bench: Bench) -> None:
    """Neither through a link at the folder's path nor through one at the file's."""
    victim = bench.folder / "home"
    victim.mkdir()
    profile = victim / "profile"
    profile.write_text("of the worker")
    (victim / "source.tif.part").symlink_to(profile)

    async def swap_folder(_: Request) -> Response:
        (folder,) = bench.folders()
        folder.rename(bench.folder / "work" / "moved")
        folder.symlink_to(victim)
        return Response(bench.source)

    async def swap_file(_: Request) -> Response:
        (folder,) = bench.folders()
        (folder / "source.tif.part").symlink_to(profile)
        return Response(bench.source)

    bench.server.on("in", swap_folder)
    assert await bench.run() is Ending.COMPLETED
    assert not (bench.folder / "work" / "moved").exists()
    for link in bench.folders():
        link.unlink()
    bench.server.on("in", swap_file)
    assert await bench.run() is Ending.GIVEN_BACK
    assert profile.read_text() == "of the worker"
    assert len(list(victim.iterdir())) == 2


async def test_nothing_is_sent_for_a_job_that_is_somebody_elses(endless: Bench) -> None:
    endless.server.on("heartbeat", answer(renewed()), answer(renewed()), problem(409, "lease_lost"))
    assert await endless.run() is Ending.LEASE_LOST
    assert endless.server.calls("fail") == []
    assert endless.server.calls("complete") == []


async def test_work_does_not_begin_before_the_lease_is_confirmed(bench: Bench) -> None:
    bench.server.on("heartbeat", problem(409, "lease_lost"))
    assert await bench.run() is Ending.LEASE_LOST
    assert bench.server.calls("in") == []


async def test_results_that_do_not_match_in_storage_are_made_again(bench: Bench) -> None:
    """After three uploads, by the next attempt."""
    bench.server.on("complete", problem(422, "output_mismatch", "map.png has another digest"))
    assert await bench.run() is Ending.FAILED
    (asked,) = bench.server.calls("fail")
    assert len(bench.server.calls("complete")) == len(bench.server.calls("map.png")) == MAX_MISMATCHES
    assert (asked.json["error"]["code"], asked.json["error"]["class"]) == ("output_mismatch", "transient")
    assert "another digest" in asked.json["error"]["message"]


async def test_a_failure_that_the_server_rejects_is_sent_again_in_short(bench: Bench) -> None:
    bench.source = b"<html>"
    bench.server.on("in", Response(b"<html>"))
    bench.server.on("fail", problem(422, "validation"), answer({"state": "failed"}))
    assert await bench.run() is Ending.FAILED
    first, second = (call.json["error"] for call in bench.server.calls("fail"))
    assert (first["code"], second["code"]) == ("not_a_tiff", "report_rejected")
    assert second["class"] == "invalid_input"


async def test_a_stopping_worker_still_delivers_finished_results(bench: Bench) -> None:
    async def stop_meanwhile(request: Request) -> Response:
        bench.interrupt.set()
        await asyncio.sleep(0.1)
        return answer(SUCCEEDED)

    bench.server.on("complete", stop_meanwhile)
    assert await bench.run() is Ending.COMPLETED
    assert bench.server.calls("fail") == []


async def test_heartbeats_go_on_while_a_result_waits_to_be_taken(bench: Bench) -> None:
    async def slow(request: Request) -> Response:
        seen = len(bench.server.calls("heartbeat"))
        await bench.server.until_asked("heartbeat", seen + 1)
        return answer(SUCCEEDED)

    bench.server.on("complete", slow)
    assert await bench.run() is Ending.COMPLETED
