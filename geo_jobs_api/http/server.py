"""Serving the application: a socket bound first, one or several processes, an end that keeps nobody waiting."""

from __future__ import annotations

import errno
import gc
import socket
import tempfile
from collections.abc import Sequence

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from geo_jobs_api.config import Settings, share_metrics
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.http.connections import BoundedProtocol
from geo_jobs_api.queue.metrics import drop_process_metrics

_APPLICATION = "geo_jobs_api.app:from_environment"
_BACKLOG = 2048
# The usual 700 new objects are two claims; a round for each costs more than it frees.
_GC_THRESHOLDS = (20_000, 20, 20)


def tune_garbage_collection() -> None:
    """Exempt all present objects from garbage collection, since they stay until the end, and collect less often.

    Full rounds over all modules made one claim in a hundred wait 20 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class DrainingServer(uvicorn.Server):
    """Answers parked claims and ends live streams before it waits for open requests."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As the base, then `tune_garbage_collection`."""
        await super().startup(sockets)
        tune_garbage_collection()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As the base, after everything that waits was sent away."""
        app = self.config.loaded_app
        while app is not None and not hasattr(app, "state"):
            # uvicorn wraps the application.
            app = getattr(app, "app", None)
        services = None if app is None else getattr(app.state, "services", None)
        if services is not None:
            services.drain()
        # The base would raise the signal again after a clean end, and the exit code would tell of a death by signal.
        self._captured_signals.clear()
        await super().shutdown(sockets)


class _DrainingProcess(multiprocess.Process):
    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = DrainingServer(config=self.config)
        return self._server


class _DrainingMultiprocess(multiprocess.Multiprocess):
    """Keeps its processes going; what one of them measured at its death is forgotten."""

    def keep_subprocess_alive(self) -> None:
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            if pid is not None:
                drop_process_metrics(pid)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationError: the port is taken, or the address is not one of this machine's.
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
                f"Port {port} on {host} is taken by another program: stop it, or choose --port or API_PORT."
            ) from error
        raise ConfigurationError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from error
    listener.set_inheritable(True)
    return listener


def configuration(settings: Settings, application: object, *, workers: int = 1) -> uvicorn.Config:
    """How uvicorn is run, here and in the tests."""
    return uvicorn.Config(
        application,  # type: ignore[arg-type]  # an import string, or the application itself
        factory=isinstance(application, str),
        workers=workers,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        # uvicorn's default trusts loopback, where any local user may connect from.
        forwarded_allow_ips=settings.trusted_proxies,
        lifespan="on",
        ws="none",
        # Claims may wait 50 s on a connection that then is used again.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def serve(settings: Settings, listeners: Sequence[socket.socket], *, workers: int) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    config = configuration(settings, _APPLICATION, workers=workers)
    if workers > 1:
        # Also those that are started in the place of a dead one must drain; the base makes them by this name.
        multiprocess.Process = _DrainingProcess  # type: ignore[misc]
        with tempfile.TemporaryDirectory(prefix="geo-jobs-metrics-") as folder:
            share_metrics(folder)
            supervisor = _DrainingMultiprocess(config, sockets=list(listeners))
            supervisor.run()
        failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
        return STARTUP_FAILURE if failed else 0
    server = DrainingServer(config)
    server.run(sockets=list(listeners))
    return 0 if server.started else 1
