"""Addresses, headers and records with two readings."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import structlog
from starlette.responses import Response

from geo_jobs_api import log as api_log
from geo_jobs_api.database.queries import load_queries
from geo_jobs_api.hosts import parse_hosts
from geo_jobs_api.webhooks.http_post import AddressRefusedError, WebhookClient
from geo_jobs_common import addresses
from geoprocessing_worker import log
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.wire import transfer
from geoprocessing_worker.wire.download import download
from geoprocessing_worker.wire.messages import JobInput
from geoprocessing_worker.wire.url_guard import StorageGuard
from geoprocessing_worker.worker import source_client, storage_client
from tests.support.api import NO_TLS, RunningApi
from tests.support.canary import Canary
from tests.support.clients import Person, code_of, rows
from tests.support.receiver import receiver
from tests.support.scripted_api import ScriptedApi
from tests.support.waiting import wait_until


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """An API that allows webhooks to loopback."""
    return shared_linked_api


def test_an_embedded_address_is_checked() -> None:
    """Every embedding of IPv4 in IPv6, and unassigned addresses, in the worker and the API."""
    inside = ["::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:a00:1::", "fec0::1"]
    inside += ["2001:0:a00:1::1", "::ffff:0:10.0.0.1", "4000::1", "fe80::1", "fd00::1", "::1", "ff0e::1", "2001:db8::1"]
    inside += ["192.0.0.192", "168.63.129.16", "3fff::1", "192.88.99.1", "2001:2::1", "240.0.0.1", "198.18.0.1"]
    assert [text for text in inside if addresses.is_public(ip_address(text))] == []
    outside = ["64:ff9b::5db8:d822", "2002:5db8:d822::1", "2606:2800:220:1::1", "93.184.216.34"]
    assert [text for text in outside if not addresses.is_public(ip_address(text))] == []


@pytest.mark.parametrize("name", ["xn--bcher-kva.example.com", "b\xfccher.example.com", "xn--zz.example.com"])
@pytest.mark.usefixtures("hostile_dns")
async def test_a_name_beyond_ascii_is_checked_like_others(name: str, bird: Canary, tmp_path: Path) -> None:
    """Such a name has two spellings, and the connection knows one. The last one encodes no name."""
    source = JobInput(file_name="a.tif", download_url=bird.url.replace("127.0.0.1", name))
    guards = (StorageGuard([], any_host=True), StorageGuard(["b\xfccher.example.com", "xn--zz.example.com"]))
    clients = [httpx.AsyncClient(event_hooks={"request": [guard]}, verify=NO_TLS) for guard in guards]
    for http in (*clients, source_client(Settings(source_hosts=("*",)), NO_TLS)):
        async with http:
            with pytest.raises(JobError) as caught:
                await download(source, tmp_path / "a.tif", http=http, max_bytes=1000, report=lambda *_: None)
        assert caught.value.code in {"source_not_allowed", "address_refused"}
    assert all(call == "called: b''" for call in bird.touched()), "something was sent"


async def test_the_workers_own_clients_check_addresses(bird: Canary) -> None:
    """Not only by clients of tests. The name is one that the system parses as an address."""
    port = bird.url.split(":")[2].split("/")[0]
    anywhere = Settings(source_hosts=("*",), allow_any_storage_host=True)
    for make, words in ((source_client, "private address"), (storage_client, r"private address 127\.0\.0\.1")):
        async with make(anywhere, NO_TLS) as http:
            with pytest.raises(JobError, match=words):
                await http.get(f"http://127.1:{port}/map.tif")
    assert all(call == "called: b''" for call in bird.touched()), "something was sent"


async def fetch_failure(url: str, folder: Path) -> dict[str, Any]:
    """The failure of a job with this sourceUrl, if every public host is allowed."""
    source = JobInput(file_name="a.tif", download_url=url, is_remote=True)
    async with source_client(Settings(source_hosts=("*",)), NO_TLS) as http:
        with pytest.raises(JobError) as caught:
            await download(source, folder / "a.tif", http=http, max_bytes=1000, report=lambda *_: None)
    return {"code": caught.value.code, "message": caught.value.message, "detail": dict(caught.value.detail)}


@pytest.mark.parametrize("rebinds", [False, True])
@pytest.mark.usefixtures("hostile_dns")
async def test_open_and_closed_private_ports_look_alike(
    rebinds: bool, bird: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sourceUrl cannot scan ports, also not after DNS rebinding. No address is shown."""
    monkeypatch.setattr(transfer, "SOURCE_PATIENCE", 0.1)
    if rebinds:
        private, lookups = socket.getaddrinfo, list[str]()

        def resolve(host: Any, *rest: Any, **named: Any) -> Any:
            text = host.decode() if isinstance(host, bytes) else str(host)
            if not text.endswith("example.com"):
                return private(host, *rest, **named)
            lookups.append(text)
            return private("93.184.216.34" if len(lookups) % 2 else host, *rest, **named)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    opened = await fetch_failure(bird.url.replace("127.0.0.1", "maps.example.com"), tmp_path)
    assert opened == await fetch_failure(f"http://maps.example.com:{closed}/a.tif", tmp_path)
    assert opened["code"] == ("download_failed" if rebinds else "source_not_allowed")
    assert "127.0.0.1" not in str(opened)
    assert all(call == "called: b''" for call in bird.touched()), "something was sent"


