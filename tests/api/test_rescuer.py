"""The rescuer on the real database, with an injected clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from uuid_utils.compat import uuid7

from geo_jobs_api.database.pool import Pool, open_pool
from geo_jobs_api.jobs.creation_store import CreationStore, NewJob
from geo_jobs_api.maintenance.rescuer import RescuePolicy, Rescuer
from geo_jobs_api.maintenance.store import MaintenanceStore
from geo_jobs_api.queue.job_store import JobStore
from geo_jobs_api.queue.lease_records import Lease, RescuedJob
from geo_jobs_api.queue.lease_requests import ClaimRequest, Completion, LeaseRenewal, LeaseUpdate, Results
from geo_jobs_api.queue.lease_store import LeaseStore
from geo_jobs_api.queue.rules import ErrorClass, JobState, LeaseToken, ReportedFailure
from tests.support.api import make_settings
from tests.support.clients import expire_leases, rows

POLICY = RescuePolicy(1, 10, 60, max_worker_losses=3, cancel_overdue_seconds=60)


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[Pool]:
    async with open_pool(postgres_url, size=4, wait_seconds=10) as opened:
        yield opened


async def running_job(pool: Pool, *, confirmed: bool = True) -> Lease:
    """Return a lease on a job."""
    jobs, leases = JobStore(pool), LeaseStore(pool)
    new = NewJob(uuid7(), "ada", "geotiff_to_png", None, {}, None, b"")
    assert await CreationStore(pool).create_jobs([new])
    await jobs.set_upload(new.id, file_name="a.tif", size_bytes=4, content_type="image/tiff")
    assert await jobs.enqueue_uploaded(new.id, file_name="a.tif", size_bytes=4, sha256="0" * 64)
    request = ClaimRequest(uuid4(), "w/1", "w", ("geotiff_to_png",), 1, "key", 15)
    (claimed,) = await leases.claim_jobs([request])
    (lease,) = claimed.leases
    if confirmed:
        assert await leases.renew_leases([LeaseRenewal(lease.job.id, lease.token, 60)]) != [None]
    return lease


async def state_of(pool: Pool, job_id: UUID) -> JobState:
    job = await JobStore(pool).find_job(job_id)
    assert job is not None
    return job.state


async def rescue(pool: Pool) -> list[RescuedJob]:
    return await MaintenanceStore(pool).rescue_lost_jobs(POLICY)


async def test_a_lease_that_still_runs_is_left_alone(pool: Pool) -> None:
    """Only the time of the lease counts."""
    lease = await running_job(pool)
    assert await rescue(pool) == []
    assert await state_of(pool, lease.job.id) is JobState.RUNNING


async def test_rescue_and_complete_at_the_same_instant_have_one_outcome(pool: Pool, postgres_url: str) -> None:
    """Many times: exactly one of both wins, the loser changes nothing, and one outcome is recorded."""
    winners = set()
    for _ in range(25):
        lease = await running_job(pool)
        expire_leases(postgres_url)
        (completed,), rescued = await asyncio.gather(
            LeaseStore(pool).complete_jobs([Completion(lease.job.id, lease.token, Results([], {}, {}), b"d")]),
            rescue(pool),
        )
        assert (completed is None) == (len(rescued) == 1)
        state = await state_of(pool, lease.job.id)
        assert state is (JobState.SUCCEEDED if completed else JobState.QUEUED)
        winners.add(state)
        outcomes = rows(postgres_url, "SELECT ended_by FROM lease_outcomes WHERE job_id = %s", lease.job.id)
        assert len(outcomes) == 1
        rows(postgres_url, "DELETE FROM jobs")
    assert winners <= {JobState.SUCCEEDED, JobState.QUEUED}


async def test_a_job_that_ends_during_a_rescue_is_not_overwritten(pool: Pool, postgres_url: str) -> None:
    """A complete has locked the row and not yet committed. The rescuer skips the row."""
    lease = await running_job(pool)
    expire_leases(postgres_url)
    async with await psycopg.AsyncConnection.connect(postgres_url) as other:
        await other.execute(
            "UPDATE jobs SET state = 'succeeded', outputs = '[]', output_lease_seq = 1, finished_at = now(),"
            " lease_secret = NULL, lease_expires_at = NULL, claim_id = NULL, claimed_at = NULL, worker_id = NULL,"
            " lease_confirmed = false WHERE id = %s",
            [lease.job.id],
        )
        # A rescuer that waited for the lock would hang here until the statement timeout.
        async with asyncio.timeout(5):
            assert await rescue(pool) == []
        await other.commit()
    assert await rescue(pool) == []
    assert await state_of(pool, lease.job.id) is JobState.SUCCEEDED


async def test_a_heartbeat_that_comes_before_the_rescuer_saves_the_job(pool: Pool, postgres_url: str) -> None:
    """The check uses the current row, not the listed one."""
    lease = await running_job(pool)
    expire_leases(postgres_url)
    await LeaseStore(pool).renew_leases([LeaseRenewal(lease.job.id, lease.token, 60)])
    assert await rescue(pool) == []


async def test_a_loss_with_no_attempts_left_is_final(pool: Pool, postgres_url: str) -> None:
    """A job with a single attempt fails when its worker is lost."""
    rows(postgres_url, "UPDATE task_types SET max_attempts = 1")
    lease = await running_job(pool)
    expire_leases(postgres_url)
    assert [(job.id, job.state) for job in await rescue(pool)] == [(lease.job.id, "failed")]


async def test_releasing_a_claim_is_rejected_after_the_first_heartbeat(pool: Pool) -> None:
    """A late disconnect must not take a job from a worker that has started."""
    lease = await running_job(pool, confirmed=True)
    await LeaseStore(pool).release_claim(lease.job.id, lease.token)
    assert await state_of(pool, lease.job.id) is JobState.RUNNING


async def test_a_released_claim_is_queued_at_its_old_place(pool: Pool) -> None:
    """The job keeps its attempts and its place. The returned lease is dead."""
    lease = await running_job(pool, confirmed=False)
    before = await JobStore(pool).find_job(lease.job.id)
    assert before is not None

    async def place() -> object:
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT order_key FROM jobs WHERE id = %s", [lease.job.id])
            return await cursor.fetchone()

    old_place = await place()
    await LeaseStore(pool).release_claim(lease.job.id, lease.token)
    job = await JobStore(pool).find_job(lease.job.id)
    assert job is not None
    assert (job.state, job.attempt, job.run_at) == (JobState.QUEUED, 0, before.run_at)
    assert await place() == old_place
    decision = await LeaseStore(pool).decide_failure(
        lease.job.id, lease.token, ReportedFailure(ErrorClass.INTERNAL, "c"), max_file_size=1
    )
    assert decision is None


class Source:
    """A database that may be down."""

    def __init__(self) -> None:
        self.is_away = False
        self.rounds = 0
        self.last_outage = float("-inf")

    async def rescue_lost_jobs(self, policy: RescuePolicy) -> list[RescuedJob]:
        if self.is_away:
            raise psycopg.OperationalError("away")
        self.rounds += 1
        return []

    async def seconds_until_next_loss(self, policy: RescuePolicy) -> float | None:
        return None


async def test_live_workers_get_a_grace_after_a_start_and_after_an_outage() -> None:
    """No lease is ended before the grace is over, and an outage restarts it."""
    source, now = Source(), [100.0]
    rescuer = Rescuer(source, POLICY, clock=lambda: now[0])
    seen = []
    for moment, is_away in ((159, False), (160, False), (170, True), (171, False), (229, False), (230, False)):
        now[0], source.is_away = moment, is_away
        with suppress(psycopg.OperationalError):
            await rescuer.run_once()
        seen.append(source.rounds)
    assert seen == [0, 1, 1, 1, 1, 2]


async def test_a_stalled_process_gives_live_workers_a_grace() -> None:
    """After SIGSTOP all leases seem to have run out. None is ended before the grace is over."""
    source, now = Source(), [100.0]
    rescuer = Rescuer(source, POLICY, clock=lambda: now[0])
    seen = []
    for moment in (160, 170, 290, 349, 350):
        now[0] = moment
        await rescuer.run_once()
        seen.append(source.rounds)
    assert seen == [1, 2, 2, 2, 3]


async def test_an_outage_of_any_statement_gives_live_workers_a_grace() -> None:
    """A read-only database answers the rescuer during its grace and refuses heartbeats up to the grace's end."""
    source, now = Source(), [100.0]
    rescuer = Rescuer(source, POLICY, clock=lambda: now[0])
    seen = []
    for moment, outage in ((160, 159), (218, 159), (219, 218.5), (278, 218.5), (279, 218.5)):
        now[0], source.last_outage = moment, outage
        await rescuer.run_once()
        seen.append(source.rounds)
    assert seen == [0, 0, 0, 0, 1]


