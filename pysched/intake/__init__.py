"""`.task` files: their format, the folder they are dropped into, and the thread that takes them in."""
