-- Leases: claim, renew, complete, fail. Every write under a lease is guarded by lease_seq and lease_secret.
--
-- Only running jobs have a claim_id and a lease_secret (lease_held_if_and_only_if_running), so these imply the state.
-- Statements for batches do not name it. With it, the planner may walk an index of running jobs that it takes for empty.

-- name: set_lock_timeout(milliseconds)$
-- Bound waits for locks until the transaction ends.
SELECT set_config('lock_timeout', :milliseconds::text, true);

-- name: lock_limits(task_types)
-- Lock the task types with a limit, so that one claim at a time counts and takes. The next statement of the same
-- transaction then sees the latest counts.
-- NO KEY, since inserting jobs takes a KEY SHARE lock on the same row and must not wait.
SELECT name FROM task_types
WHERE name = ANY(:task_types::text[]) AND (max_concurrent_runs IS NOT NULL OR rate_count IS NOT NULL)
ORDER BY name
FOR NO KEY UPDATE;

-- name: find_withheld_jobs(task_types, worker_ids, max_file_size, source_hosts, memory_mb)^
-- After a claim that got less than it requested: task types with a limit (name → whether it is a rate), and why ready jobs
-- were withheld from these workers. Reads the first hundred jobs of each type only.
WITH ready AS MATERIALIZED (
    SELECT
        (:max_file_size::bigint IS NULL OR coalesce(job.input_size_bytes, 0) <= :max_file_size::bigint)
            AND (
                :source_hosts::text[] IS NULL OR job.source_host IS NULL
                OR job.source_host LIKE ANY(:source_hosts::text[])
            )
            AND (:memory_mb::integer IS NULL OR coalesce(task_types.memory_mb, 0) <= :memory_mb::integer) AS is_fit,
        CASE WHEN job.avoided_until > now() AND job.avoided_worker = ANY(:worker_ids::text[])
            THEN job.avoided_worker
        END AS avoided_worker,
        job.avoided_until
    FROM task_types CROSS JOIN LATERAL (
        SELECT * FROM jobs
        WHERE jobs.state = 'queued' AND jobs.task_type = task_types.name AND jobs.run_at <= now()
        ORDER BY jobs.order_key, jobs.id
        LIMIT 100
    ) AS job
    WHERE task_types.name = ANY(:task_types::text[]) AND NOT task_types.paused
)
SELECT
    (
        SELECT coalesce(jsonb_object_agg(name, rate_count IS NOT NULL), '{}') FROM task_types
        WHERE max_concurrent_runs IS NOT NULL OR rate_count IS NOT NULL
    ) AS limited,
    coalesce(bool_or(NOT is_fit), false) AS is_unfit,
    coalesce(array_agg(DISTINCT avoided_worker) FILTER (WHERE is_fit AND avoided_worker IS NOT NULL), '{}') AS avoided_workers,
    extract(
        epoch FROM min(avoided_until) FILTER (WHERE is_fit AND avoided_worker IS NOT NULL) - now()
    )::double precision AS avoided_seconds
FROM ready;

