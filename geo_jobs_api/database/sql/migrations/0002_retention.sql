-- Ended jobs are removed after a while: marked, then their objects, then their rows.

-- Set when the removal of a job's objects begins; from then on the job is not there any more for anybody.
ALTER TABLE jobs ADD COLUMN removal_started_at timestamptz;
ALTER TABLE jobs ADD CONSTRAINT removed_only_if_final CHECK (removal_started_at IS NULL OR finished_at IS NOT NULL);

CREATE INDEX jobs_ended ON jobs (state, finished_at) WHERE finished_at IS NOT NULL AND removal_started_at IS NULL;
CREATE INDEX jobs_in_removal ON jobs (id) WHERE removal_started_at IS NOT NULL;
-- Jobs whose file never came.
CREATE INDEX jobs_unused ON jobs (created_at) WHERE state = 'awaiting_upload';

-- Plans follow the queue as it fills and drains; the history is vacuumed for its inserts and removals.
ALTER TABLE jobs SET (autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE job_events SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE lease_outcomes SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);

-- What the last sign of life told of its worker, for people who look.
ALTER TABLE jobs ADD COLUMN worker_stats jsonb CHECK (jsonb_typeof(worker_stats) = 'object');
