-- Task types: requirements, outputs, timeouts and limits of their jobs.

-- name: list_task_types()
-- All task types, by name.
SELECT
    name, input_rule, outputs, timeout_seconds, lease_seconds, max_attempts, backoff_seconds, max_concurrent_runs,
    rate_count, rate_period_seconds, paused, default_priority, memory_mb, payload_schema, input_types
FROM task_types
ORDER BY name;

-- name: lock_task_type(name)^
-- One task type, locked until the transaction ends, so that no concurrent change is lost.
-- NO KEY, since inserting jobs takes a KEY SHARE lock on the same row and must not wait.
SELECT
    name, input_rule, outputs, timeout_seconds, lease_seconds, max_attempts, backoff_seconds, max_concurrent_runs,
    rate_count, rate_period_seconds, paused, default_priority, memory_mb, payload_schema, input_types, changed_at
FROM task_types
WHERE name = :name
FOR NO KEY UPDATE;

-- name: put_task_type(name, input_rule, outputs, timeout_seconds, lease_seconds, max_attempts, backoff_seconds, max_concurrent_runs, rate_count, rate_period_seconds, paused, default_priority, memory_mb, payload_schema, input_types, by_operator)^
-- Upsert. A count of 0 makes all waiting claims poll again, since limits may have changed.
-- The environment's task types do not replace those that operators have changed.
INSERT INTO task_types (
    name, input_rule, outputs, timeout_seconds, lease_seconds, max_attempts, backoff_seconds, max_concurrent_runs,
    rate_count, rate_period_seconds, paused, default_priority, memory_mb, payload_schema, input_types, changed_at
)
VALUES (
    :name, :input_rule, :outputs, :timeout_seconds, :lease_seconds, :max_attempts, :backoff_seconds,
    :max_concurrent_runs, :rate_count, :rate_period_seconds, :paused, :default_priority, :memory_mb,
    :payload_schema, :input_types,
    CASE WHEN :by_operator THEN now() END
)
ON CONFLICT (name) DO UPDATE SET
    input_rule = excluded.input_rule, outputs = excluded.outputs, timeout_seconds = excluded.timeout_seconds,
    lease_seconds = excluded.lease_seconds, max_attempts = excluded.max_attempts,
    backoff_seconds = excluded.backoff_seconds, max_concurrent_runs = excluded.max_concurrent_runs,
    rate_count = excluded.rate_count, rate_period_seconds = excluded.rate_period_seconds, paused = excluded.paused,
    default_priority = excluded.default_priority, memory_mb = excluded.memory_mb,
    payload_schema = excluded.payload_schema, input_types = excluded.input_types, changed_at = excluded.changed_at
WHERE :by_operator OR task_types.changed_at IS NULL
RETURNING name, pg_notify('geo_jobs_queued', name || ':0');