-- name: claim_jobs(task_types, limits_locked, limit, claim_ids, lease_secrets, worker_ids, worker_names, shares, first_lease_seconds, max_file_size, source_hosts, memory_mb)
-- Lease the first waiting jobs to concurrent claims: in the order of the claims, each up to its share. A claim with
-- held leases gets those again and nothing else.
-- Ids are selected once (MATERIALIZED), since the planner may otherwise run LIMIT twice and take too many.
-- Types with a limit are claimed only while locked. Their claims are counted by the statement's own time, since the
-- transaction's time is from before the lock.
-- Only jobs that these workers take (NULL: all), and none that one of them has just failed while others ask.
-- The constant LIMIT exceeds every request. It shows a generic plan that there are few rows. Otherwise the plan would
-- read the whole queue to update one job.
-- Commits are asynchronous. A claim lost in a crash had no effect: the first call of its worker is flushed together
-- with the claim, or rejected.
WITH async_commit AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), held AS MATERIALIZED (
    SELECT id, claim_id FROM jobs
    WHERE claim_id = ANY(:claim_ids::uuid[]) AND lease_expires_at > now()
), claimant AS MATERIALIZED (
    SELECT
        place, claim_id, lease_secret, worker_id, worker_name, share,
        sum(share) OVER (ORDER BY place) AS up_to
    FROM unnest(:claim_ids::uuid[], :lease_secrets::text[], :worker_ids::text[], :worker_names::text[], :shares::integer[])
        WITH ORDINALITY AS claimant (claim_id, lease_secret, worker_id, worker_name, share, place)
    CROSS JOIN async_commit
    WHERE NOT EXISTS (SELECT FROM held WHERE held.claim_id = claimant.claim_id)
), requested AS MATERIALIZED (
    SELECT
        name,
        least(
            :limit::bigint,
            CASE WHEN max_concurrent_runs IS NOT NULL THEN max_concurrent_runs - (
                SELECT count(*) FROM jobs WHERE jobs.state = 'running' AND jobs.task_type = task_types.name
            ) END,
            CASE WHEN rate_count IS NOT NULL THEN rate_count - (
                SELECT count(*) FROM (
                    SELECT FROM rate_claims
                    WHERE rate_claims.task_type = task_types.name
                        AND claimed_at > statement_timestamp() - make_interval(secs => rate_period_seconds)
                    LIMIT rate_count
                ) AS counted
            ) END
        ) AS room
    FROM task_types
    WHERE name = ANY(:task_types::text[]) AND NOT paused
        AND (:limits_locked OR (max_concurrent_runs IS NULL AND rate_count IS NULL))
        AND (:memory_mb::integer IS NULL OR memory_mb IS NULL OR memory_mb <= :memory_mb::integer)
), candidates AS MATERIALIZED (
    SELECT candidate.id, row_number() OVER (ORDER BY candidate.order_key, candidate.id) AS number
    FROM requested
    CROSS JOIN LATERAL (
        SELECT jobs.id, jobs.order_key FROM jobs
        WHERE jobs.state = 'queued' AND jobs.task_type = requested.name AND jobs.run_at <= now()
            AND (
                jobs.avoided_until IS NULL OR jobs.avoided_until <= now()
                OR jobs.avoided_worker <> ALL(:worker_ids::text[])
            )
            AND (
                :max_file_size::bigint IS NULL OR jobs.input_size_bytes IS NULL
                OR jobs.input_size_bytes <= :max_file_size::bigint
            )
            AND (
                :source_hosts::text[] IS NULL OR jobs.source_host IS NULL
                OR jobs.source_host LIKE ANY(:source_hosts::text[])
            )
        ORDER BY jobs.order_key, jobs.id
        LIMIT greatest(0, requested.room)
        FOR UPDATE SKIP LOCKED
    ) AS candidate
    ORDER BY candidate.order_key, candidate.id
    LIMIT :limit
), picked AS MATERIALIZED (
    SELECT id, number FROM candidates LIMIT 200
), claimed AS (
    UPDATE jobs
    SET
        state = 'running', lease_seq = jobs.lease_seq + 1, lease_secret = claimant.lease_secret, claim_id = claimant.claim_id,
        lease_expires_at = now() + make_interval(secs => :first_lease_seconds), lease_confirmed = false,
        claimed_at = now(), worker_id = claimant.worker_id, worker_name = claimant.worker_name, worker_stats = NULL, started_at = NULL,
        percent = 0, stage = NULL, message = NULL
    FROM picked JOIN claimant ON picked.number > claimant.up_to - claimant.share AND picked.number <= claimant.up_to
    -- These rows are queued and locked. If this named the state, the planner might walk an index of all queued jobs.
    WHERE jobs.id = picked.id
    RETURNING jobs.*
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'claimed', state, jsonb_build_object('workerName', worker_name, 'attempt', attempt + 1)
    FROM claimed
), rated AS (
    INSERT INTO rate_claims (task_type, claimed_at)
    SELECT claimed.task_type, statement_timestamp()
    FROM claimed JOIN task_types ON task_types.name = claimed.task_type
    WHERE :limits_locked AND task_types.rate_count IS NOT NULL
), granted AS (
    SELECT true AS is_new, claimed.* FROM claimed
    UNION ALL
    SELECT false, jobs.* FROM jobs JOIN held ON held.id = jobs.id
)
SELECT
    granted.is_new, granted.claim_id, granted.id, granted.task_type, granted.priority, granted.input_payload,
    granted.input_kind, granted.input_file_name, granted.input_size_bytes, granted.input_content_type, granted.input_sha256,
    granted.input_object_key, granted.source_url, granted.source_condition, granted.attempt, granted.max_attempts,
    granted.lease_seq, granted.lease_secret, granted.lease_expires_at, granted.lease_confirmed,
    task_types.timeout_seconds, task_types.lease_seconds AS type_lease_seconds, task_types.outputs::text AS output_rules,
    now() AS server_time
FROM granted JOIN task_types ON task_types.name = granted.task_type
ORDER BY granted.order_key, granted.id;

