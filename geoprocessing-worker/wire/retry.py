"""The retry policies of all calls as one table, and the retry loop.

A lease lasts 60 s and is renewed every 20 s. A heartbeat without an answer in 5 s is repeated a second or two later, so
five of them fit into a lease. A lost result is the worst outcome. Reports are therefore retried while the lease can be
trusted, and from the outbox after that. After an outage the API waits for the length of a lease before it takes jobs
from workers, which is six attempts of the outbox.
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
# Bytes per second. An attempt gets the time for its body at this rate in addition: 0.5 MB of inline results take almost
# a minute, and must not start over every 15 s.
SLOWEST_LINK = 10_000
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Policy:
    """The timeout of one attempt and the wait between attempts, in seconds: doubled up to a maximum, plus jitter."""

    try_timeout: float
    wait_initial: float
    wait_max: float
    patience: float = math.inf
    through_refusal: bool = False


# After a lost reply, the same claim id returns the same jobs within the short first lease (15 s).
CLAIM = Policy(try_timeout=10, wait_initial=0.5, wait_max=4, patience=12)
HEARTBEAT = Policy(try_timeout=5, wait_initial=0.5, wait_max=2)
# An operator may replace a refused token, and a refusal may come from a proxy.
REPORT = Policy(try_timeout=15, wait_initial=0.5, wait_max=10, patience=600, through_refusal=True)
# For reports in the outbox, which are dropped by age.
OUTBOX = Policy(try_timeout=15, wait_initial=0.5, wait_max=8, through_refusal=True)
# For callers with their own retry loop. stamina rejects 0.
ONCE = Policy(try_timeout=15, wait_initial=0, wait_max=0, patience=1e-6)
# Patience counts from the last byte received or sent, in transfer.py.
TRANSFER = Policy(try_timeout=30, wait_initial=1, wait_max=15)
# A stopping worker gives up soon, since the lease expires by itself.
PARTING = Policy(try_timeout=3, wait_initial=0.3, wait_max=1, patience=5)

WAIT_JITTER = 1.0
# Longest Retry-After that is honored: a proxy with a wrong clock must not stop a worker.
LONGEST_RETRY_AFTER = 60.0


async def persist(
    policy: Policy, call: Callable[[], Awaitable[T]], *, remaining: Callable[[], float] | None = None
) -> T:
    """Repeat `call` while it raises `Unavailable`, by the policy.

    Args:
        policy: waits and patience.
        call: makes one attempt.
        remaining: returns the seconds for which another attempt is useful. Called before each one, since a lease may be
            renewed meanwhile.

    Raises:
        Unavailable, TokenRefused: of the last attempt.
    """

    def decide(error: Exception) -> bool | float:
        passing = isinstance(error, Unavailable) or (policy.through_refusal and isinstance(error, TokenRefused))
        if not passing or (remaining is not None and remaining() <= 0):
            return False
        pause = error.retry_after if isinstance(error, Unavailable) else None
        return True if pause is None else min(pause, LONGEST_RETRY_AFTER)

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
