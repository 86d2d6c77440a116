"""GNU parallel, output into files (--results); its exit code is the number of failures."""

from benchmarks.peers.lap import PROGRAM, Work, lap, timed


def run(work: Work) -> float:
    numbers = "".join(f"{number}\n" for number in range(work.count))
    results = str(work.folder / "results")
    return timed(["parallel", "--will-cite", "-j", str(work.workers), "--results", results, PROGRAM], numbers)


if __name__ == "__main__":
    lap(run)
