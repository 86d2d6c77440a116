-- name: candidates
-- What a node could claim, read without a lock: what is overdue comes first (`turn`), then the others in order.  Of those
-- that ask for something, as many as fit what is free; and the first ones that fit the node at all, some of which it may
-- take to wait for room.
WITH allowed AS (
    SELECT FROM pysched.nodes
    WHERE incarnation = %(node)s::uuid AND ended_at IS NULL AND NOT draining AND lease_until > clock_timestamp()
      AND NOT EXISTS (SELECT FROM pysched.control WHERE paused)
      AND NOT EXISTS (SELECT FROM pysched.migrations WHERE number > %(schema)s::integer AND NOT additive)
), overdue AS (
    SELECT waiting.* FROM unnest(
        %(overdue_priorities)s::smallint[], %(overdue_after)s::float8[], %(overdue_limits)s::integer[]
    ) AS o (priority, after_s, at_most), LATERAL (
        (SELECT id, priority, rank, sequence, cpus, mem, gpus, ready_at FROM pysched.tasks
         WHERE place = 'ready' AND priority > 0 AND priority = o.priority
           AND ready_at <= statement_timestamp() - make_interval(secs => o.after_s)
         ORDER BY ready_at
         LIMIT o.at_most)
        UNION ALL
        (SELECT id, priority, rank, sequence, cpus, mem, gpus, ready_at FROM pysched.tasks
         WHERE place = 'sized' AND priority > 0 AND priority = o.priority
           AND ready_at <= statement_timestamp() - make_interval(secs => o.after_s)
           AND cpus <= %(has_cpus)s::integer AND mem <= %(has_mem)s::bigint AND gpus <= %(has_gpus)s::integer
         ORDER BY ready_at
         LIMIT o.at_most)
        ORDER BY ready_at
        LIMIT o.at_most
    ) AS waiting
), plain AS (
    SELECT id, priority, rank, sequence, cpus, mem, gpus, ready_at FROM pysched.tasks
    WHERE place = 'ready' AND priority <= %(lowest)s::smallint
    ORDER BY priority, rank DESC, sequence
    LIMIT %(limit)s::integer
), fitting AS (
    SELECT id, priority, rank, sequence, cpus, mem, gpus, ready_at FROM pysched.tasks
    WHERE place = 'sized' AND priority <= %(lowest)s::smallint
      AND cpus <= %(cpus)s::integer AND mem <= %(mem)s::bigint AND gpus <= %(gpus)s::integer
    ORDER BY priority, rank DESC, sequence
    LIMIT %(limit)s::integer
), first AS (
    SELECT id, priority, rank, sequence, cpus, mem, gpus, ready_at FROM pysched.tasks
    WHERE place = 'sized' AND priority <= %(lowest)s::smallint
      AND cpus <= %(has_cpus)s::integer AND mem <= %(has_mem)s::bigint AND gpus <= %(has_gpus)s::integer
    ORDER BY priority, rank DESC, sequence
    LIMIT %(firsts)s::integer
)
SELECT id, cpus, mem, gpus, extract(epoch FROM clock_timestamp() - min(ready_at))::float8,
    EXISTS (
        SELECT FROM pysched.tasks WHERE place = 'sized'
          AND cpus <= %(reach_cpus)s::integer AND mem <= %(reach_mem)s::bigint AND gpus <= %(reach_gpus)s::integer)
FROM (
    SELECT 0 AS turn, * FROM overdue
    UNION ALL SELECT 1, * FROM plain
    UNION ALL SELECT 1, * FROM fitting
    UNION ALL SELECT 1, * FROM first
) AS found
WHERE EXISTS (SELECT FROM allowed)
GROUP BY id, priority, rank, sequence, cpus, mem, gpus
ORDER BY min(turn), CASE min(turn) WHEN 0 THEN min(ready_at) END, priority, rank DESC, sequence;

-- name: take
-- Those of them that nobody has taken meanwhile.
WITH allowed AS (
    SELECT FROM pysched.nodes
    WHERE incarnation = %(node)s::uuid AND ended_at IS NULL AND NOT draining AND lease_until > clock_timestamp()
      AND NOT EXISTS (SELECT FROM pysched.control WHERE paused)
      AND NOT EXISTS (SELECT FROM pysched.migrations WHERE number > %(schema)s::integer AND NOT additive)
)
UPDATE pysched.tasks AS t
SET holder = %(node)s::uuid, token = nextval('pysched.tokens'), attempts = attempts + 1, launcher = NULL
WHERE id = ANY(ARRAY(
    SELECT id FROM pysched.tasks
    WHERE id = ANY(%(ids)s::text[]) AND place IN ('ready', 'sized') AND EXISTS (SELECT FROM allowed)
    FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING id, attempts, token, priority, rank, sequence, spec, failures, submitted_at,
    extract(epoch FROM clock_timestamp() - ready_at)::float8;
