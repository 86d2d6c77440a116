-- additive: yes
--
-- How many attempts a node runs at most while its machine is short of something, and of what.  A node of an older version
-- says neither, and runs as many as it has workers.

ALTER TABLE pysched.nodes
    ADD COLUMN allowed integer,     -- NULL: as many as workers
    ADD COLUMN short_of text;       -- memory, cpu; NULL: of nothing
