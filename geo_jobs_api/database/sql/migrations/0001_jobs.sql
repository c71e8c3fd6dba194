-- The queue: task types, jobs, how leases ended, the event log, and the hashed tokens of workers.

CREATE TABLE task_types (
    name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$'),
    paused boolean NOT NULL DEFAULT false,
    max_concurrent_runs integer CHECK (max_concurrent_runs > 0),
    timeout_seconds integer NOT NULL DEFAULT 3600 CHECK (timeout_seconds > 0),
    max_attempts integer NOT NULL DEFAULT 5 CHECK (max_attempts > 0),
    -- Ceilings of the jittered wait after the first, second, … attempt; the last one repeats.
    backoff_seconds double precision[] NOT NULL DEFAULT '{2,10,60,300,900}',
    default_priority integer NOT NULL DEFAULT 0 CHECK (default_priority BETWEEN -100 AND 100)
);

INSERT INTO task_types (name) VALUES ('geotiff_to_png');

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
    created_at timestamptz NOT NULL DEFAULT now(),
    run_at timestamptz NOT NULL DEFAULT now(),
    -- Static, so that an index can hold it: a job of one priority less waits 60 s longer, but never for ever.
    order_key timestamp NOT NULL GENERATED ALWAYS AS (
        (run_at AT TIME ZONE 'UTC') - priority * interval '60 seconds'
    ) STORED,

    input_file_name text,
    input_size_bytes bigint CHECK (input_size_bytes > 0),
    input_content_type text,
    input_sha256 text CHECK (input_sha256 ~ '^[0-9a-f]{64}$'),
    uploaded_at timestamptz,

    attempt integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts integer NOT NULL CHECK (max_attempts > 0),
    worker_losses integer NOT NULL DEFAULT 0 CHECK (worker_losses >= 0),

    -- Raised by claims and by nothing else: it fences off whoever held the job before.
    lease_seq bigint NOT NULL DEFAULT 0 CHECK (lease_seq >= 0),
    lease_key text,
    lease_expires_at timestamptz,
    -- Set by the first sign of life; before it the lease is short and has cost no attempt.
    lease_confirmed boolean NOT NULL DEFAULT false,
    claim_id uuid,
    claimed_at timestamptz,
    worker_id text,
    worker_name text,
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

    CONSTRAINT attempts_within_budget CHECK (attempt <= max_attempts),
    CONSTRAINT lease_held_if_and_only_if_running CHECK (
        num_nonnulls(lease_key, lease_expires_at, claim_id, claimed_at, worker_id)
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
    CONSTRAINT input_before_queue CHECK (
        state IN ('awaiting_upload', 'blocked', 'cancelled')
        OR num_nonnulls(uploaded_at, input_file_name, input_size_bytes) = 3
    ),
    CONSTRAINT cancel_is_not_undone CHECK (cancel_requested_at IS NULL OR state IN ('running', 'cancelled'))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);

CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_waiting ON jobs (task_type, order_key, id) INCLUDE (run_at) WHERE state = 'queued';
-- Finds the moment at which the next waiting retry is due.
CREATE INDEX jobs_due ON jobs (run_at) WHERE state = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_expires_at) WHERE state = 'running';
CREATE INDEX jobs_running ON jobs (task_type) WHERE state = 'running';
CREATE INDEX jobs_claims ON jobs (claim_id) WHERE state = 'running';
CREATE INDEX jobs_of_owner ON jobs (owner, id DESC);

-- One row for each lease that ended: the answer to a repeated complete or fail, and the history of errors.
CREATE TABLE lease_outcomes (
    job_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    lease_seq bigint NOT NULL,
    lease_key text NOT NULL,
    attempt integer NOT NULL,
    worker_name text,
    -- What ended it: the worker's call, or the server's rescue.
    ended_by text NOT NULL CHECK (ended_by IN ('complete', 'fail', 'rescue')),
    request_digest bytea,
    state text NOT NULL CHECK (state IN ('queued', 'succeeded', 'failed', 'cancelled')),
    next_attempt_at timestamptz,
    error jsonb,
    ended_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, lease_seq),
    CHECK ((request_digest IS NULL) = (ended_by = 'rescue')),
    CHECK ((next_attempt_at IS NOT NULL) = (state = 'queued'))
);

-- Events of one job are written by statements that hold its row, so their ids are in the order of the moves.
CREATE TABLE job_events (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    type text NOT NULL,
    state text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    data jsonb NOT NULL DEFAULT '{}'
);

CREATE INDEX job_events_of_job ON job_events (job_id, id);

CREATE TABLE worker_tokens (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    token_sha256 bytea NOT NULL UNIQUE CHECK (length(token_sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
