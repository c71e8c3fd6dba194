-- What workers take and what stops them; what jobs need; which worker has just failed a job.

ALTER TABLE workers
    -- {maxFileSize, sourceHosts, memoryMb, concurrentJobs}, as declared; NULL: nothing was declared.
    ADD COLUMN capabilities jsonb CHECK (jsonb_typeof(capabilities) = 'object'),
    -- [{code, message}]: local trouble for which the worker claims nothing; NULL: none.
    ADD COLUMN trouble jsonb CHECK (jsonb_typeof(trouble) = 'array');

-- Memory that a job of the type needs, in MiB; NULL: any worker's is enough.
ALTER TABLE task_types ADD COLUMN memory_mb integer CHECK (memory_mb > 0);

ALTER TABLE jobs
    -- The host of source_url, as it is asked for; NULL in jobs from before: any worker gets them.
    ADD COLUMN source_host text,
    -- The worker that failed the job or gave it back, while other workers ask for such jobs.
    ADD COLUMN avoided_worker text,
    ADD COLUMN avoided_until timestamptz;

-- Finds the moment at which a job may go to the worker that failed it.
CREATE INDEX jobs_avoided ON jobs (avoided_until) WHERE state = 'queued' AND avoided_until IS NOT NULL;