async def test_no_leases_are_queried_during_the_grace() -> None:
    """Leases that ran out meanwhile would be found again and again, and may not be ended yet."""
    now = [100.0]
    rescuer = Rescuer(Source(), POLICY, clock=lambda: now[0])
    assert await rescuer.run_once() == 60
    now[0] += 60
    assert await rescuer.run_once() == 10


async def test_the_rescuer_rests_no_longer_than_the_shortest_lease(pool: Pool, postgres_url: str) -> None:
    """A lease granted right after a round may expire sooner than those that the round saw."""
    store = MaintenanceStore(pool)
    assert await store.seconds_until_next_loss(POLICY) is None
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("UPDATE task_types SET lease_seconds = 3 WHERE name = 'geotiff_to_png'")
    assert await store.seconds_until_next_loss(POLICY) == 3
    settings = make_settings(
        "postgresql://", Path(), rescue_interval_seconds=1, first_lease_seconds=15, lease_seconds=5, heartbeat_seconds=2
    )
    assert settings.rescue_rest_seconds == 5


async def test_renewals_of_one_statement_are_apart_and_those_of_one_job_keep_their_order(
    pool: Pool, postgres_url: str
) -> None:
    """Each has its own result. A lost lease renews nothing, and progress of the same job is taken twice."""
    first, second, lost = [await running_job(pool, confirmed=False) for _ in range(3)]
    stale = LeaseToken(lost.lease_seq - 1, lost.lease_secret)
    asked = [
        LeaseRenewal(first.job.id, first.token, 60, LeaseUpdate(10, "read")),
        LeaseRenewal(lost.job.id, stale, 60, LeaseUpdate(90)),
        LeaseRenewal(second.job.id, second.token, 60, LeaseUpdate(stats={"n": 1})),
        LeaseRenewal(first.job.id, first.token, 60, LeaseUpdate(20, "render")),
    ]
    renewed = await LeaseStore(pool).renew_leases(asked)
    assert [one is None for one in renewed] == [False, True, False, False]
    found = rows(postgres_url, "SELECT attempt, percent, stage, worker_stats FROM jobs ORDER BY id")
    assert [tuple(row.values()) for row in found] == [
        (1, 20, "render", None),
        (1, 0, None, {"n": 1}),
        (0, 0, None, None),
    ]
    events = rows(postgres_url, "SELECT type, data -> 'percent' AS n FROM job_events WHERE job_id = %s", first.job.id)
    assert [tuple(row.values()) for row in events][-3:] == [("started", None), ("progress", 10), ("progress", 20)]
