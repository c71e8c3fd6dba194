"""Hostile requests of strangers, callers and workers: each is refused, and the API continues."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

import httpx
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from geo_jobs_api.errors import Problem
from geo_jobs_api.http import auth, middleware
from geo_jobs_api.limits import RateLimit
from tests.support.api import JWT_SECRET, WORKER_TOKEN, RunningApi, bearer, make_jwt, make_settings, worker_header
from tests.support.clients import TIFF, Person, Worker, code_of, get, put, rows, storage_files, unfinished_uploads
from tests.support.waiting import wait_until

HOSTILE_TEXTS = [
    "'; DROP TABLE jobs; --",
    "' OR '1'='1",
    "$$; SELECT pg_sleep(10); $$",
    "%s %(id)s {0} :id",
    '=HYPERLINK("http://example.org")',
    "<script>alert(1)</script>",
    "\u202egpj.exe",
    "a\r\nSet-Cookie: b=c",
    "\x1b[2J",
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_text_with_a_meaning_elsewhere_is_plain_text_here(api: RunningApi, text: str) -> None:
    """In every text field it is refused or returned unchanged. The queue continues."""
    Person(api, "root", admin=True).http.patch("/api/task-types/geotiff_to_png", json={"payloadSchema": {}})
    person = Person(api, subject=text.strip())
    answers = [
        person.http.post("/api/geo-jobs", json={"taskType": text[:63]}),
        person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {text: text}}),
        person.http.get("/api/geo-jobs", params={"taskType": text[:63], "state": text}),
        person.http.get("/api/geo-jobs", params={"cursor": text}),
    ]
    assert all(answer.status_code < 500 for answer in answers), [answer.text for answer in answers]
    job = answers[1].json()
    assert job["inputPayload"] == {text: text}
    cancelled = person.http.post(f"/api/geo-jobs/{job['id']}/cancel", json={"reason": text}).json()
    assert cancelled["cancelReason"] == text
    assert person.http.get("/api/geo-jobs", params={"taskType": "geotiff_to_png"}).json()["jobs"][0]["id"] == job["id"]


@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"])
def test_text_that_cannot_be_stored_is_refused_in_every_field(text: str, api: RunningApi) -> None:
    """JSON can escape lone surrogates and NULs. In any field and in a token they are a client error."""
    person = Person(api)
    job: dict[str, object] = {"taskType": "geotiff_to_png"}
    bodies: list[tuple[str, dict[str, object]]] = [
        ("geo-jobs", {"taskType": text}),
        ("geo-jobs", job | {"inputPayload": {"a": [{text: 1}]}}),
        ("geo-jobs", job | {"dedupKey": text}),
        (f"geo-jobs/{person.create()['id']}/upload", {"fileName": f"{text}.tif", "fileSize": 1, "fileType": text}),
        (f"geo-jobs/{person.create()['id']}/cancel", {"reason": text}),
        ("schedules", {"name": text, "cron": "0 6 * * *", "template": job}),
        ("pipelines", {"name": text, "stages": [{"name": text, "jobs": [job | {"name": text}]}]}),
        ("webhooks", {"url": f"https://maps.example.org/{text}"}),
        ("webhooks", {"url": "https://maps.example.org/", "secret": text * 10}),
        ("webhooks", {"url": "https://maps.example.org/", "taskTypes": [text]}),
    ]
    for path, body in bodies:
        answer = person.http.post(f"/api/{path}", content=json.dumps(body))
        assert code_of(answer) == (422, "validation"), (path, body)
    answer = api.client(headers={"Authorization": f"Bearer {make_jwt(text)}"}).get("/api/geo-jobs")
    assert code_of(answer) == (401, "token_invalid")


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_text_quoted_from_a_file_is_served_as_json_without_sniffing(api: RunningApi, text: str) -> None:
    """The answer declares JSON and forbids sniffing."""
    person, worker = Person(api), Worker(api)
    job_id = person.submit()
    job = worker.claim()
    error = {"class": "invalid_input", "code": "not_a_tiff", "message": text, "detail": {text: text}}
    worker.call("fail", job, {"error": error}).raise_for_status()
    answer = person.http.get(f"/api/geo-jobs/{job_id}/events")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert person.look(job_id)["error"]["message"] == text


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "..\\..\\windows\\map.tif",
        "/etc/passwd",
        "a\0b.tif",
        "a\r\nX-Evil: 1.tif",
        "\u202efit.gpj",
        "....//....//map.tif",
        "%2e%2e%2fmap.tif",
        ".htaccess",
        "a" * 1000 + ".tif",
        '"; filename=evil.exe; x=".tif',
    ],
)
def test_a_file_name_changes_no_path_and_no_header(api: RunningApi, name: str) -> None:
    person = Person(api)
    job_id = person.create()["id"]
    asked = person.http.post(f"/api/geo-jobs/{job_id}/upload", json={"fileName": name, "fileSize": len(TIFF)})
    if asked.status_code == 422:
        return
    target = asked.json()
    kept = target["fileName"]
    assert not set(kept) & set('/\\\0\r\n"\u202e;')
    assert not kept.startswith(".")
    put(target["uploadUrl"], content=TIFF).raise_for_status()
    stored = [path for path in api.settings.object_dir.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(api.settings.object_dir / "jobs") for path in stored if job_id in str(path))
    url = Worker(api).claim()["input"]["downloadUrl"]
    disposition = get(url).headers["content-disposition"]
    assert disposition.startswith("attachment; filename")
    assert disposition.count(";") == 1


@pytest.mark.parametrize(
    "key",
    [
        "../secrets.env",
        "..%2f..%2fsecrets.env",
        "jobs/../../secrets.env",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "jobs%00",
    ],
)
def test_an_unsigned_object_key_is_refused(api: RunningApi, key: str) -> None:
    url = f"{api.base_url}/storage/{key}?expires=9999999999&signature=AAAA"
    for answer in (get(url), put(url + "&size=1", content=b"x")):
        assert answer.status_code in {403, 404, 405, 422}
        assert b"SECRET" not in answer.content


@pytest.mark.parametrize("depth", [100, 10_000, 400_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deeply_nested_json_is_refused(api: RunningApi, opening: str, depth: int) -> None:
    body = '{"taskType":"geotiff_to_png","inputPayload":{"a":' + opening * min(depth, 1_000_000 // len(opening))
    closed = body + "1" + {"[": "]", '{"a":': "}"}[opening] * (body.count(opening) - (opening == '{"a":')) + "}}"
    for content in (body, closed):
        answer = api.client(headers=bearer()).post("/api/geo-jobs", content=content[:1_000_000])
        assert code_of(answer)[0] in {413, 422}, answer.text[:300]


def test_invalid_numbers_and_long_bodies_are_refused(api: RunningApi) -> None:
    client = api.client(headers=bearer())
    for content in (
        b'{"taskType":"geotiff_to_png","priority":1e999}',
        b'{"taskType":"geotiff_to_png","inputPayload":{"a":NaN}}',
        b'{"taskType":"geotiff_to_png","priority":' + b"9" * 10_000 + b"}",
        b'{"taskType":"' + b"a" * (middleware.MAX_JSON_BYTES + 1) + b'"}',
    ):
        assert client.post("/api/geo-jobs", content=content).status_code in {413, 422}


def test_a_slow_body_is_refused(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.3)
    host, port = api.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        lines = ["POST /api/geo-jobs HTTP/1.1", "Host: a", f"Authorization: Bearer {make_jwt()}", "Content-Length: 100"]
        slow.sendall(("\r\n".join(lines) + "\r\n\r\n{").encode())
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]


def test_a_long_body_gets_more_time(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kilobytes a second beyond the time of a short body."""
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0)
    host, port = api.base_url.removeprefix("http://").split(":")
    body = b'{"taskType": "geotiff_to_png"' + b" " * 50_000 + b"}"
    with socket.create_connection((host, int(port)), timeout=0.3) as slow:
        lines = ["POST /api/geo-jobs HTTP/1.1", "Host: a", f"Authorization: Bearer {make_jwt()}"]
        slow.sendall(("\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode())
        with pytest.raises(TimeoutError):
            slow.recv(1000)
        slow.settimeout(20)
        slow.sendall(body)
        assert b" 201 " in slow.recv(1000).split(b"\r\n")[0]


def test_a_body_with_a_large_declared_length_is_refused_unread(api: RunningApi) -> None:
    """No byte of it is read."""
    host, port = api.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        size = middleware.MAX_JSON_BYTES + 1
        lines = [
            "POST /api/geo-jobs HTTP/1.1",
            "Host: a",
            f"Authorization: Bearer {make_jwt()}",
            f"Content-Length: {size}",
        ]
        client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert b" 413 " in client.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("method", "path", "token"),
    [
        ("POST", "/api/geo-jobs", "Bearer nonsense"),
        ("POST", "/api/geo-jobs/batch", ""),
        ("PUT", "/api/task-types/geotiff_to_png", "Worker " + WORKER_TOKEN),
        ("POST", "/api/internal/geo-jobs/claim", "Worker guessed"),
        ("PATCH", f"/api/internal/geo-jobs/{UUID(int=7)}/complete", f"Bearer {make_jwt()}"),
    ],
    ids=["no JWT", "none", "worker", "guessed", "person"],
)
@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_an_invalid_token_is_refused_before_the_body(
    api: RunningApi, method: str, path: str, token: str, framing: str
) -> None:
    """The token is checked after the head, so half a body of a stranger gets 401 and is not stored."""
    host, port = api.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stranger:
        lines = [f"{method} {path} HTTP/1.1", "Host: a", framing, *([f"Authorization: {token}"] if token else [])]
        half = b"{" + b" " * 50_000 if "Length" in framing else b"5\r\n{    \r\n"
        stranger.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + half)
        assert b" 401 " in stranger.recv(1000).split(b"\r\n")[0]


