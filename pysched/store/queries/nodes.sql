-- name: register
INSERT INTO pysched.nodes AS n (incarnation, home, host, pid, workers, lanes, version, cpus, mem, gpus, started_at, renewed_at,
    lease_until)
VALUES (%(incarnation)s, %(home)s, %(host)s, %(pid)s, %(workers)s, %(lanes)s, %(version)s, %(cpus)s, %(mem)s, %(gpus)s, now(), now(),
    now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (incarnation) DO UPDATE SET renewed_at = now(), lease_until = excluded.lease_until
WHERE n.ended_at IS NULL;

-- name: renew
-- A lease that ran out may still be renewed until somebody has noticed; then the node has ended for good.
WITH others AS (
    SELECT count(*) AS living, count(*) FILTER (WHERE lease_until <= clock_timestamp()) AS expired
    FROM pysched.nodes WHERE incarnation <> %(incarnation)s AND ended_at IS NULL
)
UPDATE pysched.nodes
SET renewed_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s),
    running = %(running)s, allowed = %(allowed)s, short_of = %(short_of)s
FROM others
WHERE incarnation = %(incarnation)s AND ended_at IS NULL
RETURNING others.living, others.expired;

-- name: revive
INSERT INTO pysched.nodes AS n (incarnation, home, host, pid, workers, lanes, version, cpus, mem, gpus, started_at, renewed_at,
    lease_until)
VALUES (%(incarnation)s, %(home)s, %(host)s, %(pid)s, %(workers)s, %(lanes)s, %(version)s, %(cpus)s, %(mem)s, %(gpus)s, now(), now(),
    now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (incarnation) DO UPDATE SET renewed_at = now(), lease_until = excluded.lease_until, ended_at = NULL;

-- name: end
UPDATE pysched.nodes SET ended_at = now(), running = 0 WHERE incarnation = %(incarnation)s AND ended_at IS NULL;

-- name: drain
WITH changed AS (
    UPDATE pysched.nodes SET draining = true WHERE incarnation = %(incarnation)s RETURNING 1
)
SELECT pg_notify('pysched', 'drain')::text FROM changed;

-- name: standing
-- With what there is to do beside: rows for `abandoned` and for `undelivered`.
SELECT coalesce((SELECT draining FROM pysched.nodes WHERE incarnation = %(incarnation)s), false),
    (SELECT max(number) FROM pysched.migrations WHERE number > %(schema)s::integer AND NOT additive),
    EXISTS (SELECT FROM pysched.tasks WHERE place = 'claimed' AND NOT EXISTS (
        SELECT FROM pysched.nodes WHERE incarnation = holder AND ended_at IS NULL)),
    EXISTS (SELECT FROM pysched.undelivered WHERE home IS NULL)
        OR EXISTS (SELECT FROM pysched.undelivered WHERE home = %(home)s)
        OR EXISTS (SELECT FROM pysched.deliveries WHERE home IS NULL)
        OR EXISTS (SELECT FROM pysched.deliveries WHERE home = %(home)s);

-- name: take_over
UPDATE pysched.nodes SET ended_at = now(), running = 0
WHERE home = %(home)s AND incarnation <> %(incarnation)s AND ended_at IS NULL
RETURNING 1;

-- name: end_expired
UPDATE pysched.nodes SET ended_at = clock_timestamp(), running = 0
WHERE ended_at IS NULL AND lease_until <= clock_timestamp()
RETURNING 1;

-- name: abandoned
-- Asked anew it gives the same answer until `finish` has recorded what became of these attempts.
SELECT id, attempts, token, priority, rank, sequence, spec, failures, submitted_at,
    extract(epoch FROM clock_timestamp() - ready_at)::float8, holder, coalesce(launcher, holder), pid, attempt_started_at,
    crashes
FROM pysched.tasks
WHERE place = 'claimed' AND NOT EXISTS (
    SELECT FROM pysched.nodes WHERE incarnation = holder AND ended_at IS NULL)
ORDER BY sequence
LIMIT %(limit)s::integer;

-- name: adopt
-- Asked anew it changes nothing: the holder is then the caller.
UPDATE pysched.tasks AS t
SET holder = %(incarnation)s::uuid, launcher = coalesce(t.launcher, t.holder),
    crashes = t.crashes + (t.token = ANY(%(suspects)s::bigint[]))::integer
FROM pysched.nodes AS n
WHERE t.place = 'claimed' AND t.holder = n.incarnation AND n.home = %(home)s::uuid
  AND n.incarnation <> %(incarnation)s::uuid AND t.token = ANY(%(tokens)s::bigint[]);

-- name: adopted
SELECT id, attempts, token, priority, rank, sequence, spec, failures, submitted_at,
    extract(epoch FROM clock_timestamp() - ready_at)::float8, holder, coalesce(launcher, holder), pid, attempt_started_at,
    crashes
FROM pysched.tasks
WHERE place = 'claimed' AND holder = %(incarnation)s::uuid AND token = ANY(%(tokens)s::bigint[])
ORDER BY sequence;

-- name: list
SELECT incarnation, home, host, pid, workers, lanes, version, running, draining, started_at, renewed_at, lease_until,
    nodes.cpus / 1000.0::float8, nodes.mem, nodes.gpus / 1000.0::float8, coalesce(held.cpus, 0) / 1000.0::float8, coalesce(held.mem, 0)::bigint,
    coalesce(held.gpus, 0) / 1000.0::float8, coalesce(least(allowed, workers), workers), short_of
FROM pysched.nodes LEFT JOIN (
    SELECT holder, sum(cpus)::bigint, sum(mem)::bigint, sum(gpus)::bigint
    FROM pysched.tasks WHERE place = 'claimed' AND state = 'running' AND cpus IS NOT NULL
    GROUP BY holder
) AS held (holder, cpus, mem, gpus) ON held.holder = incarnation
WHERE ended_at IS NULL AND lease_until > clock_timestamp()
ORDER BY started_at, incarnation;
