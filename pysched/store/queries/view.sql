-- name: task
SELECT id, sequence, name, type, priority, rank, state, reason, cancel_requested, waiting_for, due_at, attempts, failures,
    coalesce(holder, node), submitted_at, started_at, finished_at, exit_code, signal, run_ms, result, stdout, stderr, spec,
    holder, pid, attempt_started_at
FROM pysched.tasks WHERE id = %(id)s;

-- name: attempts
SELECT attempt, node, state, reason, pid, started_at, finished_at, exit_code, signal, cpu_ms, max_rss_kb, stdout, stderr
FROM pysched.attempts WHERE task_id = %(id)s ORDER BY attempt;

-- name: live
-- Each branch reads one partial index; tasks that have ended are in none of them.
SELECT 'queued', priority, count(*) FROM pysched.tasks WHERE place = 'ready' GROUP BY priority
UNION ALL SELECT 'queued', priority, count(*) FROM pysched.tasks WHERE place = 'sized' GROUP BY priority
UNION ALL SELECT 'scheduled', priority, count(*) FROM pysched.tasks WHERE place = 'scheduled' GROUP BY priority
UNION ALL SELECT 'blocked', priority, count(*) FROM pysched.tasks WHERE place = 'blocked' GROUP BY priority
UNION ALL SELECT 'claimed ' || state, priority, count(*) FROM pysched.tasks WHERE place = 'claimed' GROUP BY state, priority;

-- name: tallies
SELECT kind, priority, sum(total)::bigint FROM pysched.tallies GROUP BY kind, priority;

-- name: live_in_all
-- Tasks that have not ended, from the totals.
SELECT priority, sum(CASE kind WHEN 'submitted' THEN total WHEN 'retried' THEN 0 ELSE -total END)::bigint
FROM pysched.tallies GROUP BY priority;

-- name: live_up_to
-- As `live`, but no more of each place than a limit.
SELECT 'queued', priority, count(*) FROM (
    SELECT priority FROM pysched.tasks WHERE place = 'ready' LIMIT %(limit)s::integer) AS ready GROUP BY priority
UNION ALL SELECT 'queued', priority, count(*) FROM (
    SELECT priority FROM pysched.tasks WHERE place = 'sized' LIMIT %(limit)s::integer) AS sized GROUP BY priority
UNION ALL SELECT 'scheduled', priority, count(*) FROM (
    SELECT priority FROM pysched.tasks WHERE place = 'scheduled' LIMIT %(limit)s::integer) AS scheduled GROUP BY priority
UNION ALL SELECT 'blocked', priority, count(*) FROM (
    SELECT priority FROM pysched.tasks WHERE place = 'blocked' LIMIT %(limit)s::integer) AS blocked GROUP BY priority
UNION ALL SELECT 'claimed ' || state, priority, count(*) FROM pysched.tasks WHERE place = 'claimed' GROUP BY state, priority;

-- name: submitted
SELECT coalesce(sum(total), 0)::bigint FROM pysched.tallies WHERE kind = 'submitted';

-- name: depths_and_total
-- As `live_up_to`, of what is queued, and `submitted`: for a look each second, in one statement.
SELECT 'queued', priority, count(*) FROM (
    SELECT priority FROM pysched.tasks WHERE place = 'ready' LIMIT %(limit)s::integer) AS ready GROUP BY priority
UNION ALL SELECT 'queued', priority, count(*) FROM (
    SELECT priority FROM pysched.tasks WHERE place = 'sized' LIMIT %(limit)s::integer) AS sized GROUP BY priority
UNION ALL SELECT 'claimed', priority, count(*) FROM pysched.tasks WHERE place = 'claimed' AND state = 'queued' GROUP BY priority
UNION ALL SELECT 'submitted', 0, coalesce(sum(total), 0)::bigint FROM pysched.tallies WHERE kind = 'submitted';

-- name: paused
SELECT paused FROM pysched.control;

-- name: set_paused
WITH changed AS (
    UPDATE pysched.control SET paused = %(paused)s WHERE paused <> %(paused)s RETURNING paused
)
SELECT CASE WHEN NOT paused THEN pg_notify('pysched', 'ready')::text END FROM changed;

-- name: is_read_only
SELECT current_setting('transaction_read_only')::boolean;