def test_a_request_counts_once_with_or_without_a_body(api_server: Callable[..., RunningApi]) -> None:
    """The token is checked before the body and by the endpoint, the rate limit once."""
    client = api_server(requests_per_minute=16).client(headers=bearer())
    answers = [client.post("/api/geo-jobs", json={"taskType": "geotiff_to_png"}) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [201] * 4 + [429] * 2
    assert code_of(answers[-1]) == (429, "rate_limited")


def test_another_callers_job_cannot_be_seen_or_changed(api: RunningApi) -> None:
    mine, other = Person(api, "ada"), Person(api, "eve")
    job_id = mine.submit()
    url = f"/api/geo-jobs/{job_id}"
    for answer in (
        other.http.get(url),
        other.http.get(f"{url}/events"),
        other.http.get(f"{url}/download/output"),
        other.http.post(f"{url}/cancel"),
        other.http.post(f"{url}/retry"),
        other.http.post(f"{url}/upload", json={"fileName": "a.tif", "fileSize": 1}),
    ):
        assert code_of(answer) == (404, "job_not_found")
    assert other.http.get("/api/geo-jobs").json()["jobs"] == []


def test_tokens_of_callers_and_workers_are_not_interchangeable(api: RunningApi) -> None:
    person, worker = bearer(), worker_header()
    assert api.client(headers=worker).get("/api/geo-jobs").status_code == 401
    for headers in (person, {"Authorization": f"Worker {make_jwt(admin=True)}"}):
        claim = api.client(headers=headers).post("/api/internal/geo-jobs/claim", json={})
        assert claim.status_code == 401


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512", "RS256"])
def test_a_token_does_not_choose_its_algorithm(api: RunningApi, algorithm: str) -> None:
    claims = {"sub": "ada", "exp": int(time.time()) + 100, "scope": auth.ADMIN_SCOPE}
    if algorithm == "RS256":
        head, payload, sign = jwt.encode(claims, JWT_SECRET, algorithm="HS256").split(".")
        token = f"{jwt.utils.base64url_encode(json.dumps({'alg': 'RS256'}).encode()).decode()}.{payload}.{sign}"
        assert head
    else:
        token = jwt.encode(claims, "" if algorithm == "none" else JWT_SECRET * 2, algorithm=algorithm)
    answer = api.client(headers={"Authorization": f"Bearer {token}"}).get("/api/geo-jobs")
    assert code_of(answer) == (401, "token_invalid")


def test_token_guesses_do_not_delay_a_valid_token_from_the_same_address(api_server: Callable[..., RunningApi]) -> None:
    """200 concurrent wrong tokens from one address all get 401. A valid token from there is never refused."""
    api = api_server()
    good = Worker(api)
    good.claim_all()

    def guess(number: int) -> int:
        headers = worker_header(f"guess {number}") | {"X-Forwarded-For": f"203.0.113.{number}"}
        return api.client().post("/api/internal/geo-jobs/claim", json={}, headers=headers).status_code

    with ThreadPoolExecutor(40) as strangers:
        guesses = [strangers.submit(guess, number) for number in range(200)]
        while not all(one.done() for one in guesses):
            good.claim_all()
    assert {one.result() for one in guesses} == {401}


@pytest.mark.parametrize(("trusted", "scheme"), [("", "http"), ("127.0.0.1", "https"), ("127.0.0.0/8", "https")])
def test_forwarded_headers_count_from_configured_proxies_only(
    api_server: Callable[..., RunningApi], trusted: str, scheme: str
) -> None:
    """A signed URL takes its scheme from X-Forwarded-Proto only if TRUSTED_PROXIES has the sender."""
    person = Person(api_server(trusted_proxies=trusted))
    person.http.headers["X-Forwarded-Proto"] = "https"
    assert person.upload_url(person.create()["id"], size=10).startswith(f"{scheme}://")


def test_a_caller_over_its_rate_limit_gets_retry_after(api_server: Callable[..., RunningApi]) -> None:
    api = api_server(requests_per_minute=20)
    answers = [Person(api).http.get("/api/geo-jobs") for _ in range(10)]
    assert code_of(answers[-1]) == (429, "rate_limited")
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert Person(api, "eve").http.get("/api/geo-jobs").status_code == 200


def test_open_jobs_and_stored_bytes_of_a_caller_are_limited(api_server: Callable[..., RunningApi]) -> None:
    api = api_server(max_open_jobs_per_caller=2, max_stored_bytes_per_caller=150)
    person = Person(api)
    first, second = person.create(), person.create()
    refused = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png"})
    assert code_of(refused) == (429, "quota_exceeded")
    assert refused.headers["retry-after"]
    person.upload_url(first["id"], size=100)
    body = {"fileName": "b.tif", "fileSize": 100}
    assert code_of(person.http.post(f"/api/geo-jobs/{second['id']}/upload", json=body)) == (429, "quota_exceeded")
    Person(api, "eve").create()


def test_a_smaller_announcement_voids_the_earlier_upload_url(api_server: Callable[..., RunningApi]) -> None:
    """Announcing 1 byte after 2,000,000 voids the first URL: 409 before its body is read."""
    api = api_server(max_stored_bytes_per_caller=3_000_000)
    person = Person(api)
    job_id = person.create()["id"]
    large = httpx.URL(person.upload_url(job_id, size=2_000_000))
    person.upload_url(job_id, size=1)
    with socket.create_connection((large.host, large.port or 80), timeout=10) as connection:
        lines = [f"PUT {large.raw_path.decode()} HTTP/1.1", f"Host: {large.host}", "Content-Length: 2000000", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(12) == b"HTTP/1.1 409"
    assert storage_files(api, job_id) == []


def test_many_uploads_to_one_url_leave_one_file(api_server: Callable[..., RunningApi]) -> None:
    """Of 20 concurrent different bodies one queues the job. The store keeps no other."""
    api = api_server()
    person = Person(api)
    job_id = person.create()["id"]
    url = person.upload_url(job_id, size=100)
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda number: put(url, content=bytes([number]) * 100), range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
    assert len(storage_files(api, job_id)) == 1
    assert unfinished_uploads(api.settings.object_dir) == []


def test_a_later_upload_ends_an_earlier_one_in_progress(api_server: Callable[..., RunningApi]) -> None:
    """A client with a broken link uploads again at once. The broken upload leaves no file."""
    api = api_server()
    person = Person(api)
    job_id = person.create()["id"]
    size = 3 << 20
    url = person.upload_url(job_id, size=size)
    halfway, link_is_back = threading.Event(), threading.Event()

    def broken_body() -> Iterator[bytes]:
        yield bytes(size - 1)
        halfway.set()
        assert link_is_back.wait(20)
        yield bytes(1)

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(put, url, content=broken_body(), headers={"Content-Length": str(size)})
        assert halfway.wait(10)
        wait_until(lambda: bool(unfinished_uploads(api.settings.object_dir)), "the first upload's file")
        assert put(url, content=bytes(size)).status_code == 201
        wait_until(lambda: not bool(unfinished_uploads(api.settings.object_dir)), "its removal")
        link_is_back.set()
        with contextlib.suppress(httpx.TransportError):
            assert code_of(first.result(timeout=20)) == (409, "invalid_state")
    assert len(storage_files(api, job_id)) == 1


def test_limits_of_a_caller_are_exact_under_concurrency(api_server: Callable[..., RunningApi]) -> None:
    """Single jobs, batches and bytes. A refused request leaves no row and no file."""
    api = api_server(max_open_jobs_per_caller=5, max_stored_bytes_per_caller=300)
    person = Person(api)
    job = {"taskType": "geotiff_to_png"}
    pipeline = {"name": "a", "stages": [{"name": "b", "jobs": [{"name": "c"} | job]}]}
    bodies = [("geo-jobs", job), ("geo-jobs/batch", {"jobs": [job, job]}), ("pipelines", pipeline)] * 5
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: person.http.post(f"/api/{one[0]}", json=one[1]), bodies))
    assert {answer.status_code for answer in answers} == {201, 429}, [answer.text for answer in answers]
    jobs = person.http.get("/api/geo-jobs").json()["jobs"]
    assert 4 <= len(jobs) <= 5
    file = {"fileName": "map.tif", "fileSize": 100}
    with ThreadPoolExecutor(16) as pool:
        asked = list(pool.map(lambda one: person.http.post(f"/api/geo-jobs/{one['id']}/upload", json=file), jobs))
    assert sorted(answer.status_code for answer in asked)[:4] == [200, 200, 200, 429]


