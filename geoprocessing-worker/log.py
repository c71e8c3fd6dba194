"""Structured logs: JSON lines in a rotating `worker.log` and text on the terminal, with secrets masked.

Each record has a stable `event` for programs and a `message` for people. For grep, only the level of errors contains
`ERROR`, and exactly one record of each completed job contains `Job … completed`.
"""

import fcntl
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

import structlog

Event = MutableMapping[str, Any]

FILE_BYTES = 10 * 1024 * 1024
FILES_KEPT = 5
MASK = "********"
# The signature of a URL is in its query.
_QUERY = re.compile(r"(https?://[^\s\"'?]*)\?[^\s\"']*")
# Characters that move a cursor, end a line or change the writing direction. Files, addresses and compromised processes
# could forge records or terminal output with them.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_CREDENTIAL = re.compile(r"\b(authorization\W+\w+|bearer)\s+[\w.~+/=-]{8,}", re.IGNORECASE)

_render_json = structlog.processors.JSONRenderer(ensure_ascii=False)


class Redact:
    """Masks signed queries, credentials and given secrets anywhere in a record.

    Args:
        secrets: texts to mask.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if secret]

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        """Mask one record."""
        return {key: self._masked(value) for key, value in event.items()}

    def _masked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._masked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._masked(item) for item in value]
        if not isinstance(value, str):
            return value
        for secret in self._secrets:
            value = value.replace(secret, MASK)
        return _CREDENTIAL.sub(rf"\1 {MASK}", _QUERY.sub(r"\1", value))


def configure(level: str, file: Path | None, *, secrets: Iterable[str] = ()) -> None:
    """Write all records, also of libraries, to the terminal and to `file`.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        file: the log file, or None. An unwritable one is a warning.
        secrets: texts to mask.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _shape,
        Redact(secrets),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    # After an error such as a full disk, a handler would otherwise print the unmasked record.
    logging.raiseExceptions = False
    root.setLevel(level)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_formatter(shared, _line))
    root.addHandler(console)
    # At INFO it logs every URL with its signature.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    if file is not None:
        _add_file(root, file, _formatter(shared, _json))


class _SharedFile(logging.handlers.RotatingFileHandler):
    """A rotating log file for several workers: one of them rotates, the others follow."""

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record, to the new file if another process has rotated."""
        if self.stream is not None and not self._is_current():
            self.stream.close()
            self.stream = None  # reopened by the library, which handles errors
        super().emit(record)

    def doRollover(self) -> None:  # noqa: N802 - logging's name
        """Rotate, unless another process has just done so."""
        folder = os.open(Path(self.baseFilename).parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self._is_current():
                super().doRollover()
        finally:
            os.close(folder)

    def _is_current(self) -> bool:
        if self.stream is None:
            return False
        try:
            return os.path.samestat(os.fstat(self.stream.fileno()), Path(self.baseFilename).stat())
        except OSError:
            return False


def _add_file(root: logging.Logger, file: Path, formatter: logging.Formatter) -> None:
    try:
        rotating = _SharedFile(file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    except OSError as error:
        root.warning("The log file %s cannot be written (%s); set LOG_FILE", file, error.strerror)
        return
    rotating.setFormatter(formatter)
    root.addHandler(rotating)


def _formatter(shared: list[structlog.typing.Processor], render: Any) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )


def _shape(_logger: Any, _method: str, event: Event) -> Event:
    event["level"] = str(event.get("level", "info")).upper()
    name = str(event.get("event", ""))
    event.setdefault("message", name[:1].upper() + (name[1:].replace("_", " ") if name.isidentifier() else name[1:]))
    first = ("timestamp", "level", "event", "message")
    return {key: event[key] for key in first if key in event} | {k: v for k, v in event.items() if k not in first}


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _json(logger: Any, method: str, event: Event) -> str:
    return _visible(str(_render_json(logger, method, event)))


def _line(_logger: Any, _method: str, event: Event) -> str:
    named = {key: value for key, value in event.items() if key not in ("timestamp", "level", "event", "message")}
    trouble = named.pop("exception", None) or named.pop("traceback", None)
    rest = " ".join(f"{key}={value}" for key, value in named.items())
    line = _visible(f"{event['timestamp']} {event['level']:<7} {event['message']}  {rest}".rstrip())
    # Indented, since a compromised process may have written it.
    return "\n".join([line, *(f"  | {_visible(one)}" for one in str(trouble).splitlines())]) if trouble else line
