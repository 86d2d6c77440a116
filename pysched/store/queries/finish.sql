-- name: finish
-- `token` is NULL unless a node holds the task, so id, attempt and token are the whole fence; whoever sweeps names the
-- holder, too, lest it end what the holder's successor has adopted meanwhile, under the same token.
-- A cancel that came in while the attempt ran overrules another attempt, not an end.
WITH changed AS (
    UPDATE pysched.tasks AS t SET
        state = CASE
            WHEN e.again AND t.cancel_requested THEN 'cancelled'
            WHEN e.next_state = 'scheduled' AND e.delay_s <= 0 THEN 'queued'
            ELSE e.next_state END,
        reason = CASE WHEN e.again THEN CASE WHEN t.cancel_requested THEN 'user' END ELSE e.reason END,
        due_at = CASE WHEN e.next_state = 'scheduled' AND e.delay_s > 0 AND NOT t.cancel_requested
            THEN now() + make_interval(secs => e.delay_s) END,
        ready_at = CASE WHEN e.next_state = 'scheduled' THEN now() ELSE t.ready_at END,  -- handed back: it waits on
        finished_at = CASE WHEN NOT e.again OR t.cancel_requested THEN e.finished_at END,
        cancel_requested = false,
        attempts = t.attempts - e.void::integer,
        failures = t.failures + e.failed::integer,
        crashes = CASE WHEN e.crashed THEN t.crashes + 1 WHEN e.next_state = 'queued' THEN t.crashes ELSE 0 END,
        holder = NULL,
        token = NULL,
        pid = NULL,
        attempt_started_at = NULL,
        started_at = coalesce(t.started_at, e.started_at),
        node = CASE WHEN e.void THEN t.node ELSE t.holder END,
        exit_code = CASE WHEN e.void THEN t.exit_code ELSE e.exit_code END,
        signal = CASE WHEN e.void THEN t.signal ELSE e.signal END,
        run_ms = CASE WHEN e.void THEN t.run_ms
            WHEN e.started_at < e.finished_at THEN round(extract(epoch FROM e.finished_at - e.started_at) * 1000)
            WHEN e.started_at IS NOT NULL THEN 0 END,
        stdout = CASE WHEN e.void THEN t.stdout ELSE e.stdout END,
        stderr = CASE WHEN e.void THEN t.stderr ELSE e.stderr END,
        result = CASE WHEN e.void THEN t.result ELSE e.result END
    FROM (
        SELECT *, next_state IN ('scheduled', 'queued') AS again
        FROM unnest(
            %(ids)s::text[], %(attempts)s::integer[], %(tokens)s::bigint[], %(voids)s::boolean[],
            %(attempt_states)s::text[], %(next_states)s::text[], %(reasons)s::text[], %(delays)s::float8[],
            %(failed)s::boolean[], %(pids)s::integer[], %(starts)s::timestamptz[], %(ends)s::timestamptz[],
            %(exit_codes)s::integer[], %(signals)s::text[], %(cpu_ms)s::bigint[], %(max_rss_kb)s::bigint[],
            %(stdouts)s::text[], %(stderrs)s::text[], %(results)s::text[], %(crashed)s::boolean[], %(holders)s::uuid[]
        ) AS u (id, attempt, token, void, attempt_state, next_state, reason, delay_s, failed, pid, started_at,
                finished_at, exit_code, signal, cpu_ms, max_rss_kb, stdout, stderr, result, crashed, holder)
    ) AS e
    WHERE t.id = e.id AND t.attempts = e.attempt AND t.token = e.token AND t.holder = coalesce(e.holder, t.holder)
    RETURNING
        t.id, t.name, t.type, t.priority, t.state, t.reason, t.exit_code, t.signal, t.attempts, t.node, t.submitted_at,
        t.started_at, t.finished_at, t.run_ms, t.result, t.stdout, t.stderr,
        e.attempt, e.token, e.void, e.attempt_state, e.reason AS attempt_reason, e.pid,
        e.started_at AS attempt_started_at, e.finished_at AS attempt_finished_at, e.exit_code AS attempt_exit_code,
        e.signal AS attempt_signal, e.cpu_ms, e.max_rss_kb, e.stdout AS attempt_stdout, e.stderr AS attempt_stderr
), recorded AS (
    INSERT INTO pysched.attempts (task_id, attempt, node, token, pid, state, reason, started_at, finished_at, exit_code,
        signal, cpu_ms, max_rss_kb, stdout, stderr)
    SELECT id, attempt, node, token, pid, attempt_state, attempt_reason, attempt_started_at, attempt_finished_at,
        attempt_exit_code, attempt_signal, cpu_ms, max_rss_kb, attempt_stdout, attempt_stderr
    FROM changed WHERE NOT void
), outbox AS (
    INSERT INTO pysched.deliveries (home, ids, ends)
    SELECT %(home)s::uuid, array_agg(id), array_agg(finished_at) FROM changed WHERE finished_at IS NOT NULL
    HAVING count(*) > 0
    RETURNING number
)
SELECT id, attempt, token, name, type, priority, state, reason, exit_code, signal, attempts, node::text, submitted_at,
    started_at, finished_at, run_ms, result, stdout, stderr, (SELECT number FROM outbox),
    (SELECT pg_notify('pysched', 'ready')::text WHERE EXISTS (SELECT FROM changed WHERE state = 'queued'))
