"""The state of the connection to the API: whether it answers, how far the clocks differ, which extensions it has."""

import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
import structlog

log = structlog.get_logger(__name__)

# Announces what a server takes beyond the five calls, comma separated.
EXTENSIONS = "Worker-Extensions"
# A gateway's answer in the place of the API's.
GATEWAY_ERRORS = frozenset({502, 503, 504})


class Contact:
    """What the answers of one API show beside their content. Logs the start and the end of each outage once.

    Args:
        base_url: the API's.
        clock: monotonic seconds.
        wall: seconds of the wall clock.
    """

    def __init__(
        self,
        base_url: httpx.URL,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._place = f"{base_url.host}:{base_url.port}" if base_url.port else base_url.host
        self._clock = clock
        self._wall = wall
        self._away_since: float | None = None
        self.extensions: frozenset[str] = frozenset()
        # Seconds by which the API's clock is ahead of this host's; None: no answer had a Date yet.
        self.clock_offset: float | None = None

    def note_failure(self, reason: str) -> None:
        """Note a call that the API did not answer."""
        if self._away_since is not None:
            return
        self._away_since = self._clock()
        first = "set CA_BUNDLE" if "CERTIFICATE" in reason else "start it"
        log.warning(
            "api_unreachable",
            message=f"The API at {self._place} cannot be reached: {first} or correct API_BASE_URL. "
            "The worker tries again until it answers.",
            reason=reason,
        )

    def note_answer(self, response: httpx.Response, problem_code: object) -> None:
        """Note an answer. One of a gateway without the API's own `code` counts as none."""
        if response.status_code in GATEWAY_ERRORS and not problem_code:
            self.note_failure(f"HTTP {response.status_code} of a gateway")
            return
        self._note_clock(response.headers.get("Date", ""))
        if EXTENSIONS in response.headers:
            names = response.headers[EXTENSIONS].split(",")
            self.extensions = frozenset(name.strip().lower() for name in names)
        if self._away_since is not None:
            seconds = round(self._clock() - self._away_since, 1)
            self._away_since = None
            log.info(
                "api_reachable",
                message=f"The API at {self._place} answers again after {seconds} s",
                seconds=seconds,
            )

    def _note_clock(self, date: str) -> None:
        try:
            said = parsedate_to_datetime(date)
        except (TypeError, ValueError, OverflowError):
            return
        said = said if said.tzinfo else said.replace(tzinfo=UTC)
        self.clock_offset = said.timestamp() - self._wall()
