-- additive: no
--
-- No foreign keys: they would lock the parent row for every attempt and edge written, and no statement
-- of the store deletes a parent before its children.
--
-- Row versions of a task that runs once: insert, claim, start, end.  `place` is what the partial indexes
-- look at.  It stays 'claimed' from claim to end, so recording a start touches no index (a HOT update);
-- PostgreSQL compares the values of indexed columns, generated ones included, not whether they were set.

CREATE TABLE pysched.tasks (
    id text COLLATE "C" PRIMARY KEY,
    sequence bigint GENERATED ALWAYS AS IDENTITY,       -- arrival order
    name text NOT NULL,
    type text NOT NULL,
    priority smallint NOT NULL CHECK (priority BETWEEN 0 AND 2),  -- HIGH, MED, LOW
    rank integer NOT NULL,                              -- larger first
    spec text NOT NULL,             -- Task.spec(): canonical JSON, so equal text is equal content.  Text and not
                                    -- jsonb, which would rewrite numbers and cost a parse in and a print out
    state text NOT NULL CHECK (state IN
        ('blocked', 'scheduled', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
    reason text,
    cancel_requested boolean NOT NULL DEFAULT false,
    waiting_for integer NOT NULL DEFAULT 0,             -- tasks in `after` that have not succeeded yet
    not_before timestamptz,                             -- acceptance + delay_s, if there was a delay
    due_at timestamptz,                                 -- of a scheduled task
    attempts integer NOT NULL DEFAULT 0,                -- also the number of the newest attempt
    failures integer NOT NULL DEFAULT 0,                -- attempts that count against max_retries
    holder uuid,                                        -- incarnation whose lease covers the task now …
    token bigint,                                       -- … and the fencing token of its claim
    pid integer,                                        -- of the running attempt
    attempt_started_at timestamptz,                     -- of the running attempt
    node uuid,                                          -- incarnation that ran the last ended attempt
    submitted_at timestamptz NOT NULL,
    started_at timestamptz,                             -- of the first attempt
    finished_at timestamptz,
    exit_code integer,                                  -- of the last ended attempt, as all below
    signal text,
    run_ms bigint,
    stdout text,
    stderr text,
    result text,                                        -- JSON
    place text NOT NULL GENERATED ALWAYS AS (CASE
        WHEN state IN ('blocked', 'scheduled') THEN state
        WHEN state IN ('queued', 'running') THEN CASE WHEN token IS NULL THEN 'ready' ELSE 'claimed' END
        ELSE 'ended' END) STORED,
    CHECK ((holder IS NULL) = (token IS NULL)),
    CHECK (token IS NULL OR state IN ('queued', 'running')),
    CHECK (token IS NOT NULL OR state <> 'running'),
    CHECK ((due_at IS NOT NULL) = (state = 'scheduled')),
    CHECK ((waiting_for > 0) = (state = 'blocked')),
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled')))
) WITH (
    fillfactor = 80,
    -- A queue's table turns over faster than the defaults (a fifth of the table) foresee.
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 1000
);

CREATE INDEX tasks_sequence ON pysched.tasks (sequence);
CREATE INDEX tasks_ready ON pysched.tasks (priority, rank DESC, sequence) WHERE place = 'ready';
CREATE INDEX tasks_scheduled ON pysched.tasks (due_at) WHERE place = 'scheduled';
CREATE INDEX tasks_blocked ON pysched.tasks (priority) WHERE place = 'blocked';
CREATE INDEX tasks_claimed ON pysched.tasks (holder) WHERE place = 'claimed';

CREATE SEQUENCE pysched.tokens;

-- Written once, when the attempt ends; a running attempt stands in its task's row.
CREATE TABLE pysched.attempts (
    task_id text COLLATE "C" NOT NULL,
    attempt integer NOT NULL,
    node uuid NOT NULL,
    token bigint NOT NULL,
    pid integer,
    state text NOT NULL,
    reason text,
    started_at timestamptz,
    finished_at timestamptz NOT NULL,
    exit_code integer,
    signal text,
    cpu_ms bigint NOT NULL,
    max_rss_kb bigint NOT NULL,
    stdout text,
    stderr text,
    PRIMARY KEY (task_id, attempt)
);

CREATE TABLE pysched.dependencies (
    task_id text COLLATE "C" NOT NULL,
    needs_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (task_id, needs_id)
);
CREATE INDEX dependencies_needs ON pysched.dependencies (needs_id);

CREATE TABLE pysched.nodes (
    incarnation uuid PRIMARY KEY,
    home uuid NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    workers integer NOT NULL,
    lanes integer NOT NULL,
    version text NOT NULL,
    running integer NOT NULL DEFAULT 0,
    draining boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL,
    renewed_at timestamptz NOT NULL,
    lease_until timestamptz NOT NULL,                   -- by this server's clock
    ended_at timestamptz
) WITH (fillfactor = 50);
CREATE INDEX nodes_home ON pysched.nodes (home) WHERE ended_at IS NULL;

-- Outbox of `.done` files: a row from a terminal transition until its file is durable.
CREATE TABLE pysched.undelivered (
    task_id text COLLATE "C" PRIMARY KEY,
    home uuid                                           -- whose completed folder gets it; NULL: any
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX undelivered_home ON pysched.undelivered (home);

-- Totals, so that nobody counts the rows of tasks that have ended.  A row a writer, so that two rarely meet.
CREATE TABLE pysched.tallies (
    source uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('submitted', 'retried', 'succeeded', 'failed', 'cancelled')),
    priority smallint NOT NULL,
    total bigint NOT NULL,
    PRIMARY KEY (source, kind, priority)
) WITH (fillfactor = 50);

CREATE TABLE pysched.control (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    paused boolean NOT NULL DEFAULT false               -- claim nothing
);
INSERT INTO pysched.control DEFAULT VALUES;