FROM changed;

-- name: written_before
-- Of ends that `finish` found not to be the caller's: those that the caller wrote itself, in a call whose answer was lost.
-- By token alone that could be a sweep's verdict; nobody but the caller ends an attempt at its microsecond.
SELECT t.id, t.name, t.type, t.priority, t.state, t.reason, t.exit_code, t.signal, t.attempts, t.node::text,
    t.submitted_at, t.started_at, t.finished_at, t.run_ms, t.result, t.stdout, t.stderr, a.attempt, a.token
FROM unnest(
    %(ids)s::text[], %(attempts)s::integer[], %(tokens)s::bigint[], %(attempt_states)s::text[], %(ends)s::timestamptz[]
) AS e (id, attempt, token, attempt_state, finished_at)
JOIN pysched.attempts AS a ON a.task_id = e.id AND a.attempt = e.attempt AND a.token = e.token
    AND a.state = e.attempt_state AND a.finished_at = e.finished_at
JOIN pysched.tasks AS t ON t.id = e.id;

-- name: unblock
-- Rows are locked in the order of their ids, so that two finishes that free the same tasks do not deadlock.
WITH freed AS (
    SELECT task_id, count(*) AS n FROM pysched.dependencies WHERE needs_id = ANY(%(ids)s::text[]) GROUP BY task_id
), locked AS (
    SELECT t.id, freed.n FROM freed JOIN pysched.tasks AS t ON t.id = freed.task_id
    WHERE t.state = 'blocked'
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), changed AS (
    UPDATE pysched.tasks AS t SET
        waiting_for = t.waiting_for - locked.n,
        state = CASE
            WHEN t.waiting_for > locked.n THEN 'blocked'
            WHEN t.not_before > now() THEN 'scheduled'
            ELSE 'queued' END,
        due_at = CASE WHEN t.waiting_for = locked.n AND t.not_before > now() THEN t.not_before END,
        ready_at = now()
    FROM locked
    WHERE t.id = locked.id
    RETURNING t.state
)
SELECT CASE WHEN bool_or(state = 'queued') THEN pg_notify('pysched', 'ready')::text END FROM changed;

