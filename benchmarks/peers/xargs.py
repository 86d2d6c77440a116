"""xargs -P: no files for each child; it remembers whether one failed (exit 123)."""

from benchmarks.peers.lap import PROGRAM, Work, lap, timed


def run(work: Work) -> float:
    numbers = "".join(f"{number}\n" for number in range(work.count))
    return timed(["xargs", "-P", str(work.workers), "-n", "1", PROGRAM], numbers)


if __name__ == "__main__":
    lap(run)
