"""The worker: without a command it claims jobs and runs them; `convert` converts one file by itself."""

if __name__ == "__main__" and not __package__:
    from importlib import import_module

    import_module("bootstrap").exec_module("geoprocessing_worker")

import argparse
import asyncio
import ctypes
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress

from geoprocessing_worker import __version__, config, confinement, log
from geoprocessing_worker.client import JobApi
from geoprocessing_worker.config import Settings
from geoprocessing_worker.confinement import Reach
from geoprocessing_worker.conversion import ConversionRequest, ConversionResult, convert
from geoprocessing_worker.courier import Courier
from geoprocessing_worker.daemon import Daemon
from geoprocessing_worker.errors import ConfigurationError, JobError, refused
from geoprocessing_worker.explanation import Explanation, explain_request
from geoprocessing_worker.malware import Scanner
from geoprocessing_worker.network import StorageGuard, bound_answer
from geoprocessing_worker.options import RenderOptions
from geoprocessing_worker.outbox import Outbox
from geoprocessing_worker.runner import Tools
from geoprocessing_worker.sandbox import Limits, Sandbox, Work
from geoprocessing_worker.workspace import prepare

Made = TypeVar("Made", bound=BaseModel)
PR_SET_DUMPABLE = 4  # from linux/prctl.h
USER_AGENT = f"geoprocessing-worker/{__version__}"


