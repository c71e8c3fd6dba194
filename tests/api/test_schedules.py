"""Schedules over HTTP and in the transaction in which they fire, with simulated time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from geo_jobs_api.cli import main
from geo_jobs_api.database.pool import Pool, open_pool
from geo_jobs_api.hosts import parse_hosts
from geo_jobs_api.jobs.creation_store import CreationStore
from geo_jobs_api.schedules.content import check_schedule
from geo_jobs_api.schedules.records import Schedule
from geo_jobs_api.schedules.scheduler import Scheduler
from geo_jobs_api.schedules.schemas import PutSchedule
from geo_jobs_api.schedules.store import ScheduleStore
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of, rows
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
ANY = parse_hosts("*")
MORNING = datetime(2026, 6, 1, 6, 0, tzinfo=UTC)
TEMPLATE = {
    "taskType": "geotiff_to_png",
    "inputPayload": {"sourceUrl": "https://maps.example.org/a.tif"},
    "priority": 7,
}
HOURLY = {"name": "hourly", "cron": "0 * * * *", "template": TEMPLATE}
PIPELINE = {
    "name": "p",
    "stages": [
        {"name": "one", "jobs": [TEMPLATE | {"name": "a"}]},
        {
            "name": "two",
            "jobs": [{"taskType": "geotiff_to_png", "name": "b", "inputFrom": {"job": "a", "output": ".png"}}],
        },
    ],
}


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """An API that allows all source hosts."""
    return shared_linked_api


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[Pool]:
    async with open_pool(postgres_url, size=4, wait_seconds=10) as opened:
        yield opened


class Game:
    """Schedules in their own database, with a clock that the test sets."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        self.store = ScheduleStore(pool)
        self.creation = CreationStore(pool)
        self.url = database_url
        self.now = MORNING
        self.runner = self.scheduler()

    def scheduler(self, max_open: int = 0) -> Scheduler:
        return Scheduler(self.store, ANY, asyncio.Event(), max_open=max_open, clock=lambda: self.now)

    async def create(self, **fields: Any) -> Schedule:
        made = await self.store.create_schedule(uuid7(), "ada", *await self.content(**fields))
        assert made is not None
        return made

    async def content(self, **fields: Any) -> tuple[PutSchedule, Sequence[datetime]]:
        body = PutSchedule.model_validate(HOURLY | fields)
        return body, await check_schedule(self.creation, ANY, "ada", body, self.now)

    async def play(self, hours: float) -> None:
        self.now += timedelta(hours=hours)
        while await self.runner.run_once():
            pass

    async def outcomes(self, schedule: Schedule) -> list[tuple[int, str]]:
        fires = await self.store.list_fires(schedule.id, limit=100)
        return [(fire.fire_time.hour, fire.outcome) for fire in reversed(fires)]

    def end_jobs(self, state: str = "cancelled") -> None:
        rows(self.url, "UPDATE jobs SET state = %s, finished_at = now() WHERE finished_at IS NULL", state)


@pytest.fixture
def game(pool: Pool, postgres_url: str) -> Game:
    return Game(pool, postgres_url)


async def test_a_fire_makes_the_job_of_the_template_at_its_moment(game: Game) -> None:
    """Nothing before it. The next moment follows from the moment, not from the time of the query."""
    made = await game.create(jitterSeconds=600, template=TEMPLATE | {"notifyAfterSeconds": 7200})
    await game.play(0.5)
    assert await game.outcomes(made) == []
    await game.play(0.6)
    (job,) = rows(game.url, "SELECT * FROM jobs")
    assert (job["owner"], job["priority"], job["state"], job["source_url"]) == (
        "ada", 7, "queued", "https://maps.example.org/a.tif"
    )  # fmt: skip
    assert timedelta(0) <= job["run_at"] - (MORNING + timedelta(hours=1)) < timedelta(minutes=10)
    assert job["notify_at"] == MORNING + timedelta(hours=3)
    after = await game.store.find_schedule(made.id)
    assert after is not None
    assert (after.next_run_at, after.last_run_at) == (MORNING + timedelta(hours=2), MORNING + timedelta(hours=1))