def test_retries_count_against_the_limit_of_open_jobs(api_server: Callable[..., RunningApi]) -> None:
    """Otherwise a caller could collect failed jobs and retry all of them at once. An operator may do so."""
    api = api_server(max_open_jobs_per_caller=1)
    person, worker = Person(api), Worker(api)
    failed = person.submit()
    worker.fail(worker.claim(), "invalid_input").raise_for_status()
    other = person.create()
    assert code_of(person.http.post(f"/api/geo-jobs/{failed}/retry")) == (429, "quota_exceeded")
    assert person.look(failed)["state"] == "failed"
    person.cancel(other["id"]).raise_for_status()
    assert person.http.post(f"/api/geo-jobs/{failed}/retry").json()["state"] == "queued"
    worker.fail(worker.claim(), "invalid_input").raise_for_status()
    person.create()
    admin = Person(api, "root", admin=True)
    assert admin.http.post(f"/api/geo-jobs/{failed}/retry").json()["state"] == "queued"


def test_a_token_bucket_refills_and_idle_ones_are_dropped() -> None:
    now = 0.0
    limit = RateLimit(1.0, 2, lambda: now)
    limit.take("a")
    limit.take("a")
    with pytest.raises(Problem, match="rate_limited"):
        limit.take("a")
    now = 1.0
    limit.take("a")
    for number in range(20_000):
        limit.take(number)
    assert len(limit._buckets) <= 10_000


