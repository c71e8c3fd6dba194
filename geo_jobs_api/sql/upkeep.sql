-- What the service does by itself: rescue lost jobs, wake those who wait, count.

-- name: rescue_lost_jobs(max_worker_losses, cancel_overdue_seconds, most)
-- End the leases that ran out, and those of workers that were asked to stop and did not. Which jobs are lost is decided
-- on rows that are locked by this very statement: a job that ended in between is skipped, not overwritten.
WITH lost AS MATERIALIZED (
    SELECT
        id, lease_key, lease_confirmed,
        CASE
            WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
            WHEN NOT lease_confirmed THEN 'queued'
            WHEN worker_losses + 1 >= :max_worker_losses OR attempt >= max_attempts THEN 'failed'
            ELSE 'queued'
        END AS next_state,
        jsonb_build_object(
            'class', 'interrupted', 'code', 'worker_lost',
            'message', 'The worker stopped answering while it worked on this file.',
            'detail', jsonb_build_object('workerLosses', worker_losses + 1)
        ) AS error
    FROM jobs
    WHERE state = 'running' AND (
        lease_expires_at < now()
        OR cancel_requested_at < now() - make_interval(secs => :cancel_overdue_seconds)
    )
    ORDER BY id
    LIMIT :most
    FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE jobs
    SET
        state = lost.next_state,
        worker_losses = jobs.worker_losses + lost.lease_confirmed::integer,
        error = CASE WHEN lost.lease_confirmed AND lost.next_state <> 'cancelled' THEN lost.error ELSE jobs.error END,
        finished_at = CASE lost.next_state WHEN 'queued' THEN NULL ELSE now() END,
        lease_confirmed = false, lease_key = NULL, lease_expires_at = NULL, claim_id = NULL, claimed_at = NULL,
        worker_id = NULL
    FROM lost
    WHERE jobs.id = lost.id
    RETURNING
        jobs.id, jobs.state, jobs.attempt, jobs.lease_seq, jobs.task_type, jobs.worker_name, lost.lease_key,
        lost.lease_confirmed, CASE WHEN lost.lease_confirmed THEN lost.error END AS error,
        CASE jobs.state WHEN 'queued' THEN greatest(jobs.run_at, now()) END AS next_attempt_at,
        CASE
            WHEN jobs.state <> 'queued' THEN jobs.state
            WHEN lost.lease_confirmed THEN 'worker_lost'
            ELSE 'claim_lost'
        END AS event_type
), outcome AS (
    INSERT INTO lease_outcomes (
        job_id, lease_seq, lease_key, attempt, worker_name, ended_by, state, next_attempt_at, error
    )
    SELECT id, lease_seq, lease_key, attempt, worker_name, 'rescue', state, next_attempt_at, error FROM ended
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id, event_type, state,
        jsonb_build_object('attempt', attempt, 'workerName', worker_name, 'error', error)
    FROM ended
)
SELECT
    id, state, attempt, task_type, worker_name, event_type,
    -- One notification for each task type: each one costs every listener, and commits that notify wait for each other.
    CASE row_number() OVER (PARTITION BY task_type)
        WHEN 1 THEN pg_notify('geo_jobs_queued', task_type || ':' || count(*) OVER (PARTITION BY task_type))
    END
FROM ended;

-- name: seconds_until_next_loss(cancel_overdue_seconds)^
-- How long until the next lease runs out, or the next worker that was asked to stop is overdue; NULL: nothing runs.
SELECT least(
    (SELECT extract(epoch FROM min(lease_expires_at) - now())::double precision FROM jobs WHERE state = 'running'),
    (
        SELECT extract(epoch FROM min(cancel_requested_at) - now())::double precision + :cancel_overdue_seconds
        FROM jobs WHERE state = 'running' AND cancel_requested_at IS NOT NULL
    )
) AS seconds;

-- name: look_around(task_types, most, claim_ids)^
-- All that those who wait need to know, in one statement: how many jobs of each type could be claimed now, counted up
-- to a few and to the type's limit; how long until the next waiting job may be claimed (NULL: none waits for its time);
-- which of these claims hold leases already.
SELECT
    (
        SELECT coalesce(jsonb_object_agg(task_types.name, (
            SELECT count(*) FROM (
                SELECT FROM jobs
                WHERE jobs.state = 'queued' AND jobs.task_type = task_types.name AND jobs.run_at <= now()
                LIMIT greatest(0, least(
                    :most::bigint,
                    task_types.max_concurrent_runs - (
                        SELECT count(*) FROM jobs AS running
                        WHERE running.state = 'running' AND running.task_type = task_types.name
                            AND task_types.max_concurrent_runs IS NOT NULL
                    )
                ))
            ) AS ready
        )), '{}')
        FROM task_types
        WHERE task_types.name = ANY(:task_types::text[]) AND NOT task_types.paused
    ) AS ready,
    (
        SELECT extract(epoch FROM min(run_at) - now())::double precision
        FROM jobs WHERE state = 'queued' AND run_at > now()
    ) AS due_seconds,
    ARRAY(
        SELECT DISTINCT claim_id FROM jobs WHERE state = 'running' AND claim_id = ANY(:claim_ids::uuid[])
    ) AS held_claims;

-- name: count_open_jobs()
-- Jobs that have not ended, by type and state.
SELECT task_type, state, count(*) AS jobs FROM jobs
WHERE state IN ('awaiting_upload', 'blocked', 'queued', 'running')
GROUP BY task_type, state;

-- name: list_vacuum_blockers(older_than_seconds)
-- Who keeps vacuum from the queue's dead rows: claims have to step over every one of them. Sessions of others are seen
-- by members of pg_monitor only.
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
LIMIT 5;

-- name: ping()^
-- Is the database there?
SELECT 1 AS alive;
