-- Webhooks tell other programs how jobs and pipelines have ended.

CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    url text NOT NULL,
    -- Host and port: what is spared together.
    destination text NOT NULL,
    -- Sealed with a key that is not in the database.
    secret bytea NOT NULL,
    events text[] NOT NULL CHECK (cardinality(events) > 0),
    -- NULL: all.
    task_types text[],
    -- Of everybody's jobs, not only the owner's.
    all_owners boolean NOT NULL,
    paused boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX webhooks_of_owner ON webhooks (owner, id);

CREATE TABLE webhook_destinations (
    destination text PRIMARY KEY,
    -- Nothing is sent there before.
    next_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE webhook_deliveries (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    webhook_id uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    destination text NOT NULL,
    event text NOT NULL,
    job_id uuid,
    pipeline_id uuid,
    body jsonb NOT NULL CHECK (jsonb_typeof(body) = 'object'),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    attempt integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    -- When it may be tried; while somebody tries, when that one is given up.
    next_attempt_at timestamptz,
    -- What came of each try: {at, seconds, statusCode, error}.
    attempts jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(attempts) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT waits_while_pending CHECK ((state = 'pending') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT finished_unless_pending CHECK ((state = 'pending') = (finished_at IS NULL))
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (destination, next_attempt_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_of_webhook ON webhook_deliveries (webhook_id, id DESC);
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;

-- Write down whom to tell of these ends: of jobs, and of pipelines whose last job is among them.
CREATE FUNCTION announce_ended_jobs(ended uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    touched uuid[];
    number bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM webhooks) THEN
        RETURN;
    END IF;
    -- Of two last jobs that end at once, the second to come here sees the end of the first.
    SELECT array_agg(DISTINCT pipeline_id ORDER BY pipeline_id) INTO touched
    FROM jobs WHERE id = ANY(ended) AND pipeline_id IS NOT NULL;
    IF touched IS NOT NULL THEN
        PERFORM FROM pipelines WHERE id = ANY(touched) ORDER BY id FOR NO KEY UPDATE;
    END IF;
    WITH news AS (
        SELECT
            'job.' || state AS event, owner, task_type, id AS job_id, NULL::uuid AS pipeline_id, deliver_at,
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
            'pipeline.' || whole.state, pipelines.owner, NULL, NULL, pipelines.id, whole.deliver_at,
            jsonb_build_object(
                'event', 'pipeline.' || whole.state, 'time', whole.finished_at,
                'pipeline', jsonb_build_object(
                    'id', pipelines.id, 'name', pipelines.name, 'state', whole.state, 'owner', pipelines.owner,
                    'createdAt', pipelines.created_at, 'finishedAt', whole.finished_at, 'jobs', whole.jobs
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
                max(finished_at) AS finished_at, max(deliver_at) AS deliver_at,
                jsonb_agg(jsonb_build_object('id', id, 'name', pipeline_job, 'state', state) ORDER BY id) AS jobs
            FROM jobs WHERE jobs.pipeline_id = pipelines.id
            HAVING bool_and(finished_at IS NOT NULL)
        ) AS whole
        WHERE pipelines.id = ANY(touched)
    ), noted AS (
        INSERT INTO webhook_deliveries (webhook_id, destination, event, job_id, pipeline_id, body, next_attempt_at)
        SELECT
            webhooks.id, webhooks.destination, news.event, news.job_id, news.pipeline_id, news.body,
            greatest(now(), news.deliver_at)
        FROM news
        JOIN webhooks ON (webhooks.owner = news.owner OR webhooks.all_owners)
            AND news.event = ANY(webhooks.events) AND NOT webhooks.paused
            AND (webhooks.task_types IS NULL OR news.task_type IS NULL OR news.task_type = ANY(webhooks.task_types))
        RETURNING id
    )
    SELECT count(*) INTO number FROM noted;
    IF number > 0 THEN
        PERFORM pg_notify('geo_jobs_deliveries', '');
    END IF;
END
$$;

-- What the end of jobs means to others: children are queued, or cancelled with all that waits for them. To be called by
-- the statement that ends jobs, so that both happen or neither. A function and no further part of that statement, since
-- each statement in here sees what was committed before the ended rows were locked: a child that was made while its
-- parent was about to end (it locks the parent's row) is seen here or has seen the end itself.
-- Whoever wants to hear of the ends is told once all that follows from them has been done. Of jobs that had ended before
-- (`are_told`), only what follows is.
CREATE FUNCTION follow_ended_jobs(ended uuid[], are_told boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wave uuid[] := ended;
    to_tell uuid[] := CASE WHEN NOT are_told THEN ended END;
    children uuid[];
    counts integer[];
    reasons text[];
BEGIN
    WHILE wave IS NOT NULL LOOP
        -- Most jobs have no children, and this look is much cheaper than what follows it.
        SELECT array_agg(DISTINCT parent_id) INTO wave
        FROM job_dependencies WHERE parent_id = ANY(wave) AND NOT settled;
        EXIT WHEN wave IS NULL;

        WITH settled AS (
            UPDATE job_dependencies AS edge
            SET settled = true
            FROM jobs AS parent
            WHERE edge.parent_id = ANY(wave) AND NOT edge.settled AND parent.id = edge.parent_id
                AND parent.finished_at IS NOT NULL
                AND (parent.state = 'succeeded' OR edge.on_parent_failure <> 'hold')
            RETURNING
                edge.child_id,
                CASE WHEN parent.state <> 'succeeded' AND edge.on_parent_failure = 'cancel' THEN
                    format(
                        'Job %s, which it waited for, %s.', parent.id,
                        CASE parent.state WHEN 'failed' THEN 'has failed' ELSE 'was cancelled' END
                    )
                END AS reason
        ), counted AS (
            SELECT child_id, count(*)::integer AS number, min(reason) AS reason FROM settled GROUP BY child_id
        )
        SELECT
            array_agg(child_id ORDER BY child_id), array_agg(number ORDER BY child_id),
            array_agg(reason ORDER BY child_id)
        INTO children, counts, reasons
        FROM counted;
        EXIT WHEN children IS NULL;

        -- In the order of ids, so that two ends with common children cannot wait for each other.
        PERFORM FROM jobs WHERE id = ANY(children) ORDER BY id FOR UPDATE;

        WITH child AS (
            SELECT
                job.id, asked.number, made.name, made.size_bytes, made.content_type, made.sha256, made.object_key,
                CASE
                    WHEN asked.reason IS NOT NULL THEN asked.reason
                    WHEN job.state = 'blocked' AND job.pending_parents = asked.number AND job.input_kind = 'output'
                        AND made.name IS NULL
                        THEN format('Job %s has no output %s.', job.input_parent_id, job.input_output)
                END AS reason,
                job.state = 'blocked' AND job.pending_parents = asked.number AS is_ready,
                CASE WHEN job.state = 'blocked' AND job.pending_parents = asked.number AND job.run_at <= now()
                    THEN fair_turn(
                        job.owner, job.task_type, job.priority,
                        (row_number() OVER (PARTITION BY job.owner, job.task_type ORDER BY job.id))::integer - 1
                    )
                END AS turn
            FROM unnest(children, counts, reasons) AS asked (id, number, reason)
            JOIN jobs AS job ON job.id = asked.id
            LEFT JOIN LATERAL (
                SELECT
                    output ->> 'name' AS name, (output ->> 'sizeBytes')::bigint AS size_bytes,
                    output ->> 'contentType' AS content_type, output ->> 'sha256' AS sha256,
                    format('jobs/%s/outputs/%s/%s', source.id, source.output_lease_seq, output ->> 'name') AS object_key
                FROM jobs AS source, jsonb_array_elements(source.outputs) AS output
                WHERE source.id = job.input_parent_id AND source.removal_started_at IS NULL
                    AND output ->> 'name' IN (
                        job.input_output,
                        regexp_replace(coalesce(source.input_file_name, source.task_type), '\.[^.]*$', '')
                        || job.input_output
                    )
                    AND (output ->> 'sizeBytes')::bigint > 0
                LIMIT 1
            ) AS made ON job.input_kind = 'output'
            WHERE job.state IN ('blocked', 'awaiting_upload')
        ), moved AS (
            UPDATE jobs
            SET
                pending_parents = jobs.pending_parents - child.number,
                state = CASE
                    WHEN child.reason IS NOT NULL THEN 'cancelled'
                    WHEN child.is_ready THEN 'queued'
                    ELSE jobs.state
                END,
                cancel_requested_at = CASE WHEN child.reason IS NOT NULL THEN now() END,
                cancel_reason = child.reason,
                finished_at = CASE WHEN child.reason IS NOT NULL THEN now() END,
                run_at = CASE WHEN child.is_ready THEN greatest(jobs.run_at, now()) ELSE jobs.run_at END,
                turn = child.turn,
                input_file_name = coalesce(child.name, jobs.input_file_name),
                input_size_bytes = coalesce(child.size_bytes, jobs.input_size_bytes),
                input_content_type = coalesce(child.content_type, jobs.input_content_type),
                input_sha256 = coalesce(child.sha256, jobs.input_sha256),
                input_object_key = coalesce(child.object_key, jobs.input_object_key)
            FROM child
            WHERE jobs.id = child.id AND jobs.state IN ('blocked', 'awaiting_upload')
            RETURNING jobs.id, jobs.state, jobs.task_type, jobs.run_at, jobs.cancel_reason, child.is_ready
        ), event AS (
            INSERT INTO job_events (job_id, type, state, data)
            SELECT
                id, state, state,
                CASE state WHEN 'cancelled' THEN jsonb_build_object('reason', cancel_reason) ELSE '{}' END
            FROM moved
            WHERE state = 'cancelled' OR is_ready
        ), told AS (
            SELECT pg_notify('geo_jobs_queued', CASE WHEN is_due THEN task_type || ':' || count(*) ELSE '' END) AS heard
            FROM (SELECT task_type, run_at <= now() AS is_due FROM moved WHERE state = 'queued') AS queued
            GROUP BY task_type, is_due
        )
        SELECT array_agg(moved.id) FILTER (WHERE moved.state = 'cancelled')
        INTO wave
        FROM moved, (SELECT count(heard) FROM told) AS notifications;
        to_tell := to_tell || wave;
    END LOOP;
    IF to_tell IS NOT NULL THEN
        PERFORM announce_ended_jobs(to_tell);
    END IF;
END
$$;
