-- Pipelines: named stages of jobs. Where one stands is seen from its jobs.

-- name: insert_pipeline(id, owner, name, stages)!
-- Create a pipeline; its jobs come in the same transaction.
INSERT INTO pipelines (id, owner, name, stages) VALUES (:id, :owner, :name, :stages);

-- name: get_pipeline(id, owner)^
-- One pipeline; with an owner, only if it is that owner's.
SELECT id, owner, name, stages, created_at FROM pipelines
WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text);

-- name: list_pipelines(owner, before, most)
-- Newest first; ids are time-ordered, so the last id of a page is the cursor of the next.
SELECT id, owner, name, stages, created_at FROM pipelines
WHERE (:owner::text IS NULL OR owner = :owner::text) AND (:before::uuid IS NULL OR id < :before::uuid)
ORDER BY id DESC
LIMIT :most;

-- name: list_jobs_of_pipelines(ids)
-- All jobs of these pipelines, those of each in the order in which they were made.
SELECT * FROM jobs WHERE pipeline_id = ANY(:ids::uuid[]) AND removal_started_at IS NULL ORDER BY id;

-- name: cancel_pipeline(id, reason)
-- Cancel at once what nobody works on; ask the workers of running jobs to stop.
WITH held AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE pipeline_id = :id AND finished_at IS NULL AND cancel_requested_at IS NULL
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
    RETURNING jobs.id, jobs.state, jobs.cancel_reason
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT
        id, CASE state WHEN 'running' THEN 'cancel_requested' ELSE 'cancelled' END, state,
        jsonb_build_object('reason', cancel_reason)
    FROM changed
)
SELECT id, (SELECT follow_ended_jobs(array_agg(id)) FROM changed WHERE state = 'cancelled') AS followed FROM changed;
