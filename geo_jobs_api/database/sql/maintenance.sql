-- Periodic work of the service: rescue lost jobs, release dependents, poll for waiting claims, count.

-- name: rescue_lost_jobs(max_worker_losses, max_timeouts, cancel_overdue_seconds, timeout_grace_seconds, limit)
-- End leases that have expired, ignored a cancellation, or exceeded the type's timeout plus a grace (NULL: no timeouts)
-- despite heartbeats. This statement locks the rows before it decides, so it skips a job that ended concurrently.
WITH overdue AS MATERIALIZED (
    SELECT
        jobs.id, jobs.lease_secret, jobs.lease_confirmed, jobs.attempt, jobs.max_attempts, jobs.lost_workers,
        task_types.timeout_seconds, task_types.backoff_seconds,
        CASE
            WHEN jobs.cancel_requested_at IS NOT NULL THEN 'cancelled'
            WHEN jobs.lease_expires_at < now() THEN 'lost'
            ELSE 'timed_out'
        END AS kind
    FROM jobs JOIN task_types ON task_types.name = jobs.task_type
    WHERE jobs.state = 'running' AND (
        jobs.lease_expires_at < now()
        OR jobs.cancel_requested_at < now() - make_interval(secs => :cancel_overdue_seconds)
        OR jobs.claimed_at
            < now() - make_interval(secs => task_types.timeout_seconds + :timeout_grace_seconds::double precision)
    )
    ORDER BY jobs.id
    LIMIT :limit
    FOR UPDATE OF jobs SKIP LOCKED
), lost AS MATERIALIZED (
    SELECT
        id, lease_secret, lease_confirmed, kind,
        CASE
            WHEN kind = 'cancelled' THEN 'cancelled'
            WHEN NOT lease_confirmed THEN 'queued'
            WHEN attempt >= max_attempts THEN 'failed'
            WHEN kind = 'lost' AND lost_workers + 1 >= :max_worker_losses THEN 'failed'
            WHEN kind = 'timed_out' AND :max_timeouts <= 1 + (
                SELECT count(*) FROM lease_outcomes AS before
                WHERE before.job_id = overdue.id AND before.error ->> 'class' = 'timeout' AND before.ended_at > coalesce(
                    (SELECT max(created_at) FROM job_events WHERE job_id = overdue.id AND type = 'retried'), '-infinity'
                )
            ) THEN 'failed'
            ELSE 'queued'
        END AS next_state,
        -- Full jitter, as for other retries, up to the type's backoff for this attempt.
        CASE WHEN kind = 'timed_out' AND lease_confirmed
            THEN random() * coalesce(backoff_seconds[least(attempt, cardinality(backoff_seconds))], 0)
        END AS delay_seconds,
        CASE kind
            WHEN 'timed_out' THEN jsonb_build_object(
                'class', 'timeout', 'code', 'timeout',
                'message', 'It took longer than ' || timeout_seconds || ' s, and its worker did not stop it.',
                'detail', jsonb_build_object('timeoutSeconds', timeout_seconds)
            )
            ELSE jsonb_build_object(
                'class', 'interrupted', 'code', 'worker_lost',
                'message', 'The worker stopped answering while it worked on this file.',
                'detail', jsonb_build_object('lostWorkers', lost_workers + 1)
            )
        END AS error
    FROM overdue
), ended AS (
    UPDATE jobs
    SET
        state = lost.next_state,
        lost_workers = jobs.lost_workers + (lost.lease_confirmed AND lost.kind <> 'timed_out')::integer,
        error = CASE WHEN lost.lease_confirmed AND lost.next_state <> 'cancelled' THEN lost.error ELSE jobs.error END,
        run_at = CASE WHEN lost.delay_seconds > 0 AND lost.next_state = 'queued'
            THEN now() + make_interval(secs => lost.delay_seconds) ELSE jobs.run_at
        END,
        fair_share_at = CASE WHEN lost.delay_seconds > 0 THEN jobs.fair_share_at ELSE least(jobs.fair_share_at, jobs.claimed_at) END,
        finished_at = CASE lost.next_state WHEN 'queued' THEN NULL ELSE now() END,
        lease_confirmed = false, lease_secret = NULL, lease_expires_at = NULL, claim_id = NULL, claimed_at = NULL,
        worker_id = NULL
    FROM lost
    WHERE jobs.id = lost.id
    RETURNING
        jobs.id, jobs.state, jobs.attempt, jobs.lease_seq, jobs.task_type, jobs.worker_name, lost.lease_secret,
        lost.lease_confirmed, CASE WHEN lost.lease_confirmed THEN lost.error END AS error,
        CASE jobs.state WHEN 'queued' THEN greatest(jobs.run_at, now()) END AS next_attempt_at,
        CASE
            WHEN jobs.state <> 'queued' THEN jobs.state
            WHEN NOT lost.lease_confirmed THEN 'claim_lost'
            WHEN lost.kind = 'timed_out' THEN 'retry_scheduled'
            ELSE 'worker_lost'
        END AS event_type
), outcome AS (
    INSERT INTO lease_outcomes (
        job_id, lease_seq, lease_secret, attempt, worker_name, ended_by, state, next_attempt_at, error
    )
    SELECT id, lease_seq, lease_secret, attempt, worker_name, 'rescue', state, next_attempt_at, error FROM ended
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id, event_type, state,
        jsonb_build_object('attempt', attempt, 'workerName', worker_name, 'error', error)
        || CASE event_type WHEN 'retry_scheduled' THEN jsonb_build_object('nextAttemptAt', next_attempt_at) ELSE '{}' END
    FROM ended
)
SELECT
    id, state, attempt, task_type, worker_name, event_type,
    -- One notification per task type. Each one costs every listener, and commits that notify are serialized.
    CASE row_number() OVER (PARTITION BY task_type)
        WHEN 1 THEN pg_notify('geo_jobs_queued', task_type || ':' || count(*) OVER (PARTITION BY task_type))
    END,
    -- Waiting processes must recompute the next due time.
    CASE WHEN event_type = 'retry_scheduled' THEN pg_notify('geo_jobs_queued', '') END,
    (SELECT release_dependents(array_agg(id) FILTER (WHERE state <> 'queued')) FROM ended)
