-- All tables and indexes. The functions are in ../functions, and indexes on tables in use are in ../indexes.sql.

CREATE TABLE task_types (
    name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$'),
    paused boolean NOT NULL DEFAULT false,
    -- Whether a job needs an input file before it can run.
    input_rule text NOT NULL DEFAULT 'required' CHECK (input_rule IN ('required', 'optional', 'none')),
    -- Accepted input content types. NULL: the built-in list of the task type, or any.
    input_types text[],
    -- JSON Schema of the payload. NULL: the built-in schema of the task type, or any object.
    payload_schema jsonb CHECK (jsonb_typeof(payload_schema) = 'object'),
    -- [{suffix, contentType, maxBytes, formats}]: allowed outputs; formats NULL: all output formats.
    outputs jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(outputs) = 'array'),
    timeout_seconds integer NOT NULL DEFAULT 3600 CHECK (timeout_seconds > 0),
    -- NULL: the service default.
    lease_seconds double precision CHECK (lease_seconds >= 1),
    max_attempts integer NOT NULL DEFAULT 5 CHECK (max_attempts > 0),
    -- Upper bounds of the full-jitter delay after the first, second, … attempt. The last one repeats.
    backoff_seconds double precision[] NOT NULL DEFAULT '{2,10,60,300,900}',
    max_concurrent_runs integer CHECK (max_concurrent_runs > 0),
    -- At most rate_count claims in any period of rate_period_seconds.
    rate_count integer CHECK (rate_count > 0),
    rate_period_seconds double precision CHECK (rate_period_seconds > 0),
    default_priority integer NOT NULL DEFAULT 0 CHECK (default_priority BETWEEN -100 AND 100),
    -- Memory of a job in MiB. NULL: any worker has enough.
    memory_mb integer CHECK (memory_mb > 0),
    -- Last change by command or API call. Once set, TASK_TYPES no longer changes the row.
    changed_at timestamptz,
    CONSTRAINT rate_is_whole CHECK (num_nonnulls(rate_count, rate_period_seconds) <> 1)
);

INSERT INTO task_types (name, timeout_seconds, backoff_seconds, outputs) VALUES
    (
        'geotiff_to_png', 3600, '{2,10,60,300,900}', '[
        {"suffix": ".png", "contentType": "image/png", "maxBytes": 1153433600, "formats": ["png"]},
        {"suffix": ".jpg", "contentType": "image/jpeg", "maxBytes": 1153433600, "formats": ["jpeg"]},
        {"suffix": ".webp", "contentType": "image/webp", "maxBytes": 1153433600, "formats": ["webp"]},
        {"suffix": ".pgw", "contentType": "text/plain", "maxBytes": 1048576, "formats": ["png"]},
        {"suffix": ".jgw", "contentType": "text/plain", "maxBytes": 1048576, "formats": ["jpeg"]},
        {"suffix": ".wpw", "contentType": "text/plain", "maxBytes": 1048576, "formats": ["webp"]},
        {"suffix": ".prj", "contentType": "text/plain", "maxBytes": 1048576, "formats": null},
        {"suffix": ".png.aux.xml", "contentType": "application/xml", "maxBytes": 4194304, "formats": ["png"]},
        {"suffix": ".jpg.aux.xml", "contentType": "application/xml", "maxBytes": 4194304, "formats": ["jpeg"]},
        {"suffix": ".webp.aux.xml", "contentType": "application/xml", "maxBytes": 4194304, "formats": ["webp"]},
        {"suffix": "_thumb.png", "contentType": "image/png", "maxBytes": 16777216, "formats": null},
        {"suffix": ".json", "contentType": "application/json", "maxBytes": 4194304, "formats": null}
    ]'
    ),
    (
        'geotiff_to_cog', 3600, '{2,10,60,300,900}', '[
        {"suffix": ".tif", "contentType": "image/tiff", "maxBytes": 1153433600, "formats": null},
        {"suffix": ".json", "contentType": "application/json", "maxBytes": 4194304, "formats": null}
    ]'
    ),
    (
        'geotiff_info', 3600, '{2,10,60,300,900}', '[
        {"suffix": ".json", "contentType": "application/json", "maxBytes": 4194304, "formats": null}
    ]'
    ),
    (
        -- Long delays, since an attempt may take two hours.
        'geotiff_to_tiles', 7200, '{60,300,900,1800,3600}', '[
        {"suffix": ".pmtiles", "contentType": "application/vnd.pmtiles", "maxBytes": 4294967296, "formats": null},
        {"suffix": ".json", "contentType": "application/json", "maxBytes": 4194304, "formats": null}
    ]'
    );

