-- What the inserter prepares: the cheapest form of `insert` and `notify` in accept.sql, for tasks that need no other.  A test
-- holds the two together.

-- name: insert
PREPARE submit (text[], text[], text[], smallint[], integer[], text[], float8[], integer[], bigint[], integer[], uuid) AS
WITH given AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        AS g (id, name, type, priority, rank, spec, delay_s, cpus, mem, gpus)
), created AS (
    INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, not_before, due_at, cpus, mem, gpus)
    SELECT id, name, type, priority, rank, spec,
        CASE WHEN delay_s > 0 THEN 'scheduled' ELSE 'queued' END,
        now(),
        CASE WHEN delay_s > 0 THEN now() + make_interval(secs => delay_s) END,
        CASE WHEN delay_s > 0 THEN now() + make_interval(secs => delay_s) END,
        cpus, mem, gpus
    FROM given
    ON CONFLICT (id) DO NOTHING
    RETURNING id, priority
), tallied AS (
    INSERT INTO pysched.tallies AS t (source, kind, priority, total)
    SELECT $11, 'submitted', priority, count(*) FROM created GROUP BY priority ORDER BY priority
    ON CONFLICT (source, kind, priority) DO UPDATE SET total = t.total + excluded.total
)
SELECT id FROM created;

-- name: notify
PREPARE notify_submitted (text[]) AS SELECT pg_notify('pysched', kind) FROM unnest($1) AS kind;

-- name: hand_over
-- The same for tasks that are to be started at once and ask for a worker alone; given to the node, as by a claim, if that
-- may claim and nothing waits that should come before them.  Tasks that ask for processors, memory or GPUs count as such
-- even if they would not fit, since here nobody counts.
PREPARE hand_over (text[], text[], text[], smallint[], integer[], text[], uuid, uuid, integer) AS
WITH taker AS MATERIALIZED (
    SELECT incarnation FROM pysched.nodes
    WHERE incarnation = $8 AND ended_at IS NULL AND NOT draining AND lease_until > clock_timestamp()
      AND NOT EXISTS (SELECT FROM pysched.control WHERE paused)
      AND NOT EXISTS (SELECT FROM pysched.migrations WHERE number > $9 AND NOT additive)
      AND NOT EXISTS (SELECT FROM pysched.tasks WHERE place = 'ready')
      AND NOT EXISTS (SELECT FROM pysched.tasks WHERE place = 'sized')
), given AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6) AS g (id, name, type, priority, rank, spec)
), created AS (
    INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, holder, token, attempts)
    SELECT id, name, type, priority, rank, spec, 'queued', now(), incarnation,
        CASE WHEN incarnation IS NOT NULL THEN nextval('pysched.tokens') END,
        CASE WHEN incarnation IS NOT NULL THEN 1 ELSE 0 END
    FROM given LEFT JOIN taker ON true
    ON CONFLICT (id) DO NOTHING
    RETURNING id, priority, token, sequence, submitted_at
), tallied AS (
    INSERT INTO pysched.tallies AS t (source, kind, priority, total)
    SELECT $7, 'submitted', priority, count(*) FROM created GROUP BY priority ORDER BY priority
    ON CONFLICT (source, kind, priority) DO UPDATE SET total = t.total + excluded.total
)
SELECT id, token, sequence, (extract(epoch FROM submitted_at) * 1000000)::bigint,
    CASE WHEN token IS NULL THEN pg_notify('pysched', 'ready')::text END
FROM created;