FROM ended;

-- name: release_pending(limit)^
-- Release one batch of dependents left over from ended jobs. The function stores the rest again.
WITH picked AS MATERIALIZED (
    SELECT job_id FROM pending_releases LIMIT :limit FOR UPDATE SKIP LOCKED
), taken AS (
    DELETE FROM pending_releases USING picked WHERE pending_releases.job_id = picked.job_id
    RETURNING picked.job_id
)
SELECT count(*) AS jobs, release_dependents(array_agg(job_id), true) AS released FROM taken;

-- name: seconds_until_next_loss(cancel_overdue_seconds, timeout_grace_seconds)^
-- Seconds until the next lease expires, the next cancellation is overdue, or the next job exceeds its timeout. At most
-- the shortest lease duration of a task type, since a lease may be granted right after. NULL: no job runs, and no type
-- has its own lease duration.
SELECT least(
    (SELECT min(lease_seconds) FROM task_types),
    (SELECT extract(epoch FROM min(lease_expires_at) - now())::double precision FROM jobs WHERE state = 'running'),
    (
        SELECT extract(epoch FROM min(cancel_requested_at) - now())::double precision + :cancel_overdue_seconds
        FROM jobs WHERE state = 'running' AND cancel_requested_at IS NOT NULL
    ),
    (
        SELECT
            min(extract(epoch FROM jobs.claimed_at - now())::double precision + task_types.timeout_seconds)
            + :timeout_grace_seconds::double precision
        FROM jobs JOIN task_types ON task_types.name = jobs.task_type
        WHERE jobs.state = 'running'
    )
) AS seconds;

