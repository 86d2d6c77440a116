-- additive: yes
--
-- What the control plane needs to look at many tasks, and to hear what becomes of them.

-- By which lists find tasks in some states, newest first.  A column of its own beside `place`, which is the same for all
-- ended tasks, and beside `state`, whose change from queued to running must stay a HOT update.
ALTER TABLE pysched.tasks ADD COLUMN standing text NOT NULL GENERATED ALWAYS AS (CASE
    WHEN state IN ('queued', 'running') THEN CASE WHEN token IS NULL THEN 'ready' ELSE 'claimed' END
    ELSE state END) STORED;

CREATE INDEX tasks_standing ON pysched.tasks (standing, sequence);

-- The tags of tasks, written once with each task; an index on the task itself would be written again at each of its ends.
CREATE TABLE pysched.tags (
    tag text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (tag, sequence)
);

-- Who wants to hear of changes, and until when.  While nobody does, nothing is written.
CREATE TABLE pysched.watches (
    watcher uuid PRIMARY KEY,
    since timestamptz NOT NULL,                         -- changes have been written without a gap from here on
    until timestamptz NOT NULL
);

-- What became of tasks, a row for each statement that changed some.  Not a history: rows live for minutes.  Whoever has
-- read under one snapshot finds with it what has been committed since, whatever the order of commits.
CREATE TABLE pysched.changes (
    xid xid8 NOT NULL,
    at timestamptz NOT NULL,
    tasks text NOT NULL                                 -- JSON: [{id, status, reason, attempts, exit_code}]
);
CREATE INDEX changes_xid ON pysched.changes (xid);
CREATE INDEX changes_at ON pysched.changes (at);

-- Tokens beside the administrator's, which stands in the home folder.
CREATE TABLE pysched.access_tokens (
    name text COLLATE "C" PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,                       -- SHA-256 of 256 random bits: nothing to guess, so no salt
    scope text NOT NULL CHECK (scope IN ('read', 'submit', 'admin')),
    created_at timestamptz NOT NULL
);

-- What a node has measured since its start; the newest reading alone.
CREATE TABLE pysched.node_latencies (
    incarnation uuid PRIMARY KEY,
    read_at timestamptz NOT NULL,
    histograms text NOT NULL                            -- JSON: see pysched.latencies
);

CREATE FUNCTION pysched.tasks_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pysched.tags (tag, sequence)
    SELECT DISTINCT tag, sequence
    FROM added, jsonb_array_elements_text(spec::jsonb -> 'tags') AS tag
    WHERE position('"tags":[' IN spec) > 0 AND jsonb_typeof(spec::jsonb -> 'tags') = 'array';
    IF EXISTS (SELECT FROM pysched.watches WHERE until > clock_timestamp()) THEN
        INSERT INTO pysched.changes (xid, at, tasks)
        SELECT pg_current_xact_id(), clock_timestamp(), list FROM (
            SELECT json_agg(json_build_object('id', id, 'status', state, 'reason', reason, 'attempts', attempts,
                'exit_code', exit_code))::text AS list FROM added) AS made
        WHERE list IS NOT NULL;
        PERFORM pg_notify('pysched_changes', '');
    END IF;
    RETURN NULL;
END $$;

-- A claim changes nothing that users see.
CREATE FUNCTION pysched.tasks_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pysched.watches WHERE until > clock_timestamp()) THEN
        INSERT INTO pysched.changes (xid, at, tasks)
        SELECT pg_current_xact_id(), clock_timestamp(), list FROM (
            SELECT json_agg(json_build_object('id', id, 'status', state, 'reason', reason, 'attempts', attempts,
                'exit_code', exit_code))::text AS list
            FROM changed WHERE NOT (state = 'queued' AND token IS NOT NULL)) AS made
        WHERE list IS NOT NULL;
        IF FOUND THEN
            PERFORM pg_notify('pysched_changes', '');
        END IF;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION pysched.tasks_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM pysched.tags AS t USING removed AS r, jsonb_array_elements_text(r.spec::jsonb -> 'tags') AS tag
    WHERE position('"tags":[' IN r.spec) > 0 AND jsonb_typeof(r.spec::jsonb -> 'tags') = 'array'
      AND t.tag = tag AND t.sequence = r.sequence;
    RETURN NULL;
END $$;

CREATE TRIGGER tasks_added AFTER INSERT ON pysched.tasks REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION pysched.tasks_added();
CREATE TRIGGER tasks_changed AFTER UPDATE ON pysched.tasks REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION pysched.tasks_changed();
CREATE TRIGGER tasks_removed AFTER DELETE ON pysched.tasks REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION pysched.tasks_removed();

INSERT INTO pysched.tags (tag, sequence)
SELECT DISTINCT tag, sequence
FROM pysched.tasks, jsonb_array_elements_text(spec::jsonb -> 'tags') AS tag
WHERE position('"tags":[' IN spec) > 0 AND jsonb_typeof(spec::jsonb -> 'tags') = 'array';