-- name: list_previous_errors(job_ids, limit)
-- Errors of the latest leases of these jobs, newest first, without details.
SELECT outcome.job_id, outcome.attempt, outcome.error - 'detail' AS error, outcome.ended_at
FROM unnest(:job_ids::uuid[]) AS requested (job_id)
CROSS JOIN LATERAL (
    SELECT * FROM lease_outcomes
    WHERE lease_outcomes.job_id = requested.job_id AND lease_outcomes.error IS NOT NULL
    ORDER BY lease_outcomes.lease_seq DESC
    LIMIT :limit
) AS outcome
ORDER BY outcome.job_id, outcome.lease_seq DESC;

-- name: release_claim(id, lease_seq, lease_secret)!
-- Return a job after its claimer disconnected before the response.
WITH released AS (
    UPDATE jobs
    SET
        state = 'queued', fair_share_at = least(fair_share_at, claimed_at), lease_secret = NULL, lease_expires_at = NULL, claim_id = NULL,
        claimed_at = NULL, worker_id = NULL
    WHERE id = :id AND lease_seq = :lease_seq AND lease_secret = :lease_secret AND state = 'running'
        AND NOT lease_confirmed
    RETURNING id, state, task_type
), event AS (
    INSERT INTO job_events (job_id, type, state) SELECT id, 'claim_released', state FROM released
)
SELECT pg_notify('geo_jobs_queued', task_type) FROM released;

-- name: get_lease(id, lease_seq, lease_secret)^
-- A running job, for the holder of its lease.
SELECT
    jobs.*, task_types.timeout_seconds, task_types.lease_seconds AS type_lease_seconds,
    task_types.outputs::text AS output_rules, task_types.backoff_seconds, now() AS server_time
FROM jobs JOIN task_types ON task_types.name = jobs.task_type
WHERE jobs.id = :id AND jobs.lease_seq = :lease_seq AND jobs.lease_secret = :lease_secret AND jobs.state = 'running';

-- name: get_lease_outcome(id, lease_seq, lease_secret)^
-- The end of this lease, and the current state of its job.
SELECT
    jobs.state AS job_state,
    outcome.ended_by, outcome.request_digest, outcome.state, outcome.next_attempt_at
FROM jobs
LEFT JOIN lease_outcomes AS outcome
    ON outcome.job_id = jobs.id AND outcome.lease_seq = :lease_seq AND outcome.lease_secret = :lease_secret
WHERE jobs.id = :id;

-- name: renew_leases(ids, lease_seqs, lease_secrets, lease_seconds, updates)
-- Heartbeats for several jobs, each at most once, with progress or without (percent NULL). The first one makes an attempt
-- count. Outdated progress renews the lease and changes nothing else. The last stats are stored.
-- Lease duration: the task type's, else the service default. Locks as in complete_jobs.
WITH held AS MATERIALIZED (
    SELECT
        reported.*, job.lease_confirmed, coalesce(task_types.lease_seconds, :lease_seconds::double precision) AS seconds,
        task_types.timeout_seconds, given.percent, given.stage, given.message, given.stats,
        given.percent IS NOT NULL AND given.percent >= job.percent AS is_newer,
        given.percent >= job.percent
            AND (job.percent, job.stage, job.message) IS DISTINCT FROM (given.percent, given.stage, given.message)
            AS is_change
    FROM (
        SELECT * FROM unnest(:ids::uuid[], :lease_seqs::bigint[], :lease_secrets::text[])
            WITH ORDINALITY AS reported (id, lease_seq, lease_secret, place)
        ORDER BY id
    ) AS reported
    CROSS JOIN LATERAL (
        SELECT * FROM jsonb_to_record(:updates::jsonb -> (reported.place::integer - 1))
            AS given (percent double precision, stage text, message text, stats jsonb)
    ) AS given
    CROSS JOIN LATERAL (
        SELECT * FROM jobs
        WHERE jobs.id = reported.id AND jobs.lease_seq = reported.lease_seq AND jobs.lease_secret = reported.lease_secret
        FOR UPDATE
    ) AS job
    JOIN task_types ON task_types.name = job.task_type
), renewed AS (
    UPDATE jobs
    SET
        lease_expires_at = now() + make_interval(secs => held.seconds),
        attempt = jobs.attempt + (NOT held.lease_confirmed)::integer,
        started_at = CASE WHEN held.lease_confirmed THEN jobs.started_at ELSE now() END,
        lease_confirmed = true,
        percent = CASE WHEN held.is_newer THEN held.percent ELSE jobs.percent END,
        stage = CASE WHEN held.is_newer THEN held.stage ELSE jobs.stage END,
        message = CASE WHEN held.is_newer THEN held.message ELSE jobs.message END,
        worker_stats = coalesce(held.stats, jobs.worker_stats)
    FROM held
    WHERE jobs.id = held.id AND jobs.lease_seq = held.lease_seq AND jobs.lease_secret = held.lease_secret
    RETURNING
        jobs.id, jobs.state, jobs.attempt, jobs.percent, jobs.stage, jobs.message, jobs.worker_name,
        jobs.lease_expires_at, jobs.claimed_at, jobs.cancel_requested_at, jobs.cancel_reason, held.place,
        held.seconds AS lease_seconds, held.timeout_seconds, NOT held.lease_confirmed AS is_start, held.is_change
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, type, state, data
    FROM (
        SELECT 1 AS kind, id, 'started' AS type, state,
            jsonb_build_object('attempt', attempt, 'workerName', worker_name) AS data
        FROM renewed WHERE is_start
        UNION ALL
        SELECT 2, id, 'progress', state, jsonb_build_object('percent', percent, 'stage', stage, 'message', message)
        FROM renewed WHERE is_change
    ) AS transition
    ORDER BY kind
)
SELECT
    place, lease_expires_at, lease_seconds, timeout_seconds, cancel_requested_at, cancel_reason,
    extract(epoch FROM now() - claimed_at)::double precision AS held_seconds