-- Jobs in stages, submitted together. The state of a pipeline follows from its jobs.
CREATE TABLE pipelines (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    name text NOT NULL,
    -- [{name, jobs}]: stages with the names of their jobs, in order.
    stages jsonb NOT NULL CHECK (jsonb_typeof(stages) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX pipelines_of_owner ON pipelines (owner, id DESC);

CREATE TABLE schedules (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    name text NOT NULL,
    -- {cron, timeZone}, {rules, timeZone} or {at}; see schedules/schemas.py.
    timing jsonb NOT NULL CHECK (jsonb_typeof(timing) = 'object'),
    -- {job} or {pipeline} as JSON text. Decoding a mebibyte takes 30 ms, and lists do not need it.
    template text NOT NULL,
    -- Missed fires to make up for, the latest ones.
    catch_up integer NOT NULL CHECK (catch_up >= 0),
    overlap text NOT NULL CHECK (overlap IN ('allow', 'skip', 'cancel_old')),
    jitter_seconds integer NOT NULL CHECK (jitter_seconds >= 0),
    start_at timestamptz,
    end_at timestamptz,
    skip_unchanged boolean NOT NULL,
    paused boolean NOT NULL,
    -- The first undecided fire time. NULL: paused or over.
    next_run_at timestamptz,
    -- The next few fire times, from next_run_at on, so that lists compute none.
    upcoming timestamptz[] NOT NULL DEFAULT '{}',
    last_run_at timestamptz,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schedule_names UNIQUE (owner, name),
    CONSTRAINT paused_schedules_do_not_fire CHECK (NOT paused OR next_run_at IS NULL)
);

CREATE INDEX schedules_due ON schedules (next_run_at) WHERE next_run_at IS NOT NULL;

-- The decision for each fire time. The primary key makes it happen once, with any number of schedulers.
CREATE TABLE schedule_fires (
    schedule_id uuid NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
    fire_time timestamptz NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('created', 'overlap', 'missed', 'failed')),
    manual boolean NOT NULL DEFAULT false,
    job_id uuid,
    pipeline_id uuid,
    error text,
    decided_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schedule_id, fire_time),
    CHECK (num_nonnulls(job_id, pipeline_id) = CASE outcome WHEN 'created' THEN 1 ELSE 0 END)
);

CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    task_type text NOT NULL REFERENCES task_types (name),
    state text NOT NULL CHECK (
        state IN ('awaiting_upload', 'blocked', 'queued', 'running', 'succeeded', 'failed', 'cancelled')
    ),
    priority integer NOT NULL CHECK (priority BETWEEN -100 AND 100),
    input_payload jsonb NOT NULL CHECK (jsonb_typeof(input_payload) = 'object'),
    idempotency_key text,
    request_digest bytea,
    -- Unique among open jobs of an owner and a task type.
    dedup_key text,
    created_at timestamptz NOT NULL DEFAULT now(),
    run_at timestamptz NOT NULL DEFAULT now(),
    -- The job's place among those of all owners, as a time; see next_fair_share. NULL: run_at. It never delays a job.
    fair_share_at timestamptz,
    -- One point of priority is worth 60 s of waiting. STORED, so that an index can hold it.
    order_key timestamp NOT NULL GENERATED ALWAYS AS (
        (coalesce(fair_share_at, run_at) AT TIME ZONE 'UTC') - priority * interval '60 seconds'
    ) STORED,
    -- No webhook delivery before.
    notify_at timestamptz,
    pipeline_id uuid REFERENCES pipelines (id),
    pipeline_stage text,
    pipeline_job text,
    schedule_id uuid REFERENCES schedules (id) ON DELETE SET NULL,

    input_kind text NOT NULL DEFAULT 'upload' CHECK (input_kind IN ('none', 'upload', 'url', 'output')),
    input_file_name text,
    input_size_bytes bigint CHECK (input_size_bytes > 0),
    input_content_type text,
    input_sha256 text CHECK (input_sha256 ~ '^[0-9a-f]{64}$'),
    uploaded_at timestamptz,
    source_url text,
    source_host text,
    -- {etag, lastModified}: sent by the worker, so that an unchanged source is not downloaded again.
    source_condition jsonb CHECK (jsonb_typeof(source_condition) = 'object'),
    -- {etag, lastModified, sizeBytes, sha256, unchanged}: the source as the worker reported it.
    source_validators jsonb CHECK (jsonb_typeof(source_validators) = 'object'),
    -- The job with the output that is the input, and the output's suffix or name.
    input_parent_id uuid,
    input_output text,
    input_object_key text,
    pending_parents integer NOT NULL DEFAULT 0 CHECK (pending_parents >= 0),

    attempt integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts integer NOT NULL CHECK (max_attempts > 0),
    lost_workers integer NOT NULL DEFAULT 0 CHECK (lost_workers >= 0),
    -- The worker that failed the job or gave it back. It gets the job again after avoided_until.
    avoided_worker text,
    avoided_until timestamptz,

    -- Fencing token: only claims raise it.
    lease_seq bigint NOT NULL DEFAULT 0 CHECK (lease_seq >= 0),
    lease_secret text,
    lease_expires_at timestamptz,
    -- Set by the first heartbeat. Until then the lease is short and has used no attempt.
    lease_confirmed boolean NOT NULL DEFAULT false,
    claim_id uuid,
    claimed_at timestamptz,
    worker_id text,
    worker_name text,
    -- From the last heartbeat.
    worker_stats jsonb CHECK (jsonb_typeof(worker_stats) = 'object'),
    started_at timestamptz,

    percent double precision NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),
    stage text,
    message text,
    cancel_requested_at timestamptz,
    cancel_reason text,

    outputs jsonb CHECK (jsonb_typeof(outputs) = 'array'),
    output_lease_seq bigint,
    metadata jsonb,
    timings jsonb,
    error jsonb,
    finished_at timestamptz,
    -- The job is hidden from here on: its objects are deleted first, then its row.
    purge_started_at timestamptz,

    CONSTRAINT attempts_within_budget CHECK (attempt <= max_attempts),
    CONSTRAINT lease_held_if_and_only_if_running CHECK (
        num_nonnulls(lease_secret, lease_expires_at, claim_id, claimed_at, worker_id)
        = CASE WHEN state = 'running' THEN 5 ELSE 0 END
    ),
    CONSTRAINT confirmed_only_while_running CHECK (NOT lease_confirmed OR state = 'running'),
    CONSTRAINT finished_if_and_only_if_final CHECK (
        (finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))
    ),
    CONSTRAINT outputs_if_and_only_if_succeeded CHECK (
        (state = 'succeeded') = (outputs IS NOT NULL AND output_lease_seq IS NOT NULL)
    ),
    CONSTRAINT failed_has_error CHECK (state <> 'failed' OR error IS NOT NULL),
    CONSTRAINT cancel_is_not_undone CHECK (cancel_requested_at IS NULL OR state IN ('running', 'cancelled')),
    CONSTRAINT purged_only_if_final CHECK (purge_started_at IS NULL OR finished_at IS NOT NULL),
    CONSTRAINT input_before_queue CHECK (
        state IN ('awaiting_upload', 'blocked', 'cancelled') OR CASE input_kind
            WHEN 'upload' THEN num_nonnulls(uploaded_at, input_file_name, input_size_bytes) = 3
            WHEN 'output' THEN num_nonnulls(input_object_key, input_file_name, input_size_bytes) = 3
            ELSE true
        END
    ),
    CONSTRAINT source_if_and_only_if_url CHECK (
        CASE input_kind WHEN 'url' THEN num_nonnulls(source_url, input_file_name) = 2 ELSE source_url IS NULL END
    ),
    CONSTRAINT parent_if_and_only_if_output CHECK (
        num_nonnulls(input_parent_id, input_output) = CASE input_kind WHEN 'output' THEN 2 ELSE 0 END
    ),
    CONSTRAINT blocked_while_parents_are_pending CHECK (
        (state <> 'blocked' OR pending_parents > 0)
        AND (pending_parents = 0 OR state IN ('blocked', 'awaiting_upload', 'cancelled'))
    ),
    CONSTRAINT upload_awaited_only_if_wanted CHECK (state <> 'awaiting_upload' OR input_kind = 'upload'),
    CONSTRAINT named_in_its_pipeline CHECK (num_nonnulls(pipeline_id, pipeline_stage, pipeline_job) IN (0, 3))
) WITH (
    -- Claims update rows in place (HOT) and step over dead ones, so vacuum runs early and at full speed. Plans follow
    -- the queue as it fills and drains.
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.02
);

CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_dedup ON jobs (owner, task_type, dedup_key)
    WHERE dedup_key IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_waiting ON jobs (task_type, order_key, id) INCLUDE (run_at) WHERE state = 'queued';
CREATE INDEX jobs_fair_share ON jobs (task_type, owner, priority, fair_share_at) WHERE state = 'queued';
-- For the times at which the next retry is due, and the next avoided worker may claim.
CREATE INDEX jobs_due ON jobs (run_at) WHERE state = 'queued';
CREATE INDEX jobs_avoided ON jobs (avoided_until) WHERE state = 'queued' AND avoided_until IS NOT NULL;
CREATE INDEX jobs_leases ON jobs (lease_expires_at) WHERE state = 'running';
CREATE INDEX jobs_running ON jobs (task_type) WHERE state = 'running';
-- Its condition differs from those above: with statistics from a moment without running jobs, the planner would take one of
-- them, and each claim would walk all running jobs.
CREATE INDEX jobs_of_claim ON jobs (claim_id) WHERE claim_id IS NOT NULL;
CREATE INDEX jobs_of_owner ON jobs (owner, id DESC);
CREATE UNIQUE INDEX jobs_of_pipeline ON jobs (pipeline_id, pipeline_job) WHERE pipeline_id IS NOT NULL;
CREATE INDEX jobs_of_schedule ON jobs (schedule_id, id DESC) WHERE schedule_id IS NOT NULL;
-- For retention.
CREATE INDEX jobs_ended ON jobs (state, finished_at) WHERE finished_at IS NOT NULL AND purge_started_at IS NULL;
CREATE INDEX jobs_in_purge ON jobs (id) WHERE purge_started_at IS NOT NULL;
CREATE INDEX jobs_unused ON jobs (created_at) WHERE state = 'awaiting_upload';

