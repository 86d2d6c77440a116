"""Numbered migrations, `NNNN_name.sql`; `pysched.store.migrate` applies them and states their rules."""
