"""The state of the connection to the API: reachability, clock difference and extensions."""

import time

import httpx
import structlog

from geoprocessing_worker import host

log = structlog.get_logger(__name__)

# Header with the server's extensions of the protocol, comma separated.
EXTENSIONS = "Worker-Extensions"
# Answers of a gateway without the API.
GATEWAY_ERRORS = frozenset({502, 503, 504})


class Contact:
    """Facts from the headers of one API's answers. Logs the start and end of each outage once.

    Args:
        base_url: of the API.
    """

    def __init__(self, base_url: httpx.URL) -> None:
        self._name = f"{base_url.host}:{base_url.port}" if base_url.port else base_url.host
        self._away_since: float | None = None
        # None before the first answer at the claim's address.
        self.extensions: frozenset[str] | None = None
        # Seconds by which the API's clock is ahead of this host's. None before the first Date header.
        self.clock_offset: float | None = None

    def note_failure(self, reason: str) -> None:
        """Record a call without an answer of the API."""
        if self._away_since is not None:
            return
        self._away_since = time.monotonic()
        first = "set CA_BUNDLE" if "CERTIFICATE" in reason else "start it"
        log.warning(
            "api_unreachable",
            message=f"The API at {self._name} cannot be reached: {first} or correct API_BASE_URL. "
            "The worker tries again until it answers.",
            reason=reason,
        )

    def note_answer(self, response: httpx.Response, problem_code: object, *, at_claim: bool = False) -> None:
        """Record an answer. A gateway's answer without the API's own `code` counts as none.

        Args:
            response: the answer.
            problem_code: the `code` of its problem details, if any.
            at_claim: whether it came from the claim's address, where extensions are announced.
        """
        if response.status_code in GATEWAY_ERRORS and not problem_code:
            self.note_failure(f"HTTP {response.status_code} of a gateway")
            return
        offset = host.clock_offset(response.headers.get("Date", ""), time.time())
        self.clock_offset = self.clock_offset if offset is None else offset
        if at_claim:
            names = response.headers.get(EXTENSIONS, "").split(",")
            self.extensions = frozenset(name.strip().lower() for name in names if name.strip())
        if self._away_since is not None:
            seconds = round(time.monotonic() - self._away_since, 1)
            self._away_since = None
            log.info(
                "api_reachable", message=f"The API at {self._name} answers again after {seconds} s", seconds=seconds
            )
