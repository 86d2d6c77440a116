-- name: finish
-- What `finish` of finish.sql does for ends of first attempts that exited by themselves and are not tried again: all of
-- them, or, if one is not this node's any more or began otherwise than it says, nothing, and NULL.  Hence what is known of
-- them needs no way back, and the arrays of the outbox are those of the caller.
WITH ended AS MATERIALIZED (
    SELECT *,
        CASE WHEN exit_code = 0 THEN 'succeeded' ELSE 'failed' END AS state,
        CASE WHEN exit_code <> 0 THEN 'exit ' || exit_code END AS reason
    FROM unnest(
        %(ids)s::text[], %(tokens)s::bigint[], %(pids)s::integer[], %(starts)s::timestamptz[], %(ends)s::timestamptz[],
        %(runs_ms)s::bigint[], %(exit_codes)s::integer[], %(cpu_ms)s::bigint[], %(max_rss_kb)s::bigint[],
        %(stdouts)s::text[], %(stderrs)s::text[], %(results)s::text[]
    ) AS u (id, token, pid, started_at, finished_at, run_ms, exit_code, cpu_ms, max_rss_kb, stdout, stderr, result)
), changed AS (
    UPDATE pysched.tasks AS t SET
        state = e.state,
        reason = e.reason,
        due_at = NULL,
        finished_at = e.finished_at,
        cancel_requested = false,
        failures = t.failures + (e.exit_code <> 0)::integer,
        crashes = 0,
        holder = NULL,
        token = NULL,
        pid = NULL,
        attempt_started_at = NULL,
        started_at = coalesce(t.started_at, e.started_at),
        node = t.holder,
        exit_code = e.exit_code,
        signal = NULL,
        run_ms = e.run_ms,
        stdout = e.stdout,
        stderr = e.stderr,
        result = e.result
    FROM ended AS e
    WHERE t.id = e.id AND t.attempts = 1 AND t.token = e.token AND t.holder = %(node)s::uuid
      AND coalesce(t.started_at, e.started_at) = e.started_at
    RETURNING 1
), complete AS MATERIALIZED (
    SELECT count(*) = %(count)s::bigint AS is_so FROM changed
), recorded AS (
    INSERT INTO pysched.attempts (task_id, attempt, node, token, pid, state, reason, started_at, finished_at, exit_code,
        signal, cpu_ms, max_rss_kb, stdout, stderr)
    SELECT id, 1, %(node)s::uuid, token, pid, state, reason, started_at, finished_at, exit_code, NULL, cpu_ms, max_rss_kb,
        stdout, stderr
    FROM ended WHERE (SELECT is_so FROM complete)
), outbox AS (
    INSERT INTO pysched.deliveries (home, ids, ends)
    SELECT %(home)s::uuid, %(ids)s::text[], %(ends)s::timestamptz[] FROM complete WHERE is_so
    RETURNING number
)
SELECT (SELECT number FROM outbox);