FROM renewed;

-- name: complete_jobs(ids, lease_seqs, lease_secrets, request_digests, results)
-- Publish the outputs of several jobs with held leases. A job that was asked to stop becomes cancelled instead. Rows
-- are locked in the order of their ids, so that two such statements cannot deadlock.
WITH held AS MATERIALIZED (
    SELECT
        reported.*, result -> 'outputs' AS outputs, result -> 'metadata' AS metadata, result -> 'timings' AS timings,
        nullif(result -> 'source', 'null') AS source, job.cancel_requested_at IS NULL AS is_accepted
    FROM (
        SELECT * FROM unnest(:ids::uuid[], :lease_seqs::bigint[], :lease_secrets::text[], :request_digests::bytea[])
            WITH ORDINALITY AS reported (id, lease_seq, lease_secret, request_digest, place)
        ORDER BY id
    ) AS reported
    -- One value, since the driver takes 30 ms to quote 250 kB of JSON within an array.
    CROSS JOIN LATERAL (SELECT :results::jsonb -> (reported.place::integer - 1) AS result) AS given
    CROSS JOIN LATERAL (
        SELECT * FROM jobs
        WHERE jobs.id = reported.id AND jobs.lease_seq = reported.lease_seq AND jobs.lease_secret = reported.lease_secret
        FOR UPDATE
    ) AS job
), ended AS (
    UPDATE jobs
    SET
        state = CASE WHEN held.is_accepted THEN 'succeeded' ELSE 'cancelled' END,
        outputs = CASE WHEN held.is_accepted THEN held.outputs END,
        output_lease_seq = CASE WHEN held.is_accepted THEN jobs.lease_seq END,
        metadata = CASE WHEN held.is_accepted THEN held.metadata END,
        timings = CASE WHEN held.is_accepted THEN held.timings END,
        source_validators = CASE WHEN held.is_accepted THEN held.source END,
        percent = CASE WHEN held.is_accepted THEN 100 ELSE jobs.percent END,
        attempt = jobs.attempt + (NOT jobs.lease_confirmed)::integer,
        error = NULL, finished_at = now(), started_at = coalesce(jobs.started_at, jobs.claimed_at),
        lease_confirmed = false, lease_secret = NULL, lease_expires_at = NULL, claim_id = NULL, claimed_at = NULL,
        worker_id = NULL
    FROM held
    WHERE jobs.id = held.id AND jobs.lease_seq = held.lease_seq AND jobs.lease_secret = held.lease_secret
    RETURNING
        jobs.id, jobs.state, jobs.attempt, jobs.lease_seq, jobs.task_type, jobs.worker_name, jobs.outputs,
        held.place, held.lease_secret, held.request_digest
), outcome AS (
    INSERT INTO lease_outcomes (job_id, lease_seq, lease_secret, attempt, worker_name, ended_by, request_digest, state)
    SELECT id, lease_seq, lease_secret, attempt, worker_name, 'complete', request_digest, state FROM ended
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id, state, state,
        CASE state
            WHEN 'succeeded' THEN jsonb_build_object('attempt', attempt, 'outputs', outputs)
            ELSE jsonb_build_object('attempt', attempt)
        END
    FROM ended
), freed AS (
    -- Free slots under a limit: one notification per task type.
    SELECT pg_notify('geo_jobs_queued', ended.task_type || ':' || count(*)) AS notification
    FROM ended JOIN task_types ON task_types.name = ended.task_type AND task_types.max_concurrent_runs IS NOT NULL
    GROUP BY ended.task_type
)
SELECT
    place, state, (SELECT count(notification) FROM freed) AS notifications,
    (SELECT release_dependents(array_agg(id)) FROM ended) AS released
