"""HyperQueue, server and worker in this process (its PyPI wheel), output into files; the clock runs from submission."""

import time

from benchmarks.peers.lap import PROGRAM, Work, lap


def run(work: Work) -> float:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    with LocalCluster(str(work.folder / "server"), WorkerConfig(cores=work.workers)) as cluster:
        client = cluster.client()
        job = Job()
        for number in range(work.count):
            stem = work.folder / str(number)
            job.program([PROGRAM], stdout=f"{stem}.out", stderr=f"{stem}.err")
        start = time.perf_counter()
        client.wait_for_jobs([client.submit(job)])  # raises if a task failed
        return time.perf_counter() - start


if __name__ == "__main__":
    lap(run)