async def test_any_number_of_schedulers_fires_once(game: Game) -> None:
    """Sixteen concurrent schedulers over forty schedules create one job each."""
    for number in range(40):
        await game.create(name=f"s{number}")
    game.now += timedelta(hours=1)
    await asyncio.gather(*(game.scheduler().run_once() for _ in range(16)))
    assert rows(game.url, "SELECT count(*), count(DISTINCT schedule_id) AS each FROM jobs") == [
        {"count": 40, "each": 40}
    ]


async def test_jobs_of_schedules_count_against_their_owners_quota(game: Game) -> None:
    """Jobs and pipelines of many schedules, by concurrent schedulers and by hand. Excess fires fail."""
    made = [await game.create(name=f"s{number}") for number in range(4)]
    made += [await game.create(name=f"p{number}", template=PIPELINE) for number in range(2)]
    others = await game.content(name="bob's")
    assert await game.store.create_schedule(uuid7(), "bob", *others) is not None
    game.now += timedelta(hours=1)
    await asyncio.gather(*(game.scheduler(max_open=3).run_once() for _ in range(4)))
    open_jobs = {
        row["owner"]: row["count"] for row in rows(game.url, "SELECT owner, count(*) FROM jobs GROUP BY owner")
    }
    assert open_jobs == {"ada": 3, "bob": 1}
    told = [(await game.store.list_fires(one.id, limit=9))[0] for one in made]
    assert len([fire for fire in told if fire.outcome == "failed"]) >= 2
    assert {fire.outcome for fire in told} == {"created", "failed"}
    why = [fire.error or "" for fire in told if fire.outcome == "failed"]
    assert all("more than the limit of 3" in words for words in why)
    refused = next(one for one, fire in zip(made, told, strict=True) if fire.outcome == "failed")
    after = await game.store.find_schedule(refused.id)
    assert after is not None
    assert after.last_error in why
    assert after.next_run_at == MORNING + timedelta(hours=2)
    manual = await game.scheduler(max_open=3).run_now(refused.id)
    assert manual is not None
    assert manual.outcome == "failed"
    game.end_jobs()
    assert (await game.scheduler(max_open=3).run_now(made[0].id) or manual).outcome == "created"


@pytest.mark.parametrize(
    ("fields", "outcomes", "jobs"),
    [
        ({"catchUp": 0}, [(11, "missed")], 0),
        ({}, [(11, "created")], 1),
        ({"catchUp": 3, "overlap": "allow"}, [(9, "created"), (10, "created"), (11, "created")], 3),
        ({"catchUp": 3}, [(9, "created"), (10, "overlap"), (11, "overlap")], 1),
        (
            {"catchUp": 3, "overlap": "cancel_old"},
            [(9, "overlap"), (10, "overlap"), (11, "created")],
            1,
        ),
    ],
)
async def test_after_an_outage_missed_fires_follow_the_schedule(
    game: Game, fields: dict[str, Any], outcomes: list[tuple[int, str]], jobs: int
) -> None:
    """None, one for all, or the latest few. Then the plan continues."""
    made = await game.create(**fields)
    await game.play(5.5)
    assert await game.outcomes(made) == outcomes
    assert rows(game.url, "SELECT count(*) FROM jobs")[0]["count"] == jobs
    after = await game.store.find_schedule(made.id)
    assert after is not None
    assert after.next_run_at == MORNING + timedelta(hours=6)


@pytest.mark.parametrize(
    ("overlap", "states"),
    [("allow", ["queued", "queued"]), ("skip", ["queued"]), ("cancel_old", ["cancelled", "queued"])],
)
async def test_an_open_run_follows_the_overlap_policy(game: Game, overlap: str, states: list[str]) -> None:
    """Both, the first, or the last. Once none is open, the next one is created again."""
    await game.create(overlap=overlap)
    await game.play(1)
    await game.play(1)
    assert [job["state"] for job in rows(game.url, "SELECT state FROM jobs ORDER BY id")] == states
    game.end_jobs()
    await game.play(1)
    assert rows(game.url, "SELECT count(*) FROM jobs WHERE state = 'queued'")[0]["count"] == 1


