-- additive: yes
--
-- The outbox of `.done` files, for all ends that one statement has written: a row and two entries of indexes for a batch
-- of tasks, in the place of as many for each of them.  `undelivered` keeps what ends by itself: tasks that are cancelled
-- before they run, and what nodes of an older version write.

CREATE TABLE pysched.deliveries (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    home uuid,                                          -- whose completed folder gets the files; NULL: any
    ids text[] NOT NULL,
    ends timestamptz[] NOT NULL                         -- of another one, which came later, another row tells
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX deliveries_home ON pysched.deliveries (home, number);

-- What is owed, task by task.  An end that was undone by a retry is no longer.
CREATE VIEW pysched.owed (task_id, home) AS
SELECT u.task_id, u.home FROM pysched.undelivered AS u
UNION ALL
SELECT t.id, d.home
FROM pysched.deliveries AS d, unnest(d.ids, d.ends) AS o (id, finished_at), pysched.tasks AS t
WHERE t.id = o.id AND t.finished_at = o.finished_at;
