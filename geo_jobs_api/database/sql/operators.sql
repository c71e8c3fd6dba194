-- Operators: why a job waits, workers, statistics; change priority, unlock, cancel, redrive.

-- name: find_waiting_reasons(id, limit)^
-- Reasons for a job to wait, and the number of jobs of its type before it, up to `limit`.
SELECT
    task_types.paused, task_types.max_concurrent_runs, task_types.rate_count, task_types.rate_period_seconds,
    (
        SELECT count(*) FROM jobs AS running WHERE running.state = 'running' AND running.task_type = jobs.task_type
    ) AS running,
    (
        SELECT claimed_at + make_interval(secs => task_types.rate_period_seconds) FROM rate_claims
        WHERE rate_claims.task_type = jobs.task_type AND task_types.rate_count IS NOT NULL
        ORDER BY claimed_at DESC OFFSET task_types.rate_count - 1 LIMIT 1
    ) AS rate_full_until,
    task_types.memory_mb, jobs.source_host,
    CASE WHEN jobs.avoided_until > now() THEN jobs.avoided_until END AS avoided_until,
    (SELECT name FROM workers WHERE workers.id = jobs.avoided_worker) AS avoided_worker,
    (
        -- Bounded, since counting 100,000 took 80 ms.
        SELECT count(*) FROM (
            SELECT FROM jobs AS other
            WHERE other.state = 'queued' AND other.task_type = jobs.task_type AND other.run_at <= now()
                AND (other.order_key, other.id) < (jobs.order_key, jobs.id)
            LIMIT :limit
        ) AS before
    ) AS jobs_before
FROM jobs JOIN task_types ON task_types.name = jobs.task_type
WHERE jobs.id = :id;

-- name: list_possible_workers(task_type, live_seconds, limit)
-- Workers seen recently or with jobs: whether they have this type, their capabilities, trouble and jobs as
-- [{id, owner, taskType, since}]. Those with the type come first.
WITH busy AS (
    SELECT
        worker_id, min(worker_name) AS worker_name, bool_or(task_type = :task_type) AS does_type,
        array_agg(DISTINCT task_type) AS task_types,
        jsonb_agg(
            jsonb_build_object(
                'id', id, 'owner', owner, 'taskType', task_type, 'since', coalesce(started_at, claimed_at)
            ) ORDER BY claimed_at
        ) AS jobs
    FROM jobs
    WHERE state = 'running'
    GROUP BY worker_id
)
SELECT
    coalesce(workers.name, busy.worker_name, '') AS name,
    coalesce(:task_type = ANY(workers.task_types), false) OR coalesce(busy.does_type, false) AS does_type,
    coalesce(workers.task_types, busy.task_types) AS task_types, workers.capabilities, workers.trouble,
    coalesce(busy.jobs, '[]') AS jobs
FROM workers FULL JOIN busy ON busy.worker_id = workers.id
WHERE workers.last_seen_at > now() - make_interval(secs => :live_seconds) OR busy.worker_id IS NOT NULL
ORDER BY does_type DESC, name
LIMIT :limit;

-- name: change_priority(id, owner, priority)^
-- Change the priority of an open job. A raised job passes its owner's jobs of lower priority, a lowered one goes behind
-- those of higher priority. No row: it does not exist, or has ended. The first 100 changes of a job are events.
WITH changed AS (
    UPDATE jobs
    SET
        priority = :priority::integer,
        fair_share_at = CASE
            WHEN state <> 'queued' OR :priority::integer = priority THEN fair_share_at
            WHEN :priority::integer > priority THEN least(fair_share_at, next_fair_share(owner, task_type, :priority::integer))
            ELSE greatest(fair_share_at, (
                SELECT max(other.fair_share_at) FROM jobs AS other
                WHERE other.state = 'queued' AND other.task_type = jobs.task_type AND other.owner = jobs.owner
                    AND other.priority > :priority::integer AND other.id <> jobs.id
            ))
        END
    WHERE id = :id AND finished_at IS NULL AND (:owner::text IS NULL OR owner = :owner::text)
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'priority_changed', state, jsonb_build_object('priority', priority)
    FROM changed
    WHERE (
        SELECT count(*) FROM job_events WHERE job_events.job_id = changed.id AND job_events.type = 'priority_changed'
    ) < 100
)
SELECT * FROM changed;

