-- Lists of schedules compute no moments.

-- The next moments of a schedule, from next_run_at on. Out of date where the first is another one: a program of before
-- this migration wrote the row.
ALTER TABLE schedules ADD COLUMN upcoming timestamptz[] NOT NULL DEFAULT '{}';
