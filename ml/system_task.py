"""The `system` simulation: `python -I -S system_task.py --duration_ms N`.

Keeps one processor busy for half of the time and sleeps for the rest, on the monotonic clock, so it
ends on time even when the machine is crowded.  It is started by its path, in an isolated interpreter
without `site`, and imports built-in modules only: a simulated job costs little more than the start of
the interpreter itself.
"""

import sys
import time

DEFAULT_MS = 100
MAX_MS = 86_400_000  # one day, as in the task schema


def main(arguments: list[str]) -> int:
    """Work for `--duration_ms N` milliseconds (0 … 86,400,000); the exit code: 0, or 2 for bad arguments."""
    started = time.monotonic()
    if not arguments:
        text = str(DEFAULT_MS)
    elif len(arguments) == 1 and arguments[0].startswith("--duration_ms="):
        text = arguments[0].partition("=")[2]
    elif len(arguments) == 2 and arguments[0] == "--duration_ms":
        text = arguments[1]
    else:
        sys.stderr.write(f"system_task: unexpected {' '.join(arguments)!r}; use --duration_ms N\n")
        return 2
    if not (text.isascii() and text.isdigit()) or int(text[:9]) > MAX_MS or len(text) > 9:
        sys.stderr.write(f"system_task: duration_ms: {text!r}; it should be a whole number from 0 to {MAX_MS}\n")
        return 2
    duration_s = int(text) / 1000
    _burn(started + duration_s / 2)
    remaining = started + duration_s - time.monotonic()
    if remaining > 0:
        time.sleep(remaining)
    return 0


def _burn(deadline: float) -> None:
    """Keep the processor busy until `deadline`, seconds of the monotonic clock."""
    value = 1
    while time.monotonic() < deadline:
        for _ in range(1000):  # some 50 µs between two looks at the clock
            value = (value * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