FROM ended;

-- name: count_failures(id, key, value)^
-- Count the leases of a job that ended with this error `class` or `code` (the key) since it was last requeued by hand.
SELECT count(*) AS failures FROM lease_outcomes
WHERE job_id = :id AND error ->> :key::text = :value::text AND ended_at > coalesce(
    (SELECT max(created_at) FROM job_events WHERE job_id = :id AND type = 'retried'), '-infinity'
);

-- name: fail_job(id, lease_seq, lease_secret, request_digest, next_state, delay_seconds, uses_attempt, source_bytes, error, avoid_seconds, live_seconds)^
-- End a held lease with a failure. A job that was asked to stop is never queued again. For `avoid_seconds` after it is
-- ready, the job avoids its worker if another one has asked for such jobs within `live_seconds`.
-- `source_bytes` is a lower bound for the size of a source, for later claims. NULL: unknown.
WITH other AS MATERIALIZED (
    SELECT jobs.id FROM jobs
    WHERE jobs.id = :id AND :next_state::text = 'queued' AND EXISTS (
        SELECT FROM workers
        WHERE workers.id <> jobs.worker_id AND jobs.task_type = ANY(workers.task_types) AND workers.trouble IS NULL
            AND workers.last_seen_at > now() - make_interval(secs => :live_seconds)
    )
), ended AS (
    UPDATE jobs
    SET
        state = CASE WHEN cancel_requested_at IS NULL THEN :next_state::text ELSE 'cancelled' END,
        finished_at = CASE WHEN cancel_requested_at IS NULL AND :next_state::text = 'queued' THEN NULL ELSE now() END,
        run_at = CASE
            WHEN :delay_seconds::double precision > 0 THEN now() + make_interval(secs => :delay_seconds::double precision)
            ELSE run_at
        END,
        -- Without a delay, the job keeps the place that it was claimed from.
        fair_share_at = CASE WHEN :delay_seconds::double precision > 0 THEN fair_share_at ELSE least(fair_share_at, claimed_at) END,
        attempt = attempt
            + CASE WHEN :uses_attempt::boolean THEN (NOT lease_confirmed)::integer ELSE -lease_confirmed::integer END,
        error = CASE WHEN :uses_attempt::boolean THEN :error::jsonb ELSE error END,
        input_size_bytes = coalesce(:source_bytes::bigint, input_size_bytes),
        avoided_worker = CASE WHEN EXISTS (SELECT FROM other) THEN worker_id END,
        avoided_until = CASE WHEN EXISTS (SELECT FROM other)
            THEN now() + make_interval(secs => :delay_seconds::double precision + :avoid_seconds::double precision)
        END,
        lease_confirmed = false, lease_secret = NULL, lease_expires_at = NULL, claim_id = NULL, claimed_at = NULL,
        worker_id = NULL
    WHERE id = :id AND lease_seq = :lease_seq AND lease_secret = :lease_secret AND state = 'running'
    RETURNING
        id, state, attempt, lease_seq, task_type, worker_name,
        CASE state WHEN 'queued' THEN greatest(run_at, now()) END AS next_attempt_at
), outcome AS (
    INSERT INTO lease_outcomes (
        job_id, lease_seq, lease_secret, attempt, worker_name, ended_by, request_digest, state, next_attempt_at, error
    )
    SELECT
        id, lease_seq, :lease_secret, attempt, worker_name, 'fail', :request_digest, state, next_attempt_at, :error::jsonb
    FROM ended
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id,
        CASE
            WHEN state <> 'queued' THEN state
            WHEN :uses_attempt::boolean THEN 'retry_scheduled'
            ELSE 'interrupted'
        END,
        state,
        jsonb_build_object('attempt', attempt, 'error', :error::jsonb, 'nextAttemptAt', next_attempt_at)
    FROM ended
)
SELECT
    ended.state, ended.next_attempt_at,
    CASE
        WHEN task_types.max_concurrent_runs IS NOT NULL OR ended.next_attempt_at <= now()
            THEN pg_notify('geo_jobs_queued', ended.task_type)
        -- No claim can take the job yet, but waiting processes must recompute the next due time.
        WHEN ended.state = 'queued' THEN pg_notify('geo_jobs_queued', '')
    END,
    CASE WHEN ended.state <> 'queued' THEN release_dependents(ARRAY[ended.id]) END
FROM ended JOIN task_types ON task_types.name = ended.task_type;
