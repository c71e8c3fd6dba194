"""What downloads and uploads have in common: patience with bad links and busy storage."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from geoprocessing_worker import host
from geoprocessing_worker.errors import ErrorClass, JobError, Unavailable, invalid_input, worker_trouble
from geoprocessing_worker.wire import retry

# Seconds that storage may be silent, and that a connection to it may take: one that lives answers within a few.
SILENCE = httpx.Timeout(retry.TRANSFER.try_timeout, connect=5.0)
# Seconds without a step forward, after which a transfer is given up.
PATIENCE = 300.0
# The same for somebody else's server. The job is tried again after a wait all the same, which need not take a place
# among those that a worker does at once.
SOURCE_PATIENCE = 45.0
# Bytes that are a step. One now and then would keep a transfer going for ever; 16 kB in five minutes is 55 bytes/s.
STEP = 16 * 1024


class Pulse:
    """When a transfer last came a step forward: a slow link that gets on is no reason to give up, a trickle is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, patience: float = PATIENCE) -> None:
        self._clock = clock
        self._patience = patience
        self._last = clock()
        self._moved = 0

    def beat(self, count: int) -> None:
        """So many bytes moved.

        Raises:
            Unavailable: they are a trickle.
        """
        self._moved += count
        if self._moved >= STEP:
            self._last, self._moved = self._clock(), 0
        elif self.patience_left() <= 0:
            raise Unavailable("too_slow", f"less than {STEP} bytes moved in {self._patience:g} s")

    def patience_left(self) -> float:
        """Seconds until patience ends, should nothing move."""
        return self._patience - (self._clock() - self._last)


async def patiently(
    once: Callable[[], Awaitable[None]],
    pulse: Pulse,
    *,
    code: str,
    message: str,
    detail: Callable[[], dict[str, Any]],
) -> None:
    """Repeat one transfer until it is through or patience ends.

    Args:
        once: makes one try.
        pulse: of the transfer's bytes.
        code: of the error, should patience end.
        message: likewise.
        detail: likewise, asked for at the end.

    Raises:
        JobError: transient, with the given words; `address_refused` for a URL that is none.
    """

    async def once_named() -> None:
        try:
            await once()
        except httpx.HTTPError as error:
            # Its text may quote the signed URL; its type says enough.
            raise Unavailable("no_connection", type(error).__name__) from None
        except (httpx.InvalidURL, UnicodeError):
            # The second one of a name in letters beyond ASCII that stands for none, also in a redirect.
            raise invalid_input("address_refused", "The file's address is none that can be read.") from None

    try:
        await retry.persist(retry.TRANSFER, once_named, remaining=pulse.patience_left)
    except Unavailable as error:
        raise JobError(code, message, ErrorClass.TRANSIENT, {"reason": str(error), **detail()}) from None


# Client errors that pass by themselves: timeouts, locks and rate limits.
PASSING = frozenset({408, 409, 421, 423, 425, 429})


def is_busy(response: httpx.Response) -> bool:
    """Whether the same request may succeed soon."""
    return httpx.codes.is_server_error(response.status_code) or response.status_code in PASSING


def check(response: httpx.Response, *, code: str, message: str, **detail: Any) -> None:
    """Raise what an answer of storage means, if it is not a good one.

    Raises:
        Unavailable: storage is busy.
        JobError: transient, with the given words: a signed URL that ran out. The next attempt gets new ones.
            `worker_trouble` where storage's clock and this host's differ by days, since signed URLs then seem expired.
    """
    if response.is_success:
        return
    if is_busy(response):
        raise Unavailable(f"http_{response.status_code}", "storage is busy")
    trouble = host.clock(host.clock_offset(response.headers.get("Date", ""), time.time()))
    if trouble is not None:
        raise worker_trouble(trouble.code, instead_of=code, status=response.status_code)
    raise JobError(code, message, ErrorClass.TRANSIENT, {"status": response.status_code, **detail})
