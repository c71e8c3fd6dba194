"""Structured logging to standard error: one JSON object per line, with a stable `event` and no secrets."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog

# JSON leaves these as they are: terminal control codes, and marks that change the writing direction.
_CONTROLS = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def configure(level: str) -> None:
    """Send the records of structlog and of the standard library to standard error, in one format.

    Args:
        level: a standard level name, such as `INFO`.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Any] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(ensure_ascii=False),
        _without_controls,
    ]
    # Our records skip the standard library, which takes longer than all the rest of a record.
    structlog.configure(
        processors=[*shared, *rendering],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Their records repeat ours or contain connection strings. The pool warns at each attempt to reconnect.
    for name, least in (("uvicorn.access", logging.WARNING), ("httpx", logging.WARNING), ("psycopg", logging.ERROR)):
        logging.getLogger(name).setLevel(least)


def _without_controls(_logger: object, _method: str, line: object) -> str:
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", str(line))


class OutageLog:
    """Logs only the first failure and the end of an outage of a loop that retries.

    Args:
        logger: the destination.
        event: the record's name at the first failure. The end is `outage_over`.
    """

    def __init__(self, logger: structlog.stdlib.BoundLogger, event: str) -> None:
        self._logger = logger
        self._event = event
        self._failures = 0

    def failed(self, error: BaseException) -> None:
        """Count a failure."""
        if not self._failures:
            self._logger.warning(self._event, reason=type(error).__name__)
        self._failures += 1

    def worked(self) -> None:
        """Count a success."""
        if self._failures:
            self._logger.info("outage_over", of=self._event, failures=self._failures)
            self._failures = 0


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of one module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
