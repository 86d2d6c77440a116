"""What a task becomes when it runs: a program, its environment and its files."""
