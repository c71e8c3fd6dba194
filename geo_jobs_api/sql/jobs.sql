-- Jobs as their owners see them: create, upload, read, cancel, retry; and the tokens of workers.

-- name: insert_job(id, owner, task_type, priority, input_payload, idempotency_key, request_digest)^
-- Create a job that waits for its upload. No row: the task type is unknown, or the key was used before.
WITH created AS (
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, idempotency_key, request_digest, max_attempts
    )
    SELECT
        :id::uuid, :owner::text, name, 'awaiting_upload', coalesce(:priority::integer, default_priority),
        :input_payload::jsonb, :idempotency_key::text, :request_digest::bytea, max_attempts
    FROM task_types
    WHERE name = :task_type
    ON CONFLICT (owner, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state) SELECT id, 'created', state FROM created
)
SELECT * FROM created;

-- name: get_job_by_idempotency_key(owner, idempotency_key)^
-- The job that an earlier request with this key made.
SELECT * FROM jobs WHERE owner = :owner AND idempotency_key = :idempotency_key AND removal_started_at IS NULL;

-- name: get_job(id, owner)^
-- One job; with an owner, only if it is that owner's.
SELECT * FROM jobs
WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text) AND removal_started_at IS NULL;

-- name: takes_outputs(id)^
-- A row without columns, if the job is there and has not ended.
SELECT FROM jobs WHERE id = :id AND finished_at IS NULL AND removal_started_at IS NULL;

-- name: count_of_owner(owner)^
-- What an owner has: jobs that have not ended, and bytes of files that are kept.
SELECT
    count(*) FILTER (WHERE finished_at IS NULL) AS open_jobs,
    coalesce(sum(input_size_bytes), 0)::bigint AS stored_bytes
FROM jobs
WHERE owner = :owner AND removal_started_at IS NULL;

-- name: list_jobs(owner, state, task_type, before, most)
-- Newest first; ids are time-ordered, so the last id of a page is the cursor of the next.
SELECT * FROM jobs
WHERE (:owner::text IS NULL OR owner = :owner::text)
    AND (:state::text IS NULL OR state = :state::text)
    AND (:task_type::text IS NULL OR task_type = :task_type::text)
    AND (:before::uuid IS NULL OR id < :before::uuid)
    AND removal_started_at IS NULL
ORDER BY id DESC
LIMIT :most;

-- name: set_upload(id, file_name, size_bytes, content_type)^
-- Tell which file is going to be uploaded; a later request replaces an earlier one.
WITH changed AS (
    UPDATE jobs
    SET input_file_name = :file_name, input_size_bytes = :size_bytes, input_content_type = :content_type
    WHERE id = :id AND state = 'awaiting_upload'
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'upload_requested', state, jsonb_build_object('fileName', input_file_name, 'sizeBytes', input_size_bytes)
    FROM changed
)
SELECT * FROM changed;

-- name: enqueue_uploaded(id, file_name, size_bytes, sha256)^
-- The file has arrived: the job may be claimed. No row: it waits for another file, or for none.
WITH moved AS (
    UPDATE jobs
    SET state = 'queued', run_at = now(), turn = fair_turn(owner, task_type, priority), uploaded_at = now(), input_sha256 = :sha256
    WHERE id = :id AND state = 'awaiting_upload'
        AND input_file_name = :file_name AND input_size_bytes = :size_bytes
    RETURNING id, task_type, state, input_size_bytes, input_sha256
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'queued', state, jsonb_build_object('sizeBytes', input_size_bytes, 'sha256', input_sha256) FROM moved
)
SELECT id, pg_notify('geo_jobs_queued', task_type) FROM moved;

-- name: request_cancel(id, reason)^
-- Cancel at once what nobody works on; ask the worker of a running job to stop. No row: ended, or asked before.
WITH changed AS (
    UPDATE jobs
    SET
        state = CASE state WHEN 'running' THEN 'running' ELSE 'cancelled' END,
        cancel_requested_at = now(),
        cancel_reason = :reason,
        finished_at = CASE state WHEN 'running' THEN NULL ELSE now() END
    WHERE id = :id AND cancel_requested_at IS NULL
        AND state IN ('awaiting_upload', 'blocked', 'queued', 'running')
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id, CASE state WHEN 'running' THEN 'cancel_requested' ELSE 'cancelled' END, state,
        jsonb_build_object('reason', cancel_reason)
    FROM changed
)
SELECT * FROM changed;

-- name: retry_failed(id)^
-- Send a failed job back to the queue with all its attempts. No row: it has not failed.
WITH moved AS (
    UPDATE jobs
    SET
        state = 'queued', run_at = now(), turn = fair_turn(owner, task_type, priority), attempt = 0, worker_losses = 0,
        finished_at = NULL, error = NULL, percent = 0, stage = NULL, message = NULL, started_at = NULL
    WHERE id = :id AND state = 'failed' AND removal_started_at IS NULL
    RETURNING *
), event AS (
    INSERT INTO job_events (job_id, type, state) SELECT id, 'retried', state FROM moved
)
SELECT moved.*, pg_notify('geo_jobs_queued', task_type) FROM moved;

-- name: list_ended_leases(job_id, most)
-- How the latest leases of a job ended, the newest first.
SELECT lease_seq, attempt, worker_name, ended_by, state, error, next_attempt_at, ended_at
FROM lease_outcomes
WHERE job_id = :job_id
ORDER BY lease_seq DESC
LIMIT :most;

-- name: list_events(job_id, after, most)
-- A page of a job's event log, in the order of the moves.
SELECT id, job_id, type, state, created_at, data
FROM job_events
WHERE job_id = :job_id AND id > :after
ORDER BY id
LIMIT :most;

-- name: list_events_for_listeners(job_ids, afters, most)
-- New events for all who listen in this process, each job from its own place, in one query.
SELECT event.id, event.job_id, event.type, event.state, event.created_at, event.data
FROM unnest(:job_ids::uuid[], :afters::bigint[]) AS listener (job_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM job_events
    WHERE job_events.job_id = listener.job_id AND job_events.id > listener.after
    ORDER BY job_events.id
    LIMIT :most
) AS event
ORDER BY event.id;

-- name: get_worker_token(token_sha256)^
-- A token that is known and not revoked.
SELECT id, name, created_at, revoked_at FROM worker_tokens
WHERE token_sha256 = :token_sha256 AND revoked_at IS NULL;

-- name: insert_worker_token(id, name, token_sha256)!
-- Register a token by its hash; one that is known already stays as it is, revoked or not.
INSERT INTO worker_tokens (id, name, token_sha256) VALUES (:id, :name, :token_sha256)
ON CONFLICT (token_sha256) DO NOTHING;

-- name: list_worker_tokens()
-- All tokens, the newest first; the secrets themselves are not kept.
SELECT id, name, created_at, revoked_at FROM worker_tokens ORDER BY created_at DESC, id DESC;

-- name: revoke_worker_token(id)!
-- A revoked token is refused from now on.
UPDATE worker_tokens SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL;
