-- Webhooks and what is delivered to them.

-- name: insert_webhook(id, owner, url, destination, secret, events, task_types, all_owners, paused)^
-- Register a webhook, and the place that it leads to.
WITH place AS (
    INSERT INTO webhook_destinations (destination) VALUES (:destination) ON CONFLICT DO NOTHING
)
INSERT INTO webhooks (id, owner, url, destination, secret, events, task_types, all_owners, paused)
VALUES (:id, :owner, :url, :destination, :secret, :events, :task_types, :all_owners, :paused)
RETURNING *;

-- name: count_webhooks(owner)^
-- How many an owner has.
SELECT count(*) FROM webhooks WHERE owner = :owner;

-- name: replace_webhook(id, owner, url, destination, secret, events, task_types, all_owners, paused)^
-- Give a webhook another content; without a secret it keeps its own. What waits goes where it leads now. A webhook that is
-- no longer for all owners loses the deliveries about jobs of others.
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
-- One webhook; with an owner, only if it is that owner's.
SELECT * FROM webhooks WHERE id = :id AND (:owner::text IS NULL OR owner = :owner::text);

-- name: list_webhooks(owner, limit)
-- In the order they were made.
SELECT * FROM webhooks WHERE :owner::text IS NULL OR owner = :owner::text ORDER BY id LIMIT :limit;

-- name: delete_webhook(id)!
-- With all its deliveries.
DELETE FROM webhooks WHERE id = :id;

-- name: list_deliveries(webhook_id, state, before, limit)
-- The latest first; the last id of a page is the cursor of the next.
SELECT id, webhook_id, event, job_id, pipeline_id, state, attempt, next_attempt_at, attempts, created_at, finished_at
FROM webhook_deliveries
WHERE webhook_id = :webhook_id AND (:state::text IS NULL OR state = :state::text)
    AND (:before::bigint IS NULL OR id < :before::bigint)
ORDER BY id DESC
LIMIT :limit;

-- name: lock_webhook(id)^
-- Until the transaction ends nobody else counts the tests of this webhook. Ends of jobs are enqueued meanwhile.
SELECT id FROM webhooks WHERE id = :id FOR NO KEY UPDATE;

-- name: count_tests(webhook_id)^
-- Tests among the latest deliveries of a webhook: those that wait, and all of the last hour.
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
-- Enqueue a delivery that belongs to no job: a test.
WITH enqueued AS (
    INSERT INTO webhook_deliveries (webhook_id, destination, event, body, next_attempt_at)
    SELECT id, destination, :event, :body, now() FROM webhooks WHERE id = :webhook_id
    RETURNING *
)
SELECT enqueued.*, pg_notify('geo_jobs_deliveries', '') FROM enqueued;

-- name: redeliver(id, webhook_id)^
-- Try again from the beginning. No row: it is being tried, or there is none.
WITH changed AS (
    UPDATE webhook_deliveries
    SET state = 'pending', attempt = 0, next_attempt_at = now(), finished_at = NULL
    WHERE id = :id AND webhook_id = :webhook_id AND state <> 'pending'
    RETURNING *
)
SELECT changed.*, pg_notify('geo_jobs_deliveries', '') FROM changed;

-- name: claim_deliveries(limit, busy, lease_seconds, per_second)
-- Take what is due, one for each of up to `limit` destinations that may be sent to now; those that are busy are left
-- out. Who does not say within the lease what came of it is given up, and the delivery is tried again.
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
-- What came of a try. Nothing changes when somebody else has taken it meanwhile.
UPDATE webhook_deliveries
SET
    state = :state,
    next_attempt_at = CASE :state::text WHEN 'pending' THEN now() + make_interval(secs => :delay_seconds) END,
    finished_at = CASE :state::text WHEN 'pending' THEN NULL ELSE now() END,
    -- A delivery may be sent again and again by hand: the latest 50 tries are kept.
    attempts = CASE WHEN jsonb_array_length(attempts) >= 50 THEN attempts - 0 ELSE attempts END || :outcome::jsonb
WHERE id = :id AND attempt = :attempt AND state = 'pending';

-- name: seconds_until_due(busy)^
-- How long until something may be sent to a destination that is not busy; NULL: nothing waits.
SELECT extract(epoch FROM min(greatest(place.next_at, waiting.next_attempt_at)) - now())::double precision AS seconds
FROM webhook_destinations AS place
CROSS JOIN LATERAL (
    SELECT next_attempt_at FROM webhook_deliveries
    WHERE webhook_deliveries.destination = place.destination AND state = 'pending'
    ORDER BY next_attempt_at
    LIMIT 1
) AS waiting
WHERE NOT place.destination = ANY(:busy::text[]);
