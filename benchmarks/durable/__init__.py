"""What durability costs: the store and the whole node against others on the same PostgreSQL server, and against C."""
