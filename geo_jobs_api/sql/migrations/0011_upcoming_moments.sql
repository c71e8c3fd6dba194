-- Lists of schedules compute no moments.

-- The next moments of a schedule, from next_run_at on. Where the first is another moment, the release before wrote
-- the row, and they are out of date.
ALTER TABLE schedules ADD COLUMN upcoming timestamptz[] NOT NULL DEFAULT '{}';
