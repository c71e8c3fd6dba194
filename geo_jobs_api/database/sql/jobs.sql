-- Jobs for their owners: create, upload, read, cancel, retry. Also worker tokens.

-- name: insert_jobs(jobs, dependencies)
-- Create jobs with their dependencies, in order. Without an input kind, the task type decides whether a job awaits an
-- upload. A job has no row if its task type is unknown or does not fit its input, its idempotency key was used before, or
-- an open job has its de-duplication key.
WITH requested AS (
    SELECT * FROM jsonb_to_recordset(:jobs::jsonb) AS requested (
        place integer, id uuid, owner text, task_type text, priority integer, input_payload jsonb,
        idempotency_key text, request_digest text, dedup_key text, input_kind text, input_file_name text,
        source_url text, source_host text, source_condition jsonb, input_parent_id uuid, input_output text, pending_parents integer,
        run_at timestamptz, notify_at timestamptz, pipeline_id uuid, pipeline_stage text, pipeline_job text,
        schedule_id uuid
    )
), created AS (
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, idempotency_key, request_digest, dedup_key, max_attempts,
        input_kind, input_file_name, source_url, source_host, source_condition, input_parent_id, input_output,
        pending_parents,
        run_at, fair_share_at, notify_at, pipeline_id, pipeline_stage, pipeline_job, schedule_id
    )
    SELECT
        requested.id, requested.owner, requested.task_type,
        CASE
            WHEN decided.input_kind = 'upload' THEN 'awaiting_upload'
            WHEN requested.pending_parents > 0 THEN 'blocked'
            ELSE 'queued'
        END,
        coalesce(requested.priority, task_types.default_priority), requested.input_payload, requested.idempotency_key,
        decode(requested.request_digest, 'hex'), requested.dedup_key, task_types.max_attempts, decided.input_kind,
        requested.input_file_name, requested.source_url, requested.source_host, requested.source_condition, requested.input_parent_id,
        requested.input_output, requested.pending_parents, coalesce(requested.run_at, now()),
        -- A job for later has none, since run_at is its order.
        CASE WHEN decided.input_kind <> 'upload' AND requested.pending_parents = 0
            AND coalesce(requested.run_at, now()) <= now()
            THEN next_fair_share(
                requested.owner, requested.task_type, coalesce(requested.priority, task_types.default_priority),
                (row_number() OVER (PARTITION BY requested.owner, requested.task_type ORDER BY requested.place))::integer - 1
            )
        END,
        requested.notify_at, requested.pipeline_id, requested.pipeline_stage, requested.pipeline_job, requested.schedule_id
    FROM requested
    JOIN task_types ON task_types.name = requested.task_type
    CROSS JOIN LATERAL (
        SELECT coalesce(
            requested.input_kind, CASE task_types.input_rule WHEN 'required' THEN 'upload' ELSE 'none' END
        ) AS input_kind
    ) AS decided
    WHERE task_types.input_rule = CASE decided.input_kind WHEN 'none' THEN 'none' ELSE 'required' END
        OR task_types.input_rule = 'optional'
    ORDER BY requested.place
    ON CONFLICT DO NOTHING
    RETURNING *
), dependency AS (
    INSERT INTO job_dependencies (child_id, parent_id, on_parent_failure)
    SELECT edge.child_id, edge.parent_id, edge.on_parent_failure
    FROM jsonb_to_recordset(:dependencies::jsonb) AS edge (child_id uuid, parent_id uuid, on_parent_failure text)
    JOIN created ON created.id = edge.child_id
), event AS (
    INSERT INTO job_events (job_id, type, state) SELECT id, 'created', state FROM created
), notified AS (
    SELECT pg_notify('geo_jobs_queued', CASE WHEN is_due THEN task_type || ':' || count(*) ELSE '' END) AS seen
    FROM (SELECT task_type, run_at <= now() AS is_due FROM created WHERE state = 'queued') AS queued
    GROUP BY task_type, is_due
)
SELECT created.*, (SELECT count(seen) FROM notified) AS notifications FROM created;

-- name: lock_parents(ids, owner)
-- Lock the parents of new jobs, so that none ends before its children are created.
SELECT id, finished_at IS NOT NULL AS has_ended FROM jobs
WHERE id = ANY(:ids::uuid[]) AND (:owner::text IS NULL OR owner = :owner::text) AND purge_started_at IS NULL
ORDER BY id
FOR SHARE;

-- name: release_dependents(ids)^
-- Release the dependents of jobs that ended earlier.
SELECT release_dependents(:ids::uuid[], true) AS released;

-- name: list_jobs_by_id(ids)
-- These jobs, in no order.
SELECT * FROM jobs WHERE id = ANY(:ids::uuid[]);

