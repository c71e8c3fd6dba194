-- Enqueue webhook deliveries for ended jobs, and for pipelines that end with them.
CREATE OR REPLACE FUNCTION enqueue_webhook_deliveries(ended uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    touched uuid[];
    number bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM webhooks) THEN
        RETURN;
    END IF;
    -- Of two last jobs that end concurrently, the second one here sees the end of the first.
    SELECT array_agg(DISTINCT pipeline_id ORDER BY pipeline_id) INTO touched
    FROM jobs WHERE id = ANY(ended) AND pipeline_id IS NOT NULL;
    IF touched IS NOT NULL THEN
        PERFORM FROM pipelines WHERE id = ANY(touched) ORDER BY id FOR NO KEY UPDATE;
    END IF;
    WITH event AS (
        SELECT
            'job.' || state AS name, owner, task_type, id AS job_id, NULL::uuid AS pipeline_id, notify_at,
            jsonb_build_object(
                'event', 'job.' || state, 'time', finished_at,
                'job', jsonb_build_object(
                    'id', id, 'taskType', task_type, 'state', state, 'owner', owner, 'attempt', attempt,
                    'outputs', outputs, 'outputLeaseSeq', output_lease_seq, 'error', error,
                    'cancelReason', cancel_reason, 'createdAt', created_at, 'finishedAt', finished_at,
                    'pipelineId', pipeline_id, 'pipelineJob', pipeline_job, 'scheduleId', schedule_id,
                    'sourceUnchanged', coalesce((source_validators ->> 'unchanged')::boolean, false)
                )
            ) AS body
        FROM jobs
        WHERE id = ANY(ended) AND finished_at IS NOT NULL
        UNION ALL
        SELECT
            'pipeline.' || pipeline_end.state, pipelines.owner, NULL, NULL, pipelines.id, pipeline_end.notify_at,
            jsonb_build_object(
                'event', 'pipeline.' || pipeline_end.state, 'time', pipeline_end.finished_at,
                'pipeline', jsonb_build_object(
                    'id', pipelines.id, 'name', pipelines.name, 'state', pipeline_end.state, 'owner', pipelines.owner,
                    'createdAt', pipelines.created_at, 'finishedAt', pipeline_end.finished_at, 'jobs', pipeline_end.jobs
                )
            )
        FROM pipelines
        CROSS JOIN LATERAL (
            SELECT
                CASE
                    WHEN bool_or(state = 'failed') THEN 'failed'
                    WHEN bool_or(state = 'cancelled') THEN 'cancelled'
                    ELSE 'succeeded'
                END AS state,
                max(finished_at) AS finished_at, max(notify_at) AS notify_at,
                jsonb_agg(jsonb_build_object('id', id, 'name', pipeline_job, 'state', state) ORDER BY id) AS jobs
            FROM jobs WHERE jobs.pipeline_id = pipelines.id
            HAVING bool_and(finished_at IS NOT NULL)
        ) AS pipeline_end
        WHERE pipelines.id = ANY(touched)
    ), enqueued AS (
        INSERT INTO webhook_deliveries (webhook_id, destination, event, job_id, pipeline_id, body, next_attempt_at)
        SELECT
            webhooks.id, webhooks.destination, event.name, event.job_id, event.pipeline_id, event.body,
            greatest(now(), event.notify_at)
        FROM event
        JOIN webhooks ON (webhooks.owner = event.owner OR webhooks.all_owners)
            AND event.name = ANY(webhooks.events) AND NOT webhooks.paused
            AND (webhooks.task_types IS NULL OR event.task_type IS NULL OR event.task_type = ANY(webhooks.task_types))
        RETURNING id
    )
    SELECT count(*) INTO number FROM enqueued;
    IF number > 0 THEN
        PERFORM pg_notify('geo_jobs_deliveries', '');
    END IF;
END
$$;