class ExitCode(IntEnum):
    """What the worker's end means to whoever started it."""

    CLEAN = 0
    JOB_FAILED = 1  # convert: the file was refused
    USAGE = 2  # argparse's own
    CONFIGURATION = 78  # EX_CONFIG of sysexits.h: starting again will not help
    FORCED = 130  # a third signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return an `ExitCode`."""
    parsed = _parser().parse_args(arguments)
    try:
        configuration = config.load()
        return int(parsed.command(parsed, configuration.settings))
    except ConfigurationError as error:
        for line in str(error).splitlines():
            print(f"❌ {line}", file=sys.stderr)  # noqa: T201 - the log is not there yet
        print("See `config.py` for the configuration in force.", file=sys.stderr)  # noqa: T201
        return ExitCode.CONFIGURATION


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker.py", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(command=_work)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands (without one: work)")
    one = commands.add_parser("convert", help="convert one file, without queue or network")
    one.add_argument("source", type=Path, metavar="MAP.tif")
    one.add_argument("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="where to (default: here)")
    one.add_argument(
        "-p",
        "--payload",
        default="{}",
        metavar="JSON",
        help="what a job's inputPayload would say, for example '{\"maxSize\": 2048}'",
    )
    one.add_argument(
        "--explain", action="store_true", help="print what is found and would be chosen, as JSON, and make nothing"
    )
    one.set_defaults(command=_convert)
    return parser


def _work(_parsed: argparse.Namespace, settings: Settings) -> ExitCode:
    wrong = config.problems(settings)
    if settings.require_sandbox:
        wrong += [f"REQUIRE_SANDBOX: this machine lacks {layer}" for layer in confinement.missing_layers()]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    os.umask(0o077)  # logs and reports quote files of strangers: they are for the worker's user only
    log.configure(
        settings.log_level,
        settings.log_file,
        secrets=[settings.worker_auth_token.get_secret_value(), settings.pgpassword.get_secret_value()],
    )
    try:
        prepare(settings.temp_dir)
    except OSError as error:
        raise ConfigurationError(f"TEMP_DIR: {settings.temp_dir} cannot be used ({error.strerror})") from None
    _hide_memory()
    return asyncio.run(_serve(settings))


def _hide_memory() -> None:
    """Keep this process's memory and first environment, with its secrets, from others of the same user."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


async def _serve(settings: Settings) -> ExitCode:
    trust = settings.trust()
    async with (
        httpx.AsyncClient(
            base_url=settings.api_base_url,
            verify=trust,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            event_hooks={"response": [bound_answer]},
        ) as api,
        # Storage may be somebody else's host: this client has no credentials to give away, and follows no redirect.
        httpx.AsyncClient(
            verify=trust, headers={"User-Agent": USER_AGENT}, event_hooks={"request": [_guard(settings)]}
        ) as storage,
    ):
        # The clients have read what they need (proxies); the processes that open strangers' files need none of it.
        config.keep_harmless_environment()
        job_api = JobApi(api, settings.worker_auth_token)
        daemon = Daemon(
            Tools(
                settings=settings,
                defaults=_defaults(settings),
                api=job_api,
                courier=Courier(_outbox(settings), job_api, storage),
                storage=storage,
                sandbox=_sandbox(settings, convert, ConversionResult),
                scanner=Scanner(settings.clamd_address) if settings.scan_for_malware else None,
            )
        )
        signals = itertools.count(1)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _stop, daemon, signals)
        await daemon.run()
    return ExitCode.CLEAN


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


def _stop(daemon: Daemon, signals: "itertools.count[int]") -> None:
    """First signal: no more claims. Second: running jobs go back at once. Third: out."""
    if next(signals) < 3:
        daemon.stop()
    else:
        # Children end with their parent; folders left behind are removed at the next start.
        os._exit(ExitCode.FORCED)


def _convert(parsed: argparse.Namespace, settings: Settings) -> ExitCode:
    if not parsed.source.is_file():
        raise ConfigurationError(f"there is no file {parsed.source}")
    log.configure(settings.log_level, None)
    config.keep_harmless_environment()
    try:
        request = _request(parsed, settings)
        if parsed.explain:
            explanation = asyncio.run(_with_bar(_sandbox(settings, explain_request, Explanation), request))
            print(json.dumps(explanation.plan, indent=2, ensure_ascii=False))  # noqa: T201 - a command's output
            return ExitCode.CLEAN
        parsed.output.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(_with_bar(_sandbox(settings, convert, ConversionResult, umask=_umask()), request))
    except JobError as error:
        print(f"❌ {error.code}: {error.message}", file=sys.stderr)  # noqa: T201
        return ExitCode.JOB_FAILED
    except OSError as error:
        raise ConfigurationError(f"{parsed.output} cannot be written: {error.strerror}") from None
    for output in result.outputs:
        print(output.path)  # noqa: T201
    return ExitCode.CLEAN


def _request(parsed: argparse.Namespace, settings: Settings) -> ConversionRequest:
    source: Path = parsed.source.absolute()
    return ConversionRequest(
        source=source,
        output_folder=parsed.output.absolute(),
        stem=source.stem,
        options=RenderOptions.from_payload(_payload(parsed.payload), _defaults(settings)),
        source_name=source.name,
        validate_headers=settings.validate_file_headers,
    )


async def _with_bar(box: Sandbox[ConversionRequest, Made], request: ConversionRequest) -> Made:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        return await box.run(
            request,
            lambda stage, percent, _text: bar.update(task, description=stage, completed=percent),
            Reach((request.source,), (request.output_folder,)),
        )


def _payload(text: str) -> dict[str, Any]:
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise refused("invalid_payload", f"The payload is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise refused("invalid_payload", "The payload must be a JSON object.")
    return payload


def _defaults(settings: Settings) -> RenderOptions:
    try:
        # As if a payload had said it, so that it is checked now and not blamed on an uploader later.
        RenderOptions.from_payload({"coordinateSystem": settings.coordinate_system}, RenderOptions())
    except JobError as error:
        raise ConfigurationError(f"COORDINATE_SYSTEM: {error.message}") from None
    return RenderOptions(
        max_size=settings.max_image_size,
        quality=settings.compression_quality,
        generate_thumbnails=settings.generate_thumbnails,
        thumbnail_size=settings.thumbnail_size,
        coordinate_system=settings.coordinate_system,
    )


def _sandbox(
    settings: Settings, work: Work[ConversionRequest, Made], result: type[Made], **further: int
) -> Sandbox[ConversionRequest, Made]:
    limits = Limits(
        memory_bytes=settings.max_memory_mb * 1024**2,
        # Two threads decode and warp; beyond that the time a job may take is the limit that counts.
        cpu_seconds=max(1, round(2 * settings.max_processing_time)),
        **further,
    )
    return Sandbox(work, result, preload=("geoprocessing_worker.forkserver",), limits=limits)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


if __name__ == "__main__":
    raise SystemExit(main())
