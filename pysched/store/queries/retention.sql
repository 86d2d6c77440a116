-- name: expired
-- In order of arrival from `after` on: the next `limit` tasks, and which of them may go.  The index is the one of
-- pages; an index of its own would cost every finish what is read once a day.  Neither goes what still owes a `.done`,
-- nor what a living node of another home ran: that one removes its logs with it.  A row that somebody is looking at
-- (an accept shares the tasks that it needs) stays until the next pass.
WITH looked AS MATERIALIZED (
    SELECT id, sequence, state, node, submitted_at, finished_at FROM pysched.tasks
    WHERE sequence > %(after)s::bigint
    ORDER BY sequence
    LIMIT %(limit)s::integer
), locked AS (
    SELECT t.id, t.state, t.sequence FROM looked JOIN pysched.tasks AS t ON t.id = looked.id
    WHERE looked.finished_at < clock_timestamp() - make_interval(secs => %(retention_s)s::float8)
      AND t.finished_at = looked.finished_at
      AND NOT EXISTS (SELECT FROM pysched.undelivered AS u WHERE u.task_id = looked.id)
      AND looked.id NOT IN (SELECT unnest(ids) FROM pysched.deliveries)
      AND NOT EXISTS (
        SELECT FROM pysched.nodes AS ran JOIN pysched.nodes AS lives ON lives.home = ran.home
        WHERE ran.incarnation = looked.node AND ran.home <> %(home)s::uuid
          AND lives.ended_at IS NULL AND lives.lease_until > clock_timestamp())
    FOR UPDATE OF t SKIP LOCKED
)
SELECT
    (SELECT coalesce(array_agg(id), '{}') FROM locked),
    (SELECT coalesce(array_agg(id) FILTER (WHERE state = 'succeeded'), '{}') FROM locked),
    count(*), max(sequence),
    -- What came later than the time limit cannot have ended before it.
    coalesce(bool_or(submitted_at > clock_timestamp() - make_interval(secs => %(retention_s)s::float8)), false)
FROM looked;

-- name: remove
-- A statement of its own, later than the locks: its snapshot shows the edges of every accept that came before them.
-- Edges to a success are fulfilled and go; one to any other end stays, so that a retry of the dependent is refused.
WITH edges AS (
    DELETE FROM pysched.dependencies
    WHERE task_id = ANY(%(ids)s::text[]) OR needs_id = ANY(%(succeeded)s::text[])
), tasks AS (
    DELETE FROM pysched.tasks WHERE id = ANY(%(ids)s::text[])
), attempts AS (
    DELETE FROM pysched.attempts WHERE task_id = ANY(%(ids)s::text[]) RETURNING stdout, stderr
)
SELECT path FROM attempts, unnest(ARRAY[stdout, stderr]) AS path WHERE path IS NOT NULL;

-- name: forget_nodes
-- Whose attempts have all gone by the same age.
DELETE FROM pysched.nodes WHERE ended_at < clock_timestamp() - 2 * make_interval(secs => %(retention_s)s::float8);
