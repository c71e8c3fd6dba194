"""Webhooks: events, owners, signatures, retries and allowed addresses, with a real receiver."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from geo_jobs_api.app import local_storage, retention
from geo_jobs_api.cli import main
from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.database.queries import load_queries
from geo_jobs_api.hosts import parse_hosts
from geo_jobs_api.webhooks.deliver import BACKOFF_SECONDS, Outcome, decide_delivery
from geo_jobs_api.webhooks.http_post import AddressRefusedError, WebhookClient, check_target
from geo_jobs_api.webhooks.secrets import DecryptionError, SecretCipher
from tests.support.api import STORAGE_SECRET, RunningApi, make_settings, run_api
from tests.support.clients import Person, Worker, code_of, expire_leases, get, rows
from tests.support.database import DatabaseServer
from tests.support.receiver import Received, Receiver, receiver
from tests.support.waiting import wait_until


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """An API with loopback allowed for webhooks."""
    return shared_linked_api


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def register(person: Person, hook: Receiver, **fields: Any) -> dict[str, Any]:
    answer = person.http.post("/api/webhooks", json={"url": hook.url} | fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliveries(person: Person, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    told = person.http.get(f"/api/webhooks/{webhook['id']}/deliveries").raise_for_status().json()
    return list(told["deliveries"])


def states(person: Person, webhook: dict[str, Any]) -> list[str]:
    return [delivery["state"] for delivery in deliveries(person, webhook)]


def try_now(api: RunningApi) -> None:
    """End all pauses."""
    url = api.settings.conninfo or ""
    rows(url, "UPDATE webhook_deliveries SET next_attempt_at = now() WHERE state = 'pending'")
    rows(url, "SELECT pg_notify('geo_jobs_deliveries', '')")


def test_an_end_is_delivered_once_signed_and_with_all_fields(person: Person, worker: Worker, hook: Receiver) -> None:
    """The signature covers the timestamp and the exact bytes. The secret is shown once and stored encrypted."""
    made = register(person, hook)
    job_id = person.submit()
    worker.complete(worker.claim()).raise_for_status()
    wait_until(lambda: states(person, made) == ["delivered"], "the delivery")
    (one,) = hook.received
    assert one.is_signed_with(made["secret"])
    assert not Received(one.path, one.headers, one.body + b" ").is_signed_with(made["secret"])
    assert abs(int(one.headers["webhook-timestamp"]) - time.time()) < 60
    assert one.headers["webhook-id"] == str(deliveries(person, made)[0]["id"])
    assert one.json["event"] == one.headers["webhook-event"] == "job.succeeded"
    job = one.json["job"]
    assert (job["id"], job["taskType"], job["state"]) == (job_id, "geotiff_to_png", "succeeded")
    assert [output["name"] for output in job["outputs"]] == ["map.png"]
    assert "outputLeaseSeq" not in job
    told = person.http.get(f"/api/webhooks/{made['id']}")
    assert made["secret"] not in told.text
    assert "secret" not in told.json()


@pytest.mark.parametrize("ending", ["job.failed", "job.cancelled", "rescue", "cascade"])
def test_every_way_to_end_is_delivered(
    person: Person, worker: Worker, hook: Receiver, api: RunningApi, ending: str
) -> None:
    """A failure, a cancellation, a job ended by the rescuer, a child cancelled with its parent."""
    register(person, hook)
    job_id = person.submit()
    if ending == "cascade":
        edges = [{"jobId": job_id}]
        person.create(inputPayload={"sourceUrl": "https://maps.example.org/a.tif"}, dependsOn=edges)
    if ending == "job.cancelled":
        person.cancel(job_id)
    elif ending == "rescue":
        rows(api.settings.conninfo or "", "UPDATE jobs SET lost_workers = 2")
        worker.heartbeat(worker.claim())
        expire_leases(api.settings.conninfo or "")
    else:
        worker.fail(worker.claim(), "invalid_input").raise_for_status()
    expected = {"cascade": ["job.cancelled", "job.failed"], "rescue": ["job.failed"]}.get(ending, [ending])
    wait_until(lambda: sorted(body["event"] for body in hook.bodies()) == expected, "the deliveries")


def test_only_subscribed_events_of_ones_own_jobs_are_delivered(
    person: Person, worker: Worker, hook: Receiver, api: RunningApi
) -> None:
    """By event, by task type, and not while paused. An administrator may subscribe to all owners' jobs."""
    bob, admin = Person(api, "bob"), Person(api, "root", admin=True)
    with receiver() as others, receiver() as all_of_them:
        register(person, hook, events=["job.failed"])
        register(person, others, taskTypes=["geotiff_info"])
        register(person, others, paused=True)
        register(bob, others)
        register(admin, all_of_them, allOwners=True)
        refused = person.http.post("/api/webhooks", json={"url": hook.url, "allOwners": True})
        assert code_of(refused)[0] == 403
        person.submit()
        worker.complete(worker.claim()).raise_for_status()
        person.submit()
        worker.fail(worker.claim(), "invalid_input").raise_for_status()
        wait_until(lambda: len(all_of_them.received) == 2 and len(hook.received) == 1, "the deliveries")
        assert hook.bodies()[0]["event"] == "job.failed"
        assert others.received == []


