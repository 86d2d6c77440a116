-- name: now
SELECT now();

-- name: copy
-- As `insert` in accept.sql; a test holds the two together.
COPY pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, not_before, due_at, cpus, mem, gpus)
FROM STDIN;

-- name: tally
INSERT INTO pysched.tallies AS t (source, kind, priority, total)
SELECT %(source)s::uuid, 'submitted', u.priority, u.n
FROM unnest(%(priorities)s::smallint[], %(counts)s::bigint[]) AS u (priority, n)
ORDER BY u.priority
ON CONFLICT (source, kind, priority) DO UPDATE SET total = t.total + excluded.total;
