"""What Prometheus is told: figures of the store and of nodes, read when it asks, and this server's own latencies.

The names stand in `docs/alerts.yml` and `docs/grafana.json`, too; a test holds them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from starlette.types import Message, Send

from pysched import latencies
from pysched.errors import StoreError
from pysched.model import TERMINAL, State

_HTTP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Figures(Protocol):
    """The part of the store that is asked."""

    def ping(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def leases(self) -> list[tuple[str, str, int, int, bool, float]]: ...
    def nodes(self) -> list[dict[str, Any]]: ...
    def latencies(self) -> list[tuple[str, str]]: ...


class Metrics:
    """One server's.  Any thread may call any method."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        self._requests = Histogram(
            "pysched_http_request_seconds",
            "From a request's head to the head of its answer",
            ["method", "route", "status"],
            buckets=_HTTP_BOUNDS_S,
            registry=self._own,
        )
        self._series: dict[tuple[str, str, int], Histogram] = {}  # labels() takes a lock and checks them each time

    def timed(self, method: str, route: Callable[[], str], send: Send) -> Send:
        """`send` that takes the time from now to the beginning of the answer; `route` is known by then."""
        begun = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.observe(method, route(), message["status"], time.perf_counter() - begun)
            await send(message)

        return sending

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answer that has begun, so long after the head of its request."""
        key = (method, route, status)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._requests.labels(*map(str, key))
        series.observe(seconds)

    def text(
        self,
        store: Figures,
        *,
        listeners: int,
        submissions_waiting: int,
        progress: Iterable[tuple[str, str, float]],
    ) -> bytes:
        """Everything, in Prometheus' text format; asks the store, and blocks.  `progress`: (id, name, 0 … 1)."""
        told = GaugeMetricFamily(
            "pysched_task_progress", "How far a running task says that it is, 0 to 1", labels=["id", "name"]
        )
        for task_id, name, fraction in progress:
            told.add_metric([task_id, name], fraction)
        here = [
            _gauge("pysched_event_listeners", "Clients that listen at /events", listeners),
            _gauge("pysched_submissions_waiting", "Tasks that wait for the next commit", submissions_waiting),
            told,
        ]
        return generate_latest(_Collected([*here, *_database(store)])) + generate_latest(self._own)


class _Collected(CollectorRegistry):
    """Families that have been collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = [*families]

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _database(store: Figures) -> Iterator[Metric]:
    begun = time.perf_counter()
    try:
        store.ping()
        took = time.perf_counter() - begun
        families = [*_tasks(store.stats()), *_nodes(store.leases()), *_latencies(store.latencies())]
        nodes = store.nodes()
        families += [*_resources(nodes), *_pressure(nodes)]
    except StoreError:
        yield _gauge("pysched_database_up", "Whether the database answers", 0)
        return
    yield _gauge("pysched_database_up", "Whether the database answers", 1)
    yield _gauge("pysched_database_ping_seconds", "A round trip to the database", took)
    yield from families


def _tasks(stats: dict[str, Any]) -> Iterator[Metric]:
    live = GaugeMetricFamily("pysched_tasks", "Tasks that have not ended", labels=["status", "priority"])
    ended = CounterMetricFamily("pysched_tasks_ended", "Tasks that have ended", labels=["status", "priority"])
    for state in State:
        for priority, count in stats["priorities"][state.value].items():
            (ended if state in TERMINAL else live).add_metric([state.value, priority], count)
    yield live
    yield ended
    yield CounterMetricFamily("pysched_tasks_submitted", "Tasks accepted as new", value=stats["submitted"])
    yield CounterMetricFamily(
        "pysched_attempts_retried", "Attempts that failed and were tried again", value=stats["retried"]
    )
    yield _gauge("pysched_queue_paused", "Whether the queue is paused", int(stats["paused"]))


def _nodes(leases: list[tuple[str, str, int, int, bool, float]]) -> Iterator[Metric]:
    labels = ["node", "host"]
    workers = GaugeMetricFamily("pysched_node_workers", "Attempts that the node runs at once", labels=labels)
    running = GaugeMetricFamily("pysched_node_running", "Attempts that it ran at its last heartbeat", labels=labels)
    draining = GaugeMetricFamily("pysched_node_draining", "Whether it takes nothing more", labels=labels)
    age = GaugeMetricFamily("pysched_node_lease_age_seconds", "Time since its last heartbeat", labels=labels)
    for node, host, its_workers, its_running, drains, age_s in leases:
        workers.add_metric([node, host], its_workers)
        running.add_metric([node, host], its_running)
        draining.add_metric([node, host], int(drains))
        age.add_metric([node, host], age_s)
    yield _gauge("pysched_nodes", "Nodes that live", len(leases))
    yield from (workers, running, draining, age)


def _resources(nodes: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["node", "host"]
    for name, field, what in (
        ("cpus", "cpus", "Processors"),
        ("memory_bytes", "mem", "Bytes of memory"),
        ("gpus", "gpus", "GPUs"),
    ):
        has = GaugeMetricFamily(f"pysched_node_{name}", f"{what} that attempts may hold at a time", labels=labels)
        held = GaugeMetricFamily(f"pysched_node_{name}_held", f"{what} that running attempts hold", labels=labels)
        for node in nodes:
            has.add_metric([node["incarnation"], node["host"]], node[field])
            held.add_metric([node["incarnation"], node["host"]], node[f"{field}_held"])
        yield from (has, held)


def _pressure(nodes: list[dict[str, Any]]) -> Iterator[Metric]:
    allowed = GaugeMetricFamily(
        "pysched_node_workers_allowed",
        "Attempts that the node runs at most now; fewer than its workers while it is short of something",
        labels=["node", "host"],
    )
    short = GaugeMetricFamily(
        "pysched_node_short", "Whether it runs fewer for lack of this", labels=["node", "host", "resource"]
    )
    for node in nodes:
        names = [node["incarnation"], node["host"]]
        allowed.add_metric(names, node["allowed"])
        for resource in ("memory", "cpu"):
            short.add_metric([*names, resource], int(node["short_of"] == resource))
    yield from (allowed, short)


def _latencies(readings: list[tuple[str, str]]) -> Iterator[Metric]:
    labels = ["node", "priority"]
    families = {
        "wait": HistogramMetricFamily("pysched_task_wait_seconds", "From ready to start", labels=labels),
        "run": HistogramMetricFamily("pysched_task_run_seconds", "From start to end of an attempt", labels=labels),
    }
    for node, text in readings:
        for each in latencies.load(text):
            buckets = [(str(bound), float(n)) for bound, n in zip(latencies.BOUNDS_S, each.up_to, strict=True)]
            families[each.kind].add_metric(
                [node, each.priority], [*buckets, ("+Inf", float(each.count))], sum_value=each.sum_s
            )
    yield from families.values()


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)