-- name: list_parents(id)
-- The parents of a job, settled ones too.
SELECT parent.id, parent.task_type, parent.state, edge.on_parent_failure, edge.settled
FROM job_dependencies AS edge JOIN jobs AS parent ON parent.id = edge.parent_id
WHERE edge.child_id = :id
ORDER BY parent.id;

-- name: list_task_types_by_name(names)
-- The existing ones of these task types, with their rules for new jobs.
SELECT name, input_rule, payload_schema::text AS payload_schema, input_types, outputs::text AS output_rules FROM task_types
WHERE name = ANY(:names::text[]);

-- name: list_task_type_names()
-- The names of all task types.
SELECT name FROM task_types;

-- name: list_deduplicated(owners, task_types, dedup_keys)
-- The open jobs with these keys.
SELECT jobs.* FROM unnest(:owners::text[], :task_types::text[], :dedup_keys::text[]) AS requested (owner, task_type, dedup_key)
JOIN jobs
    ON jobs.owner = requested.owner AND jobs.task_type = requested.task_type AND jobs.dedup_key = requested.dedup_key
    AND jobs.finished_at IS NULL AND jobs.dedup_key IS NOT NULL;

-- name: list_jobs_by_idempotency_key(owner, idempotency_keys)
-- The jobs of earlier requests with these keys.
SELECT * FROM jobs
WHERE owner = :owner AND idempotency_key = ANY(:idempotency_keys::text[]) AND idempotency_key IS NOT NULL
    AND purge_started_at IS NULL;

-- name: get_job(id, owner)^
-- One job. With an owner, only that owner's.
SELECT * FROM jobs
WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text) AND purge_started_at IS NULL;

-- name: accepts_outputs(id)^
-- One row without columns if the job exists and is open.
SELECT FROM jobs WHERE id = :id AND finished_at IS NULL AND purge_started_at IS NULL;

-- name: count_open_of_owner(owner)^
-- Count the open jobs of an owner.
SELECT count(*) AS open_jobs FROM jobs
WHERE owner = :owner AND state IN ('awaiting_upload', 'blocked', 'queued', 'running');

-- name: sum_stored_of_owner(owner)^
-- Sum the bytes of an owner's stored files.
SELECT coalesce(sum(input_size_bytes), 0)::bigint AS stored_bytes FROM jobs
WHERE owner = :owner AND input_kind <> 'url' AND purge_started_at IS NULL;

-- name: lock_owner(owner)!
-- Serialize changes that count against the owner's quota until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended(:owner, 0));

-- name: list_jobs(owner, state, task_type, error_code, before, limit)
-- Newest first. Ids are time-ordered, so the last id of a page is the cursor of the next.
SELECT * FROM jobs
WHERE (:owner::text IS NULL OR owner = :owner::text)
    AND (:state::text IS NULL OR state = :state::text)
    AND (:task_type::text IS NULL OR task_type = :task_type::text)
    AND (:error_code::text IS NULL OR error ->> 'code' = :error_code::text)
    AND (:before::uuid IS NULL OR id < :before::uuid)
    AND purge_started_at IS NULL
ORDER BY id DESC
LIMIT :limit;

-- name: set_upload(id, file_name, size_bytes, content_type)^
-- Set the announced upload. A later request replaces an earlier one. The first 20 of a job are events.
WITH changed AS (
    UPDATE jobs
    SET input_file_name = :file_name, input_size_bytes = :size_bytes, input_content_type = :content_type
    WHERE id = :id AND state = 'awaiting_upload'
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'upload_requested', state, jsonb_build_object('fileName', input_file_name, 'sizeBytes', input_size_bytes)
    FROM changed
    WHERE (
        SELECT count(*) FROM job_events WHERE job_events.job_id = changed.id AND job_events.type = 'upload_requested'
    ) < 20
)
SELECT * FROM changed;

-- name: enqueue_uploaded(id, file_name, size_bytes, sha256)^
-- The file has arrived: queue the job, unless it waits for parents. No row: it awaits another file, or none.
WITH moved AS (
    UPDATE jobs
    SET
        state = CASE WHEN pending_parents > 0 THEN 'blocked' ELSE 'queued' END, run_at = greatest(run_at, now()),
        fair_share_at = CASE WHEN pending_parents = 0 AND run_at <= now() THEN next_fair_share(owner, task_type, priority) END,
        uploaded_at = now(), input_sha256 = :sha256
    WHERE id = :id AND state = 'awaiting_upload'
        AND input_file_name = :file_name AND input_size_bytes = :size_bytes
    RETURNING id, task_type, state, run_at, input_size_bytes, input_sha256
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, state, state, jsonb_build_object('sizeBytes', input_size_bytes, 'sha256', input_sha256) FROM moved
)
SELECT
    id,
    CASE WHEN state = 'queued' THEN pg_notify('geo_jobs_queued', CASE WHEN run_at <= now() THEN task_type ELSE '' END) END
