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
