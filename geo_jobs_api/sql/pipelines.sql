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

-- name: list_open_jobs(id)
-- The jobs of a pipeline that have not ended; there will be no further ones.
SELECT id FROM jobs WHERE pipeline_id = :id AND finished_at IS NULL;