-- name: unlock_job(id)^
-- End the lease on a job without spending the attempt. A job that was asked to stop is cancelled. No row: no lease.
WITH held AS MATERIALIZED (
    SELECT id, lease_secret FROM jobs WHERE id = :id AND state = 'running' FOR UPDATE
), ended AS (
    UPDATE jobs
    SET
        state = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
        finished_at = CASE WHEN cancel_requested_at IS NULL THEN NULL ELSE now() END,
        attempt = attempt - lease_confirmed::integer,
        fair_share_at = least(fair_share_at, claimed_at),
        lease_confirmed = false, lease_secret = NULL, lease_expires_at = NULL, claim_id = NULL, claimed_at = NULL,
        worker_id = NULL
    FROM held
    WHERE jobs.id = held.id AND jobs.state = 'running'
    RETURNING jobs.*, held.lease_secret AS ended_lease_secret
), outcome AS (
    INSERT INTO lease_outcomes (job_id, lease_seq, lease_secret, attempt, worker_name, ended_by, state, next_attempt_at)
    SELECT
        id, lease_seq, ended_lease_secret, attempt, worker_name, 'rescue', state, CASE state WHEN 'queued' THEN now() END
    FROM ended
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'unlocked', state, jsonb_build_object('attempt', attempt, 'workerName', worker_name) FROM ended
)
SELECT
    ended.*, pg_notify('geo_jobs_queued', task_type),
    CASE WHEN state = 'cancelled' THEN release_dependents(ARRAY[id]) END
FROM ended;

-- name: lock_cancellable(owner, states, task_type, created_after, created_before, after_id, limit)
-- Lock one batch of open jobs beyond `after_id` that were not asked to stop, in the order of their ids.
SELECT id FROM jobs
WHERE finished_at IS NULL AND cancel_requested_at IS NULL
    AND state = ANY(:states::text[])
    AND (:owner::text IS NULL OR owner = :owner::text)
    AND (:task_type::text IS NULL OR task_type = :task_type::text)
    AND (:created_after::timestamptz IS NULL OR created_at >= :created_after::timestamptz)
    AND (:created_before::timestamptz IS NULL OR created_at < :created_before::timestamptz)
    AND (:after_id::uuid IS NULL OR id > :after_id::uuid)
ORDER BY id
LIMIT :limit
FOR UPDATE;

-- name: redrive_failed(owner, task_type, error_class, error_code, ended_after, ended_before, limit)
-- Requeue failed jobs with all their attempts, oldest failure first, in fair shares of their owners.
WITH chosen AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE state = 'failed' AND finished_at IS NOT NULL AND purge_started_at IS NULL
        AND (:owner::text IS NULL OR owner = :owner::text)
        AND (:task_type::text IS NULL OR task_type = :task_type::text)
        AND (:error_class::text IS NULL OR error ->> 'class' = :error_class::text)
        AND (:error_code::text IS NULL OR error ->> 'code' = :error_code::text)
        AND (:ended_after::timestamptz IS NULL OR finished_at >= :ended_after::timestamptz)
        AND (:ended_before::timestamptz IS NULL OR finished_at < :ended_before::timestamptz)
        AND NOT EXISTS (
            SELECT FROM jobs AS open
            WHERE open.owner = jobs.owner AND open.task_type = jobs.task_type AND open.dedup_key = jobs.dedup_key
                AND open.dedup_key IS NOT NULL AND open.finished_at IS NULL
        )
    ORDER BY finished_at, id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), single AS MATERIALIZED (
    -- The latest job of each dedup key.
    SELECT DISTINCT ON (owner, task_type, coalesce(dedup_key, jobs.id::text)) jobs.id
    FROM chosen JOIN jobs ON jobs.id = chosen.id
    ORDER BY owner, task_type, coalesce(dedup_key, jobs.id::text), finished_at DESC
), share AS MATERIALIZED (
    -- Once per owner, type and priority. Called per job, the function would read the rows updated so far, and 10,000
    -- jobs took 45 s.
    SELECT
        owner, task_type, priority, next_fair_share(owner, task_type, priority) AS first,
        next_fair_share(owner, task_type, priority, 1) - next_fair_share(owner, task_type, priority) AS step
    FROM (SELECT DISTINCT owner, task_type, priority FROM single JOIN jobs ON jobs.id = single.id) AS each
), placed AS MATERIALIZED (
    SELECT
        jobs.id,
        share.first + share.step * (
            row_number() OVER (PARTITION BY owner, task_type, priority ORDER BY finished_at, jobs.id) - 1
        ) AS fair_share_at
    FROM single JOIN jobs ON jobs.id = single.id JOIN share USING (owner, task_type, priority)
), moved AS (
    UPDATE jobs
    SET
        state = 'queued', run_at = now(), fair_share_at = placed.fair_share_at, attempt = 0, lost_workers = 0, finished_at = NULL,
        error = NULL, percent = 0, stage = NULL, message = NULL, started_at = NULL
    FROM placed
    WHERE jobs.id = placed.id AND jobs.state = 'failed'
    RETURNING jobs.id, jobs.task_type, jobs.state
), event AS (
    INSERT INTO job_events (job_id, type, state) SELECT id, 'retried', state FROM moved
)
SELECT
    task_type, count(*) AS jobs, pg_notify('geo_jobs_queued', task_type || ':' || count(*))
FROM moved
GROUP BY task_type
ORDER BY task_type;