async def test_missed_fires_beyond_one_round_are_made_up_in_several(game: Game) -> None:
    """Two days of hourly fires, twenty at a time, each once."""
    made = await game.create(catchUp=100, overlap="allow")
    await game.play(48)
    assert [hour for hour, _ in await game.outcomes(made)] == [(7 + number) % 24 for number in range(48)]


async def test_a_schedule_creates_pipelines_too(game: Game) -> None:
    """All of its jobs count for the overlap."""
    made = await game.create(template=PIPELINE)
    await game.play(1)
    await game.play(1)
    assert await game.outcomes(made) == [(7, "created"), (8, "overlap")]
    assert [job["state"] for job in rows(game.url, "SELECT state FROM jobs ORDER BY id")] == ["queued", "blocked"]


async def test_a_failing_schedule_is_reported_and_does_not_block_others(game: Game) -> None:
    """A missing task type, a template of another version, content that cannot be stored: the others fire."""
    gone, broken, rejected = [await game.create(name=name) for name in ("gone", "broken", "rejected")]
    change = "UPDATE schedules SET template = %s::jsonb WHERE id = %s"
    rows(game.url, change, '{"taskType": "no_such_type", "inputPayload": {"sourceUrl": "https://e.org/a"}}', gone.id)
    rows(game.url, change, '{"nothing": 1}', broken.id)
    rows(game.url, "UPDATE schedules SET owner = 'forbidden' WHERE id = %s", rejected.id)
    rows(game.url, "ALTER TABLE jobs ADD CONSTRAINT no_such_owner CHECK (owner <> 'forbidden')")
    good = await game.create(name="good")
    await game.play(1)
    assert await game.outcomes(good) == [(7, "created")]
    assert await game.outcomes(gone) == [(7, "failed")]
    found = {schedule.name: schedule for schedule in await game.store.list_schedules(owner=None, after=None, limit=9)}
    errors = {name: schedule.last_error or "" for name, schedule in found.items()}
    assert "no_such_type" in errors["gone"]
    assert "stored content is invalid" in errors["broken"]
    assert "could not be stored" in errors["rejected"]
    assert await game.runner.run_once() == 0


async def test_an_unchanged_source_is_requested_with_the_last_validators(game: Game) -> None:
    """Also after a "not modified". Not for another payload, and not without results."""
    made = await game.create(skipUnchanged=True)

    async def next_condition() -> Any:
        await game.play(1)
        return rows(game.url, "SELECT source_condition FROM jobs ORDER BY id DESC LIMIT 1")[0]["source_condition"]

    def succeed(source: dict[str, Any]) -> None:
        rows(
            game.url,
            "UPDATE jobs SET state = 'succeeded', finished_at = now(), outputs = '[]', output_lease_seq = 1,"
            " source_validators = %s::jsonb WHERE finished_at IS NULL",
            json.dumps(source),
        )

    assert await next_condition() is None
    succeed({"etag": '"1"', "lastModified": "Tue, 15 Nov 2022 12:45:26 GMT", "unchanged": False})
    assert await next_condition() == {"etag": '"1"', "lastModified": "Tue, 15 Nov 2022 12:45:26 GMT"}
    succeed({"etag": None, "lastModified": None, "unchanged": True})
    assert (await next_condition())["etag"] == '"1"'
    succeed({"etag": '"1"', "unchanged": True})
    rows(game.url, "UPDATE jobs SET purge_started_at = now() WHERE NOT (source_validators ->> 'unchanged')::boolean")
    assert await next_condition() is None
    succeed({"etag": '"2"', "unchanged": False})
    other = TEMPLATE | {"inputPayload": {"sourceUrl": "https://maps.example.org/a.tif", "maxSize": 10}}
    content = await game.content(template=other, skipUnchanged=True)
    await game.store.replace_schedule(made.id, *content)
    assert await next_condition() is None


