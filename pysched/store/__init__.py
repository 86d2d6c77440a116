"""PostgreSQL, the truth: named queries, migrations, the `Store` and the embedded server."""
