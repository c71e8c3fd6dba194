-- Schedules: statements for their owners, and for the transaction in which they fire.

-- name: count_schedules(owner)^
-- Count an owner's schedules.
SELECT count(*) FROM schedules WHERE owner = :owner;

-- name: insert_schedule(id, owner, name, timing, template, catch_up, overlap, jitter_seconds, start_at, end_at, skip_unchanged, paused, next_run_at, upcoming)^
-- Create a schedule. No row: the owner has one with this name.
WITH created AS (
    INSERT INTO schedules (
        id, owner, name, timing, template, catch_up, overlap, jitter_seconds, start_at, end_at,
        skip_unchanged, paused, next_run_at, upcoming
    )
    VALUES (
        :id, :owner, :name, :timing, :template, :catch_up, :overlap, :jitter_seconds, :start_at, :end_at,
        :skip_unchanged, :paused, :next_run_at, :upcoming::timestamptz[]
    )
    ON CONFLICT ON CONSTRAINT schedule_names DO NOTHING
    RETURNING *
)
SELECT created.*, pg_notify('geo_jobs_schedules', '') FROM created;

-- name: replace_schedule(id, name, timing, template, catch_up, overlap, jitter_seconds, start_at, end_at, skip_unchanged, paused, next_run_at, upcoming)^
-- Replace the content of a schedule, but not its jobs.
WITH changed AS (
    UPDATE schedules
    SET
        name = :name, timing = :timing, template = :template, catch_up = :catch_up,
        overlap = :overlap, jitter_seconds = :jitter_seconds, start_at = :start_at, end_at = :end_at,
        skip_unchanged = :skip_unchanged, paused = :paused, next_run_at = :next_run_at,
        upcoming = :upcoming::timestamptz[], last_error = NULL,
        updated_at = now()
    WHERE id = :id
    RETURNING *
)
SELECT changed.*, pg_notify('geo_jobs_schedules', '') FROM changed;

-- name: set_paused(id, paused, next_run_at, upcoming)^
-- Pause or resume. No row: it is in that state already.
WITH changed AS (
    UPDATE schedules
    SET paused = :paused, next_run_at = :next_run_at, upcoming = :upcoming::timestamptz[], updated_at = now()
    WHERE id = :id AND paused <> :paused
    RETURNING *
)
SELECT changed.*, pg_notify('geo_jobs_schedules', '') FROM changed;

-- name: reset_schedule(id, next_run_at, upcoming)^
-- Drop due moments and errors, and continue from now.
WITH changed AS (
    UPDATE schedules
    SET
        paused = false, next_run_at = :next_run_at, upcoming = :upcoming::timestamptz[], last_error = NULL,
        updated_at = now()
    WHERE id = :id
    RETURNING *
)
SELECT changed.*, pg_notify('geo_jobs_schedules', '') FROM changed;

-- name: get_schedule(id, owner)^
-- One schedule. With an owner, only that owner's.
SELECT * FROM schedules WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text);

-- name: list_schedules(owner, after, limit)
-- By id. Ids are time-ordered, so the last id of a page is the cursor of the next.
SELECT * FROM schedules
WHERE (:owner::text IS NULL OR owner = :owner::text) AND (:after::uuid IS NULL OR id > :after::uuid)
ORDER BY id
LIMIT :limit;

-- name: delete_schedule(id)!
-- Delete a schedule, but not its jobs.
DELETE FROM schedules WHERE id = :id;

-- name: list_fires(schedule_id, limit)
-- The latest decisions, newest first.
SELECT fire_time, outcome, manual, job_id, pipeline_id, error, decided_at FROM schedule_fires
WHERE schedule_id = :schedule_id
ORDER BY fire_time DESC
LIMIT :limit;

-- name: lock_due(now, only, limit)
-- Lock due schedules, except those that another process has locked. `now` replaces the database's clock in simulations.
SELECT schedules.*, coalesce(:now::timestamptz, now()) AS server_time FROM schedules
WHERE next_run_at <= coalesce(:now::timestamptz, now()) AND next_run_at IS NOT NULL
    AND (:only::uuid IS NULL OR id = :only::uuid)
ORDER BY next_run_at, id
LIMIT :limit
FOR UPDATE SKIP LOCKED;

-- name: lock_schedule(id)^
-- Lock one schedule, due or not.
SELECT schedules.*, now() AS server_time FROM schedules WHERE id = :id FOR UPDATE;

-- name: seconds_until_due(now)^
-- Seconds until the next moment. NULL: there is none.
SELECT extract(epoch FROM min(next_run_at) - coalesce(:now::timestamptz, now()))::double precision AS seconds
FROM schedules WHERE next_run_at IS NOT NULL;

-- name: list_open_jobs(ids)
-- The open jobs of earlier fires of these schedules.
SELECT schedule_id, id FROM jobs
WHERE schedule_id = ANY(:ids::uuid[]) AND schedule_id IS NOT NULL AND finished_at IS NULL
ORDER BY id;

-- name: list_last_sources(ids)
-- The source validators of the latest success of each schedule, while results made from that source are kept.
SELECT latest.* FROM unnest(:ids::uuid[]) AS requested (id)
CROSS JOIN LATERAL (
    SELECT jobs.schedule_id, jobs.task_type, jobs.input_payload, jobs.source_validators, jobs.source_condition
    FROM jobs
    WHERE jobs.schedule_id = requested.id AND jobs.state = 'succeeded' AND jobs.source_validators IS NOT NULL
    ORDER BY jobs.id DESC
    LIMIT 1
) AS latest
WHERE EXISTS (
    SELECT FROM jobs
    WHERE jobs.schedule_id = requested.id AND jobs.state = 'succeeded' AND jobs.purge_started_at IS NULL
        AND jobs.input_payload = latest.input_payload AND jobs.task_type = latest.task_type
        AND NOT coalesce((jobs.source_validators ->> 'unchanged')::boolean, false)
);

-- name: insert_fires(fires)!
-- Record decisions. A moment that was decided before is an error, and ends the transaction.
INSERT INTO schedule_fires (schedule_id, fire_time, outcome, manual, job_id, pipeline_id, error)
SELECT schedule_id, fire_time, outcome, manual, job_id, pipeline_id, error
FROM jsonb_to_recordset(:fires::jsonb) AS decided (
    schedule_id uuid, fire_time timestamptz, outcome text, manual boolean, job_id uuid, pipeline_id uuid, error text
);

-- name: advance_schedules(steps)!
-- Set the next moments, each from the one that was found.
UPDATE schedules
SET
    next_run_at = step.upcoming[1], upcoming = step.upcoming, last_run_at = coalesce(step.last_run_at, schedules.last_run_at),
    last_error = step.last_error
FROM jsonb_to_recordset(:steps::jsonb) AS step (
    id uuid, expected timestamptz, upcoming timestamptz[], last_run_at timestamptz, last_error text
)
WHERE schedules.id = step.id AND schedules.next_run_at = step.expected;
