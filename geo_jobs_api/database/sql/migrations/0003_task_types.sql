-- Task types are data: what they need and leave, how long and how often they may run. Callers take turns.

ALTER TABLE task_types
    -- Whether a job needs a file before it can run.
    ADD COLUMN input_rule text NOT NULL DEFAULT 'required' CHECK (input_rule IN ('required', 'optional', 'none')),
    -- What a job may leave: suffix, content type, most bytes, and for which output formats (NULL: all).
    ADD COLUMN outputs jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(outputs) = 'array'),
    -- NULL: the service's own.
    ADD COLUMN lease_seconds double precision CHECK (lease_seconds >= 1),
    -- At most so many claims in any stretch of time of this length.
    ADD COLUMN rate_count integer CHECK (rate_count > 0),
    ADD COLUMN rate_period_seconds double precision CHECK (rate_period_seconds > 0),
    -- Once somebody has changed a type by command or call, the environment has no say in it any more.
    ADD COLUMN changed_at timestamptz,
    ADD CONSTRAINT rate_is_whole CHECK (num_nonnulls(rate_count, rate_period_seconds) <> 1);

UPDATE task_types
SET outputs = '[
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
WHERE name = 'geotiff_to_png';

INSERT INTO task_types (name, timeout_seconds, backoff_seconds, outputs) VALUES
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
        -- Slow, so that whatever is in its way gets more time to pass.
        'geotiff_to_tiles', 7200, '{60,300,900,1800,3600}', '[
        {"suffix": ".pmtiles", "contentType": "application/vnd.pmtiles", "maxBytes": 4294967296, "formats": null},
        {"suffix": ".json", "contentType": "application/json", "maxBytes": 4194304, "formats": null}
    ]'
    );

-- One row for each claim of a type that has a rate limit, for as long as it counts.
CREATE TABLE rate_claims (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    task_type text NOT NULL REFERENCES task_types (name) ON DELETE CASCADE,
    claimed_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX rate_claims_latest ON rate_claims (task_type, claimed_at DESC);

-- When it is this job's turn among those of all callers; NULL: at run_at. Like run_at it never keeps a job waiting.
ALTER TABLE jobs ADD COLUMN turn timestamptz;
ALTER TABLE jobs DROP COLUMN order_key;
-- Static, so that an index can hold it: a job of one priority less waits 60 s longer, but never for ever.
ALTER TABLE jobs ADD COLUMN order_key timestamp NOT NULL GENERATED ALWAYS AS (
    (coalesce(turn, run_at) AT TIME ZONE 'UTC') - priority * interval '60 seconds'
) STORED;
CREATE INDEX jobs_waiting ON jobs (task_type, order_key, id) INCLUDE (run_at) WHERE state = 'queued';
CREATE INDEX jobs_turns ON jobs (task_type, owner, priority, turn) WHERE state = 'queued';

-- The turn of a job that is being queued, as the place-th (from 0) of those that its statement queues for this caller:
-- a turn after the last of its owner's waiting jobs of the same or a higher priority, and never before whoever is next.
-- A turn is as long as a job of the type may take, so that whoever comes finds at most a few jobs of any other before
-- its own, however many wait. Two that are queued at the same moment may get the same turn; then the older one is first.
CREATE FUNCTION fair_turn(job_owner text, job_task_type text, job_priority integer, place integer DEFAULT 0)
RETURNS timestamptz LANGUAGE sql STABLE AS $$
    WITH RECURSIVE levels AS (
        (
            SELECT priority FROM jobs
            WHERE state = 'queued' AND task_type = job_task_type AND owner = job_owner AND priority >= job_priority
            ORDER BY priority LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT jobs.priority FROM jobs
            WHERE state = 'queued' AND task_type = job_task_type AND owner = job_owner
                AND jobs.priority > levels.priority
            ORDER BY jobs.priority LIMIT 1
        )
        FROM levels WHERE levels.priority IS NOT NULL
    ), pace AS (
        SELECT make_interval(secs => greatest(timeout_seconds, rate_period_seconds / rate_count)) AS step
        FROM task_types WHERE name = job_task_type
    )
    SELECT greatest(
        now(),
        (
            -- A caller alone has used turns to come: newcomers begin where it is, and move on, so that it is not left.
            SELECT turn + interval '1 second' FROM (
                SELECT turn FROM jobs
                WHERE state = 'queued' AND task_type = job_task_type AND run_at <= now()
                ORDER BY order_key, id LIMIT 1
            ) AS next
            WHERE turn > now()
        ),
        (
            SELECT max((
                SELECT turn FROM jobs
                WHERE state = 'queued' AND task_type = job_task_type AND owner = job_owner
                    AND jobs.priority = levels.priority AND turn IS NOT NULL
                ORDER BY turn DESC LIMIT 1
            ))
            FROM levels
        ) + pace.step
    ) + place * pace.step
    FROM pace
$$;

-- Who works, by their own word: an idle worker is seen too. Written for many at once, seldom.
CREATE TABLE workers (
    id text PRIMARY KEY,
    name text NOT NULL,
    version text,
    task_types text[] NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
);

-- What went wrong lately, for the figures; a job that succeeds at once costs nothing.
CREATE INDEX lease_outcomes_with_error ON lease_outcomes (ended_at) WHERE error IS NOT NULL;
