"""Requests to the lease store, and the result of a claim, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from geo_jobs_api.queue.capabilities import UNDECLARED, Capabilities
from geo_jobs_api.queue.lease_records import Lease
from geo_jobs_api.queue.rules import LeaseToken


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim.

    Attributes:
        claim_id: unique per claim. A repeated id gets the same leases again.
        task_types: the worker's task types.
        max_jobs: maximum number of jobs.
        lease_secret: the random part of the fencing tokens of this claim.
        first_lease_seconds: duration of the leases without a heartbeat.
        capabilities: the worker's filter for jobs.
    """

    claim_id: UUID
    worker_id: str
    worker_name: str
    task_types: tuple[str, ...]
    max_jobs: int
    lease_secret: str
    first_lease_seconds: float
    capabilities: Capabilities = UNDECLARED

    @property
    def kind(self) -> tuple[object, ...]:
        """Return the batch key: claims of one kind can share a statement."""
        return (self.task_types, self.capabilities.admission)


@dataclass(frozen=True, slots=True)
class LeaseUpdate:
    """Progress in a heartbeat: percent (0 to 100, None: unchanged), stage and message."""

    percent: float | None = None
    stage: str | None = None
    message: str | None = None
    stats: dict[str, object] | None = None


NO_UPDATE = LeaseUpdate()


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """A heartbeat or progress. `lease_seconds`: the duration for task types without their own."""

    job_id: UUID
    token: LeaseToken
    lease_seconds: float
    update: LeaseUpdate = NO_UPDATE


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a completed job: outputs as JSON objects, metadata, seconds per stage, the source."""

    outputs: list[dict[str, object]]
    metadata: dict[str, object]
    timings: dict[str, float]
    source: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A reported completion. `request_digest` distinguishes a repetition from other content."""

    job_id: UUID
    token: LeaseToken
    results: Results
    request_digest: bytes


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The result of one claim.

    Attributes:
        leases: in queue order.
        is_replay: an earlier request with the same claim id got them too.
        has_more: more jobs of these task types may be claimable.
        is_held_back: a rate limit or a busy lock applied, so time alone may bring more.
        is_unfit: ready jobs exist that workers like this one do not take.
        avoided_seconds: ready jobs exist that this worker has just failed. Seconds until it may have the first.
    """

    leases: list[Lease]
    is_replay: bool
    has_more: bool
    is_held_back: bool = False
    is_unfit: bool = False
    avoided_seconds: float | None = None

    @property
    def is_withheld(self) -> bool:
        """Return whether jobs exist, but for other workers."""
        return self.is_unfit or self.avoided_seconds is not None
