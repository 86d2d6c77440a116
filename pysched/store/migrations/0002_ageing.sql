-- additive: yes
--
-- Since when a task waits to be claimed, so that a claim can find those that have waited too long.  Of tasks in
-- other states it says nothing.  HIGH is never overdue, so the index leaves it out.

ALTER TABLE pysched.tasks ADD COLUMN ready_at timestamptz NOT NULL DEFAULT now();

CREATE INDEX tasks_waiting ON pysched.tasks (priority, ready_at) WHERE place = 'ready' AND priority > 0;
