"""Shared parts of downloads and uploads: patience with bad links and busy storage."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from geoprocessing_worker import host
from geoprocessing_worker.errors import ErrorClass, JobError, Unavailable, invalid_input, worker_trouble
from geoprocessing_worker.wire import retry

# Seconds between two bytes, and for connecting: a working server answers within a few.
SILENCE = httpx.Timeout(retry.TRANSFER.try_timeout, connect=5.0)
# A transfer is given up after this many seconds without a step.
PATIENCE = 300.0
# The same for other servers. The job is retried after a wait anyway, which takes no slot of a worker.
SOURCE_PATIENCE = 45.0
# Attempts at a transfer whose bytes differ from the server's record: a proxy may answer in the place of storage.
MAX_MISMATCHES = 3
# Bytes of a step. A trickle of single bytes must not prolong a transfer: 16 kB in five minutes are 55 bytes/s.
STEP = 16 * 1024


class Pulse:
    """The time of a transfer's last step. A slow link is tolerated, a trickle is not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, patience: float = PATIENCE) -> None:
        self._clock = clock
        self._patience = patience
        self._last = clock()
        self._moved = 0

    def beat(self, count: int) -> None:
        """Count bytes that were received or sent.

        Raises:
            Unavailable: it is a trickle.
        """
        self._moved += count
        if self._moved >= STEP:
            self._last, self._moved = self._clock(), 0
        elif self.patience_left() <= 0:
            raise Unavailable("too_slow", f"less than {STEP} bytes moved in {self._patience:g} s")

    def patience_left(self) -> float:
        """Return the seconds until the transfer is given up, without another step."""
        return self._patience - (self._clock() - self._last)


async def patiently(
    once: Callable[[], Awaitable[None]],
    pulse: Pulse,
    *,
    code: str,
    message: str,
    detail: Callable[[], dict[str, Any]],
) -> None:
    """Repeat one transfer until it succeeds or patience ends.

    Args:
        once: makes one attempt.
        pulse: of the transfer's bytes.
        code: of the error when patience ends.
        message: of that error.
        detail: returns the detail of that error.

    Raises:
        JobError: transient, as given, or `address_refused` for an invalid URL.
    """

    async def once_named() -> None:
        try:
            await once()
        except httpx.HTTPError as error:
            # Its text may contain the signed URL, so only its type is reported.
            raise Unavailable("no_connection", type(error).__name__) from None
        except (httpx.InvalidURL, UnicodeError):
            # UnicodeError: of an invalid internationalized name, also in a redirect.
            raise invalid_input("address_refused", "The file's address is invalid. Use an http(s) URL.") from None

    try:
        await retry.persist(retry.TRANSFER, once_named, remaining=pulse.patience_left)
    except Unavailable as error:
        raise JobError(code, message, ErrorClass.TRANSIENT, {"reason": str(error), **detail()}) from None


# Transient client errors: timeouts, locks and rate limits.
PASSING = frozenset({408, 409, 421, 423, 425, 429})


def is_busy(response: httpx.Response) -> bool:
    """Return whether the same request may succeed soon."""
    return httpx.codes.is_server_error(response.status_code) or response.status_code in PASSING


def check(response: httpx.Response, *, code: str, message: str, **detail: Any) -> None:
    """Raise the error for an answer of storage that is no success.

    Raises:
        Unavailable: storage is busy.
        JobError: transient, as given: an expired signed URL, for example. The next attempt gets new ones.
            `worker_trouble` if the clocks of storage and this host differ by days, since signed URLs then seem expired.
    """
    if response.is_success:
        return
    if is_busy(response):
        raise Unavailable(f"http_{response.status_code}", "storage is busy")
    trouble = host.clock(host.clock_offset(response.headers.get("Date", ""), time.time()))
    if trouble is not None:
        raise worker_trouble(trouble.code, instead_of=code, status=response.status_code)
    raise JobError(code, message, ErrorClass.TRANSIENT, {"status": response.status_code, **detail})
