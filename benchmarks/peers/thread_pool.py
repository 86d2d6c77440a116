"""concurrent.futures and subprocess of Python's library, output into files."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.lap import PROGRAM, Work, lap


def run(work: Work) -> float:
    def one(number: int) -> None:
        stem = work.folder / str(number)
        with open(f"{stem}.out", "wb") as out, open(f"{stem}.err", "wb") as err:
            subprocess.run([PROGRAM], stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=True)

    start = time.perf_counter()
    with ThreadPoolExecutor(work.workers) as pool:
        for _ in pool.map(one, range(work.count)):
            pass
    return time.perf_counter() - start


if __name__ == "__main__":
    lap(run)
