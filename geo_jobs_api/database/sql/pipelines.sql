-- Pipelines: named stages of jobs. Their progress follows from their jobs.

-- name: insert_pipeline(id, owner, name, stages)!
-- Create a pipeline. Its jobs follow in the same transaction.
INSERT INTO pipelines (id, owner, name, stages) VALUES (:id, :owner, :name, :stages);

-- name: get_pipeline(id, owner)^
-- One pipeline. With an owner, only that owner's.
SELECT id, owner, name, stages, created_at FROM pipelines
WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text);

-- name: list_pipelines(owner, before, limit)
-- Newest first. Ids are time-ordered, so the last id of a page is the cursor of the next.
SELECT page.id, page.name, page.created_at, whole.counts, whole.percent, whole.finished_at
FROM (
    SELECT id, name, created_at FROM pipelines
    WHERE (:owner::text IS NULL OR owner = :owner::text) AND (:before::uuid IS NULL OR id < :before::uuid)
    ORDER BY id DESC
    LIMIT :limit
) AS page
CROSS JOIN LATERAL (
    SELECT
        coalesce(jsonb_object_agg(state, jobs), '{}') AS counts,
        coalesce(sum(done) / sum(jobs), 100)::double precision AS percent,
        CASE WHEN sum(ended) = sum(jobs) THEN max(finished_at) END AS finished_at
    FROM (
        SELECT
            state, count(*) AS jobs, sum(CASE WHEN finished_at IS NULL THEN percent ELSE 100 END) AS done,
            count(finished_at) AS ended, max(finished_at) AS finished_at
        FROM jobs
        WHERE jobs.pipeline_id = page.id AND purge_started_at IS NULL
        GROUP BY state
    ) AS by_state
) AS whole
ORDER BY page.id DESC;

-- name: list_jobs_of_pipeline(id)
-- All jobs of a pipeline, in creation order. Without details of errors, which are unbounded.
SELECT
    id, pipeline_job, task_type, state, percent, stage, error - 'detail' AS error, cancel_reason, started_at, finished_at
FROM jobs
WHERE pipeline_id = :id AND purge_started_at IS NULL
ORDER BY id;

-- name: list_open_jobs(id)
-- The open jobs of a pipeline. No further ones can follow.
SELECT id FROM jobs WHERE pipeline_id = :id AND finished_at IS NULL;
