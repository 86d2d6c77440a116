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