def test_a_schedule_over_http_from_creation_to_its_end(person: Person, worker: Worker, api: RunningApi) -> None:
    """Read, paused, resumed, run, changed, reset, deleted. Its next moments are always visible."""
    url = "/api/schedules"
    made = person.http.post(url, json=HOURLY | {"timeZone": "Europe/Berlin"})
    assert made.status_code == 201
    one = f"{url}/{made.json()['id']}"
    assert made.headers["Location"] == one
    assert len(made.json()["upcoming"]) == 5
    assert made.json()["nextRunAt"] == made.json()["upcoming"][0]
    assert code_of(person.http.post(url, json=HOURLY)) == (409, "invalid_state")

    assert person.http.post(f"{one}/pause").json()["nextRunAt"] is None
    assert person.http.post(f"{one}/pause").json()["paused"] is True
    fire = person.http.post(f"{one}/run").json()
    assert (fire["outcome"], fire["manual"]) == ("created", True)
    assert worker.claim()["id"] == fire["jobId"]
    assert person.http.post(f"{one}/resume").json()["nextRunAt"] is not None

    changed = person.http.put(one, json={"name": "once", "at": "2100-01-01T00:00:00Z", "template": PIPELINE}).json()
    assert (changed["name"], changed["cron"], changed["upcoming"]) == ("once", None, ["2100-01-01T00:00:00Z"])
    assert person.http.post(f"{one}/run").json()["pipelineId"] is not None
    assert person.http.post(f"{one}/reset").json()["nextRunAt"] == "2100-01-01T00:00:00Z"
    assert [fire["manual"] for fire in person.http.get(f"{one}/fires").json()["fires"]] == [True, True]
    assert [one["name"] for one in person.http.get(url).json()["schedules"]] == ["once"]

    bob = Person(api, "bob")
    assert code_of(bob.http.get(one)) == (404, "schedule_not_found")
    assert code_of(bob.http.delete(one)) == (404, "schedule_not_found")
    assert person.http.delete(one).status_code == 204
    assert code_of(person.http.get(one)) == (404, "schedule_not_found")
    assert person.look(fire["jobId"])["state"] == "running"


def test_the_service_fires_by_itself_as_soon_as_a_moment_comes(person: Person, worker: Worker, api: RunningApi) -> None:
    """A change wakes the scheduler from a much longer sleep."""
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    made = person.http.post("/api/schedules", json={"name": "soon", "at": soon, "template": TEMPLATE}).json()
    job = worker.claim(waitSeconds=20)
    assert job["input"]["downloadUrl"] == "https://maps.example.org/a.tif"
    told = person.http.get(f"/api/schedules/{made['id']}").json()
    assert (told["nextRunAt"], told["upcoming"], told["lastRunAt"]) == (None, [], made["nextRunAt"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cron": "61 * * * *"}, "cron expression"),
        ({"cron": "* * * *"}, "five"),
        ({"cron": None}, "exactly one"),
        ({"at": "2100-01-01T00:00:00Z"}, "exactly one"),
        ({"cron": None, "at": "2001-01-01T00:00:00Z"}, "no future fire time"),
        ({"cron": None, "at": "2100-01-01T00:00:00"}, "must be a time with its zone"),
        ({"timeZone": "Europe/Nowhere"}, "not a time zone"),
        ({"timeZone": "../../etc/passwd"}, "not a time zone"),
        ({"cron": None, "rules": [{"times": ["25:00"]}]}, "not a time of day"),
        ({"cron": None, "rules": [{"times": ["06:00"], "daysOfWeek": ["someday"]}]}, "not a day of the week"),
        ({"cron": None, "rules": [{"times": ["06:00"] * 25}, {"times": ["07:00"] * 24}]}, "Use cron"),
        ({"startAt": "2100-01-02T00:00:00Z", "endAt": "2100-01-01T00:00:00Z"}, "before startAt"),
        ({"template": {"taskType": "geotiff_to_png"}}, "sourceUrl"),
        ({"template": PIPELINE, "skipUnchanged": True}, "template of one job"),
    ],
)
def test_a_schedule_that_could_not_fire_is_rejected_with_the_reason(
    person: Person, fields: dict[str, Any], said: str
) -> None:
    """Before it is stored, with a clear message."""
    answer = person.http.post("/api/schedules", json=HOURLY | fields)
    assert code_of(answer) == (422, "validation")
    assert said in answer.text