-- name: upsert_workers(ids, names, versions, task_types, capabilities, troubles)!
-- Store workers that have just claimed. The task types of each are one text, separated by commas.
INSERT INTO workers (id, name, version, task_types, capabilities, trouble)
SELECT id, name, version, string_to_array(types, ','), capabilities::jsonb, trouble::jsonb
FROM unnest(
    :ids::text[], :names::text[], :versions::text[], :task_types::text[], :capabilities::text[], :troubles::text[]
) AS seen (id, name, version, types, capabilities, trouble)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, version = excluded.version, task_types = excluded.task_types,
    capabilities = excluded.capabilities, trouble = excluded.trouble, last_seen_at = now();

-- name: delete_stale_workers(seconds)!
-- Delete workers not seen for this long.
DELETE FROM workers WHERE last_seen_at < now() - make_interval(secs => :seconds);

-- name: list_workers(live_seconds, lease_seconds)
-- Workers seen recently (by a claim or a heartbeat), with their jobs, busy ones first.
WITH busy AS (
    SELECT
        worker_id, min(worker_name) AS worker_name, array_agg(DISTINCT jobs.task_type) AS task_types,
        array_agg(jobs.id ORDER BY claimed_at) AS jobs,
        max(CASE
            WHEN lease_confirmed
            THEN lease_expires_at
                - make_interval(secs => coalesce(task_types.lease_seconds, :lease_seconds::double precision))
            ELSE claimed_at
        END) AS last_seen_at,
        min(claimed_at) AS first_seen_at
    FROM jobs JOIN task_types ON task_types.name = jobs.task_type
    WHERE state = 'running'
    GROUP BY worker_id
)
SELECT
    coalesce(workers.id, busy.worker_id) AS id,
    coalesce(workers.name, busy.worker_name, '') AS name,
    workers.version,
    coalesce(workers.task_types, busy.task_types) AS task_types, workers.capabilities, workers.trouble,
    least(workers.first_seen_at, busy.first_seen_at) AS first_seen_at,
    greatest(workers.last_seen_at, busy.last_seen_at) AS last_seen_at,
    coalesce(busy.jobs, '{}') AS jobs
FROM workers FULL JOIN busy ON busy.worker_id = workers.id
WHERE greatest(workers.last_seen_at, busy.last_seen_at) > now() - make_interval(secs => :live_seconds)
    OR busy.worker_id IS NOT NULL
ORDER BY busy.worker_id IS NULL, name, id;

-- name: list_stats(seconds)
-- Per task type: jobs in the queue now, and results of jobs in the last `seconds`.
WITH open AS (
    SELECT
        task_type, count(*) FILTER (WHERE state = 'queued') AS waiting,
        count(*) FILTER (WHERE state = 'running') AS running,
        count(*) FILTER (WHERE state = 'blocked') AS blocked,
        count(*) FILTER (WHERE state = 'awaiting_upload') AS awaiting_upload,
        extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'queued' AND run_at <= now()))::double precision
            AS oldest_waiting_seconds
    FROM jobs
    WHERE state IN ('awaiting_upload', 'blocked', 'queued', 'running')
    GROUP BY task_type
), done AS (
    SELECT
        task_type,
        count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE state = 'failed') AS failed,
        count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::double precision)
            FILTER (WHERE state = 'succeeded') AS seconds_p50,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::double precision)
            FILTER (WHERE state = 'succeeded') AS seconds_p95
    FROM jobs
    WHERE state IN ('succeeded', 'failed', 'cancelled') AND finished_at > now() - make_interval(secs => :seconds)
        AND purge_started_at IS NULL
    GROUP BY task_type
), outcomes AS (
    SELECT
        jobs.task_type,
        count(*) FILTER (WHERE outcome.error ->> 'class' = 'timeout') AS timed_out,
        count(*) FILTER (WHERE outcome.state = 'queued' AND outcome.error ->> 'class' <> 'interrupted') AS retried
    FROM lease_outcomes AS outcome JOIN jobs ON jobs.id = outcome.job_id
    WHERE outcome.error IS NOT NULL AND outcome.ended_at > now() - make_interval(secs => :seconds)
    GROUP BY jobs.task_type
)
SELECT
    task_types.name AS task_type, task_types.paused,
    coalesce(waiting, 0) AS waiting, coalesce(running, 0) AS running, coalesce(blocked, 0) AS blocked,
    coalesce(awaiting_upload, 0) AS awaiting_upload, coalesce(succeeded, 0) AS succeeded, coalesce(failed, 0) AS failed,
    coalesce(cancelled, 0) AS cancelled, coalesce(timed_out, 0) AS timed_out, coalesce(retried, 0) AS retried,
    seconds_p50, seconds_p95, coalesce(succeeded, 0) * 3600.0::double precision / :seconds AS jobs_per_hour,
    oldest_waiting_seconds
FROM task_types
LEFT JOIN open ON open.task_type = task_types.name
LEFT JOIN done ON done.task_type = task_types.name
LEFT JOIN outcomes ON outcomes.task_type = task_types.name
ORDER BY task_types.name;
