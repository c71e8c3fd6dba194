-- Webhooks and their deliveries.

-- name: insert_webhook(id, owner, url, destination, secret, events, task_types, all_owners, paused)^
-- Register a webhook and its destination.
WITH place AS (
    INSERT INTO webhook_destinations (destination) VALUES (:destination) ON CONFLICT DO NOTHING
)
INSERT INTO webhooks (id, owner, url, destination, secret, events, task_types, all_owners, paused)
VALUES (:id, :owner, :url, :destination, :secret, :events, :task_types, :all_owners, :paused)
RETURNING *;

-- name: count_webhooks(owner)^
-- Count an owner's webhooks.
SELECT count(*) FROM webhooks WHERE owner = :owner;

-- name: replace_webhook(id, owner, url, destination, secret, events, task_types, all_owners, paused)^
-- Replace the content of a webhook. Without a secret it keeps its own. Pending deliveries go to the new destination. A
-- webhook that is no longer for all owners loses the deliveries about other owners' jobs.
WITH place AS (
    INSERT INTO webhook_destinations (destination) VALUES (:destination) ON CONFLICT DO NOTHING
), moved AS (
    UPDATE webhook_deliveries SET destination = :destination
    WHERE webhook_id = :id AND state = 'pending' AND destination <> :destination
        AND (:all_owners OR coalesce(body #>> '{job,owner}', body #>> '{pipeline,owner}', :owner) = :owner)
), forgotten AS (
    DELETE FROM webhook_deliveries
    WHERE webhook_id = :id AND NOT :all_owners
        AND coalesce(body #>> '{job,owner}', body #>> '{pipeline,owner}', :owner) <> :owner
)
UPDATE webhooks
SET
    url = :url, destination = :destination, secret = coalesce(:secret::bytea, secret), events = :events,
    task_types = :task_types, all_owners = :all_owners, paused = :paused, updated_at = now()
WHERE id = :id
RETURNING *;

-- name: get_webhook(id, owner)^
-- One webhook. With an owner, only that owner's.
SELECT * FROM webhooks WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text);

-- name: list_webhooks(owner, limit)
-- Oldest first.
SELECT * FROM webhooks WHERE :owner::text IS NULL OR owner = :owner::text ORDER BY id LIMIT :limit;

-- name: delete_webhook(id)!
-- Delete a webhook with all its deliveries.
DELETE FROM webhooks WHERE id = :id;

-- name: list_deliveries(webhook_id, state, before, limit)
-- Latest first. The last id of a page is the cursor of the next.
SELECT id, webhook_id, event, job_id, pipeline_id, state, attempt, next_attempt_at, attempts, created_at, finished_at
FROM webhook_deliveries
WHERE webhook_id = :webhook_id AND (:state::text IS NULL OR state = :state::text)
    AND (:before::bigint IS NULL OR id < :before::bigint)
ORDER BY id DESC
LIMIT :limit;

-- name: lock_webhook(id)^
-- Serialize the counts of this webhook's tests until the transaction ends. Endings of jobs are enqueued meanwhile.
SELECT id FROM webhooks WHERE id = :id FOR NO KEY UPDATE;

-- name: count_tests(webhook_id)^
-- Tests among the latest deliveries of a webhook: pending ones, and all of the last hour.
SELECT
    count(*) FILTER (WHERE state = 'pending') AS waiting,
    count(*) FILTER (WHERE created_at > now() - interval '1 hour') AS lately
FROM (
    SELECT event, state, created_at FROM webhook_deliveries
    WHERE webhook_id = :webhook_id
    ORDER BY id DESC
    LIMIT 5000
) AS latest
WHERE event = 'test';

-- name: insert_delivery(webhook_id, event, body)^
-- Enqueue a delivery without a job: a test.
WITH enqueued AS (
    INSERT INTO webhook_deliveries (webhook_id, destination, event, body, next_attempt_at)
    SELECT id, destination, :event, :body, now() FROM webhooks WHERE id = :webhook_id
    RETURNING *
)
SELECT enqueued.*, pg_notify('geo_jobs_deliveries', '') FROM enqueued;

-- name: redeliver(id, webhook_id)^
-- Restart a delivery. No row: an attempt is under way, or it does not exist.
WITH changed AS (
    UPDATE webhook_deliveries
    SET state = 'pending', attempt = 0, next_attempt_at = now(), finished_at = NULL
    WHERE id = :id AND webhook_id = :webhook_id AND state <> 'pending'
    RETURNING *
)
SELECT changed.*, pg_notify('geo_jobs_deliveries', '') FROM changed;

-- name: claim_deliveries(limit, busy, lease_seconds, per_second)
-- Lease due deliveries, one for each of up to `limit` destinations that are neither busy nor rate-limited. Without an
-- outcome by the end of the lease, the delivery is tried again.
WITH ready AS MATERIALIZED (
    SELECT destination FROM webhook_destinations AS place
    WHERE next_at <= now() AND NOT destination = ANY(:busy::text[])
        AND EXISTS (
            SELECT FROM webhook_deliveries AS waiting
            WHERE waiting.destination = place.destination AND waiting.state = 'pending'
                AND waiting.next_attempt_at <= now()
        )
    ORDER BY next_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT candidate.id, ready.destination
    FROM ready
    CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries
        WHERE webhook_deliveries.destination = ready.destination AND state = 'pending' AND next_attempt_at <= now()
        ORDER BY next_attempt_at, id
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS candidate
), paced AS (
    UPDATE webhook_destinations
    SET next_at = now() + make_interval(secs => 1 / :per_second::double precision)
    FROM picked
    WHERE webhook_destinations.destination = picked.destination
), taken AS (
    UPDATE webhook_deliveries
    SET attempt = webhook_deliveries.attempt + 1, next_attempt_at = now() + make_interval(secs => :lease_seconds)
    FROM picked
    WHERE webhook_deliveries.id = picked.id AND webhook_deliveries.state = 'pending'
    RETURNING webhook_deliveries.*
)
SELECT taken.*, webhooks.url, webhooks.secret
FROM taken JOIN webhooks ON webhooks.id = taken.webhook_id
ORDER BY taken.id;

-- name: settle_delivery(id, attempt, state, delay_seconds, outcome)!
-- Store the outcome of an attempt. No row: another process has leased the delivery since.
UPDATE webhook_deliveries
SET
    state = :state,
    next_attempt_at = CASE :state::text WHEN 'pending' THEN now() + make_interval(secs => :delay_seconds) END,
    finished_at = CASE :state::text WHEN 'pending' THEN NULL ELSE now() END,
    -- A delivery may be restarted by hand any number of times, so only the latest 50 attempts are stored.
    attempts = CASE WHEN jsonb_array_length(attempts) >= 50 THEN attempts - 0 ELSE attempts END || :outcome::jsonb
WHERE id = :id AND attempt = :attempt AND state = 'pending';

-- name: seconds_until_due(busy)^
-- Seconds until a delivery to an idle destination is due. NULL: none is pending.
SELECT extract(epoch FROM min(greatest(place.next_at, waiting.next_attempt_at)) - now())::double precision AS seconds
FROM webhook_destinations AS place
CROSS JOIN LATERAL (
    SELECT next_attempt_at FROM webhook_deliveries
    WHERE webhook_deliveries.destination = place.destination AND state = 'pending'
    ORDER BY next_attempt_at
    LIMIT 1
) AS waiting
WHERE NOT place.destination = ANY(:busy::text[]);
