-- name: task
SELECT id, sequence, name, type, priority, rank, state, reason, cancel_requested, waiting_for, due_at, attempts, failures,
    coalesce(holder, node), submitted_at, started_at, finished_at, exit_code, signal, run_ms, result, stdout, stderr, spec,
    holder, pid, attempt_started_at
FROM pysched.tasks WHERE id = %(id)s;

-- name: attempts
SELECT attempt, node, state, reason, pid, started_at, finished_at, exit_code, signal, cpu_ms, max_rss_kb, stdout, stderr
FROM pysched.attempts WHERE task_id = %(id)s ORDER BY attempt;

-- name: page
SELECT id, sequence, name, type, priority, rank, state, reason, cancel_requested, waiting_for, due_at, attempts, failures,
    coalesce(holder, node), submitted_at, started_at, finished_at, exit_code, signal, run_ms, result, stdout, stderr
FROM pysched.tasks
WHERE (%(before)s::bigint IS NULL OR sequence < %(before)s::bigint)
  AND (%(state)s::text IS NULL OR state = %(state)s::text)
  AND (%(priority)s::smallint IS NULL OR priority = %(priority)s::smallint)
  AND (%(type)s::text IS NULL OR type = %(type)s::text)
ORDER BY sequence DESC
LIMIT %(limit)s::integer;

-- name: live
-- Each branch reads one partial index; tasks that have ended are in none of them.
SELECT 'queued', priority, count(*) FROM pysched.tasks WHERE place = 'ready' GROUP BY priority
UNION ALL SELECT 'scheduled', priority, count(*) FROM pysched.tasks WHERE place = 'scheduled' GROUP BY priority
UNION ALL SELECT 'blocked', priority, count(*) FROM pysched.tasks WHERE place = 'blocked' GROUP BY priority
UNION ALL SELECT state, priority, count(*) FROM pysched.tasks WHERE place = 'claimed' GROUP BY state, priority;

-- name: tallies
SELECT kind, priority, sum(total)::bigint FROM pysched.tallies GROUP BY kind, priority;

-- name: depths
-- What waits in the store and what waits on nodes.
SELECT priority, count(*) FROM pysched.tasks WHERE place = 'ready' GROUP BY priority
UNION ALL SELECT priority, count(*) FROM pysched.tasks WHERE place = 'claimed' AND state = 'queued' GROUP BY priority;

-- name: submitted
SELECT coalesce(sum(total), 0)::bigint FROM pysched.tallies WHERE kind = 'submitted';

-- name: paused
SELECT paused FROM pysched.control;

-- name: set_paused
WITH changed AS (
    UPDATE pysched.control SET paused = %(paused)s WHERE paused <> %(paused)s RETURNING paused
)
SELECT CASE WHEN NOT paused THEN pg_notify('pysched', 'ready')::text END FROM changed;
