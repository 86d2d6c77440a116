-- Pieces of the queries that list tasks, put together by `listing`: one source gives sequence numbers, newest first and no
-- more than are looked at; the tasks behind them are held against the conditions.

-- name: select
SELECT t.id, t.sequence, t.name, t.type, t.priority, t.rank, t.state, t.reason, t.cancel_requested, t.waiting_for, t.due_at,
    t.attempts, t.failures, coalesce(t.holder, t.node), t.submitted_at, t.started_at, t.finished_at, t.exit_code, t.signal,
    t.run_ms, t.result, t.stdout, t.stderr

-- name: select_ids
SELECT t.id, t.sequence

-- name: order
ORDER BY t.sequence DESC
LIMIT %(limit)s::integer

-- name: by_sequence
SELECT sequence FROM pysched.tasks
WHERE sequence < %(before)s::bigint AND sequence >= %(floor)s::bigint
ORDER BY sequence DESC
LIMIT %(looked)s::integer

-- name: by_standing
-- The newest of each, merged.
SELECT newest.sequence
FROM unnest(%(standings)s::text[]) AS s (standing), LATERAL (
    SELECT sequence FROM pysched.tasks
    WHERE standing = s.standing AND sequence < %(before)s::bigint AND sequence >= %(floor)s::bigint
    ORDER BY sequence DESC
    LIMIT %(looked)s::integer
) AS newest
ORDER BY newest.sequence DESC
LIMIT %(looked)s::integer

-- name: by_tag
SELECT sequence FROM pysched.tags
WHERE tag = %(tag)s AND sequence < %(before)s::bigint AND sequence >= %(floor)s::bigint
ORDER BY sequence DESC
LIMIT %(looked)s::integer

-- name: by_id
-- Few enough to be sorted; `has_few_ids` has made sure.  Materialized, or the order would be read from the index of arrival,
-- through all tasks.
WITH few AS MATERIALIZED (
    SELECT sequence FROM pysched.tasks WHERE id >= %(id)s AND id < %(id_end)s
)
SELECT sequence FROM few WHERE sequence < %(before)s::bigint
ORDER BY sequence DESC
LIMIT %(looked)s::integer

-- name: has_few_ids
SELECT count(*) < %(looked)s::integer FROM (
    SELECT FROM pysched.tasks WHERE id >= %(id)s AND id < %(id_end)s LIMIT %(looked)s::integer
) AS few

-- name: states
t.state = ANY(%(states)s::text[])

-- name: priorities
t.priority = ANY(%(priorities)s::smallint[])

-- name: type
t.type = %(type)s

-- name: tags
-- Of `looked`: before the task is read.
(SELECT count(*) FROM pysched.tags AS own WHERE own.tag = ANY(%(tags)s::text[]) AND own.sequence = looked.sequence)
    = cardinality(%(tags)s::text[])

-- name: id
starts_with(t.id, %(id)s)

-- name: name
starts_with(t.name, %(name)s)

-- name: node
coalesce(t.holder, t.node) = %(node)s::uuid

-- name: submitted_since
t.submitted_at >= %(submitted_since)s::timestamptz

-- name: submitted_until
t.submitted_at < %(submitted_until)s::timestamptz

-- name: finished_since
t.finished_at >= %(finished_since)s::timestamptz

-- name: finished_until
t.finished_at < %(finished_until)s::timestamptz

-- name: text
-- Not in `env`: whoever may only look must not find out a secret piece by piece.
position(lower(%(text)s) IN lower(concat_ws(chr(10), t.id, t.name,
    CASE WHEN position('"env":{' IN t.spec) = 0 THEN t.spec ELSE (t.spec::jsonb - 'env')::text END))) > 0

-- name: sequence_at
-- The first sequence number that was submitted at a moment or later: a binary search over the arrivals, which are in order
-- of time but for what overlapping transactions mix up.
WITH RECURSIVE search (low, high) AS (
    SELECT coalesce(min(sequence), 0), coalesce(max(sequence), -1) + 1 FROM pysched.tasks
    UNION ALL
    SELECT
        CASE WHEN found.sequence < high AND found.submitted_at < %(moment)s::timestamptz THEN found.sequence + 1 ELSE low END,
        CASE WHEN found.sequence < high AND found.submitted_at < %(moment)s::timestamptz THEN high ELSE middle END
    FROM search, LATERAL (SELECT (low + high) / 2 AS middle) AS halved, LATERAL (
        SELECT sequence, submitted_at FROM pysched.tasks WHERE sequence >= middle ORDER BY sequence LIMIT 1
    ) AS found
    WHERE low < high
)
SELECT max(low) FROM search
