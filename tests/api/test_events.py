"""The event log: pages and live streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.api import RunningApi, bearer
from tests.support.clients import Person, Worker, code_of, rows
from tests.support.waiting import wait_until

STREAM = {"Accept": "text/event-stream"}


def read_stream(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, checked against the id and type of their frames."""
    frame: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            frame[name] = value.strip()
        elif "data" in frame:
            event = json.loads(frame["data"])
            assert (str(event["id"]), event["type"]) == (frame["id"], frame["event"])
            yield event
            frame = {}
        else:
            frame = {}


def test_pages_of_events_follow_each_other_without_gap_or_repeat(person: Person) -> None:
    """`next` of one page is `after` of the following one. The end has an empty page and the same `next`."""
    job_id = person.submit()
    seen, after = [], 0
    for _ in range(4):
        page = person.http.get(f"/api/geo-jobs/{job_id}/events", params={"after": after, "limit": 1}).json()
        seen += [event["type"] for event in page["events"]]
        after = page["next"]
    assert seen == ["created", "upload_requested", "queued"]


def test_a_live_stream_has_every_event_and_ends_after_the_last(api: RunningApi, person: Person, worker: Worker) -> None:
    """Pages and stream have equal events, and the stream ends by itself."""
    job_id = person.submit()
    with person.http.stream("GET", f"/api/geo-jobs/{job_id}/events", headers=STREAM) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = read_stream(response)
        told = [next(events) for _ in range(3)]
        job = worker.claim()
        worker.call("progress", job, {"percent": 50, "stage": "render", "message": "half"}).raise_for_status()
        worker.complete(job).raise_for_status()
        told += list(events)
    assert told == person.events(job_id)
    assert [event["type"] for event in told] == [
        "created", "upload_requested", "queued", "claimed", "started", "progress", "succeeded",
    ]  # fmt: skip
    assert told[5]["data"] == {"percent": 50, "stage": "render", "message": "half"}


def test_a_stream_is_resumed_after_the_last_event_that_was_seen(person: Person) -> None:
    """`Last-Event-ID` applies to ended jobs too: the rest follows and the stream ends."""
    job_id = person.submit()
    person.cancel(job_id)
    events = person.events(job_id)
    headers = STREAM | {"Last-Event-ID": str(events[1]["id"])}
    with person.http.stream("GET", f"/api/geo-jobs/{job_id}/events", headers=headers) as response:
        assert list(read_stream(response)) == events[2:]


def test_a_stopping_process_ends_its_streams(api_server: Callable[..., RunningApi]) -> None:
    """A listener does not hold up a stopping process, and resumes elsewhere with its last id."""
    api = api_server()
    person = Person(api)
    job_id = person.submit()
    with person.http.stream("GET", f"/api/geo-jobs/{job_id}/events", headers=STREAM) as response:
        events = read_stream(response)
        for _ in range(3):
            next(events)
        api.stop()
        assert list(events) == []


def test_many_listeners_share_one_query(api: RunningApi, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten streams of ten jobs share one query, and there is none after they have ended."""
    jobs = [person.submit() for _ in range(10)]
    store = api.app.state.services.jobs
    asked: list[int] = []
    original = store.list_events_for_listeners

    async def counted(places: Any, *, limit: int) -> Any:
        asked.append(len(places))
        return await original(places, limit=limit)

    monkeypatch.setattr(store, "list_events_for_listeners", counted)
    stop, heard = threading.Event(), threading.Semaphore(0)

    def listen(job_id: str) -> None:
        with Person(api).http.stream("GET", f"/api/geo-jobs/{job_id}/events", headers=STREAM) as response:
            events = read_stream(response)
            for _ in range(3):
                next(events)
            heard.release()
            stop.wait(20)

    threads = [threading.Thread(target=listen, args=[job_id]) for job_id in jobs]
    for thread in threads:
        thread.start()
    assert all(heard.acquire(timeout=20) for _ in threads)
    wait_until(lambda: 10 in asked, "one question for ten jobs")
    stop.set()
    for thread in threads:
        thread.join(20)
    hub = api.app.state.services.hub
    wait_until(lambda: not hub._listeners, "the listeners to go")


async def test_hundreds_of_listeners_share_the_few_connections_to_the_database(api: RunningApi, person: Person) -> None:
    """Five hundred streams, which all get the job's end, use no more connections than the pool has."""
    jobs = [person.submit() for _ in range(5)]
    port = int(api.base_url.rsplit(":", 1)[1])
    token = bearer()["Authorization"]

    async def opened(job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET /api/geo-jobs/{job_id}/events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n"
        writer.write(f"{head}Authorization: {token}\r\n\r\n".encode())
        await reader.readuntil(b"event: created")
        return reader, writer

    url = api.settings.conninfo or ""
    backends = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^geo-jobs' AND datname = current_database()"
    async with asyncio.timeout(60):
        streams = await asyncio.gather(*[opened(job_id) for job_id in jobs for _ in range(100)])
        found = await asyncio.to_thread(rows, url, backends)
        for job_id in jobs:
            await asyncio.to_thread(person.cancel, job_id)
        for reader, writer in streams:
            await reader.readuntil(b"event: cancelled")
            writer.close()
    # Two for claims, one for LISTEN.
    assert len(found) <= api.settings.database_pool_size + 5


def test_events_of_another_owners_job_are_rejected_before_the_stream_starts(api: RunningApi) -> None:
    """The response is an ordinary problem."""
    job_id = Person(api, "ada").create()["id"]
    answer = Person(api, "mallory").http.get(f"/api/geo-jobs/{job_id}/events", headers=STREAM)
    assert code_of(answer) == (404, "job_not_found")
