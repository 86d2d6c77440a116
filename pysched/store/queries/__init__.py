"""Named queries, one file a concern; `pysched.store.sql` loads them."""