-- A child is created after its parents, so there are no cycles.
CREATE TABLE job_dependencies (
    child_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    parent_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    on_parent_failure text NOT NULL CHECK (on_parent_failure IN ('cancel', 'run', 'hold')),
    -- The parent's end was counted. A parent that is retried and ends again does not count twice.
    settled boolean NOT NULL DEFAULT false,
    PRIMARY KEY (child_id, parent_id),
    CHECK (child_id <> parent_id)
);

CREATE INDEX job_dependencies_of_parent ON job_dependencies (parent_id);

-- Ended jobs with more dependents than one statement releases.
CREATE TABLE pending_releases (job_id uuid PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE);

-- One row for each ended lease: the answer to a repeated complete or fail, and the history of errors.
CREATE TABLE lease_outcomes (
    job_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    lease_seq bigint NOT NULL,
    lease_secret text NOT NULL,
    attempt integer NOT NULL,
    worker_name text,
    -- The worker's call, or the rescuer.
    ended_by text NOT NULL CHECK (ended_by IN ('complete', 'fail', 'rescue')),
    request_digest bytea,
    state text NOT NULL CHECK (state IN ('queued', 'succeeded', 'failed', 'cancelled')),
    next_attempt_at timestamptz,
    error jsonb,
    ended_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, lease_seq),
    CHECK ((request_digest IS NULL) = (ended_by = 'rescue')),
    CHECK ((next_attempt_at IS NOT NULL) = (state = 'queued'))
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE INDEX lease_outcomes_with_error ON lease_outcomes (ended_at) WHERE error IS NOT NULL;

-- Statements that write an event hold the job's row, so ids are in the order of the transitions.
CREATE TABLE job_events (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    type text NOT NULL,
    state text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    data jsonb NOT NULL DEFAULT '{}'
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE INDEX job_events_of_job ON job_events (job_id, id);

-- Claims of task types with a rate limit, while they count.
CREATE TABLE rate_claims (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    task_type text NOT NULL REFERENCES task_types (name) ON DELETE CASCADE,
    claimed_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX rate_claims_latest ON rate_claims (task_type, claimed_at DESC);

CREATE TABLE worker_tokens (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    token_sha256 bytea NOT NULL UNIQUE CHECK (length(token_sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

-- Workers as they describe themselves in claims, idle ones included. Written in batches.
CREATE TABLE workers (
    id text PRIMARY KEY,
    name text NOT NULL,
    version text,
    task_types text[] NOT NULL,
    -- {maxFileSize, sourceHosts, memoryMb, concurrentJobs}. NULL: undeclared.
    capabilities jsonb CHECK (jsonb_typeof(capabilities) = 'object'),
    -- [{code, message}]: local trouble that keeps the worker from claiming. NULL: none.
    trouble jsonb CHECK (jsonb_typeof(trouble) = 'array'),
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    url text NOT NULL,
    -- Host and port: the unit of rate limiting.
    destination text NOT NULL,
    -- Encrypted with a key that is not in the database.
    secret bytea NOT NULL,
    events text[] NOT NULL CHECK (cardinality(events) > 0),
    -- NULL: all.
    task_types text[],
    -- Jobs of all owners, not only the webhook's.
    all_owners boolean NOT NULL,
    paused boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX webhooks_of_owner ON webhooks (owner, id);

CREATE TABLE webhook_destinations (
    destination text PRIMARY KEY,
    -- No delivery before.
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
    -- The next attempt, or the end of the lease of the current one.
    next_attempt_at timestamptz,
    -- [{at, seconds, statusCode, error}]: the latest attempts.
    attempts jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(attempts) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT waits_while_pending CHECK ((state = 'pending') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT finished_unless_pending CHECK ((state = 'pending') = (finished_at IS NULL))
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (destination, next_attempt_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_of_webhook ON webhook_deliveries (webhook_id, id DESC);
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;

-- Settings that the API runs with. Commands use these, not those of their own environment.
CREATE TABLE service_settings (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    settings jsonb NOT NULL CHECK (jsonb_typeof(settings) = 'object'),
    recorded_at timestamptz NOT NULL DEFAULT now()
);
