-- additive: yes
--
-- launcher: of a claimed task, the incarnation that started its attempt, where a later one of the same home has adopted
-- it (and is the holder); NULL: the holder.  It is what the processes of the attempt carry.
-- crashes: nodes that ended by themselves, one after the other, while they ran this task.

ALTER TABLE pysched.tasks ADD COLUMN launcher uuid, ADD COLUMN crashes integer NOT NULL DEFAULT 0;
