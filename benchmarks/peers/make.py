"""make -j: a target each, without a shell; no files for each child (a redirection would need one)."""

from benchmarks.peers.lap import PROGRAM, Work, lap, timed


def run(work: Work) -> float:
    targets = " ".join(f"t{number}" for number in range(work.count))
    file = work.folder / "Makefile"
    file.write_text(f".PHONY: all {targets}\nall: {targets}\n{targets}:\n\t@{PROGRAM}\n")
    return timed(["make", "-s", "-j", str(work.workers), "-f", str(file)])


if __name__ == "__main__":
    lap(run)