-- name: cancel_dependents
-- Everything that waits, directly or not, for tasks that will never succeed.
WITH RECURSIVE doomed (id) AS (
    SELECT t.id FROM pysched.dependencies AS d JOIN pysched.tasks AS t ON t.id = d.task_id
    WHERE d.needs_id = ANY(%(ids)s::text[]) AND t.state = 'blocked'
    UNION
    SELECT t.id FROM doomed
    JOIN pysched.dependencies AS d ON d.needs_id = doomed.id
    JOIN pysched.tasks AS t ON t.id = d.task_id
    WHERE t.state = 'blocked'
), locked AS (
    SELECT t.id FROM doomed JOIN pysched.tasks AS t ON t.id = doomed.id
    WHERE t.state = 'blocked'
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), changed AS (
    UPDATE pysched.tasks AS t
    SET state = 'cancelled', reason = 'dependency', waiting_for = 0, finished_at = now()
    FROM locked
    WHERE t.id = locked.id
    RETURNING t.id, t.priority
), outbox AS (
    INSERT INTO pysched.undelivered (task_id) SELECT id FROM changed ON CONFLICT DO NOTHING
)
SELECT id, priority FROM changed;

-- name: lock_task
SELECT place, state, priority FROM pysched.tasks WHERE id = %(id)s FOR NO KEY UPDATE;

-- name: cancel_waiting
WITH changed AS (
    UPDATE pysched.tasks
    SET state = 'cancelled', reason = 'user', waiting_for = 0, due_at = NULL, finished_at = now()
    WHERE id = %(id)s
    RETURNING id
)
INSERT INTO pysched.undelivered (task_id) SELECT id FROM changed ON CONFLICT DO NOTHING;

-- name: request_cancel
WITH changed AS (
    UPDATE pysched.tasks SET cancel_requested = true WHERE id = %(id)s AND NOT cancel_requested RETURNING 1
)
SELECT pg_notify('pysched', 'cancel')::text FROM changed;

-- name: needs_of
-- Shared locks on what the task needs, taken before the task's own: the order in which a finish takes them.
SELECT t.id, t.state FROM pysched.tasks AS t
WHERE t.id IN (SELECT needs_id FROM pysched.dependencies WHERE task_id = %(id)s)
ORDER BY t.id
FOR SHARE OF t;

-- name: removed_needs
-- What the task needs and retention has removed; a success takes its edges with it, so these had another end.
SELECT needs_id FROM pysched.dependencies AS d
WHERE task_id = %(id)s AND NOT EXISTS (SELECT FROM pysched.tasks AS t WHERE t.id = d.needs_id);

-- name: reopen
WITH changed AS (
    UPDATE pysched.tasks SET
        state = CASE
            WHEN %(waiting)s::integer > 0 THEN 'blocked'
            WHEN not_before > now() THEN 'scheduled'
            ELSE 'queued' END,
        due_at = CASE WHEN %(waiting)s::integer = 0 AND not_before > now() THEN not_before END,
        waiting_for = %(waiting)s::integer,
        ready_at = now(),
        reason = NULL, failures = 0, crashes = 0, finished_at = NULL, exit_code = NULL, signal = NULL, run_ms = NULL, result = NULL,
        stdout = NULL, stderr = NULL
    WHERE id = %(id)s
    RETURNING id, state
), outbox AS (
    DELETE FROM pysched.undelivered WHERE task_id = %(id)s
)
-- Also for a needed task that is queued: a claim may just have passed it over because of our lock.
SELECT state, CASE WHEN state = 'queued' OR %(passed_over)s::boolean THEN pg_notify('pysched', 'ready')::text END
FROM changed;

-- name: tally
INSERT INTO pysched.tallies AS t (source, kind, priority, total)
SELECT %(source)s::uuid, u.kind, u.priority, u.n
FROM unnest(%(kinds)s::text[], %(priorities)s::smallint[], %(counts)s::bigint[]) AS u (kind, priority, n)
ORDER BY u.kind, u.priority
ON CONFLICT (source, kind, priority) DO UPDATE SET total = t.total + excluded.total;