def test_rules_are_stored_as_given(person: Person) -> None:
    """Times on days, in the time zone."""
    rules = [{"times": ["06:00", "18:30"], "daysOfWeek": ["mon", 5]}]
    made = person.http.post("/api/schedules", json={"name": "r", "rules": rules, "template": TEMPLATE})
    assert made.json()["rules"] == rules
    moments = [datetime.fromisoformat(moment) for moment in made.json()["upcoming"]]
    assert {(moment.weekday(), f"{moment:%H:%M}") for moment in moments} <= {
        (day, time) for day in (0, 4) for time in ("06:00", "18:30")
    }


def test_next_moments_are_stored_and_follow_each_fire(person: Person, api: RunningApi) -> None:
    """Lists contain the five stored moments, which each fire replaces."""
    made = person.http.post("/api/schedules", json=HOURLY | {"rules": [{"times": ["06:00"] * 48}], "cron": None}).json()
    assert [len(one["upcoming"]) for one in person.http.get("/api/schedules").json()["schedules"]] == [5]
    times = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in (0, 30)]
    timing = json.dumps({"rules": [{"times": times}], "timeZone": "UTC"})
    url = api.settings.conninfo or ""
    rows(url, "UPDATE schedules SET timing = %s, next_run_at = date_trunc('hour', now())", timing)
    rows(url, "NOTIFY geo_jobs_schedules")
    one = f"/api/schedules/{made['id']}"
    wait_until(lambda: person.http.get(one).json()["lastRunAt"] is not None, "the schedule to fire")
    listed = person.http.get("/api/schedules").json()["schedules"][0]
    moments = [datetime.fromisoformat(moment) for moment in listed["upcoming"]]
    assert listed["upcoming"][0] == listed["nextRunAt"]
    assert [(b - a).total_seconds() for a, b in pairwise(moments)] == [1800.0] * 4


def test_schedules_on_the_command_line(
    api: RunningApi, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Created from JSON, listed, run, paused, deleted."""
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)
    monkeypatch.setenv("DATABASE_URL", api.settings.conninfo or "")
    monkeypatch.setenv("DATA_DIR", str(api.settings.data_dir))
    monkeypatch.setenv("SOURCE_HOSTS", "maps.example.org")
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(HOURLY))

    def run(*arguments: str) -> str:
        assert main(["schedules", *arguments]) == 0
        return capsys.readouterr().out

    made = json.loads(run("create", str(file), "--owner", "ada", "--json"))
    assert "hourly" in run("list")
    assert run("run", made["id"]).startswith("Created job ")
    assert json.loads(run("fires", made["id"], "--json"))[0]["outcome"] == "created"
    assert json.loads(run("pause", made["id"], "--json"))["paused"] is True
    assert json.loads(run("resume", made["id"], "--json"))["nextRunAt"] is not None
    assert json.loads(run("reset", made["id"], "--json"))["paused"] is False
    run("delete", made["id"])
    assert main(["schedules", "show", made["id"]]) == 1
    file.write_text("{}")
    assert main(["schedules", "create", str(file), "--owner", "ada"]) == 1
    assert "/name" in capsys.readouterr().err


def test_schedulers_that_are_killed_at_random_fire_each_moment_exactly_once(postgres_url: str) -> None:
    """Two processes, killed repeatedly, over a night with a repeated hour."""
    command = [sys.executable, "-m", "tests.support.schedule_storm", "--database", postgres_url]
    storm = subprocess.run([*command, "--fires", "480", "--speed", "4000"], cwd=ROOT, capture_output=True, text=True)
    assert storm.returncode == 0, storm.stdout + storm.stderr
    assert json.loads(storm.stdout)["kills"] > 5
