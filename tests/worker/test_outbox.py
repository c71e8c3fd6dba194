"""Reports are sent when the API is back, also by the next process. Real HTTP, real files."""

import asyncio
import base64
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from geoprocessing_worker.errors import (
    CancelRequested,
    ErrorClass,
    JobError,
    LeaseExpired,
    LeaseLost,
    Rejected,
    TokenRefused,
    Unavailable,
)
from geoprocessing_worker.jobs import workspace
from geoprocessing_worker.jobs.outbox import Outbox
from geoprocessing_worker.jobs.report import JobReport, ReportState, Verdict, verdict
from geoprocessing_worker.jobs.report_sender import ReportSender
from geoprocessing_worker.jobs.runner import Ending
from geoprocessing_worker.outputs import OutputFile
from geoprocessing_worker.wire import inline
from geoprocessing_worker.wire.messages import ClaimedJob, Completion, Failure, ReportedOutput
from tests.support.bench import SUCCEEDED, SUFFIXES, Bench
from tests.support.child_work import FOR_EVER
from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.support.waiting import until
from tests.support.wire import renewed

GARBAGE = Response("<html>captive portal</html>", 200)
FAILED = answer({"state": "failed", "nextAttemptAt": None, "replayed": False})


@pytest.fixture
async def bench(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(server, http, tmp_path)
    yield bench
    await bench.tools.sender.stop()
    await bench.api.aclose()


@pytest.fixture
async def endless(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench with a conversion that never ends by itself."""
    bench = Bench(server, http, tmp_path, FOR_EVER)
    yield bench
    await bench.tools.sender.stop()
    await bench.api.aclose()


def away(server: ScriptedApi, *words: str) -> None:
    for word in words:
        server.on(word, problem(502, "bad-gateway"))


def job(bench: Bench, **more: Any) -> ClaimedJob:
    return ClaimedJob.model_validate(bench.job(**more))


def failure(code: str = "trouble") -> Failure:
    return Failure.of(JobError(code, "Some words.", ErrorClass.TRANSIENT))


def next_process(bench: Bench, **limits: Any) -> ReportSender:
    """Return the report sender of a worker that replaces a dead one."""
    usual = {"max_age": 3600, "max_reports": 10} | limits
    outbox = Outbox(bench.outbox.temp_dir, bench.server.base_url, **usual)
    return ReportSender(outbox, bench.tools.api, bench.tools.storage)


def results(bench: Bench, folder: Path) -> tuple[Completion, Path]:
    folder.mkdir(parents=True)
    (folder / "map.png").write_bytes(b"picture")
    told = ReportedOutput(name="map.png", size_bytes=7, sha256="0" * 64, content_type="image/png")
    return Completion(outputs=(told,), metadata={"width": 1}, timings={}), folder


def post(bench: Bench, claimed: ClaimedJob, body: Completion | Failure, outputs: Path | None = None) -> JobReport:
    report = bench.outbox.build(claimed, body, claimed.uploads)
    bench.outbox.post(report, outputs)
    return report


def post_results(bench: Bench) -> JobReport:
    completion, folder = results(bench, bench.folder / "work" / "made")
    return post(bench, job(bench), completion, folder)


async def test_a_result_that_is_uploaded_is_reported_when_the_api_is_back_word_for_word(bench: Bench) -> None:
    bench.server.on("heartbeat", answer(renewed(seconds=1)))
    arrived = asyncio.Event()

    async def garbage(request: Request) -> Response:
        away(bench.server, "heartbeat")
        arrived.set()
        return GARBAGE

    bench.server.on("complete", garbage)
    assert await bench.run() is Ending.KEPT
    assert arrived.is_set()
    assert len(bench.folders()) == 1
    bench.server.on("complete", answer(SUCCEEDED))
    await until(lambda: bench.folders() == [])
    first, *_, last = bench.server.calls("complete")
    assert first.body == last.body
    assert bench.server.calls("fail") == []
    assert len(bench.server.calls("map.png")) == 1, "what is uploaded is not uploaded again"


async def test_small_results_come_with_the_report_and_the_others_are_uploaded(bench: Bench) -> None:
    """The report has as many results as the API accepts, smallest first, each with the bytes of its digest."""
    await bench.run()
    every = {output["name"]: output for output in bench.server.calls("complete")[0].json["outputs"]}
    sizes = sorted(output["sizeBytes"] for output in every.values())
    bench.server.asked.clear()
    assert await bench.run(inlineBytes=sum(sizes[:4])) is Ending.COMPLETED
    told = bench.server.calls("complete")[0].json["outputs"]
    assert [output["name"] for output in told] == list(every), "in the same order"
    inline = {output["name"]: base64.b64decode(output["content"]) for output in told if "content" in output}
    assert sorted(map(len, inline.values())) == sizes[:4]
    for name, content in inline.items():
        assert hashlib.sha256(content).hexdigest() == every[name]["sha256"]
        assert bench.server.calls(name) == []
    assert all(len(bench.server.calls(name)) == 1 for name in every.keys() - inline.keys())


@pytest.mark.parametrize(("status", "code"), [(413, "too_large"), (422, "output_mismatch"), (507, "storage_full")])
async def test_small_results_that_are_not_taken_with_the_report_are_uploaded(
    bench: Bench, status: int, code: str
) -> None:
    """By an API of another version, behind a proxy with a limit of its own, with a full disk: nothing is lost by it."""
    bench.server.on("complete", problem(status, code), answer(SUCCEEDED))
    assert await bench.run(inlineBytes=10**9) is Ending.COMPLETED
    first, second = bench.server.calls("complete")
    assert {"content" in output for output in first.json["outputs"]} == {True}
    assert {"content" in output for output in second.json["outputs"]} == {False}
    assert all(len(bench.server.calls(f"map{suffix}")) == 1 for suffix in SUFFIXES)
    told = [{key: value for key, value in one.items() if key != "content"} for one in first.json["outputs"]]
    assert second.json == first.json | {"outputs": told}, "the same report"


async def test_small_results_that_are_neither_taken_nor_uploaded_wait_like_others(bench: Bench) -> None:
    """Refused with the report, then an outage for longer than the lease: nothing is thrown away."""
    for sign in ("heartbeat", "progress"):
        bench.server.on(sign, answer(renewed(seconds=1)))
    enough = asyncio.Event()

    async def hanging(request: Request) -> Response:
        away(bench.server, "heartbeat", "complete")
        await enough.wait()
        return Response(status_code=503)

    bench.server.on("map.png", hanging)
    bench.server.on("complete", problem(413, "too_large"))
    assert await bench.run(inlineBytes=10**9, leaseSeconds=1) is Ending.KEPT
    enough.set()
    bench.server.on("map.png", answer(status=200))
    bench.server.on("complete", answer(SUCCEEDED))
    bench.server.on("heartbeat", answer(renewed()))
    await until(lambda: bench.folders() == [])
    assert bench.server.calls("fail") == []


async def test_small_results_that_wait_are_uploaded(bench: Bench) -> None:
    """A waiting report is sent without inline results, since the lost answer may have been an acceptance."""
    bench.server.on("heartbeat", answer(renewed(seconds=1)))

    async def garbage(request: Request) -> Response:
        away(bench.server, "heartbeat")
        return GARBAGE

    bench.server.on("complete", garbage)
    assert await bench.run(inlineBytes=10**9) is Ending.KEPT
    assert bench.server.calls("map.png") == []
    bench.server.on("complete", answer(SUCCEEDED))
    bench.server.on("heartbeat", answer(renewed()))
    await until(lambda: bench.folders() == [])
    assert all(len(bench.server.calls(f"map{suffix}")) == 1 for suffix in SUFFIXES)
    assert "content" not in bench.server.calls("complete")[-1].json["outputs"][0]


async def test_small_results_of_an_accepted_report_with_a_lost_answer_are_not_uploaded(bench: Bench) -> None:
    """The job has ended with them. The report is repeated and gets its first answer."""
    post_results(bench).release()
    bench.server.on("heartbeat", problem(409, "already_finalized"))
    bench.server.on("complete", answer(SUCCEEDED | {"replayed": True}))
    sender = next_process(bench)
    with capture_logs() as said:
        await sender.start()
        await until(lambda: bench.folders() == [])
    assert "report_delivered" in [line["event"] for line in said]
    assert bench.server.calls("map.png") == []
    await sender.stop()


@pytest.mark.parametrize("offer", [{}, {"inlineBytes": 0}])
async def test_without_inline_bytes_even_an_empty_result_is_uploaded(bench: Bench, offer: dict[str, int]) -> None:
    """An API that knows no such thing would not find it."""
    outputs = [
        OutputFile(name="a", path=bench.folder, content_type="text/plain", size_bytes=0, sha256="0" * 64),
        OutputFile(name="b", path=bench.folder, content_type="text/plain", size_bytes=9, sha256="0" * 64),
    ]
    assert inline.choose(outputs, job(bench, **offer).inline_bytes) == frozenset()
    assert inline.choose(outputs, 8) == {"a"}


def test_inline_results_are_bounded_by_a_slow_link(bench: Bench) -> None:
    """Whatever the API offers."""
    large = OutputFile(name="a", path=bench.folder, content_type="text/plain", size_bytes=262_145, sha256="0" * 64)
    assert inline.choose([large], 2**60) == frozenset()
    assert inline.choose([large.model_copy(update={"size_bytes": 262_144})], 2**60) == {"a"}


@pytest.mark.parametrize(
    ("change", "code"),
    [({"uploads": []}, "no_upload_slot"), ({"maxBytes": 3}, "output_too_large")],
)
async def test_a_small_result_without_a_fitting_slot_fails_its_job_by_name(
    bench: Bench, change: dict[str, Any], code: str
) -> None:
    slots = change.get("uploads", [slot | change for slot in bench.job()["uploads"]])
    await bench.run(inlineBytes=10**6, uploads=slots)
    assert bench.failure()["code"] == code


def test_the_next_process_uploads_no_result_again(bench: Bench) -> None:
    """Of two results one is there. Both stay on disk until the API has accepted them, for another upload."""
    folder = bench.folder / "work" / "made"
    folder.mkdir(parents=True)
    told = []
    for name in ("map.png", "map.json"):
        (folder / name).write_bytes(b"picture")
        told.append(ReportedOutput(name=name, size_bytes=7, sha256="0" * 64, content_type="image/png"))
    body = Completion(outputs=tuple(told), metadata={}, timings={})
    report = post(bench, job(bench), body, folder)
    report.mark_uploaded(body, ["map.png"])
    report.release()
    (again,) = next_process(bench).outbox.take_over()
    assert [output.name for output in again.outputs()] == ["map.json"]
    again.mark_uploaded(body, ["map.json"])
    assert again.record.state is ReportState.SENT
    assert again.outputs() == []
    again.forget_uploads()
    assert [output.path.read_bytes() for output in again.outputs()] == [b"picture"] * 2
    again.release()


async def test_results_that_are_not_uploaded_yet_are_uploaded_under_a_renewed_lease(bench: Bench) -> None:
    bench.server.on("heartbeat", answer(renewed(seconds=1)))

    enough = asyncio.Event()

    async def hanging(request: Request) -> Response:
        away(bench.server, "heartbeat", "progress", "complete")
        await enough.wait()
        return Response(status_code=503)

    bench.server.on("map.png", hanging)
    assert await bench.run() is Ending.KEPT
    enough.set()
    seen = len(bench.server.asked)
    bench.server.on("map.png", answer(status=200))
    bench.server.on("complete", answer(SUCCEEDED))
    bench.server.on("heartbeat", answer(renewed()))
    await until(lambda: bench.folders() == [])
    later = [asked.path.rsplit("/", 1)[-1] for asked in bench.server.asked[seen:]]
    assert later[-1] == "complete"
    assert {f"map{suffix}" for suffix in SUFFIXES} <= set(later)
    assert later.index("heartbeat") < min(later.index(f"map{suffix}") for suffix in SUFFIXES)


async def test_a_job_whose_lease_ends_in_an_outage_is_given_back_after_the_outage(endless: Bench) -> None:
    endless.server.on("heartbeat", answer(renewed(seconds=1)), problem(502, "bad-gateway"))
    away(endless.server, "progress", "fail")
    assert await endless.run() is Ending.KEPT
    endless.server.on("fail", FAILED)
    await until(lambda: endless.folders() == [])
    error = endless.server.calls("fail")[-1].json["error"]
    assert (error["code"], error["class"]) == ("worker_trouble", "interrupted")
    assert error["detail"] == {"trouble": "api unreachable", "instead_of": "lease_expired"}


async def test_the_next_process_sends_the_reports_of_a_dead_one(bench: Bench) -> None:
    post_results(bench).release()
    post(bench, job(bench, id="other"), failure()).release()
    sender = next_process(bench)
    with capture_logs() as records:
        await sender.start()
        await until(lambda: bench.folders() == [])
    errors = [record for record in records if record["log_level"] == "error"]
    assert [(record["event"], record["code"]) for record in errors] == [("job_failed_for_good", "trouble")]
    (put,) = bench.server.calls("map.png")
    assert put.body == b"picture"
    (completed,), (failed,) = bench.server.calls("complete"), bench.server.calls("fail")
    assert failed.path.split("/")[-2] == "other"
    assert completed.headers["lease-token"] == failed.headers["lease-token"] == "1.secret"
    await sender.stop()


async def test_a_report_of_a_living_process_is_left_alone(bench: Bench) -> None:
    report = post_results(bench)
    sender = next_process(bench)
    await sender.start()
    await sender.stop()
    assert bench.server.asked == []
    assert len(bench.folders()) == 1
    report.close()


async def test_a_report_for_another_api_is_left_for_its_worker(bench: Bench) -> None:
    report = post_results(bench)
    report.release()
    other = Outbox(bench.outbox.temp_dir, "https://other.example", max_age=3600, max_reports=10)
    assert other.take_over() == []
    assert len(next_process(bench).outbox.take_over()) == 1


@pytest.mark.parametrize(("status", "code"), [(404, "job_not_found"), (409, "lease_lost"), (409, "already_finalized")])
async def test_a_report_that_the_api_rejects_is_dropped_with_a_log_line(bench: Bench, status: int, code: str) -> None:
    post_results(bench).release()
    bench.server.on("heartbeat", problem(status, code))
    bench.server.on("complete", problem(status, code))
    sender = next_process(bench)
    with capture_logs() as said:
        await sender.start()
        await until(lambda: bench.folders() == [])
        await sender.stop()
    assert [line["reason"].split(":")[0] for line in said if line["event"] == "report_dropped"] == [code]
    assert bench.server.calls("map.png") == []
    # A job that has ended under this lease may have ended by this report.
    assert len(bench.server.calls("complete")) == (code == "already_finalized")


@pytest.mark.parametrize("inline", [0, 1000])
async def test_results_that_storage_lacks_are_uploaded_again_with_the_same_report(bench: Bench, inline: int) -> None:
    """A proxy confirmed an upload without storing it: the job loses no attempt."""
    bench.server.on("complete", problem(422, "output_mismatch"), answer(SUCCEEDED))
    assert await bench.run(inlineBytes=inline) is Ending.COMPLETED
    first, second = bench.server.calls("complete")
    inlined = {output["name"] for output in first.json["outputs"] if "content" in output}
    assert bool(inlined) == bool(inline)
    assert not any("content" in output for output in second.json["outputs"])
    for output in first.json["outputs"]:
        assert len(bench.server.calls(output["name"])) == (1 if output["name"] in inlined else 2)
    assert bench.server.calls("fail") == []
    assert bench.folders() == []


async def test_results_that_the_api_does_not_take_fail_their_job(bench: Bench) -> None:
    post_results(bench).release()
    bench.server.on("complete", problem(422, "output_mismatch"))
    sender = next_process(bench)
    await sender.start()
    await until(lambda: bench.folders() == [])
    assert bench.failure_after_completion()["code"] == "output_mismatch"
    await sender.stop()


async def test_a_failure_that_the_api_rejects_is_reported_in_few_words_also_from_the_outbox(bench: Bench) -> None:
    post(bench, job(bench), failure()).release()
    bench.server.on("fail", problem(422, "validation"), FAILED)
    sender = next_process(bench)
    await sender.start()
    await until(lambda: bench.folders() == [])
    assert [call.json["error"]["code"] for call in bench.server.calls("fail")] == ["trouble", "report_rejected"]
    await sender.stop()


@pytest.mark.parametrize(
    ("error", "without_results", "with_results", "of_a_failure"),
    [
        (LeaseExpired("too late"), Verdict.RETRY, Verdict.RETRY, Verdict.RETRY),
        (TokenRefused("http_401", ""), Verdict.RETRY, Verdict.RETRY, Verdict.RETRY),
        (Unavailable("http_502", ""), Verdict.RETRY, Verdict.RETRY, Verdict.RETRY),
        (LeaseLost("lease_lost", ""), Verdict.CLOSE, Verdict.CLOSE, Verdict.CLOSE),
        (LeaseLost("already_finalized", ""), Verdict.CLOSE, Verdict.RESEND, Verdict.CLOSE),
        (Rejected("output_mismatch", ""), Verdict.FAIL, Verdict.FAIL, Verdict.CLOSE),
        (CancelRequested("not wanted", 5), Verdict.FAIL, Verdict.FAIL, Verdict.FAIL),
        (JobError("upload_failed", "", ErrorClass.TRANSIENT), Verdict.FAIL, Verdict.FAIL, Verdict.FAIL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_one_consequence_for_a_report(
    bench: Bench, error: Any, without_results: Verdict, with_results: Verdict, of_a_failure: Verdict
) -> None:
    """Before there is a report, for posted results, and for a failure."""
    assert verdict(error) is without_results
    posted = post_results(bench)
    assert verdict(error, posted) is with_results
    posted.close()
    assert verdict(error, bench.outbox.build(job(bench), failure())) is of_a_failure


def test_a_report_that_cannot_be_written_stays_built_and_leaves_nothing(bench: Bench) -> None:
    """A failure is sent all the same then."""
    report = bench.outbox.build(job(bench), failure())
    with pytest.raises(JobError, match="no room"):
        bench.outbox.post(report, bench.folder / "no such folder")
    assert report.record.state is ReportState.BUILT
    assert bench.folders() == []


async def test_a_job_cancelled_meanwhile_is_given_up_and_its_results_go(bench: Bench) -> None:
    post_results(bench).release()
    bench.server.on("heartbeat", answer(renewed() | {"cancel": {"reason": "wrong file", "graceSeconds": 5}}))
    sender = next_process(bench)
    await sender.start()
    await until(lambda: bench.folders() == [])
    assert bench.failure()["class"] == "cancelled"
    await sender.stop()


async def test_of_too_many_reports_the_oldest_is_dropped(bench: Bench) -> None:
    away(bench.server, "fail")
    for number in range(3):
        bench.outbox.wall_clock = lambda number=number: 1e9 + number  # type: ignore[misc]
        post(bench, job(bench, id=f"job-{number}"), failure()).release()
    sender = next_process(bench, max_reports=2, max_age=1e12)
    with capture_logs() as said:
        await sender.start()
    assert [line["job_id"] for line in said if line["event"] == "report_dropped"] == ["job-0"]
    assert sorted(folder.name.split("_")[0] for folder in bench.folders()) == ["job-1", "job-2"]
    await sender.stop()


async def test_a_report_that_waited_too_long_is_dropped_without_a_call(bench: Bench) -> None:
    post(bench, job(bench), failure()).release()
    sender = next_process(bench, max_age=60)
    sender.outbox.wall_clock = lambda: bench.outbox.wall_clock() + 61
    await sender.start()
    await until(lambda: bench.folders() == [])
    assert bench.server.asked == []
    await sender.stop()


async def test_a_report_that_was_not_written_whole_is_no_report(bench: Bench) -> None:
    report = post_results(bench)
    (folder,) = bench.folders()
    report.release()
    whole = (folder / "report.json").read_bytes()
    (folder / "report.json").write_bytes(whole[: len(whole) // 2])
    (folder.parent / "begun_x" / "outputs").mkdir(parents=True)
    assert next_process(bench).outbox.take_over() == []
    assert bench.folders() == []


@pytest.mark.parametrize("way", ["link", "second name", "link to a folder"])
async def test_a_report_cannot_be_made_to_send_a_file_from_elsewhere(bench: Bench, way: str) -> None:
    report = post_results(bench)
    (folder,) = bench.folders()
    secret = bench.folder / "elsewhere" / "map.png"
    secret.parent.mkdir()
    secret.write_bytes(b"of the worker")
    shutil.rmtree(folder / "outputs")
    if way == "link to a folder":
        (folder / "outputs").symlink_to(secret.parent)
    else:
        (folder / "outputs").mkdir()
        result = folder / "outputs" / "map.png"
        result.symlink_to(secret) if way == "link" else result.hardlink_to(secret)
    report.release()
    sender = next_process(bench)
    await sender.start()
    await until(lambda: bench.folders() == [])
    assert all(b"of the worker" not in asked.body for asked in bench.server.asked)
    assert bench.server.calls("complete") == []
    assert bench.failure()["code"] == "workspace_unavailable"
    await sender.stop()


def test_a_report_is_neither_written_nor_read_through_a_link(bench: Bench) -> None:
    """At its file, at the unfinished file, at its folder or at the outbox."""
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir()
    report = post_results(bench)
    (folder,) = bench.folders()
    moved = folder.rename(folder.with_name("moved"))
    folder.symlink_to(elsewhere)
    report.replace(failure())
    assert b"trouble" in (moved / "report.json").read_bytes()
    (moved / "report.json.part").symlink_to(elsewhere / "written")
    with pytest.raises(OSError, match="symbolic links"):
        report.replace(failure())
    report.release()
    (moved / "report.json").rename(bench.folder / "report.json")
    (moved / "report.json").symlink_to(bench.folder / "report.json")
    assert next_process(bench).outbox.take_over() == []
    folder.unlink()
    assert bench.folders() == []
    folder.parent.rmdir()
    folder.parent.symlink_to(elsewhere)
    with pytest.raises(JobError, match="no room"):
        post(bench, job(bench), failure())
    assert (bench.folder / "report.json").exists()
    assert list(elsewhere.iterdir()) == []


def test_no_other_user_can_read_waiting_reports(bench: Bench) -> None:
    report = post_results(bench)
    (folder,) = bench.folders()
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "report.json").stat().st_mode & 0o077 == 0
    report.close()


async def test_a_stopping_worker_keeps_undelivered_reports(endless: Bench) -> None:
    away(endless.server, "fail")
    running = asyncio.create_task(endless.run())
    await until(lambda: any(call.json["stage"] == "render" for call in endless.server.calls("progress")))
    endless.interrupt.set()
    assert await running is Ending.INTERRUPTED
    await endless.tools.sender.stop()
    assert len(endless.folders()) == 1
    endless.server.on("fail", FAILED)
    sender = next_process(endless)
    await sender.start()
    await until(lambda: endless.folders() == [])
    assert endless.server.calls("fail")[-1].json["error"]["class"] == "interrupted"
    await sender.stop()


def test_a_lock_ends_with_its_process_and_not_before(bench: Bench) -> None:
    report = post_results(bench)
    (folder,) = bench.folders()
    with workspace.searching(bench.outbox.temp_dir):
        assert workspace.take_over(folder) is None
    report.release()
    with workspace.searching(bench.outbox.temp_dir):
        owner = workspace.take_over(folder)
    assert owner is not None
    owner.release()
