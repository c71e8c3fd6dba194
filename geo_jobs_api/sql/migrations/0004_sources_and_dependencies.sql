-- Where inputs come from, jobs that wait for other jobs, pipelines, and keys against double work.

-- Named stages of jobs, submitted together. Where a pipeline stands is seen from its jobs.
CREATE TABLE pipelines (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    name text NOT NULL,
    -- The stages and the names of their jobs, in order, for those who look.
    stages jsonb NOT NULL CHECK (jsonb_typeof(stages) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX pipelines_of_owner ON pipelines (owner, id DESC);

ALTER TABLE jobs
    ADD COLUMN input_kind text NOT NULL DEFAULT 'upload' CHECK (input_kind IN ('none', 'upload', 'url', 'output')),
    ADD COLUMN source_url text,
    -- What the worker asks the source with, so that an unchanged one need not come again: {etag, lastModified}.
    ADD COLUMN source_condition jsonb CHECK (jsonb_typeof(source_condition) = 'object'),
    -- What the worker told of the source: {etag, lastModified, sizeBytes, sha256, unchanged}.
    ADD COLUMN source_validators jsonb CHECK (jsonb_typeof(source_validators) = 'object'),
    -- The job whose output is the input, and which: a suffix or a name.
    ADD COLUMN input_parent_id uuid,
    ADD COLUMN input_output text,
    ADD COLUMN input_object_key text,
    ADD COLUMN pending_parents integer NOT NULL DEFAULT 0 CHECK (pending_parents >= 0),
    ADD COLUMN dedup_key text,
    ADD COLUMN deliver_at timestamptz,
    ADD COLUMN pipeline_id uuid REFERENCES pipelines (id),
    ADD COLUMN pipeline_stage text,
    ADD COLUMN pipeline_job text;

ALTER TABLE jobs
    DROP CONSTRAINT input_before_queue,
    ADD CONSTRAINT input_before_queue CHECK (
        state IN ('awaiting_upload', 'blocked', 'cancelled') OR CASE input_kind
            WHEN 'upload' THEN num_nonnulls(uploaded_at, input_file_name, input_size_bytes) = 3
            WHEN 'output' THEN num_nonnulls(input_object_key, input_file_name, input_size_bytes) = 3
            ELSE true
        END
    ),
    ADD CONSTRAINT source_if_and_only_if_url CHECK (
        CASE input_kind WHEN 'url' THEN num_nonnulls(source_url, input_file_name) = 2 ELSE source_url IS NULL END
    ),
    ADD CONSTRAINT parent_if_and_only_if_output CHECK (
        num_nonnulls(input_parent_id, input_output) = CASE input_kind WHEN 'output' THEN 2 ELSE 0 END
    ),
    ADD CONSTRAINT blocked_while_parents_are_pending CHECK (
        (state <> 'blocked' OR pending_parents > 0)
        AND (pending_parents = 0 OR state IN ('blocked', 'awaiting_upload', 'cancelled'))
    ),
    ADD CONSTRAINT upload_awaited_only_if_wanted CHECK (state <> 'awaiting_upload' OR input_kind = 'upload'),
    ADD CONSTRAINT named_in_its_pipeline CHECK (
        num_nonnulls(pipeline_id, pipeline_stage, pipeline_job) IN (0, 3)
    );

-- While a job with a key is open, no second one is made.
CREATE UNIQUE INDEX jobs_dedup ON jobs (owner, task_type, dedup_key)
    WHERE dedup_key IS NOT NULL AND finished_at IS NULL;
CREATE UNIQUE INDEX jobs_of_pipeline ON jobs (pipeline_id, pipeline_job) WHERE pipeline_id IS NOT NULL;

-- Who waits for whom. A child is made after its parents (or with them, in their order), so there are no circles.
CREATE TABLE job_dependencies (
    child_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    parent_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    on_parent_failure text NOT NULL CHECK (on_parent_failure IN ('cancel', 'run', 'hold')),
    -- The parent's end has been counted; a parent that is sent back and ends again is not counted twice.
    settled boolean NOT NULL DEFAULT false,
    PRIMARY KEY (child_id, parent_id),
    CHECK (child_id <> parent_id)
);

CREATE INDEX job_dependencies_of_parent ON job_dependencies (parent_id);

-- What the end of jobs means to others: children are queued, or cancelled with all that waits for them. To be called by
-- the statement that ends jobs, so that both happen or neither. A function and no further part of that statement, since
-- each statement in here sees what was committed before the ended rows were locked: a child that was made while its
-- parent was about to end (it locks the parent's row) is seen here or has seen the end itself.
CREATE FUNCTION follow_ended_jobs(ended uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wave uuid[] := ended;
    children uuid[];
    counts integer[];
    reasons text[];
BEGIN
    WHILE wave IS NOT NULL LOOP
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
    END LOOP;
END
$$;