async def test_a_storage_host_beyond_ascii_has_two_spellings() -> None:
    for name in ("b\xfccher.example.com", "xn--bcher-kva.example.com"):
        for entry in (name, "*.example.com"):
            await StorageGuard([entry])(httpx.Request("GET", "https://b\xfccher.example.com/map.tif"))


@pytest.mark.parametrize(
    "url",
    [
        "https://xn--zz.example.org/",
        "https://xn--/",
        "https://[v1.a]/",
        "https://[::1%25eth0]/",
        "https://maps.example.org:99999/",
        "https://maps.example.org\r\nX-Evil: 1/",
        "https://maps.example.org/\tb",
        "https://b\xfccher.example.org/",
        "https://evil.example\\@maps.example.org/",
        "https://maps.example.org@127.0.0.1/",
        "https://[64:ff9b::7f00:1]/",
        "https://[::127.0.0.1]/",
        "https:///maps.example.org/",
        "https:maps.example.org",
    ],
)
def test_an_ambiguous_url_is_refused(url: str, api: RunningApi) -> None:
    """Neither a webhook's nor a file's. No header repeats it."""
    person = Person(api)
    assert code_of(person.http.post("/api/webhooks", json={"url": url})) == (422, "validation")
    job = {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": url}}
    assert person.http.post("/api/geo-jobs", json=job).status_code == 422


def test_one_unsendable_webhook_delays_no_other(api: RunningApi) -> None:
    """An address or a body stored by another version: its log has the failure, other deliveries arrive."""
    person, database = Person(api), api.settings.conninfo or ""
    with receiver() as good:
        urls = [good.url] * 3
        address, body, fine = [person.http.post("/api/webhooks", json={"url": url}).json()["id"] for url in urls]
        rows(database, "UPDATE webhooks SET url = 'https://xn--zz.example.org/' WHERE id = %s", address)
        made = """INSERT INTO webhook_deliveries (webhook_id, destination, event, body, next_attempt_at)
            SELECT id, destination, 'test', '{"job": [1]}', now() FROM webhooks WHERE id = %s"""
        rows(database, made, body)
        for webhook in (address, fine):
            person.http.post(f"/api/webhooks/{webhook}/test").raise_for_status()

        def tries(webhook: str) -> list[dict[str, Any]]:
            deliveries = person.http.get(f"/api/webhooks/{webhook}/deliveries").json()["deliveries"]
            return [attempt for delivery in deliveries for attempt in delivery["attempts"]]

        wait_until(lambda: all(map(tries, (address, body, fine))), "all tries")
    assert tries(fine)[0]["statusCode"] == 204
    assert "unambiguous host" in tries(address)[0]["error"]
    assert "could not be sent" in tries(body)[0]["error"]


@pytest.mark.parametrize(
    ("kind", "module"),
    [("webhooks", "geo_jobs_api.endpoints.webhooks"), ("schedules", "geo_jobs_api.endpoints.schedules")],
)
def test_webhooks_and_schedules_of_a_caller_are_limited(
    kind: str, module: str, api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under concurrency, since every ending goes to all webhooks, and schedules make jobs."""
    monkeypatch.setattr(f"{module}.MAX_PER_OWNER", 3)
    person = Person(api)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: make_one(person, kind, number), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 5
    assert {code_of(answer)[1] for answer in answers if answer.status_code == 429} == {"quota_exceeded"}
    assert len(person.http.get(f"/api/{kind}").json()[kind]) == 3


def make_one(person: Person, kind: str, number: int) -> httpx.Response:
    """Register a webhook or a schedule."""
    template = {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": "https://maps.example.org/a.tif"}}
    bodies: dict[str, dict[str, Any]] = {
        "webhooks": {"url": "https://maps.example.org/hook"},
        "schedules": {"name": f"n{number}", "cron": "0 6 * * *", "template": template, "paused": True},
    }
    return person.http.post(f"/api/{kind}", json=bodies[kind])


@pytest.mark.parametrize("kind", ["webhooks", "schedules"])
def test_limited_rows_are_created_one_after_another(kind: str, api: RunningApi) -> None:
    """Two concurrent counts would both find room for the last one. The second waits for the first."""
    person, database = Person(api, "ada"), api.settings.conninfo or ""
    waiting = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(database) as first, ThreadPoolExecutor(1) as pool:
        first.execute(load_queries("jobs.sql").lock_owner.sql, {"owner": "ada"})
        second = pool.submit(make_one, person, kind, 1)
        wait_until(lambda: bool(rows(database, waiting)), "the second to wait")
        assert not second.done()
        first.rollback()
        assert second.result(timeout=20).status_code == 201


@pytest.mark.usefixtures("hostile_dns")
async def test_a_webhook_reveals_no_internal_address(bird: Canary) -> None:
    """An open port, a closed port and an unknown name give the same message without an address."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    messages = set()
    async with WebhookClient(parse_hosts("")) as outgoing:
        for port in (int(bird.url.split(":")[2].split("/")[0]), nobody):
            with pytest.raises(AddressRefusedError) as caught:
                await outgoing.post(f"https://inside.example.com:{port}/", b"{}", {})
            messages.add(str(caught.value))
    assert len(messages) == 1
    assert "127.0.0.1" not in messages.pop()


@pytest.mark.parametrize("etag", ['"\xe9"', '"a\r\nX-Evil: 1"', '"' + "a" * 2000 + '"'])
async def test_a_version_with_header_syntax_is_not_sent(
    etag: str, server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """A server's version, stored by the API, reaches another worker. It neither adds a header nor fails the job."""
    answer = Response(b"x" * 10)
    answer.raw_headers.append((b"etag", etag.replace("\r\n", "").encode("latin-1")))
    server.on("file", answer)
    source = JobInput(file_name="a.tif", download_url=f"{server.base_url}/file", etag=etag, last_modified=etag)
    got = await download(source, tmp_path / "a.tif", http=http, max_bytes=1000, report=lambda *_: None)
    asked = server.asked[0].headers
    assert not {"x-evil", "if-none-match", "if-modified-since"} & set(asked)
    assert got.etag is None or "\r" in etag


async def test_cookies_of_one_receiver_reach_no_other() -> None:
    with receiver() as one:
        one.answer = lambda _: (204, {"Set-Cookie": "a=b; Path=/"}, b"")
        async with WebhookClient(parse_hosts("127.0.0.1")) as outgoing:
            for _ in range(2):
                await outgoing.post(one.url, b"{}", {})
    assert ["cookie" in received.headers for received in one.received] == [False, False]


FORGED = 'map.tif"\n{"level": "ERROR", "event": "forged"}\r\x1b[2J\x9b2J\u202egnp.\u2028'


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers = before
    root.setLevel(level)
    logging.raiseExceptions = True
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("program", ["worker", "api"])
def test_untrusted_text_adds_no_log_record(program: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor a cursor movement or a change of direction: in the file, on the terminal, in a child's traceback."""
    if program == "worker":
        log.configure("INFO", tmp_path / "worker.log")
    else:
        api_log.configure("INFO")
    structlog.get_logger().error("job_failed", message=f"Job failed: {FORGED}", name=FORGED, traceback=f"A\n{FORGED}")
    written = capfd.readouterr().err
    lines = written.splitlines()
    if program == "worker":
        assert lines[1:] == [line for line in lines if line.startswith("  | ")]
        (line,) = (tmp_path / "worker.log").read_text().splitlines()
        assert json.loads(line)["name"] == FORGED
        written += line
    else:
        assert json.loads(lines.pop())["name"] == FORGED
        assert lines == []
    assert [char for char in written.replace("\n", "") if not char.isprintable()] == []