-- name: undelivered
-- What nobody's completed folder owns yet becomes this home's first, so that two homes never both write it.  Batches of
-- which nothing is owed any more, since all of their tasks were run again, go.
WITH taken AS (
    UPDATE pysched.undelivered SET home = %(home)s::uuid
    WHERE task_id = ANY(ARRAY(
        SELECT task_id FROM pysched.undelivered WHERE home IS NULL LIMIT %(limit)s::integer FOR UPDATE SKIP LOCKED))
    RETURNING task_id
), taken_batches AS (
    UPDATE pysched.deliveries SET home = %(home)s::uuid
    WHERE number = ANY(ARRAY(
        SELECT number FROM pysched.deliveries WHERE home IS NULL LIMIT %(limit)s::integer FOR UPDATE SKIP LOCKED))
    RETURNING number, ids, ends
), batches AS MATERIALIZED (
    SELECT * FROM taken_batches
    UNION ALL
    (SELECT number, ids, ends FROM pysched.deliveries WHERE home = %(home)s::uuid ORDER BY number LIMIT %(limit)s::integer)
), emptied AS (
    DELETE FROM pysched.deliveries AS d USING batches AS b
    WHERE d.number = b.number AND NOT EXISTS (
        SELECT FROM unnest(b.ids, b.ends) AS o (id, finished_at)
        JOIN pysched.tasks AS t ON t.id = o.id AND t.finished_at = o.finished_at)
), listed AS (
    SELECT task_id, NULL::timestamptz AS finished_at, NULL::bigint AS batch FROM taken
    UNION ALL
    (SELECT task_id, NULL, NULL FROM pysched.undelivered WHERE home = %(home)s::uuid LIMIT %(limit)s::integer)
    UNION ALL
    SELECT o.id, o.finished_at, number FROM batches, unnest(ids, ends) AS o (id, finished_at)
)
SELECT id, name, type, priority, state, reason, exit_code, signal, attempts, node::text, submitted_at, started_at,
    t.finished_at, run_ms, result, stdout, stderr, batch
FROM listed JOIN pysched.tasks AS t ON id = task_id
WHERE t.finished_at = coalesce(listed.finished_at, t.finished_at)
LIMIT %(limit)s::integer;

-- name: delivered
-- Of tasks that ended by themselves.  Only for the end that was written: a task that was run again meanwhile owes a file
-- for its new one.
DELETE FROM pysched.undelivered AS u
USING unnest(%(ids)s::text[], %(ends)s::timestamptz[]) AS w (id, finished_at), pysched.tasks AS t
WHERE u.task_id = w.id AND t.id = w.id AND t.finished_at = w.finished_at;

-- name: delivered_batches
-- Those of which so many files were written as are owed.
DELETE FROM pysched.deliveries AS d
USING unnest(%(batches)s::bigint[], %(counts)s::integer[]) AS w (number, n)
WHERE d.number = w.number AND cardinality(d.ids) = w.n
RETURNING d.number;

-- name: delivered_in_part
-- What is left of a batch keeps its row.
WITH written AS MATERIALIZED (
    SELECT * FROM unnest(%(batches)s::bigint[], %(ids)s::text[]) AS w (number, id)
), left_over AS MATERIALIZED (
    SELECT d.number, array_agg(o.id) AS ids, array_agg(o.finished_at) AS ends
    FROM pysched.deliveries AS d, unnest(d.ids, d.ends) AS o (id, finished_at)
    JOIN pysched.tasks AS t ON t.id = o.id AND t.finished_at = o.finished_at
    WHERE d.number IN (SELECT number FROM written) AND (d.number, o.id) NOT IN (SELECT number, id FROM written)
    GROUP BY d.number
), kept AS (
    UPDATE pysched.deliveries AS d SET ids = l.ids, ends = l.ends FROM left_over AS l WHERE d.number = l.number
)
DELETE FROM pysched.deliveries
WHERE number IN (SELECT number FROM written) AND number NOT IN (SELECT number FROM left_over);

-- name: record
SELECT id, name, type, priority, state, reason, exit_code, signal, attempts, node::text, submitted_at, started_at,
    finished_at, run_ms, result, stdout, stderr
FROM pysched.tasks WHERE id = %(id)s;
