-- Indexes that are built at a start where they are missing: outside the migrations' transaction, so that writes go on.

-- A caller's jobs by state, newest first, and those that have not ended, however many others there are.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_owner_by_state ON jobs (owner, state, id DESC);

-- The same by task type.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_owner_by_type ON jobs (owner, task_type, id DESC);

-- The same by error. Most jobs have none, so this costs their writes nothing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_owner_by_error ON jobs (owner, (error ->> 'code'), id DESC)
WHERE error IS NOT NULL;
