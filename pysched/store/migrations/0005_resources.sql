-- additive: yes
--
-- What tasks ask for beside a worker, and what nodes have of it.  A task that asks for something waits at a `place` of its
-- own, so those that ask for nothing are found as fast as ever, and nodes of a version that does not count find only those.

ALTER TABLE pysched.tasks
    ADD COLUMN cpus integer,                            -- thousandths; all three are NULL: it asks for a worker alone
    ADD COLUMN mem bigint,                              -- bytes
    ADD COLUMN gpus integer,                            -- thousandths
    DROP COLUMN place;

ALTER TABLE pysched.tasks ADD COLUMN place text NOT NULL GENERATED ALWAYS AS (CASE
    WHEN state IN ('blocked', 'scheduled') THEN state
    WHEN state IN ('queued', 'running') THEN CASE
        WHEN token IS NOT NULL THEN 'claimed' WHEN cpus IS NULL THEN 'ready' ELSE 'sized' END
    ELSE 'ended' END) STORED;

CREATE INDEX tasks_ready ON pysched.tasks (priority, rank DESC, sequence) WHERE place = 'ready';
CREATE INDEX tasks_scheduled ON pysched.tasks (due_at) WHERE place = 'scheduled';
CREATE INDEX tasks_blocked ON pysched.tasks (priority) WHERE place = 'blocked';
CREATE INDEX tasks_claimed ON pysched.tasks (holder) WHERE place = 'claimed';
CREATE INDEX tasks_waiting ON pysched.tasks (priority, ready_at) WHERE place = 'ready' AND priority > 0;

-- What they ask for stands in the index, so that a node passes over those for which it is too small without looking at
-- their rows.
CREATE INDEX tasks_sized ON pysched.tasks (priority, rank DESC, sequence, cpus, mem, gpus) WHERE place = 'sized';
CREATE INDEX tasks_sized_waiting ON pysched.tasks (priority, ready_at) WHERE place = 'sized' AND priority > 0;

ALTER TABLE pysched.nodes
    ADD COLUMN cpus integer NOT NULL DEFAULT 0,
    ADD COLUMN mem bigint NOT NULL DEFAULT 0,
    ADD COLUMN gpus integer NOT NULL DEFAULT 0;