-- name: poll_queue(task_types, limit, claim_ids)^
-- Everything that waiting claims need, in one statement: the number of claimable jobs of each type, up to `limit` and the
-- type's own limits; the seconds until the next job becomes claimable by its run_at, its type's rate or its avoided worker
-- (NULL: none will); which of these claims hold leases already.
WITH requested AS MATERIALIZED (
    SELECT
        name,
        greatest(0, least(
            :limit::bigint,
            CASE WHEN max_concurrent_runs IS NOT NULL THEN max_concurrent_runs - (
                SELECT count(*) FROM jobs WHERE jobs.state = 'running' AND jobs.task_type = task_types.name
            ) END,
            CASE WHEN full_until IS NULL AND rate_count IS NOT NULL THEN rate_count END,
            CASE WHEN full_until > statement_timestamp() THEN 0 END
        )) AS room,
        full_until
    FROM task_types
    LEFT JOIN LATERAL (
        -- The time when the oldest of the claims that fill the period leaves it.
        SELECT claimed_at + make_interval(secs => rate_period_seconds) AS full_until FROM rate_claims
        WHERE rate_claims.task_type = task_types.name AND rate_count IS NOT NULL
        ORDER BY claimed_at DESC
        OFFSET rate_count - 1
        LIMIT 1
    ) AS latest ON true
    WHERE name = ANY(:task_types::text[]) AND NOT paused
)
SELECT
    (
        SELECT coalesce(jsonb_object_agg(requested.name, (
            SELECT count(*) FROM (
                SELECT FROM jobs
                WHERE jobs.state = 'queued' AND jobs.task_type = requested.name AND jobs.run_at <= now()
                LIMIT requested.room
            ) AS ready
        )), '{}')
        FROM requested
    ) AS ready,
    least(
        (
            SELECT extract(epoch FROM min(run_at) - now())::double precision
            FROM jobs WHERE state = 'queued' AND run_at > now()
        ),
        (
            SELECT extract(epoch FROM min(avoided_until) - now())::double precision
            FROM jobs WHERE state = 'queued' AND avoided_until > now()
        ),
        (
            SELECT extract(epoch FROM min(full_until) - statement_timestamp())::double precision
            FROM requested
            WHERE full_until > statement_timestamp() AND EXISTS (
                SELECT FROM jobs WHERE jobs.state = 'queued' AND jobs.task_type = requested.name
            )
        )
    ) AS due_seconds,
    ARRAY(
        SELECT DISTINCT claim_id FROM jobs WHERE claim_id = ANY(:claim_ids::uuid[])
    ) AS held_claims;

-- name: delete_expired_rate_claims()!
-- Delete claims that no rate limit counts any more.
DELETE FROM rate_claims USING task_types
WHERE task_types.name = rate_claims.task_type AND (
    rate_period_seconds IS NULL OR claimed_at < statement_timestamp() - make_interval(secs => rate_period_seconds)
);

-- name: count_open_jobs()
-- Open jobs by type and state.
SELECT task_type, state, count(*) AS jobs FROM jobs
WHERE state IN ('awaiting_upload', 'blocked', 'queued', 'running')
GROUP BY task_type, state;

-- name: list_vacuum_blockers(older_than_seconds)
-- Sessions that keep vacuum from the queue's dead rows, which every claim steps over. Sessions of other roles are
-- visible to members of pg_monitor only.
SELECT
    'backend ' || pid || ' (' || coalesce(nullif(application_name, ''), 'no application name') || ', ' || state || ')' AS who,
    extract(epoch FROM now() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE backend_xmin IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend' AND xact_start < now() - make_interval(secs => :older_than_seconds)
UNION ALL
SELECT 'prepared transaction ' || gid, extract(epoch FROM now() - prepared)::double precision
FROM pg_prepared_xacts
WHERE database = current_database() AND prepared < now() - make_interval(secs => :older_than_seconds)
UNION ALL
SELECT 'replication slot ' || slot_name, NULL FROM pg_replication_slots WHERE xmin IS NOT NULL AND NOT active
ORDER BY seconds DESC NULLS LAST
LIMIT 20;

-- name: record_settings(settings)!
-- Record the settings that the API runs with.
INSERT INTO service_settings (settings) VALUES (:settings)
ON CONFLICT (is_only) DO UPDATE SET settings = excluded.settings, recorded_at = now();

-- name: get_recorded_settings()^
-- The settings of the running, or last running, API.
SELECT settings FROM service_settings;
