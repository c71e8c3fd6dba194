-- Indexes built at startup if missing, outside the migrations' transaction, so that writes continue.

-- For a caller's jobs by state, newest first, and for its open jobs, among any number of others.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_owner_by_state ON jobs (owner, state, id DESC);

-- The same by task type.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_owner_by_type ON jobs (owner, task_type, id DESC);

-- The same by error. Most jobs have none, so their writes pay nothing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_owner_by_error ON jobs (owner, (error ->> 'code'), id DESC)
WHERE error IS NOT NULL;
