"""The real API on a loopback socket, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from geo_jobs_api.app import create_app
from geo_jobs_api.config import Settings
from geo_jobs_api.http.server import bind, configuration
from tests.support.waiting import wait_until

JWT_SECRET = "test-jwt-secret-of-more-than-32-bytes"
STORAGE_SECRET = "test-storage-secret-of-more-than-32-bytes"
WORKER_TOKEN = "test-worker-token"
# All servers here use plain HTTP. Loading the certificates of the system would take 40 ms for each client.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def make_jwt(subject: str = "ada", *, admin: bool = False, ttl_seconds: float = 3600, **claims: Any) -> str:
    """Return a token of the test API. Given claims override the usual ones."""
    usual = {"sub": subject, "exp": int(time.time() + ttl_seconds)} | ({"scope": "geo-jobs:admin"} if admin else {})
    return jwt.encode(usual | claims, JWT_SECRET, algorithm="HS256")


def bearer(subject: str = "ada", *, admin: bool = False) -> dict[str, str]:
    """Return the Authorization header of a caller."""
    return {"Authorization": f"Bearer {make_jwt(subject, admin=admin)}"}


def worker_header(token: str = WORKER_TOKEN) -> dict[str, str]:
    """Return the Authorization header of a worker."""
    return {"Authorization": f"Worker {token}"}


def make_settings(database_url: str, data_dir: Path, **overrides: Any) -> Settings:
    """Return settings for a test: known secrets, no grace for lost workers, short intervals, no files."""
    values: dict[str, Any] = {
        "database_url": SecretStr(database_url),
        "data_dir": data_dir,
        "jwt_secret": SecretStr(JWT_SECRET),
        "storage_secret": SecretStr(STORAGE_SECRET),
        "worker_auth_token": SecretStr(WORKER_TOKEN),
        "rescue_grace_seconds": 0.0,
        "rescue_interval_seconds": 0.02,
        "events_interval_seconds": 0.05,
        "drain_seconds": 5.0,
        "requests_per_minute": 0,
        "metrics_seconds": 0.0,
    }
    return Settings(_env_file=None, **(values | overrides))


@dataclass(frozen=True, slots=True)
class RunningApi:
    """A server at `base_url`."""

    base_url: str
    settings: Settings
    app: FastAPI
    server: uvicorn.Server
    _clients: contextlib.ExitStack

    def client(self, path: str = "", **options: Any) -> httpx.Client:
        """Return an HTTP client, closed before the server."""
        usual: dict[str, Any] = {"timeout": 30, "base_url": f"{self.base_url}{path}", "verify": NO_TLS}
        return self._clients.enter_context(httpx.Client(**(usual | options)))

    def stop(self) -> None:
        """Begin to drain, like SIGTERM."""
        self.server.should_exit = True

    @property
    def parked(self) -> int:
        """Return the number of parked claims."""
        return len(self.app.state.services.room)


@contextlib.contextmanager
def run_api(settings: Settings, port: int = 0) -> Iterator[RunningApi]:
    """Serve the API with these settings during the context."""
    # Also after `capture_logs`, which leaves a configuration that prints.
    if not isinstance(structlog.get_config()["logger_factory"], structlog.stdlib.LoggerFactory):
        # The default prints tracebacks with all local variables. That takes seconds, and goes to standard output, where
        # tests of commands read the output.
        structlog.configure(
            processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    listener = bind("127.0.0.1", port)
    app = create_app(settings)
    server = uvicorn.Server(configuration(settings, app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the API to start")
        assert server.started, "the API did not start"
        with contextlib.ExitStack() as clients:
            yield RunningApi(f"http://127.0.0.1:{listener.getsockname()[1]}", settings, app, server, clients)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        assert not thread.is_alive(), "the API did not stop"
