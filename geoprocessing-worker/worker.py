"""The worker: claims and runs jobs, or runs one of its commands."""

if __name__ == "__main__" and not __package__:
    from importlib import import_module

    import_module("bootstrap").exec_module("geoprocessing_worker")

import argparse
import asyncio
import gc
import itertools
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from enum import IntEnum

import httpx

from geoprocessing_worker import __version__, config, config_report, log
from geoprocessing_worker.cli import convert, tasks, verify
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.jobs.daemon import Daemon
from geoprocessing_worker.jobs.outbox import Outbox
from geoprocessing_worker.jobs.report_sender import ReportSender
from geoprocessing_worker.jobs.runner import WorkerContext
from geoprocessing_worker.own_folder import prepare
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.calls import PERFORM
from geoprocessing_worker.plugins.processes import check_defaults, make_sandbox
from geoprocessing_worker.plugins.registry import Tasks
from geoprocessing_worker.sandbox import landlock, libc
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.url_guard import StorageGuard, bound_answer, forget_cookies, source_refusal
from geoprocessing_worker.wire.virus_scan import Scanner

MAX_REDIRECTS = 5
# The default of 700 new objects is one call of the API.
GC_THRESHOLDS = (20_000, 20, 20)
USER_AGENT = f"geoprocessing-worker/{__version__}"


class ExitCode(IntEnum):
    """The exit codes of the worker."""

    CLEAN = 0
    JOB_FAILED = 1  # convert: the file was rejected. tasks, verify: not all handlers are usable.
    USAGE = 2  # argparse's own. convert: the payload was rejected
    CONFIGURATION = 78  # EX_CONFIG of sysexits.h: a restart does not help
    FORCED = 130  # a third signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return an `ExitCode`."""
    parsed = _parser().parse_args(arguments)
    try:
        configuration = config.load()
        return int(parsed.command(parsed, configuration.settings))
    except ConfigurationError as error:
        for line in str(error).splitlines():
            print(f"❌ {line}", file=sys.stderr)  # noqa: T201 - before the log is configured
        print("See `config.py` for the configuration in force.", file=sys.stderr)  # noqa: T201
        return ExitCode.CONFIGURATION


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker.py", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(command=_work)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands (without one: work)")
    for module in (convert, tasks, verify):
        module.add_command(commands)
    return parser


def _work(_parsed: argparse.Namespace, settings: Settings) -> ExitCode:
    faults = config_report.problems(settings)
    if settings.require_sandbox:
        faults += [f"REQUIRE_SANDBOX: this machine lacks {layer}" for layer in landlock.missing_layers()]
    loaded = registry.load(settings)
    if not loaded.usable:
        faults += [f"WORKER_TASK_TYPES: no handler can be used ({broken.reason})" for broken in loaded.broken] or [
            "no task types are installed: run ./start_worker.sh or `pip install -e .` once more"
        ]
    if faults:
        raise ConfigurationError("\n".join(faults))
    os.umask(0o077)  # logs and reports quote untrusted files, so only the worker's user may read them
    log.configure(
        settings.log_level,
        settings.log_file,
        secrets=[settings.worker_auth_token.get_secret_value(), settings.pgpassword.get_secret_value()],
    )
    try:
        prepare(settings.temp_dir)
    except OSError as error:
        raise ConfigurationError(f"TEMP_DIR: {settings.temp_dir} cannot be used ({error.strerror})") from None
    libc.hide_memory()
    # Not uvloop: 0.23 closes the descriptor of each pipe twice, and a thread may have reused its number in between. A
    # download was lost that way about once in 4,000 jobs.
    return asyncio.run(_serve(settings, loaded))


async def _serve(settings: Settings, loaded: Tasks) -> ExitCode:
    trust = settings.trust()
    async with (
        api_client(settings, trust) as api,
        storage_client(settings, trust) as storage,
        source_client(settings, trust) as sources,
    ):
        # The clients have read their proxy variables. The processes that open untrusted files get none of them.
        config.keep_harmless_environment()
        await check_defaults(settings, loaded)
        job_api = JobApi(api, settings.worker_auth_token)
        daemon = Daemon(
            WorkerContext(
                settings=settings,
                tasks=loaded,
                api=job_api,
                sender=ReportSender(_outbox(settings), job_api, storage),
                storage=storage,
                sources=sources,
                sandbox=make_sandbox(settings, loaded, PERFORM, TaskResult),
                scanner=Scanner(settings.clamd_address) if settings.scan_for_malware else None,
            )
        )
        signals = itertools.count(1)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _stop, daemon, signals)
        _spare_collector()
        await daemon.run()
    return ExitCode.CLEAN


def _spare_collector() -> None:
    """Run the garbage collector rarely, and without permanent objects. Saves 1 ms of each small job."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _outbox(settings: Settings) -> Outbox:
    return Outbox(
        settings.temp_dir,
        settings.api_base_url,
        max_age=settings.outbox_max_age,
        max_reports=settings.outbox_max_reports,
    )


def _guard(settings: Settings) -> StorageGuard:
    return StorageGuard(
        (settings.api_host, *settings.storage_hosts),
        any_host=settings.allow_any_storage_host,
        networks=settings.storage_networks,
    )


def api_client(settings: Settings, trust: ssl.SSLContext | bool) -> httpx.AsyncClient:
    """Return the client for the five calls."""
    return httpx.AsyncClient(
        base_url=settings.api_base_url,
        verify=trust,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        event_hooks={"response": [bound_answer]},
    )


def storage_client(settings: Settings, trust: ssl.SSLContext | bool) -> httpx.AsyncClient:
    """Return the client for signed URLs, without credentials and redirects, since storage may be another host."""
    client = httpx.AsyncClient(
        verify=trust, headers={"User-Agent": USER_AGENT}, event_hooks={"request": [_guard(settings)]}
    )
    forget_cookies(client)
    return client


def source_client(settings: Settings, trust: ssl.SSLContext | bool) -> httpx.AsyncClient:
    """Return the client for sourceUrl: without credentials, and only to `SOURCE_HOSTS`."""
    guard = StorageGuard(
        tuple(host for host in settings.source_hosts if host != "*"),
        any_host="*" in settings.source_hosts,
        setting="SOURCE_HOSTS",
        refusal=source_refusal,
    )
    client = httpx.AsyncClient(
        verify=trust,
        headers={"User-Agent": USER_AGENT},
        # The guard checks redirects too.
        event_hooks={"request": [guard]},
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
    )
    forget_cookies(client)
    return client


def _stop(daemon: Daemon, signals: "itertools.count[int]") -> None:
    """First signal: no more claims. Second: running jobs go back at once. Third: exit."""
    if next(signals) < 3:
        daemon.stop()
    else:
        # Children end with their parent. Folders are removed at the next start.
        os._exit(ExitCode.FORCED)


if __name__ == "__main__":
    raise SystemExit(main())
