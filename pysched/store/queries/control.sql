-- name: watch
-- Changes are written from here on, until a little after the last renewal.
INSERT INTO pysched.watches AS w (watcher, since, until)
SELECT %(watcher)s::uuid, coalesce(min(since), clock_timestamp()), clock_timestamp() + make_interval(secs => %(watch_s)s)
FROM pysched.watches WHERE until > clock_timestamp()
ON CONFLICT (watcher) DO UPDATE SET since = excluded.since, until = excluded.until
RETURNING round(extract(epoch FROM since) * 1000)::bigint;

-- name: unwatch
DELETE FROM pysched.watches WHERE watcher = %(watcher)s::uuid OR until < clock_timestamp() - interval '1 day';

-- name: changes
-- What has been committed since the reading that gave `since`; the new reading in every row.  With NULL, nothing yet.
SELECT pg_current_snapshot()::text, round(extract(epoch FROM clock_timestamp()) * 1000)::bigint, c.tasks
FROM (SELECT) AS always LEFT JOIN pysched.changes AS c
    ON c.xid >= pg_snapshot_xmin(%(since)s::pg_snapshot) AND NOT pg_visible_in_snapshot(c.xid, %(since)s::pg_snapshot)
ORDER BY c.at
LIMIT %(limit)s::integer;

-- name: forget_changes
DELETE FROM pysched.changes WHERE at < clock_timestamp() - make_interval(secs => %(kept_s)s);

-- name: standings
SELECT id, state, attempts FROM pysched.tasks WHERE id = ANY(%(ids)s::text[]);

-- name: lock_many
SELECT id, place, priority FROM pysched.tasks WHERE id = ANY(%(ids)s::text[]) ORDER BY id FOR NO KEY UPDATE;

-- name: cancel_waiting
WITH changed AS (
    UPDATE pysched.tasks
    SET state = 'cancelled', reason = 'user', waiting_for = 0, due_at = NULL, finished_at = now()
    WHERE id = ANY(%(ids)s::text[])
    RETURNING id
)
INSERT INTO pysched.undelivered (task_id) SELECT id FROM changed ON CONFLICT DO NOTHING;

-- name: request_cancel
WITH changed AS (
    UPDATE pysched.tasks SET cancel_requested = true WHERE id = ANY(%(ids)s::text[]) AND NOT cancel_requested RETURNING 1
)
SELECT pg_notify('pysched', 'cancel')::text FROM changed LIMIT 1;

-- name: situation
SELECT t.state, t.place, t.priority, t.rank, t.sequence, t.attempts, t.due_at, t.holder, t.reason, t.waiting_for, c.paused,
    t.cpus, t.mem, t.gpus
FROM pysched.tasks AS t, pysched.control AS c WHERE t.id = %(id)s;

-- name: waits_for
SELECT t.id, t.state FROM pysched.dependencies AS d JOIN pysched.tasks AS t ON t.id = d.needs_id
WHERE d.task_id = %(id)s AND t.state <> 'succeeded'
ORDER BY t.sequence
LIMIT %(limit)s::integer;

-- name: ahead
-- In the order of claims; each part is a range of one index.
SELECT count(*) FROM (
    (SELECT FROM pysched.tasks WHERE place = 'ready' AND priority < %(priority)s::smallint LIMIT %(limit)s::integer)
    UNION ALL
    (SELECT FROM pysched.tasks WHERE place = 'ready' AND priority = %(priority)s::smallint AND rank > %(rank)s::integer
        LIMIT %(limit)s::integer)
    UNION ALL
    (SELECT FROM pysched.tasks WHERE place = 'ready' AND priority = %(priority)s::smallint AND rank = %(rank)s::integer
        AND sequence < %(sequence)s::bigint LIMIT %(limit)s::integer)
    UNION ALL
    (SELECT FROM pysched.tasks WHERE place = 'sized' AND priority < %(priority)s::smallint LIMIT %(limit)s::integer)
    UNION ALL
    (SELECT FROM pysched.tasks WHERE place = 'sized' AND priority = %(priority)s::smallint AND rank > %(rank)s::integer
        LIMIT %(limit)s::integer)
    UNION ALL
    (SELECT FROM pysched.tasks WHERE place = 'sized' AND priority = %(priority)s::smallint AND rank = %(rank)s::integer
        AND sequence < %(sequence)s::bigint LIMIT %(limit)s::integer)
) AS before_it;

-- name: capacity
-- A node a row, with what it has and what is held of it.
SELECT coalesce(least(n.allowed, n.workers), n.workers), n.running, n.short_of, n.cpus, n.mem, n.gpus, coalesce(held.cpus, 0), coalesce(held.mem, 0), coalesce(held.gpus, 0)
FROM pysched.nodes AS n LEFT JOIN (
    SELECT holder, sum(cpus)::bigint, sum(mem)::bigint, sum(gpus)::bigint
    FROM pysched.tasks WHERE place = 'claimed' AND cpus IS NOT NULL
    GROUP BY holder
) AS held (holder, cpus, mem, gpus) ON held.holder = n.incarnation
WHERE n.ended_at IS NULL AND NOT n.draining AND n.lease_until > clock_timestamp();

-- name: create_token
INSERT INTO pysched.access_tokens (name, digest, scope, created_at)
VALUES (%(name)s, %(digest)s, %(scope)s, clock_timestamp())
ON CONFLICT DO NOTHING
RETURNING name, scope, created_at;

-- name: tokens
SELECT name, scope, created_at, digest FROM pysched.access_tokens ORDER BY name;

-- name: revoke_token
DELETE FROM pysched.access_tokens WHERE name = %(name)s RETURNING name, scope, created_at;

-- name: publish_latencies
INSERT INTO pysched.node_latencies (incarnation, read_at, histograms)
VALUES (%(incarnation)s::uuid, clock_timestamp(), %(histograms)s)
ON CONFLICT (incarnation) DO UPDATE SET read_at = excluded.read_at, histograms = excluded.histograms;

-- name: latencies
SELECT n.incarnation, l.histograms
FROM pysched.nodes AS n JOIN pysched.node_latencies AS l USING (incarnation)
WHERE n.ended_at IS NULL AND n.lease_until > clock_timestamp();

-- name: forget_latencies
DELETE FROM pysched.node_latencies WHERE read_at < clock_timestamp() - interval '1 day';

-- name: leases
SELECT incarnation, host, workers, running, draining, extract(epoch FROM clock_timestamp() - renewed_at)::float8
FROM pysched.nodes WHERE ended_at IS NULL AND lease_until > clock_timestamp();
