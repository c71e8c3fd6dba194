-- Release the dependents of ended jobs: queue them, or cancel them with all of their own dependents. The statement that
-- ends jobs calls this, so that both happen or neither.
--
-- A function and not a CTE, because each statement in here has a snapshot taken after the ended rows were locked. A child
-- that was created while its parent was ending (it locks the parent's row) is either visible here or has seen the end.
--
-- Webhook deliveries are enqueued last. `skip_webhooks`: the jobs ended earlier and have their deliveries already.
--
-- Plans must not depend on statistics, since a plan may stem from a time when the tables were nearly empty. OFFSET 0 fixes
-- the order: one lookup per parent, edge and child. Without sequential scans, updates by ctid have only one plan. Others
-- took over 15 s for 6,000 children.
CREATE OR REPLACE FUNCTION release_dependents(ended uuid[], skip_webhooks boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    wave uuid[] := ended;
    to_notify uuid[] := CASE WHEN NOT skip_webhooks THEN ended END;
    children uuid[];
    counts integer[];
    reasons text[];
    first_deferred uuid;
    -- In children; a wave costs as much as ten. It takes a third of a second, and statement_timeout is 15 s.
    budget integer := 2000;
BEGIN
    WHILE wave IS NOT NULL LOOP
        -- Most jobs have no children, and this query is much cheaper than the rest.
        SELECT array_agg(DISTINCT parent_id) INTO wave
        FROM job_dependencies WHERE parent_id = ANY(wave) AND NOT settled;
        EXIT WHEN wave IS NULL;

        -- The first child beyond the budget.
        SELECT edge.child_id INTO first_deferred
        FROM unnest(wave) AS ended_parent (id)
        CROSS JOIN LATERAL (
            SELECT state FROM jobs WHERE jobs.id = ended_parent.id AND finished_at IS NOT NULL OFFSET 0
        ) AS parent
        CROSS JOIN LATERAL (
            SELECT child_id, on_parent_failure FROM job_dependencies
            WHERE parent_id = ended_parent.id AND NOT settled OFFSET 0
        ) AS edge
        WHERE parent.state = 'succeeded' OR edge.on_parent_failure <> 'hold'
        ORDER BY edge.child_id OFFSET greatest(budget, 0) LIMIT 1;
        IF first_deferred IS NOT NULL THEN
            -- DO UPDATE locks an existing row. A concurrent release would otherwise delete it, without having seen a child
            -- that this transaction has created.
            INSERT INTO pending_releases (job_id) SELECT unnest(wave)
            ON CONFLICT (job_id) DO UPDATE SET job_id = excluded.job_id;
        END IF;
        EXIT WHEN budget <= 0;

        WITH settled AS (
            UPDATE job_dependencies AS settling
            SET settled = true
            FROM unnest(wave) AS ended_parent (id)
            CROSS JOIN LATERAL (
                SELECT state FROM jobs WHERE jobs.id = ended_parent.id AND finished_at IS NOT NULL OFFSET 0
            ) AS parent
            CROSS JOIN LATERAL (
                SELECT ctid AS place, child_id, on_parent_failure FROM job_dependencies
                WHERE parent_id = ended_parent.id AND NOT settled OFFSET 0
            ) AS edge
            -- Checked again on a row that another transaction has just settled.
            WHERE settling.ctid = edge.place AND NOT settling.settled
                AND (parent.state = 'succeeded' OR edge.on_parent_failure <> 'hold')
                AND (first_deferred IS NULL OR edge.child_id < first_deferred)
            RETURNING
                edge.child_id,
                CASE WHEN parent.state <> 'succeeded' AND edge.on_parent_failure = 'cancel' THEN
                    format(
                        'Job %s, which it waited for, %s.', ended_parent.id,
                        CASE parent.state WHEN 'failed' THEN 'has failed' ELSE 'was cancelled' END
                    )
                END AS reason
        ), counted AS (
            SELECT child_id, count(*)::integer AS number, min(reason) AS reason FROM settled GROUP BY child_id
        )
        SELECT
            array_agg(child_id ORDER BY child_id), array_agg(number ORDER BY child_id),
            array_agg(reason ORDER BY child_id)
        INTO children, counts, reasons
        FROM counted;
        EXIT WHEN children IS NULL;

        -- By id, so that two jobs with common children cannot deadlock.
        PERFORM FROM jobs WHERE id = ANY(children) ORDER BY id FOR UPDATE;

        WITH share AS MATERIALIZED (
            -- Once per owner, type and priority. Called per child, the function would read the rows updated so far, and
            -- 10,000 children took longer than the timeout of their parent's worker.
            SELECT
                owner, task_type, priority, next_fair_share(owner, task_type, priority) AS first,
                next_fair_share(owner, task_type, priority, 1) - next_fair_share(owner, task_type, priority) AS step
            FROM (
                SELECT DISTINCT owner, task_type, priority FROM jobs
                -- Cancelled children need none, and a long chain of them would call it in each wave.
                WHERE id = ANY(children) AND array_position(reasons, NULL) IS NOT NULL
            ) AS each
        ), child AS (
            SELECT
                job.place, settled_child.number, parent_output.name, parent_output.size_bytes,
                parent_output.content_type, parent_output.sha256, parent_output.object_key,
                CASE
                    WHEN settled_child.reason IS NOT NULL THEN settled_child.reason
                    WHEN job.state = 'blocked' AND job.pending_parents = settled_child.number
                        AND job.input_kind = 'output' AND parent_output.name IS NULL
                        THEN format('Job %s has no output %s.', job.input_parent_id, job.input_output)
                END AS reason,
                job.state = 'blocked' AND job.pending_parents = settled_child.number AS is_ready,
                CASE WHEN job.state = 'blocked' AND job.pending_parents = settled_child.number AND job.run_at <= now()
                    THEN share.first + share.step
                        * (row_number() OVER (PARTITION BY job.owner, job.task_type ORDER BY job.id) - 1)
                END AS fair_share_at
            FROM unnest(children, counts, reasons) AS settled_child (id, number, reason)
            CROSS JOIN LATERAL (SELECT jobs.*, ctid AS place FROM jobs WHERE jobs.id = settled_child.id OFFSET 0) AS job
            LEFT JOIN share USING (owner, task_type, priority)
            LEFT JOIN LATERAL (
                SELECT
                    output ->> 'name' AS name, (output ->> 'sizeBytes')::bigint AS size_bytes,
                    output ->> 'contentType' AS content_type, output ->> 'sha256' AS sha256,
                    format(
                        'jobs/%s/outputs/%s/%s/%s', source.id, source.output_lease_seq, output ->> 'sha256', output ->> 'name'
                    ) AS object_key
                FROM jobs AS source, jsonb_array_elements(source.outputs) AS output
                WHERE source.id = job.input_parent_id AND source.purge_started_at IS NULL
                    AND output ->> 'name' IN (
                        job.input_output,
                        regexp_replace(coalesce(source.input_file_name, source.task_type), '\.[^.]*$', '')
                        || job.input_output
                    )
                    AND (output ->> 'sizeBytes')::bigint > 0
                LIMIT 1
            ) AS parent_output ON job.input_kind = 'output'
            WHERE job.state IN ('blocked', 'awaiting_upload')
        ), moved AS (
            UPDATE jobs
            SET
                pending_parents = jobs.pending_parents - child.number,
                state = CASE
                    WHEN child.reason IS NOT NULL THEN 'cancelled'
                    WHEN child.is_ready THEN 'queued'
                    ELSE jobs.state
                END,
                cancel_requested_at = CASE WHEN child.reason IS NOT NULL THEN now() END,
                cancel_reason = child.reason,
                finished_at = CASE WHEN child.reason IS NOT NULL THEN now() END,
                run_at = CASE WHEN child.is_ready THEN greatest(jobs.run_at, now()) ELSE jobs.run_at END,
                fair_share_at = child.fair_share_at,
                input_file_name = coalesce(child.name, jobs.input_file_name),
                input_size_bytes = coalesce(child.size_bytes, jobs.input_size_bytes),
                input_content_type = coalesce(child.content_type, jobs.input_content_type),
                input_sha256 = coalesce(child.sha256, jobs.input_sha256),
                input_object_key = coalesce(child.object_key, jobs.input_object_key)
            FROM child
            WHERE jobs.ctid = child.place
            RETURNING jobs.id, jobs.state, jobs.task_type, jobs.run_at, jobs.cancel_reason, child.is_ready
        ), event AS (
            INSERT INTO job_events (job_id, type, state, data)
            SELECT
                id, state, state,
                CASE state WHEN 'cancelled' THEN jsonb_build_object('reason', cancel_reason) ELSE '{}' END
            FROM moved
            WHERE state = 'cancelled' OR is_ready
        ), notified AS (
            SELECT pg_notify('geo_jobs_queued', CASE WHEN is_due THEN task_type || ':' || count(*) ELSE '' END) AS seen
            FROM (SELECT task_type, run_at <= now() AS is_due FROM moved WHERE state = 'queued') AS queued
            GROUP BY task_type, is_due
        )
        SELECT array_agg(moved.id) FILTER (WHERE moved.state = 'cancelled')
        INTO wave
        FROM moved, (SELECT count(seen) FROM notified) AS notifications;
        to_notify := to_notify || wave;
        budget := CASE WHEN first_deferred IS NULL THEN budget - 10 - cardinality(children) ELSE 0 END;
    END LOOP;
    IF to_notify IS NOT NULL THEN
        PERFORM enqueue_webhook_deliveries(to_notify);
    END IF;
END
$$;
