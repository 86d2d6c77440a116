-- name: insert
-- New tasks in arrival order, and what follows from them; returns the ids that were really new.
WITH given AS (
    SELECT * FROM unnest(
        %(ids)s::text[], %(names)s::text[], %(types)s::text[], %(priorities)s::smallint[], %(ranks)s::integer[],
        %(specs)s::text[], %(delays)s::float8[], %(states)s::text[], %(waiting)s::integer[], %(cpus)s::integer[],
        %(mem)s::bigint[], %(gpus)s::integer[]
    ) WITH ORDINALITY AS g (id, name, type, priority, rank, spec, delay_s, state, waiting_for, cpus, mem, gpus, position)
), created AS (
    INSERT INTO pysched.tasks
        (id, name, type, priority, rank, spec, state, waiting_for, cpus, mem, gpus, reason, submitted_at, not_before, due_at,
        finished_at)
    SELECT
        id, name, type, priority, rank, spec, state, waiting_for, cpus, mem, gpus,
        CASE WHEN state = 'cancelled' THEN 'dependency' END,
        now(),
        CASE WHEN delay_s > 0 THEN now() + make_interval(secs => delay_s) END,
        CASE WHEN state = 'scheduled' THEN now() + make_interval(secs => delay_s) END,
        CASE WHEN state = 'cancelled' THEN now() END
    FROM given
    ORDER BY position
    ON CONFLICT (id) DO NOTHING
    RETURNING id, priority, state
), outbox AS (
    INSERT INTO pysched.undelivered (task_id) SELECT id FROM created WHERE state = 'cancelled'
), tallied AS (
    INSERT INTO pysched.tallies AS t (source, kind, priority, total)
    SELECT %(source)s::uuid, kind, priority, count(*)
    FROM created, unnest(ARRAY['submitted', CASE WHEN state = 'cancelled' THEN state END]) AS kind
    WHERE kind IS NOT NULL
    GROUP BY kind, priority
    ORDER BY kind, priority
    ON CONFLICT (source, kind, priority) DO UPDATE SET total = t.total + excluded.total
)
SELECT id FROM created;

-- name: connect
INSERT INTO pysched.dependencies (task_id, needs_id)
SELECT * FROM unnest(%(tasks)s::text[], %(needs)s::text[]);

-- name: lock_needed
-- FOR SHARE and not FOR KEY SHARE: it must hold off the update that ends a needed task.
SELECT id, state FROM pysched.tasks WHERE id = ANY(%(ids)s::text[]) ORDER BY id FOR SHARE;

-- name: find
SELECT id, spec, state FROM pysched.tasks WHERE id = ANY(%(ids)s::text[]);

-- name: notify
SELECT pg_notify('pysched', kind) FROM unnest(%(kinds)s::text[]) AS kind;