async def test_unknown_key_ids_do_not_fetch_the_key_set_each_time(tmp_path: Path) -> None:
    """The library waits half a minute between two fetches. An older version did not."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True) | {"kid": "real", "use": "sig", "alg": "RS256"}
    fetched = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": [public]}).encode())

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/keys"
        people = auth.TokenVerifier(make_settings("", tmp_path, jwt_secret=None, jwks_url=url))
        for number in range(20):
            token = jwt.encode({"sub": "ada", "exp": time.time() + 99}, private, "RS256", {"kid": f"made up {number}"})
            with pytest.raises(Problem, match="token_invalid"):
                await people.verify(f"Bearer {token}")
        server.shutdown()
    assert len(fetched) <= 2


def test_the_docs_page_loads_no_external_resource(api: RunningApi) -> None:
    page = httpx.get(f"{api.base_url}/docs")
    assert "<script" not in page.text
    assert "http" not in page.text.replace(api.base_url, "").lower().replace("https", "http").replace("over http", "")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def raw_status(api: RunningApi, head: str) -> tuple[int, str]:
    """Return status and body of the answer to raw bytes."""
    host, port = api.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return int(answer.split(b" ", 2)[1]), answer.decode()


@pytest.mark.parametrize(
    "headers",
    [
        "Host: a.example\r\nHost: b.example",
        "Host: a.example\r\nhost: a.example",
        "X: y",
        "Host: a.example/path?x=",
        "Host: user@a.example",
        "Host: a b",
        "Host: a.example, b.example",
        f"Host: a\r\nAuthorization: Bearer {make_jwt()}\r\nAuthorization: Bearer {make_jwt('bob')}",
        "Host: a\r\nIdempotency-Key: a\r\nIdempotency-Key: b",
    ],
)
def test_an_ambiguous_head_is_refused(api: RunningApi, headers: str) -> None:
    """A second Host or Authorization, and a missing or invalid Host, get a problem with status 400."""
    for place in ("/health", "/api/geo-jobs"):
        status, answer = raw_status(api, f"GET {place} HTTP/1.1\r\n{headers}")
        assert (status, '"bad_request"' in answer) == (400, True)


@pytest.mark.parametrize(
    "head",
    [
        "GET /health HTTP/1.0",
        "GET /health HTTP/1.1\r\nHost:",
        "GET /health HTTP/1.1\r\nHost: a_b.example:8000",
        "GET /health HTTP/1.1\r\nHost: [fe80::1%25eth0]:80",
    ],
)
def test_unusual_valid_heads_are_accepted(api: RunningApi, head: str) -> None:
    """Old health checks have no Host, container networks have underscores in it, IPv6 addresses have brackets."""
    assert raw_status(api, head)[0] == 200


def test_a_job_keeps_a_bounded_number_of_events_of_its_owner(api: RunningApi) -> None:
    """Upload requests and changes of priority remain possible, but add no more rows."""
    person = Person(api)
    job_id = str(person.create()["id"])
    for number in range(150):
        person.upload_url(job_id, f"map-{number}.tif")
        person.http.post(f"/api/geo-jobs/{job_id}/priority", json={"priority": number % 2}).raise_for_status()
    types = person.event_types(job_id)
    assert (types.count("upload_requested"), types.count("priority_changed")) == (20, 100)
    put(person.upload_url(job_id), content=TIFF).raise_for_status()
    assert person.look(job_id)["state"] == "queued"


def test_tests_of_a_webhook_are_limited(api_server: Callable[..., RunningApi], postgres_url: str) -> None:
    """At most ten wait, also of concurrent ones, and sixty an hour are accepted. Others get 429. Endings go out."""
    api = api_server(webhook_hosts="127.0.0.1", webhook_deliveries_per_second=0.001, database_pool_size=40)
    person = Person(api)
    made = person.http.post("/api/webhooks", json={"url": "http://127.0.0.1:9/"}).raise_for_status().json()

    def test(_: int) -> httpx.Response:
        return Person(api).http.post(f"/api/webhooks/{made['id']}/test")

    assert [test(number).status_code for number in range(7)] == [201] * 7
    with psycopg.connect(postgres_url) as blocker, ThreadPoolExecutor(8) as threads:
        # Reads work for all, writes for no session.
        blocker.execute("LOCK TABLE webhook_deliveries IN SHARE MODE")
        asking = [threads.submit(test, number) for number in range(8)]
        blocked = "SELECT pid FROM pg_locks WHERE NOT granted"
        wait_until(lambda: len(rows(postgres_url, blocked)) >= 8, "all to be at it")
        blocker.rollback()
        answers = [task.result(timeout=30) for task in asking]
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (code_of(refused), refused.headers["retry-after"]) == ((429, "quota_exceeded"), "60")
    delivered = (
        "UPDATE webhook_deliveries SET state = 'delivered', next_attempt_at = NULL, finished_at = now()"
        " WHERE state = 'pending'"
    )
    for _ in range(5):
        rows(postgres_url, delivered)
        assert [test(number).status_code for number in range(11)] == [201] * 10 + [429]
    rows(postgres_url, delivered)
    assert code_of(test(0)) == (429, "quota_exceeded")
    person.cancel(person.submit()).raise_for_status()
    (end,) = rows(postgres_url, "SELECT event FROM webhook_deliveries WHERE event <> 'test'")
    assert end == {"event": "job.cancelled"}
    rows(postgres_url, "UPDATE webhook_deliveries SET created_at = now() - interval '61 minutes'")
    assert test(0).status_code == 201


def test_one_callers_slow_requests_leave_connections_for_others(
    api_server: Callable[..., RunningApi], postgres_url: str
) -> None:
    """A caller holds two of eight connections. Its other requests get 429 after their wait. Others are served."""
    api = api_server(database_pool_size=8, database_timeout_seconds=2)
    ada, eve = Person(api, "ada"), Person(api, "eve")
    job_id = ada.create()["id"]
    with psycopg.connect(postgres_url) as blocker, ThreadPoolExecutor(12) as threads:
        blocker.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", [job_id])
        priority = {"priority": 1}
        url = f"/api/geo-jobs/{job_id}/priority"
        asked = [threads.submit(ada.http.post, url, json=priority) for _ in range(12)]
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        wait_until(lambda: len(rows(postgres_url, waiting)) == 2, "the caller to hold its share")
        began = time.monotonic()
        for _ in range(5):
            assert eve.create()["state"] == "awaiting_upload"
        assert time.monotonic() - began < 2
        wait_until(lambda: sum(one.done() for one in asked) == 10, "the others to be refused")
        refused = [one.result() for one in asked if one.done()]
        blocker.rollback()
        served = [one.result(timeout=20) for one in asked]
    assert {code_of(one) for one in refused} == {(429, "rate_limited")}
    assert all(one.headers["Retry-After"] for one in refused)
    assert sum(one.status_code == 200 for one in served) == 2
    assert ada.look(job_id)["priority"] == 1


def test_metrics_without_a_token_count_the_queue_once_per_interval(
    api_server: Callable[..., RunningApi], postgres_url: str
) -> None:
    """`/metrics` needs no token. Its count is shared for METRICS_SECONDS, also by concurrent calls."""
    api = api_server(metrics_seconds=60)
    person = Person(api)
    person.create()
    with ThreadPoolExecutor(8) as threads:
        texts = [one.text for one in threads.map(get, [f"{api.base_url}/metrics"] * 16)]
    person.create()
    texts.append(get(f"{api.base_url}/metrics").text)
    figure = 'geo_jobs_open{state="awaiting_upload",task_type="geotiff_to_png"} 1.0'
    assert all(figure in text for text in texts)
    fresh = api_server(metrics_seconds=0)
    assert figure.replace(" 1.0", " 2.0") in get(f"{fresh.base_url}/metrics").text
