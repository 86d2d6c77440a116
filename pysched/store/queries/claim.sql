-- name: claim
-- Nothing while a task waits that asks for processors, memory or GPUs, and for no more than this node could take now: then
-- sized.sql has the statements for all.
-- First the overdue ones that the caller asks for, then the others in order, `limit` in all.
-- The ids of rows come from an array of ctids: whatever the statistics say, that is a TID scan.
-- The last columns: how many entries of the indexes were looked at, those of dead rows among them (what the server has
-- counted by now, less what it had before); and whether one is left that this node could take with all that it has.
-- No bound of an index is taken from clock_timestamp(): as it changes within a statement, each entry would be looked at.
WITH allowed AS MATERIALIZED (
    SELECT pg_stat_get_xact_tuples_returned('pysched.tasks_ready'::regclass)
        + pg_stat_get_xact_tuples_returned('pysched.tasks_waiting'::regclass) AS looked_at
    FROM pysched.nodes
    WHERE incarnation = %(node)s::uuid AND ended_at IS NULL AND NOT draining AND lease_until > clock_timestamp()
      AND NOT EXISTS (SELECT FROM pysched.control WHERE paused)
      AND NOT EXISTS (SELECT FROM pysched.migrations WHERE number > %(schema)s::integer AND NOT additive)
      AND NOT EXISTS (
        SELECT FROM pysched.tasks WHERE place = 'sized'
          AND cpus <= %(cpus)s::integer AND mem <= %(mem)s::bigint AND gpus <= %(gpus)s::integer)
), overdue AS MATERIALIZED (
    SELECT ready.ctid
    FROM unnest(%(overdue_priorities)s::smallint[], %(overdue_after)s::float8[], %(overdue_limits)s::integer[])
        AS o (priority, after_s, at_most),
    LATERAL (
        SELECT ctid FROM pysched.tasks
        WHERE place = 'ready' AND priority > 0 AND priority = o.priority
          AND ready_at <= statement_timestamp() - make_interval(secs => o.after_s)
          AND EXISTS (SELECT FROM allowed)
        ORDER BY ready_at
        LIMIT o.at_most
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS ready
)
UPDATE pysched.tasks AS t
SET holder = %(node)s::uuid, token = nextval('pysched.tokens'), attempts = attempts + 1, launcher = NULL
WHERE ctid = ANY(ARRAY(SELECT ctid FROM overdue) || ARRAY(
    SELECT ctid FROM pysched.tasks
    WHERE place = 'ready' AND priority <= %(lowest)s::smallint
      AND EXISTS (SELECT FROM allowed) AND NOT ctid = ANY(ARRAY(SELECT ctid FROM overdue))
    ORDER BY priority, rank DESC, sequence
    LIMIT %(limit)s::integer - (SELECT count(*) FROM overdue)
    FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING id, attempts, token, priority, rank, sequence, spec, failures, submitted_at,
    extract(epoch FROM clock_timestamp() - ready_at)::float8, (
        SELECT pg_stat_get_xact_tuples_returned('pysched.tasks_ready'::regclass)
            + pg_stat_get_xact_tuples_returned('pysched.tasks_waiting'::regclass) - looked_at
        FROM allowed),
    EXISTS (
        SELECT FROM pysched.tasks WHERE place = 'sized'
          AND cpus <= %(has_cpus)s::integer AND mem <= %(has_mem)s::bigint AND gpus <= %(has_gpus)s::integer);

-- name: resume
-- The same, from a place in each class on: what follows it in its rank (`same`), and then what is of a lower rank.  The
-- outer limit stops both arms, and what they have not given out is not locked; theirs tell the planner to go by the index.
WITH allowed AS MATERIALIZED (
    SELECT pg_stat_get_xact_tuples_returned('pysched.tasks_ready'::regclass)
        + pg_stat_get_xact_tuples_returned('pysched.tasks_waiting'::regclass) AS looked_at
    FROM pysched.nodes
    WHERE incarnation = %(node)s::uuid AND ended_at IS NULL AND NOT draining AND lease_until > clock_timestamp()
      AND NOT EXISTS (SELECT FROM pysched.control WHERE paused)
      AND NOT EXISTS (SELECT FROM pysched.migrations WHERE number > %(schema)s::integer AND NOT additive)
      AND NOT EXISTS (
        SELECT FROM pysched.tasks WHERE place = 'sized'
          AND cpus <= %(cpus)s::integer AND mem <= %(mem)s::bigint AND gpus <= %(gpus)s::integer)
)
UPDATE pysched.tasks AS t
SET holder = %(node)s::uuid, token = nextval('pysched.tokens'), attempts = attempts + 1
WHERE ctid = ANY(ARRAY(
    SELECT ready.ctid
    FROM unnest(%(same)s::integer[], %(priorities)s::smallint[], %(ranks)s::bigint[], %(sequences)s::bigint[])
        AS head (same, priority, rank, sequence),
    LATERAL (
        SELECT * FROM (
            SELECT ctid FROM pysched.tasks
            WHERE head.same = 1 AND place = 'ready' AND priority = head.priority
              AND rank = head.rank AND sequence > head.sequence AND EXISTS (SELECT FROM allowed)
            ORDER BY sequence
            LIMIT %(limit)s::integer
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS same
        UNION ALL
        SELECT * FROM (
            SELECT ctid FROM pysched.tasks
            WHERE head.same = 0 AND place = 'ready' AND priority = head.priority
              AND rank < head.rank AND EXISTS (SELECT FROM allowed)
            ORDER BY rank DESC, sequence
            LIMIT %(limit)s::integer
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS lower
    ) AS ready
    LIMIT %(limit)s::integer
))
RETURNING id, attempts, token, priority, rank, sequence, spec, failures, submitted_at,
    extract(epoch FROM clock_timestamp() - ready_at)::float8, (
        SELECT pg_stat_get_xact_tuples_returned('pysched.tasks_ready'::regclass)
            + pg_stat_get_xact_tuples_returned('pysched.tasks_waiting'::regclass) - looked_at
        FROM allowed),
    EXISTS (
        SELECT FROM pysched.tasks WHERE place = 'sized'
          AND cpus <= %(has_cpus)s::integer AND mem <= %(has_mem)s::bigint AND gpus <= %(has_gpus)s::integer);

-- name: unstarted
SELECT id, attempts, token FROM pysched.tasks
WHERE place = 'claimed' AND holder = %(node)s::uuid AND state = 'queued';

-- name: promote
-- How many were queued, and seconds until the next one's time.
WITH due AS (
    UPDATE pysched.tasks SET state = 'queued', due_at = NULL, ready_at = clock_timestamp()
    WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM pysched.tasks
        WHERE place = 'scheduled' AND due_at <= statement_timestamp()
        ORDER BY due_at
        LIMIT %(limit)s::integer
        FOR NO KEY UPDATE SKIP LOCKED
    ))
    RETURNING 1
), counted AS (
    SELECT count(*) AS n FROM due
)
SELECT n, (
    SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8
    FROM pysched.tasks WHERE place = 'scheduled' AND due_at > statement_timestamp()
), CASE WHEN n > 0 THEN pg_notify('pysched', 'ready')::text END
FROM counted;

-- name: start
-- Also true for an attempt that already runs: the same start may be sent twice when its answer was lost.
UPDATE pysched.tasks AS t
SET state = 'running', pid = s.pid, attempt_started_at = s.started_at, started_at = coalesce(t.started_at, s.started_at)
FROM unnest(
    %(ids)s::text[], %(attempts)s::integer[], %(tokens)s::bigint[], %(pids)s::integer[], %(starts)s::timestamptz[]
) AS s (id, attempt, token, pid, started_at)
WHERE t.id = s.id AND t.attempts = s.attempt AND t.token = s.token
RETURNING t.id, t.attempts, t.token;

-- name: cancellations
SELECT id, attempts, token FROM pysched.tasks
WHERE place = 'claimed' AND holder = %(node)s::uuid AND cancel_requested;
