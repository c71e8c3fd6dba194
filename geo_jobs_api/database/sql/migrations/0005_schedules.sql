-- Schedules make jobs from a template; each fire is decided once.

CREATE TABLE schedules (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    name text NOT NULL,
    -- {cron, timeZone}, {rules, timeZone} or {at}; see schedule_schemas.py.
    timing jsonb NOT NULL CHECK (jsonb_typeof(timing) = 'object'),
    -- {job} or {pipeline}: what each fire makes.
    template jsonb NOT NULL CHECK (jsonb_typeof(template) = 'object'),
    missed_runs text NOT NULL CHECK (missed_runs IN ('skip', 'coalesce', 'catch_up')),
    catch_up integer NOT NULL CHECK (catch_up > 0),
    overlap text NOT NULL CHECK (overlap IN ('allow', 'skip', 'cancel_old')),
    jitter_seconds integer NOT NULL CHECK (jitter_seconds >= 0),
    start_at timestamptz,
    end_at timestamptz,
    skip_unchanged boolean NOT NULL,
    paused boolean NOT NULL,
    -- The first moment that nothing was decided for. NULL: paused, or over.
    next_run_at timestamptz,
    last_run_at timestamptz,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schedule_names UNIQUE (owner, name),
    CONSTRAINT paused_schedules_do_not_fire CHECK (NOT paused OR next_run_at IS NULL)
);

CREATE INDEX schedules_due ON schedules (next_run_at) WHERE next_run_at IS NOT NULL;

-- What was decided for each moment: the key is what makes a fire happen once, however many schedulers there are.
CREATE TABLE schedule_fires (
    schedule_id uuid NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
    fire_time timestamptz NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('made', 'overlap', 'missed', 'failed')),
    by_hand boolean NOT NULL DEFAULT false,
    job_id uuid,
    pipeline_id uuid,
    error text,
    decided_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schedule_id, fire_time),
    CHECK (num_nonnulls(job_id, pipeline_id) = CASE outcome WHEN 'made' THEN 1 ELSE 0 END)
);

ALTER TABLE jobs ADD COLUMN schedule_id uuid REFERENCES schedules (id) ON DELETE SET NULL;
CREATE INDEX jobs_of_schedule ON jobs (schedule_id, id DESC) WHERE schedule_id IS NOT NULL;
