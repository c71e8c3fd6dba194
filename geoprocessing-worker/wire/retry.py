"""How patient the worker is with each kind of call, as one table, and the loop that holds to it.

The arithmetic: a lease lasts 60 s and is renewed every 20 s. A heartbeat that is not answered within 5 s is sent again
a second or two later, so that at least five of them fit before the lease is gone. Losing a finished result is the worst
outcome, so completing and failing go on for as long as the lease can still be trusted, and from the outbox after that:
an API that was away gives living workers a lease's time before it takes their jobs, which is six tries of the outbox.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import stamina
import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from geoprocessing_worker.errors import TokenRefused, Unavailable

T = TypeVar("T")
# Bytes per second, which a body is given beside a try's seconds: half a megabyte of small results takes almost a minute
# over such a link, and must not be begun anew every 15 s.
SLOWEST_LINK = 10_000
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Policy:
    """Seconds that one short try may take, and the wait between tries: doubled each time up to a most, plus jitter."""

    try_timeout: float
    wait_initial: float
    wait_max: float
    patience: float = math.inf
    through_refusal: bool = False


# The reply to a claim may be lost; within the short first lease (15 s) the same claim id brings the same jobs back.
CLAIM = Policy(try_timeout=10, wait_initial=0.5, wait_max=4, patience=12)
HEARTBEAT = Policy(try_timeout=5, wait_initial=0.5, wait_max=2)
# A refused token may be mended, and a refusal may be a proxy's, while a result waits.
REPORT = Policy(try_timeout=15, wait_initial=0.5, wait_max=10, patience=600, through_refusal=True)
# A report that waits in the outbox: its age says when to give up.
OUTBOX = Policy(try_timeout=15, wait_initial=0.5, wait_max=8, through_refusal=True)
# For a caller that counts the tries itself; stamina takes 0 for a mistake.
ONCE = Policy(try_timeout=15, wait_initial=0, wait_max=0, patience=1e-6)
# Patience is counted from the last byte that moved; see transfer.py.
TRANSFER = Policy(try_timeout=30, wait_initial=1, wait_max=15)
# A worker that is leaving does not hang on: the lease runs out by itself.
PARTING = Policy(try_timeout=3, wait_initial=0.3, wait_max=1, patience=5)

WAIT_JITTER = 1.0
# Once the API asks for a pause it is kept, but not for ever: a wrong clock in a proxy must not silence a worker.
LONGEST_RETRY_AFTER = 60.0


async def persist(
    policy: Policy, call: Callable[[], Awaitable[T]], *, remaining: Callable[[], float] | None = None
) -> T:
    """Repeat `call` while it raises `Unavailable`, as patiently as the policy says.

    Args:
        policy: waits and patience.
        call: makes one try.
        remaining: seconds that it still makes sense to go on; asked before each further try, since a lease is renewed
            while its result is being reported.

    Raises:
        Unavailable, TokenRefused: patience or sense ran out; the last try's.
    """

    def decide(error: Exception) -> bool | float:
        passing = isinstance(error, Unavailable) or (policy.through_refusal and isinstance(error, TokenRefused))
        if not passing or (remaining is not None and remaining() <= 0):
            return False
        asked = error.retry_after if isinstance(error, Unavailable) else None
        return True if asked is None else min(asked, LONGEST_RETRY_AFTER)

    attempts = stamina.retry_context(
        on=decide,
        attempts=None,
        timeout=None if math.isinf(policy.patience) else policy.patience,
        wait_initial=policy.wait_initial,
        wait_max=policy.wait_max,
        wait_jitter=min(WAIT_JITTER, policy.wait_initial),
    )
    async for attempt in attempts:
        with attempt:
            return await call()
    raise AssertionError("unreachable: the last attempt raises")


def _log_retry(details: RetryDetails) -> None:
    log.debug("retry_scheduled", retry=details.retry_num, wait_seconds=details.wait_for, reason=str(details.caused_by))


set_on_retry_hooks([_log_retry])
