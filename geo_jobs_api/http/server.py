"""Serving: a socket bound in advance, one or several processes, and a shutdown that drains parked requests."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import tempfile
from collections.abc import Sequence
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from geo_jobs_api.config import Settings
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.http.connections import BoundedProtocol
from geo_jobs_api.queue.metrics import drop_process_metrics, share_metrics

_APPLICATION = "geo_jobs_api.app:from_environment"
_BACKLOG = 2048
# The default of 700 new objects is two claims, and a round for each costs more than it frees.
_GC_THRESHOLDS = (20_000, 20, 20)


def tune_garbage_collection() -> None:
    """Exempt all present objects from garbage collection, since they stay until the end, and collect less often.

    Full rounds over all modules made one claim in a hundred wait 20 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # as the base
        """Stop. The base would also raise the signal again after the shutdown, so the exit code would not be 0."""
        self.force_exit |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class _Supervisor(Multiprocess):
    def keep_subprocess_alive(self) -> None:
        """Restart dead processes as the base does, and drop their gauges."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            if pid is not None:
                drop_process_metrics(pid)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigurationError: the port is used, or the address is not local.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"Port {port} on {host} is used by another program. Stop it, or set --port or API_PORT."
            ) from error
        raise ConfigurationError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from error
    listener.set_inheritable(True)
    return listener


def configuration(settings: Settings, application: object, *, workers: int = 1) -> uvicorn.Config:
    """Return the configuration of uvicorn, which tests use too."""
    return uvicorn.Config(
        application,  # type: ignore[arg-type]  # an import string, or the application itself
        factory=isinstance(application, str),
        workers=workers,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        # uvicorn trusts loopback by default, and any local user may connect from there.
        forwarded_allow_ips=settings.trusted_proxies,
        lifespan="on",
        ws="none",
        # Claims wait up to 50 s, and their connections are reused.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def serve(settings: Settings, listeners: Sequence[socket.socket], *, workers: int) -> int:
    """Serve until SIGTERM or SIGINT. Return the exit code."""
    config = configuration(settings, _APPLICATION, workers=workers)
    if workers > 1:
        with tempfile.TemporaryDirectory(prefix="geo-jobs-metrics-") as folder:
            share_metrics(folder)
            supervisor = _Supervisor(config, sockets=list(listeners))
            supervisor.run()
        failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
        return STARTUP_FAILURE if failed else 0
    server = _Server(config)
    server.run(sockets=list(listeners))
    return 0 if server.started else 1
