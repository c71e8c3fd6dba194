"""Pipelines: stages in sequence, independent branches, progress and cancellation of the whole."""

from __future__ import annotations

from typing import Any

import pytest

from geo_jobs_api.cli import main
from tests.support.api import RunningApi
from tests.support.clients import TIFF, Person, Worker, code_of, put, rows


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """An API that allows all source hosts."""
    return shared_linked_api


def job(name: str, **fields: Any) -> dict[str, Any]:
    source = {} if "inputFrom" in fields else {"sourceUrl": f"https://maps.example.org/{name.replace(' ', '-')}.tif"}
    return {"name": name, "taskType": "geotiff_to_png", "inputPayload": source} | fields


def body(*stages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": "morning", "stages": [{"name": f"s{n}", "jobs": jobs} for n, jobs in enumerate(stages, 1)]}


def make(person: Person, *stages: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = person.http.post("/api/pipelines", json=body(*stages)).raise_for_status().json()
    return made


def look(person: Person, pipeline: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = person.http.get(f"/api/pipelines/{pipeline['id']}").raise_for_status().json()
    return told


def states(person: Person, pipeline: dict[str, Any]) -> dict[str, str]:
    stages = look(person, pipeline)["stages"]
    return {job["name"]: job["state"] for stage in stages for job in stage["jobs"]}


def claim(worker: Worker, person: Person, pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = {job["id"]: job["name"] for stage in look(person, pipeline)["stages"] for job in stage["jobs"]}
    return {names[job["id"]]: job for job in worker.claim_all(maxJobs=20)}


def test_stages_follow_each_other_and_jobs_of_a_stage_run_together(person: Person, worker: Worker) -> None:
    """The pipeline is done when all jobs are. Its progress is the mean of its jobs'."""
    made = make(person, [job("a"), job("b")], [job("c"), job("d")], [job("e")])
    assert (made["state"], made["percent"], made["counts"]) == ("running", 0, {"queued": 2, "blocked": 3})
    first = claim(worker, person, made)
    assert set(first) == {"a", "b"}
    worker.complete(first["a"], [])
    assert claim(worker, person, made) == {}
    worker.complete(first["b"], [])
    second = claim(worker, person, made)
    assert set(second) == {"c", "d"}
    assert (look(person, made)["percent"], look(person, made)["stages"][0]["state"]) == (40, "succeeded")
    for one in second.values():
        worker.complete(one, [])
    worker.complete(claim(worker, person, made)["e"], [])
    done = look(person, made)
    assert (done["state"], done["percent"], done["counts"]) == ("succeeded", 100, {"succeeded": 5})
    assert done["finishedAt"] is not None


def test_an_error_in_one_branch_leaves_the_others_alone(person: Person, worker: Worker) -> None:
    """Jobs that depend on the failed one by input or by name are cancelled. The others continue."""
    made = make(
        person,
        [job("a"), job("b")],
        [job(f"from {name}", inputFrom={"job": name, "output": ".png"}) for name in "ab"],
        [
            job("after a", dependsOn=[{"job": "from a"}]),
            job("after b", dependsOn=[{"job": "from b"}]),
            job("report", onParentFailure="run"),
            job("free", dependsOn=[]),
        ],
    )  # fmt: skip
    jobs = claim(worker, person, made)
    assert set(jobs) == {"a", "b", "free"}
    worker.fail(jobs["a"], "invalid_input")
    assert states(person, made)["from b"] == "blocked"
    worker.complete(jobs["b"])
    ((name, one),) = claim(worker, person, made).items()
    assert (name, one["input"]["fileName"]) == ("from b", "b.png")
    worker.complete(one)
    assert states(person, made) == {
        "a": "failed", "b": "succeeded", "from a": "cancelled", "from b": "succeeded", "after a": "cancelled",
        "after b": "queued", "report": "queued", "free": "running",
    }  # fmt: skip
    worker.complete(jobs["free"], [])
    for rest in claim(worker, person, made).values():
        worker.complete(rest, [])
    assert look(person, made)["state"] == "failed"


def test_a_first_job_may_wait_for_its_upload(person: Person, worker: Worker) -> None:
    """By the same call as for other jobs."""
    made = make(person, [job("a", inputPayload={})], [job("b")])
    job_id = made["stages"][0]["jobs"][0]["id"]
    assert states(person, made) == {"a": "awaiting_upload", "b": "blocked"}
    put(person.upload_url(job_id), content=TIFF).raise_for_status()
    worker.complete(worker.claim())
    assert states(person, made) == {"a": "succeeded", "b": "queued"}


def test_cancelling_the_pipeline_stops_its_open_jobs(person: Person, worker: Worker) -> None:
    """Running jobs are stopped through their workers. Succeeded ones stay."""
    made = make(person, [job("a"), job("b")], [job("c")])
    jobs = claim(worker, person, made)
    worker.complete(jobs["a"], [])
    answer = person.http.post(f"/api/pipelines/{made['id']}/cancel", json={"reason": "Not today."})
    assert answer.json()["state"] == "running"
    assert states(person, made) == {"a": "succeeded", "b": "running", "c": "cancelled"}
    assert worker.heartbeat(jobs["b"])["cancel"]["reason"] == "Not today."
    worker.fail(jobs["b"], "cancelled")
    assert look(person, made)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([[job("a"), job("a")]], "given twice"),
        ([[job("a", dependsOn=[{"job": "z"}])]], "no job of this pipeline"),
        ([[job("a", dependsOn=[{"job": "b"}]), job("b", dependsOn=[{"job": "a"}])]], "circle"),
        ([[job("a", dependsOn=[{"job": "a"}])]], "circle"),
        (
            [[job("a")], [job("b", inputFrom={"job": "a", "output": ".png"}, onParentFailure="run")]],
            "without its input",
        ),
    ],
)
def test_an_impossible_pipeline_is_rejected_with_the_reason(person: Person, stages: Any, said: str) -> None:
    """Before anything is created."""
    answer = person.http.post("/api/pipelines", json=body(*stages))
    assert code_of(answer) == (422, "validation")
    assert said in str(answer.json())
    assert person.http.get("/api/pipelines").json()["pipelines"] == []


def test_nothing_of_a_pipeline_is_created_when_a_task_type_is_unknown(person: Person) -> None:
    """Neither its other jobs nor the pipeline."""
    answer = person.http.post("/api/pipelines", json=body([job("a", taskType="nothing")], [job("b")]))
    assert code_of(answer) == (422, "unknown_task_type")
    assert person.http.get("/api/geo-jobs").json()["jobs"] == []


def test_a_repeated_request_gives_the_same_pipeline(person: Person) -> None:
    """By its Idempotency-Key. Another body under it is a conflict."""
    key = {"Idempotency-Key": "p1"}
    first = person.http.post("/api/pipelines", json=body([job("a")], [job("b")]), headers=key)
    again = person.http.post("/api/pipelines", json=body([job("a")], [job("b")]), headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert code_of(person.http.post("/api/pipelines", json=body([job("z")]), headers=key)) == (
        409,
        "idempotency_conflict",
    )


def test_a_pipeline_is_its_owners(person: Person, api: RunningApi) -> None:
    """Another caller neither sees nor stops it. An administrator does."""
    made = make(person, [job("a")])
    bob, admin = Person(api, "bob"), Person(api, "root", admin=True)
    assert code_of(bob.http.get(f"/api/pipelines/{made['id']}")) == (404, "pipeline_not_found")
    assert code_of(bob.http.post(f"/api/pipelines/{made['id']}/cancel")) == (404, "pipeline_not_found")
    assert admin.http.get("/api/pipelines").json()["pipelines"][0]["id"] == made["id"]


def test_the_command_line_shows_and_cancels_a_pipeline(
    person: Person, api: RunningApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each job with its stage and state, or JSON as in the API's response."""
    made = make(person, [job("a")], [job("b")])
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)
    monkeypatch.setenv("DATABASE_URL", api.settings.conninfo or "")
    monkeypatch.setenv("DATA_DIR", str(api.settings.data_dir))
    assert main(["pipelines", "show", made["id"]]) == 0
    assert "s1" in (told := capsys.readouterr().out)
    assert "blocked" in told
    assert main(["pipelines", "cancel", made["id"]]) == 0
    assert capsys.readouterr().out == "Cancelled 2 jobs.\n"
    assert main(["pipelines", "list", "--json"]) == 0
    assert '"cancelled": 2' in capsys.readouterr().out
    assert rows(api.settings.conninfo or "", "SELECT count(*) FROM pipelines")[0]["count"] == 1
