-- The fair share time of a job that is being queued.
--
-- It is one step after the last one of its owner's queued jobs of the same or a higher priority, and not before the head
-- of the queue. A step is as long as a job of the type may take. So a newcomer waits for a few jobs of each other owner,
-- however many they have queued. Jobs that are queued at the same moment may get equal times: the older one is first.
-- `place` (from 0) counts the jobs that the same statement queues for the owner.
CREATE OR REPLACE FUNCTION next_fair_share(
    job_owner text, job_task_type text, job_priority integer, place integer DEFAULT 0
)
RETURNS timestamptz LANGUAGE sql STABLE AS $$
    WITH RECURSIVE levels AS (
        (
            SELECT priority FROM jobs
            WHERE state = 'queued' AND task_type = job_task_type AND owner = job_owner AND priority >= job_priority
            ORDER BY priority LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT jobs.priority FROM jobs
            WHERE state = 'queued' AND task_type = job_task_type AND owner = job_owner
                AND jobs.priority > levels.priority
            ORDER BY jobs.priority LIMIT 1
        )
        FROM levels WHERE levels.priority IS NOT NULL
    ), pace AS (
        SELECT make_interval(secs => greatest(timeout_seconds, rate_period_seconds / rate_count)) AS step
        FROM task_types WHERE name = job_task_type
    )
    SELECT greatest(
        now(),
        (
            -- A sole caller uses future times. Newcomers start after its first job, so that it keeps its share.
            SELECT fair_share_at + interval '1 second' FROM (
                SELECT fair_share_at FROM jobs
                WHERE state = 'queued' AND task_type = job_task_type AND run_at <= now()
                ORDER BY order_key, id LIMIT 1
            ) AS next
            WHERE fair_share_at > now()
        ),
        (
            SELECT max((
                SELECT fair_share_at FROM jobs
                WHERE state = 'queued' AND task_type = job_task_type AND owner = job_owner
                    AND jobs.priority = levels.priority AND fair_share_at IS NOT NULL
                ORDER BY fair_share_at DESC LIMIT 1
            ))
            FROM levels
        ) + pace.step
    ) + place * pace.step
    FROM pace
$$;
