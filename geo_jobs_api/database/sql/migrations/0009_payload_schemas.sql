-- What a job's payload may hold and which files are taken. NULL: as the program ships it, and for other types anything.

ALTER TABLE task_types
    ADD COLUMN payload_schema jsonb CHECK (jsonb_typeof(payload_schema) = 'object'),
    ADD COLUMN input_types text[];

-- The settings that the API runs with, so that commands judge by them and not by those of the shell they are run in.
CREATE TABLE service_settings (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    settings jsonb NOT NULL CHECK (jsonb_typeof(settings) = 'object'),
    recorded_at timestamptz NOT NULL DEFAULT now()
);
