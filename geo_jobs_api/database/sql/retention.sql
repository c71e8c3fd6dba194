-- Retention: delete expired rows. Open jobs are never touched.

-- name: cancel_unused(unused_seconds, limit)
-- Cancel jobs without their upload. They are then removed like other ended jobs.
WITH unused AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE state = 'awaiting_upload' AND created_at < now() - make_interval(secs => :unused_seconds)
    ORDER BY created_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE jobs
    SET state = 'cancelled', cancel_requested_at = now(), cancel_reason = 'No file was uploaded.', finished_at = now()
    FROM unused
    WHERE jobs.id = unused.id AND jobs.state = 'awaiting_upload'
    RETURNING jobs.id, jobs.state, jobs.cancel_reason
), event AS (
    INSERT INTO job_events (job_id, type, state, data)
    SELECT id, 'cancelled', state, jsonb_build_object('reason', cancel_reason) FROM ended
)
SELECT id, (SELECT release_dependents(array_agg(id)) FROM ended) FROM ended;

-- name: begin_purge(states, seconds, limit)
-- Mark ended jobs after their retention period, and those that an earlier round marked without finishing.
WITH expired AS MATERIALIZED (
    SELECT candidate.id
    FROM unnest(:states::text[], :seconds::double precision[]) AS kept (state, seconds)
    CROSS JOIN LATERAL (
        SELECT jobs.id FROM jobs
        WHERE jobs.state = kept.state AND jobs.finished_at < now() - make_interval(secs => kept.seconds)
            AND jobs.finished_at IS NOT NULL AND jobs.purge_started_at IS NULL
            -- Its outputs may be the input of an open job.
            AND NOT EXISTS (
                SELECT FROM job_dependencies AS edge JOIN jobs AS child ON child.id = edge.child_id
                WHERE edge.parent_id = jobs.id AND child.finished_at IS NULL
            )
        ORDER BY jobs.finished_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ) AS candidate
    LIMIT :limit
), marked AS (
    UPDATE jobs SET purge_started_at = now()
    FROM expired
    WHERE jobs.id = expired.id AND jobs.finished_at IS NOT NULL
    RETURNING jobs.id
), unfinished AS (
    SELECT id FROM jobs WHERE purge_started_at IS NOT NULL ORDER BY id LIMIT :limit
)
SELECT id FROM marked UNION SELECT id FROM unfinished;

-- name: keep_parents(ids)
-- Unmark jobs that got a child after `begin_purge` had begun, and before it locked them. In the same transaction.
UPDATE jobs SET purge_started_at = NULL
WHERE id = ANY(:ids::uuid[]) AND EXISTS (
    SELECT FROM job_dependencies AS edge JOIN jobs AS child ON child.id = edge.child_id
    WHERE edge.parent_id = jobs.id AND child.finished_at IS NULL
)
RETURNING id;

-- name: delete_jobs(ids)!
-- Delete jobs without objects, with their events and outcomes.
DELETE FROM jobs WHERE id = ANY(:ids::uuid[]) AND purge_started_at IS NOT NULL;

-- name: delete_empty_pipelines(limit)!
-- Delete pipelines without jobs.
DELETE FROM pipelines WHERE id IN (
    SELECT id FROM pipelines
    WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.pipeline_id = pipelines.id)
    ORDER BY id
    LIMIT :limit
);

-- name: delete_old_fires(limit)!
-- Delete the oldest decisions of schedules, except the latest thousand of each. A schedule never returns to an earlier
-- moment.
DELETE FROM schedule_fires WHERE (schedule_id, fire_time) IN (
    SELECT surplus.schedule_id, surplus.fire_time FROM schedules
    CROSS JOIN LATERAL (
        SELECT schedule_id, fire_time FROM schedule_fires
        WHERE schedule_fires.schedule_id = schedules.id
        ORDER BY fire_time DESC
        OFFSET 1000
        LIMIT :limit
    ) AS surplus
    LIMIT :limit
);

-- name: delete_old_deliveries(limit)!
-- Delete deliveries that ended a month ago.
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT id FROM webhook_deliveries
    WHERE finished_at < now() - interval '30 days'
    ORDER BY finished_at
    LIMIT :limit
);

-- name: pause_unrenewed_webhooks(seconds)
-- Pause webhooks of all owners that no administrator has stored for this long, and drop their pending deliveries.
WITH lapsed AS (
    UPDATE webhooks SET paused = true
    WHERE all_owners AND NOT paused AND updated_at < now() - make_interval(secs => :seconds)
    RETURNING id, owner
), dropped AS (
    DELETE FROM webhook_deliveries USING lapsed
    WHERE webhook_deliveries.webhook_id = lapsed.id AND webhook_deliveries.state = 'pending'
)
SELECT id, owner FROM lapsed;

-- name: list_existing_jobs(ids)
-- The existing ones of these jobs, ended or not.
SELECT id FROM jobs WHERE id = ANY(:ids::uuid[]);
