"""Makes outcomes durable in the store, then tells of them in `.done` files."""