def test_an_end_is_not_delivered_again_when_a_later_job_depends_on_it(
    person: Person, worker: Worker, hook: Receiver
) -> None:
    """Once for the failed parent. Once for the child that is cancelled at its creation, too."""
    made = register(person, hook)
    parent = person.submit()
    worker.fail(worker.claim(), "invalid_input").raise_for_status()
    person.create(inputPayload={"sourceUrl": "https://maps.example.org/a.tif"}, dependsOn=[{"jobId": parent}])
    wait_until(lambda: states(person, made) == ["delivered"] * 2, "the deliveries")
    assert sorted(body["event"] for body in hook.bodies()) == ["job.cancelled", "job.failed"]


def test_a_pipelines_end_is_delivered_once_when_its_last_job_has_ended(
    person: Person, worker: Worker, hook: Receiver
) -> None:
    """Also when the last two jobs end at the same instant."""
    register(person, hook, events=["pipeline.succeeded", "pipeline.failed"])
    source = {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": "https://maps.example.org/a.tif"}}
    for number in range(8):
        jobs = [source | {"name": name} for name in "ab"]
        body = {"name": f"p{number}", "stages": [{"name": "one", "jobs": jobs}]}
        person.http.post("/api/pipelines", json=body).raise_for_status()
        claimed = worker.claim_all(maxJobs=2)
        start = threading.Barrier(2)

        def end(job: dict[str, Any], start: threading.Barrier = start) -> None:
            start.wait()
            worker.complete(job, []).raise_for_status()

        threads = [threading.Thread(target=end, args=(job,)) for job in claimed]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
    wait_until(lambda: len(hook.received) >= 8, "the deliveries")
    told = [body["pipeline"] for body in hook.bodies()]
    assert sorted(pipeline["name"] for pipeline in told) == [f"p{number}" for number in range(8)]
    assert {job["state"] for pipeline in told for job in pipeline["jobs"]} == {"succeeded"}


def test_of_two_last_ends_in_different_transactions_one_delivers_the_pipelines_end(
    person: Person, api: RunningApi
) -> None:
    """The second one waits for the first and then sees its end. Each alone would see a running pipeline."""
    url = api.settings.conninfo or ""
    person.http.post("/api/webhooks", json={"url": "https://maps.example.org/", "events": ["pipeline.cancelled"]})
    source = {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": "https://maps.example.org/a.tif"}}
    jobs = [source | {"name": name} for name in "ab"]
    person.http.post("/api/pipelines", json={"name": "p", "stages": [{"name": "one", "jobs": jobs}]}).raise_for_status()
    first, second = (row["id"] for row in rows(url, "SELECT id FROM jobs ORDER BY id"))
    cancel = load_queries("jobs.sql").cancel_jobs.sql.encode()
    with psycopg.connect(url) as one, psycopg.connect(url) as other:
        one.execute(cancel, {"ids": [first], "reason": "no"})
        waiting = threading.Thread(target=other.execute, args=(cancel, {"ids": [second], "reason": "no"}))
        waiting.start()
        blocked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        wait_until(lambda: bool(rows(url, blocked)) or not waiting.is_alive(), "the second to wait for the first")
        one.commit()
        waiting.join(timeout=20)
        other.commit()
    assert rows(url, "SELECT event FROM webhook_deliveries") == [{"event": "pipeline.cancelled"}]


def test_a_failed_delivery_is_retried_and_the_log_has_each_attempt(
    person: Person, worker: Worker, hook: Receiver, api: RunningApi
) -> None:
    """Under the same id, without following redirects. A failed delivery can be repeated by hand."""
    answers = iter([(500, {}, b"oops"), (302, {"Location": hook.url}, b""), (200, {}, b"x" * 100_000)])
    hook.answer = lambda _: next(answers, (204, {}, b""))
    made = register(person, hook)
    person.submit()
    worker.complete(worker.claim(), []).raise_for_status()
    for number in (1, 2):
        wait_until(lambda number=number: len(deliveries(person, made)[0]["attempts"]) == number, "a try")  # type: ignore[misc]
        try_now(api)
    wait_until(lambda: states(person, made) == ["delivered"], "the delivery")
    (delivery,) = deliveries(person, made)
    assert [one["statusCode"] for one in delivery["attempts"]] == [500, 302, 200]
    assert len({one.headers["webhook-id"] for one in hook.received}) == 1
    assert [one.headers["webhook-attempt"] for one in hook.received] == ["1", "2", "3"]
    again = f"/api/webhooks/{made['id']}/deliveries/{delivery['id']}/redeliver"
    assert person.http.post(again).json()["state"] == "pending"
    wait_until(lambda: len(hook.received) == 4, "another delivery")
    gone = f"/api/webhooks/{made['id']}/deliveries/0/redeliver"
    assert code_of(person.http.post(gone)) == (409, "invalid_state")


def test_a_receiver_that_is_gone_gets_no_retry(person: Person, hook: Receiver) -> None:
    """410 means gone."""
    hook.answer = lambda _: (410, {}, b"")
    made = register(person, hook)
    person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
    wait_until(lambda: states(person, made) == ["failed"], "the end of the tries")
    assert len(hook.received) == 1


def test_a_delayed_notification_is_not_delivered_before(
    person: Person, worker: Worker, hook: Receiver, api: RunningApi
) -> None:
    """The job is done. Its notification waits for `notifyAt`."""
    made = register(person, hook)
    source = {"sourceUrl": "https://maps.example.org/a.tif"}
    person.create(inputPayload=source, notifyAt="2100-01-01T06:00:00Z")
    worker.complete(worker.claim(), []).raise_for_status()
    (delivery,) = deliveries(person, made)
    assert (delivery["state"], delivery["nextAttemptAt"]) == ("pending", "2100-01-01T06:00:00Z")
    person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
    wait_until(lambda: len(hook.received) == 1, "the test")
    assert hook.bodies()[0]["event"] == "test"
    try_now(api)
    wait_until(lambda: len(hook.received) == 2, "the announcement")


def test_a_process_that_dies_while_it_sends_leaves_the_delivery_to_another(
    postgres: DatabaseServer, postgres_url: str, tmp_path: Any, hook: Receiver
) -> None:
    """At least once: the other process sends the same id a second time."""
    hold = threading.Event()
    hook.answer = lambda _: (204, {}, b"") if len(hook.received) > 1 or hold.wait(20) else (500, {}, b"")
    settings = make_settings(postgres_url, tmp_path / "data", webhook_hosts="127.0.0.1")
    with run_api(settings) as first:
        person = Person(first)
        made = register(person, hook)
        person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
        wait_until(lambda: len(hook.received) == 1, "the first try")
    hold.set()
    rows(postgres_url, "UPDATE webhook_deliveries SET next_attempt_at = now()")
    with run_api(settings) as second:
        wait_until(lambda: states(Person(second), made) == ["delivered"], "the second try")
    first_try, second_try = hook.received
    assert first_try.headers["webhook-id"] == second_try.headers["webhook-id"]
    assert second_try.headers["webhook-attempt"] == "2"


def test_a_hanging_destination_blocks_no_other_and_gets_few_concurrent_requests(
    person: Person, worker: Worker, hook: Receiver
) -> None:
    """At most four requests wait for it. Other destinations get theirs as usual."""
    hold = threading.Event()
    hook.answer = lambda _: (204, {}, b"") if hold.wait(30) else (500, {}, b"")
    try:
        slow = register(person, hook)
        for _ in range(8):
            person.http.post(f"/api/webhooks/{slow['id']}/test").raise_for_status()
        wait_until(lambda: len(hook.received) == 4, "the first four")
        with receiver() as quick:
            made = register(person, quick)
            person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
            wait_until(lambda: states(person, made) == ["delivered"], "the delivery to the other one")
        assert len(hook.received) == 4
    finally:
        hold.set()
    wait_until(lambda: states(person, slow) == ["delivered"] * 8, "the rest")


def test_a_destination_is_not_sent_more_than_its_rate(postgres_url: str, tmp_path: Any, hook: Receiver) -> None:
    """One in a hundred seconds: the first is sent, the others wait."""
    settings = make_settings(
        postgres_url, tmp_path / "data", webhook_hosts="127.0.0.1", webhook_deliveries_per_second=0.01
    )
    with run_api(settings) as api:
        person = Person(api)
        made = register(person, hook)
        for _ in range(10):
            person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
        wait_until(lambda: "delivered" in states(person, made), "the first")
        place = rows(postgres_url, "SELECT next_at > now() + interval '90 seconds' AS spared FROM webhook_destinations")
        assert place == [{"spared": True}]
        assert states(person, made).count("pending") == 9
        assert len(hook.received) == 1


@pytest.mark.parametrize(
    "url",
    ["http://maps.example.org/hook", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/", "https://169.254.169.254/",
     "https://localhost/", "https://2130706433/", "https://[::ffff:127.0.0.1]/", "ftp://maps.example.org/", "https://a:b@maps.example.org/",
     "https://intranet/"],
)  # fmt: skip
def test_a_private_address_is_rejected(person: Person, url: str) -> None:
    """By the URL's text, unless WEBHOOK_HOSTS lists it."""
    if "127.0.0.1" in url and "ffff" not in url:
        with pytest.raises(ValueError, match="private"):
            check_target(url, parse_hosts(""))
        return
    assert code_of(person.http.post("/api/webhooks", json={"url": url})) == (422, "validation")


async def test_a_public_name_with_a_private_address_gets_nothing(hook: Receiver) -> None:
    """The connected address counts: this name has a dot, but is loopback."""
    port = hook.url.rsplit(":", 1)[1].split("/")[0]
    async with WebhookClient(parse_hosts("")) as outgoing:
        with pytest.raises(AddressRefusedError, match="public address"):
            await outgoing.post(f"https://0x7f.1:{port}/hook", b"{}", {})
    assert hook.received == []


def test_backoff_grows_with_jitter_and_ends_after_a_day() -> None:
    """Each pause is between half of its upper bound and all of it, or the receiver's longer one."""
    source = random.Random(1)
    no = Outcome(500, "no")
    waits = [decide_delivery(no, attempt, source) for attempt in range(1, len(BACKOFF_SECONDS) + 1)]
    assert all(
        state == "pending" and ceiling / 2 <= wait <= ceiling
        for (state, wait), ceiling in zip(waits, BACKOFF_SECONDS, strict=True)
    )
    assert decide_delivery(no, len(BACKOFF_SECONDS) + 1, source) == ("failed", 0.0)
    assert decide_delivery(Outcome(429, "slow", retry_after=900), 1, source) == ("pending", 900)
    assert sum(BACKOFF_SECONDS) > 86_400


def test_a_secret_cannot_be_read_from_the_database(person: Person, hook: Receiver, api: RunningApi) -> None:
    """It is encrypted. With another key it is unreadable, and the log contains the remedy."""
    made = register(person, hook, secret="a secret of one's own")
    assert made["secret"] == "a secret of one's own"
    (row,) = rows(api.settings.conninfo or "", "SELECT secret FROM webhooks")
    assert b"one's own" not in row["secret"]
    assert SecretCipher(STORAGE_SECRET.encode()).decrypt(row["secret"]) == "a secret of one's own"
    with pytest.raises(DecryptionError, match="STORAGE_SECRET"):
        SecretCipher(b"another key of more than thirty-two bytes").decrypt(row["secret"])
    rows(api.settings.conninfo or "", "UPDATE webhooks SET secret = %s", SecretCipher(b"k" * 32).encrypt("x"))
    person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
    wait_until(lambda: bool(deliveries(person, made)[0]["attempts"]), "a try")
    assert "new one" in deliveries(person, made)[0]["attempts"][0]["error"]
    body = {"url": hook.url, "secret": "another secret of one's own"}
    person.http.put(f"/api/webhooks/{made['id']}", json=body).raise_for_status()
    try_now(api)
    wait_until(lambda: states(person, made) == ["delivered"], "the delivery")
    assert hook.received[0].is_signed_with("another secret of one's own")


def test_an_end_and_its_deliveries_are_written_together(
    person: Person, worker: Worker, hook: Receiver, api: RunningApi
) -> None:
    """If the deliveries cannot be written, the job has not ended, and its report may be repeated."""
    register(person, hook)
    url = api.settings.conninfo or ""
    person.submit()
    job = worker.claim()
    rows(url, "ALTER TABLE webhook_deliveries ADD CONSTRAINT none CHECK (event = 'test')")
    try:
        assert worker.complete(job, []).status_code == 500
        assert rows(url, "SELECT state FROM jobs") == [{"state": "running"}]
    finally:
        rows(url, "ALTER TABLE webhook_deliveries DROP CONSTRAINT none")
    assert worker.complete(job, []).json() == {"state": "succeeded", "replayed": False}


def test_links_to_results_are_included_if_the_public_url_is_set(
    postgres_url: str, tmp_path: Any, hook: Receiver
) -> None:
    """New ones at each attempt, and they work."""
    port = free_port()
    public = f"http://127.0.0.1:{port}"
    settings = make_settings(postgres_url, tmp_path / "data", webhook_hosts="127.0.0.1", api_public_url=public)
    with run_api(settings, port) as api:
        person, worker = Person(api), Worker(api)
        register(person, hook)
        person.submit()
        worker.complete(worker.claim()).raise_for_status()
        wait_until(lambda: len(hook.received) == 1, "the delivery")
        (output,) = hook.bodies()[0]["job"]["outputs"]
        assert get(output["url"]).content == b"\x89PNG picture"


def test_webhooks_are_their_owners_and_on_the_command_line(
    person: Person, hook: Receiver, api: RunningApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other callers do not see them. An operator creates, lists, redelivers and deletes them."""
    made = register(person, hook)
    bob = Person(api, "bob")
    assert code_of(bob.http.get(f"/api/webhooks/{made['id']}")) == (404, "webhook_not_found")
    assert code_of(bob.http.post(f"/api/webhooks/{made['id']}/test")) == (404, "webhook_not_found")
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)
    monkeypatch.setenv("DATABASE_URL", api.settings.conninfo or "")
    monkeypatch.setenv("DATA_DIR", str(api.settings.data_dir))
    monkeypatch.setenv("STORAGE_SECRET", STORAGE_SECRET)
    monkeypatch.setenv("WEBHOOK_HOSTS", "127.0.0.1")

    def run(*arguments: str) -> str:
        assert main(["webhooks", *arguments]) == 0
        return capsys.readouterr().out

    assert "whsec_" in run("create", hook.url, "--owner", "ada", "--event", "job.failed")
    assert run("list").count(hook.url) == 2
    person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
    wait_until(lambda: states(person, made) == ["delivered"], "the delivery")
    assert "delivered" in run("deliveries", made["id"])
    assert "1 deliveries are tried again.\n" in run("redeliver", made["id"], str(deliveries(person, made)[0]["id"]))
    wait_until(lambda: len(hook.received) == 2, "another delivery")
    assert person.http.delete(f"/api/webhooks/{made['id']}").status_code == 204
    assert main(["webhooks", "delete", made["id"]]) == 1


def test_without_webhooks_an_end_writes_nothing_more(
    person: Person, worker: Worker, api: RunningApi, postgres: DatabaseServer
) -> None:
    """Not one row, and no query of pipelines."""
    person.submit()
    worker.complete(worker.claim(), []).raise_for_status()
    with psycopg.connect(api.settings.conninfo or "") as connection:
        row = connection.execute("SELECT count(*) FROM webhook_deliveries").fetchone()
    assert row == (0,)


def test_a_delivery_keeps_its_latest_fifty_tries(api: RunningApi, person: Person, hook: Receiver) -> None:
    """It may be redelivered by hand any number of times, and its row stays small."""
    made = register(person, hook)
    person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
    wait_until(lambda: states(person, made) == ["delivered"], "the delivery")
    tries = "(SELECT jsonb_agg(jsonb_build_object('at', n)) FROM generate_series(1, 50) AS n)"
    rows(api.settings.conninfo or "", f"UPDATE webhook_deliveries SET attempts = {tries}")  # noqa: S608  # our own words
    (delivery,) = deliveries(person, made)
    person.http.post(f"/api/webhooks/{made['id']}/deliveries/{delivery['id']}/redeliver").raise_for_status()
    wait_until(lambda: states(person, made) == ["delivered"], "the delivery once more")
    kept = deliveries(person, made)[0]["attempts"]
    assert (len(kept), kept[0]["at"], kept[-1]["statusCode"]) == (50, 2, 204)


async def test_a_webhook_of_all_owners_pauses_unless_an_administrator_renews_it(
    api: RunningApi, person: Person, hook: Receiver, tmp_path: Path
) -> None:
    """After 90 days without a PUT nothing more is sent, and pending deliveries are dropped. Other webhooks stay."""
    url = api.settings.conninfo or ""
    admin = Person(api, "root", admin=True)
    hook.answer = lambda _: (500, {}, b"")
    old, renewed = (register(admin, hook, allOwners=True) for _ in range(2))
    own = register(person, hook)
    person.cancel(person.submit())
    rows(url, "UPDATE webhooks SET updated_at = now() - interval '91 days'")
    admin.http.put(f"/api/webhooks/{renewed['id']}", json={"url": hook.url, "allOwners": True}).raise_for_status()
    async with open_pool(url, size=2, wait_seconds=10) as pool:
        settings = make_settings(url, tmp_path / "data")
        await retention(settings, pool, local_storage(settings)).run_once()
    paused = {made["id"]: made["paused"] for made in admin.http.get("/api/webhooks").json()["webhooks"]}
    assert paused == {old["id"]: True, renewed["id"]: False, own["id"]: False}
    assert [len(deliveries(admin, made)) for made in (old, renewed, own)] == [0, 1, 1]
    person.cancel(person.submit())
    assert [len(deliveries(admin, made)) for made in (old, renewed, own)] == [0, 2, 2]


def test_a_former_administrator_gets_no_events_of_others(api: RunningApi, person: Person, hook: Receiver) -> None:
    """Without the scope, its webhook of all owners can be read, deleted or restricted to its own jobs, which drops the
    pending deliveries of others.
    """
    admin, former = Person(api, "root", admin=True), Person(api, "root")
    made = register(admin, hook, allOwners=True)
    place = f"/api/webhooks/{made['id']}"
    person.cancel(person.submit())
    former.cancel(former.submit())
    wait_until(lambda: states(admin, made) == ["delivered"] * 2, "the deliveries")
    numbers = [delivery["id"] for delivery in deliveries(admin, made)]
    assert former.http.get(place).status_code == 200
    calls = [former.http.get(f"{place}/deliveries"), former.http.post(f"{place}/test")]
    calls += [former.http.post(f"{place}/deliveries/{number}/redeliver") for number in numbers]
    assert {code_of(answer) for answer in calls} == {(403, "not_allowed")}
    assert code_of(former.http.put(place, json={"url": hook.url, "allOwners": True})) == (403, "not_allowed")
    former.http.put(place, json={"url": hook.url}).raise_for_status()
    assert [delivery["id"] for delivery in deliveries(former, made)] == numbers[:1]
    assert former.http.delete(place).status_code == 204


def test_the_documented_receiver_accepts_genuine_deliveries_only(person: Person, api: RunningApi) -> None:
    """Run verbatim, it accepts a delivery once and rejects an altered one."""
    text = (Path(__file__).parents[2] / "docs" / "API.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    port = free_port()
    environment = {**os.environ, "WEBHOOK_SECRET": "the receiver's own secret", "PORT": str(port)}
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_listening(port), "the receiver to listen")
            body = {"url": f"http://127.0.0.1:{port}/", "secret": "the receiver's own secret"}
            made = person.http.post("/api/webhooks", json=body).json()
            person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
            wait_until(lambda: states(person, made) == ["delivered"], "the delivery")
            person.http.put(f"/api/webhooks/{made['id']}", json=body | {"secret": "x" * 20}).raise_for_status()
            person.http.post(f"/api/webhooks/{made['id']}/test").raise_for_status()
            wait_until(lambda: bool(deliveries(person, made)[0]["attempts"]), "a try")
            assert deliveries(person, made)[0]["attempts"][0]["statusCode"] == 400
        finally:
            process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == b"test\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