FROM moved;

-- name: cancel_jobs(ids, reason)
-- Cancel waiting jobs, and ask the workers of running jobs to stop. Ended jobs, and those asked before, have no row.
-- Jobs are locked in the order of their ids, parents before children.
WITH held AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE id = ANY(:ids::uuid[]) AND finished_at IS NULL AND cancel_requested_at IS NULL
    ORDER BY id
    FOR UPDATE
), changed AS (
    UPDATE jobs
    SET
        state = CASE jobs.state WHEN 'running' THEN 'running' ELSE 'cancelled' END,
        cancel_requested_at = now(),
        cancel_reason = :reason,
        finished_at = CASE jobs.state WHEN 'running' THEN NULL ELSE now() END
    FROM held
    WHERE jobs.id = held.id AND jobs.finished_at IS NULL AND jobs.cancel_requested_at IS NULL
    RETURNING jobs.id, jobs.task_type, jobs.state, jobs.cancel_reason
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id, CASE state WHEN 'running' THEN 'cancel_requested' ELSE 'cancelled' END, state,
        jsonb_build_object('reason', cancel_reason)
    FROM changed
)
SELECT
    id, task_type, state,
    (SELECT release_dependents(array_agg(id)) FROM changed AS ended WHERE ended.state = 'cancelled') AS released
FROM changed;

-- name: retry_failed(id)^
-- Requeue a failed job with all its attempts. No row: it has not failed, or an open job has its dedup key.
WITH moved AS (
    UPDATE jobs
    SET
        state = 'queued', run_at = now(), fair_share_at = next_fair_share(owner, task_type, priority), attempt = 0, lost_workers = 0,
        finished_at = NULL, error = NULL, percent = 0, stage = NULL, message = NULL, started_at = NULL,
        -- The source may have become smaller.
        input_size_bytes = CASE WHEN input_kind <> 'url' THEN input_size_bytes END
    WHERE id = :id AND state = 'failed' AND purge_started_at IS NULL
        AND NOT EXISTS (
            SELECT FROM jobs AS open
            WHERE open.owner = jobs.owner AND open.task_type = jobs.task_type AND open.dedup_key = jobs.dedup_key
                AND open.dedup_key IS NOT NULL AND open.finished_at IS NULL
        )
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state) SELECT id, 'retried', state FROM moved
)
SELECT moved.*, pg_notify('geo_jobs_queued', task_type) FROM moved;

-- name: list_ended_leases(job_id, limit)
-- The latest ended leases of a job, newest first.
SELECT lease_seq, attempt, worker_name, ended_by, state, error, next_attempt_at, ended_at
FROM lease_outcomes
WHERE job_id = :job_id
ORDER BY lease_seq DESC
LIMIT :limit;

-- name: list_events(job_id, after, limit)
-- A page of a job's event log, in order.
SELECT id, job_id, type, state, created_at, data
FROM job_events
WHERE job_id = :job_id AND id > :after
ORDER BY id
LIMIT :limit;

-- name: list_events_for_listeners(job_ids, afters, limit)
-- New events for all listeners of this process, each job from its own position, in one query.
SELECT event.id, event.job_id, event.type, event.state, event.created_at, event.data
FROM unnest(:job_ids::uuid[], :afters::bigint[]) AS listener (job_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM job_events
    WHERE job_events.job_id = listener.job_id AND job_events.id > listener.after
    ORDER BY job_events.id
    LIMIT :limit
) AS event
ORDER BY event.id;

-- name: list_valid_worker_tokens()
-- Return all tokens that are not revoked, with their hashes.
SELECT id, name, created_at, revoked_at, token_sha256 FROM worker_tokens WHERE revoked_at IS NULL;

-- name: insert_worker_token(id, name, token_sha256)!
-- Register a token by its hash. An existing one does not change, revoked or not.
INSERT INTO worker_tokens (id, name, token_sha256) VALUES (:id, :name, :token_sha256)
ON CONFLICT (token_sha256) DO NOTHING;

-- name: list_worker_tokens()
-- All tokens, newest first. The secrets are not stored.
SELECT id, name, created_at, revoked_at FROM worker_tokens ORDER BY created_at DESC, id DESC;

-- name: revoke_worker_token(id)!
-- Revoke a token.
UPDATE worker_tokens SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL;
