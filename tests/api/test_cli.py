"""The command line as real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import jwt
import psycopg
import pytest

from geo_jobs_api import cli
from tests.support.api import JWT_SECRET, STORAGE_SECRET, WORKER_TOKEN, worker_header
from tests.support.clients import get, rows
from tests.support.processes import children
from tests.support.waiting import wait_until


@pytest.fixture
def environment(postgres_url: str) -> Iterator[dict[str, str]]:
    """An environment with a database and without settings of this machine."""
    with tempfile.TemporaryDirectory(prefix="gj") as folder:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        yield kept | {
            "DATABASE_URL": postgres_url,
            "DATA_DIR": folder,
            "JWT_SECRET": JWT_SECRET,
            "STORAGE_SECRET": STORAGE_SECRET,
            "WORKER_AUTH_TOKEN": WORKER_TOKEN,
        }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "geo_jobs_api", *arguments]
    return subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )


@contextmanager
def serving(environment: dict[str, str], *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process and its address. It is killed at the end."""
    command = [sys.executable, "-m", "geo_jobs_api", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stderr is not None
            address = next(line.split()[-1] for line in process.stderr if line.startswith("Serving on"))

            def is_up() -> bool:
                try:
                    return get(f"{address}/health", timeout=5).status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(is_up, "the server to answer", timeout=30)
            yield process, address
        finally:
            process.kill()


@contextmanager
def parked_claim(address: str) -> Iterator[socket.socket]:
    """A waiting claim, as the socket of its response."""
    body = {
        "claimId": "01900000-0000-7000-8000-000000000000", "workerId": "w", "workerName": "w",
        "taskTypes": ["geotiff_to_png"], "waitSeconds": 40,
    }  # fmt: skip
    request = httpx.Request("POST", f"{address}/api/internal/geo-jobs/claim", json=body, headers=worker_header())
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as raw:
        head = f"POST {request.url.raw_path.decode()} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        raw.sendall(head.encode() + b"\r\n" + request.read())
        raw.settimeout(20)
        wait_until(lambda: _is_parked(address), "the claim to be parked")
        yield raw


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_releases_parked_claims_and_ends_with_exit_code_0(environment: dict[str, str], workers: str) -> None:
    """One process or several: 503 with `Retry-After: 0` for waiting claims, then a clean exit."""
    with serving(environment, "--workers", workers) as (process, address):
        with parked_claim(address) as claim:
            process.send_signal(signal.SIGTERM)
            answer = claim.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 503")
        assert "retry-after: 0" in answer.lower()
        assert process.wait(timeout=30) == 0


def test_any_process_reports_the_metrics_of_all(environment: dict[str, str]) -> None:
    """Forty requests on separate connections, to any process, count as forty, also after the processes were killed and
    replaced. Then their parked claims no longer count.
    """
    with serving(environment, "--workers", "2") as (process, address):

        def count() -> float:
            found = re.search(
                r'geo_jobs_http_requests_total\{.*route="/api/geo-jobs",status="401".*\} ([0-9.]+)', metrics()
            )
            return 0 if found is None else float(found[1])

        def metrics() -> str:
            with suppress(httpx.TransportError):
                return get(f"{address}/metrics", timeout=10).text
            return ""

        for _ in range(40):
            get(f"{address}/api/geo-jobs", timeout=10)
        wait_until(lambda: count() == 40, "all requests to be counted")
        before = set(children(process.pid, b"spawn_main"))
        with parked_claim(address):
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            wait_until(
                lambda: len(set(children(process.pid, b"spawn_main")) - before) == 2, "others in their place", 20
            )
        wait_until(lambda: count() == 40, "the counters to be there still", 20)
        assert not _is_parked(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def _is_parked(address: str) -> bool:
    # Any process reports all.
    return "geo_jobs_parked_claims 1.0" in get(f"{address}/metrics", timeout=10).text


def test_a_used_port_is_one_sentence_and_exit_code_1(environment: dict[str, str]) -> None:
    """No traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(environment, "serve", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "is used by another program" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_that_does_not_answer_is_one_sentence_and_exit_code_1(environment: dict[str, str]) -> None:
    """The same for a wrong address of the database."""
    result = run(environment | {"DATABASE_URL": "postgresql://x@127.0.0.1:9/x"}, "serve", "--port", "0")
    assert result.returncode == 1
    assert "database cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_that_cannot_start_ends_with_an_error(environment: dict[str, str], processes: str) -> None:
    """A supervisor must not take it for success. With several processes too."""
    (Path(environment["DATA_DIR"]) / "objects").touch()
    result = run(environment, "serve", "--port", "0", "--workers", processes)
    assert result.returncode == 3
    assert "The object store cannot use" in result.stderr


@pytest.fixture
def here(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same environment for commands in this process, which saves starting one."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)


@pytest.mark.usefixtures("here")
def test_jwt_prints_a_token_that_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the token is on standard output, with the requested scope and lifetime."""
    assert cli.main(["jwt", "--sub", "ada", "--admin", "--ttl", "60"]) == 0
    claims = jwt.decode(capsys.readouterr().out.strip(), JWT_SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == ("ada", "geo-jobs:admin", 60)


@pytest.mark.usefixtures("here")
def test_worker_tokens_are_created_listed_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    """The secret is shown once. The list has names and states."""
    assert cli.main(["migrate"]) == 0
    assert capsys.readouterr().out == "The schema is up to date.\n"
    assert cli.main(["tokens", "create", "night shift"]) == 0
    token = capsys.readouterr().out.strip()
    assert token.startswith("gjw_")
    assert cli.main(["tokens", "list"]) == 0
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.rstrip().endswith("night shift")
    assert "valid" in line
    assert token not in line
    token_id = line.split()[0]
    assert cli.main(["tokens", "delete", token_id]) == 0
    cli.main(["tokens", "list"])
    assert "revoked" in capsys.readouterr().out
    assert cli.main(["tokens", "delete", token_id]) == 1
    assert capsys.readouterr().err == f"There is no valid token {token_id}.\n"


@pytest.mark.parametrize("command", [[], ["serve"], ["migrate"], ["tokens"], ["tokens", "create"], ["jwt"]])
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` everywhere."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: python -m geo_jobs_api" in capsys.readouterr().out


def test_without_any_setting_it_serves_from_an_embedded_database(environment: dict[str, str]) -> None:
    """It needs only a folder for secrets and data. The database stops with the server."""
    bare = {name: value for name, value in environment.items() if name in {"PATH", "HOME", "LANG", "DATA_DIR"}}
    data = Path(bare["DATA_DIR"])
    with serving(bare) as (process, address):
        token = run(bare, "jwt", "--sub", "ada").stdout.strip()
        answer = get(f"{address}/api/geo-jobs", headers={"Authorization": f"Bearer {token}"})
        assert answer.json() == {"jobs": [], "next": None}
        assert (data / "postgres" / "postmaster.pid").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not (data / "postgres" / "postmaster.pid").exists()
    assert (data / "secrets.env").exists()


@pytest.mark.parametrize(
    ("breaks", "user", "words", "cure"),
    [
        ("CREATE ROLE stranger LOGIN", "stranger", "permission denied", "The role must own its schema."),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", None, "read-only", "Connect to the primary"),
        ("ALTER TABLE jobs RENAME COLUMN owner TO whose", None, 'column "owner" does not exist', None),
        ("ALTER DATABASE {name} CONNECTION LIMIT 0", None, "too many connections", None),
    ],
)
def test_a_database_error_comes_with_advice_only_of_its_own_kind(
    environment: dict[str, str], postgres_url: str, breaks: str, user: str | None, words: str, cure: str | None
) -> None:
    """The advice to own the schema appears for missing privileges only."""
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    run(environment, "migrate")
    rows(postgres_url, breaks.format(name=f'"{name}"'))
    try:
        url = psycopg.conninfo.make_conninfo(postgres_url, **({"user": user} if user else {}))
        if user is None and "LIMIT" in breaks:
            rows(postgres_url, "CREATE ROLE guest LOGIN")
            url = psycopg.conninfo.make_conninfo(postgres_url, user="guest")
        ended = run(environment | {"DATABASE_URL": url}, "jobs", "list")
    finally:
        rows(postgres_url.replace(str(name), "postgres"), "DROP ROLE IF EXISTS stranger, guest")
    assert ended.returncode == 1
    assert words in ended.stderr
    assert ("own its schema" in ended.stderr) is (cure is not None and "own its schema" in cure)
    assert cure is None or cure in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_cannot_be_read_is_named_without_its_password(environment: dict[str, str]) -> None:
    ended = run(environment | {"DATABASE_URL": "postgresql://me:geheim@127.0.0.1:port/x?wrong=1"}, "jobs", "list")
    assert ended.returncode == 1
    assert "must be a PostgreSQL URL such as postgresql://USER@HOST:5432/DATABASE" in ended.stderr
    assert "geheim" not in ended.stderr
    assert "schema" not in ended.stderr


def test_a_wrong_argument_is_named_without_a_traceback(environment: dict[str, str]) -> None:
    ended = run(environment, "webhooks", "create", "https://example.org/", "--owner", "me", "--event", "job.done")
    assert ended.returncode == 1
    assert ended.stderr.startswith('events/0: "job.done" is not allowed. Allowed: job.succeeded')
