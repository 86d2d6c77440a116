"""/metrics: true figures, in Prometheus' format, under the names that the dashboard and the alerts use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pysched import latencies
from pysched.engine.twin import Histogram
from pysched.errors import DatabaseUnreachable
from tests.integration.api.conftest import Api

DOCS = Path(__file__).parents[3] / "docs"


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(api: Api) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


@pytest.fixture
def measured(api: Api) -> str:
    """A node that has measured something; its incarnation."""
    waits = Histogram()
    for ns in (400_000, 2_000_000, 10**9 * 100_000):
        waits.record(ns)
    api.store.publish_latencies(api.worker.incarnation, latencies.dump({("wait", 0): waits, ("run", 2): Histogram()}))
    return str(api.worker.incarnation)


def test_running_tasks_that_say_how_far_they_are(api: Api, tmp_path: Path) -> None:
    said = {"0.25": 0.25, '{"fraction": 1}': 1.0, '{"fraction": 1.5}': None, "true": None, "half": None}
    names = {api.submit(name=f"progress {n}"): text for n, text in enumerate(said)}
    for task_id, text in names.items():
        api.worker.start(task_id)
        (tmp_path / task_id).write_text(text)
    with api.served_with(log_files=lambda asked, _: SimpleNamespace(progress=str(tmp_path / asked))) as client:
        found = samples(client.get("/metrics").text)
    for n, (task_id, text) in enumerate(names.items()):
        labels = (("id", task_id), ("name", f"progress {n}"))
        assert found.get(("pysched_task_progress", labels)) == said[text]
        api.worker.finish(task_id)
    assert not [name for name, _ in read(api) if name == "pysched_task_progress"]


def test_figures_are_true(api: Api, measured: str) -> None:
    before = read(api)
    api.worker.run(api.submit(priority="HIGH"))
    api.submit(priority="LOW", delay_s=3600)
    after = read(api)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before[key]

    assert grown("pysched_tasks_ended_total", status="succeeded", priority="HIGH") == 1
    assert grown("pysched_tasks", status="scheduled", priority="LOW") == 1
    assert grown("pysched_tasks_submitted_total") == 2
    assert after["pysched_database_up", ()] == 1
    assert after["pysched_node_workers", (("host", "host"), ("node", measured))] == 1
    assert after["pysched_node_lease_age_seconds", (("host", "host"), ("node", measured))] >= 0
    key = (("method", "POST"), ("route", "/submit"), ("status", "201"))
    name = "pysched_http_request_seconds_count"
    assert after[name, key] - before.get((name, key), 0) == 2


def test_histograms_of_nodes(api: Api, measured: str) -> None:
    found = read(api)

    def up_to(bound: str) -> float:
        return found["pysched_task_wait_seconds_bucket", (("le", bound), ("node", measured), ("priority", "HIGH"))]

    assert [up_to(bound) for bound in ("0.001", "0.005", "43200.0", "+Inf")] == [1, 2, 2, 3]
    key = (("node", measured), ("priority", "HIGH"))
    assert found["pysched_task_wait_seconds_count", key] == 3
    assert found["pysched_task_wait_seconds_sum", key] == pytest.approx(100_000, rel=0.01)
    assert found["pysched_task_run_seconds_count", (("node", measured), ("priority", "LOW"))] == 0


def test_what_a_node_is_short_of_is_a_figure(api: Api, measured: str) -> None:
    node = (("host", "host"), ("node", measured))
    before = read(api)
    api.store.renew(api.worker.incarnation, 3600.0, running=0, allowed=0, short_of="memory")
    after = read(api)
    api.store.renew(api.worker.incarnation, 3600.0, running=0)
    assert (before["pysched_node_workers_allowed", node], after["pysched_node_workers_allowed", node]) == (1, 0)
    short = [found["pysched_node_short", (*node, ("resource", "memory"))] for found in (before, after)]
    assert short == [0, 1]
    assert after["pysched_node_short", (*node, ("resource", "cpu"))] == 0


def test_a_database_that_is_away_is_a_figure(api: Api) -> None:
    def down() -> Any:
        raise DatabaseUnreachable("gone")

    with api.served_with(stats=down) as http_client:
        found = samples(http_client.get("/metrics").text)
    assert found["pysched_database_up", ()] == 0
    assert ("pysched_nodes", ()) not in found


def test_paths_that_lead_nowhere_are_one_series(api: Api) -> None:
    for path in ("/nowhere", "/tasks/a/b", "/%00"):
        api.http.get(path)
    routes = {dict(labels).get("route") for _, labels in read(api)} - {None}
    assert "none" in routes
    assert not {"/nowhere", "/tasks/a/b", "/tasks/none"} & routes


@pytest.mark.usefixtures("measured")
def test_every_name_in_dashboard_and_alerts_exists(api: Api) -> None:
    api.submit()
    known = {name for name, _ in read(api)}
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    alerts = (DOCS / "alerts.yml").read_text()
    assert alerts.count("- alert:") >= 8
    expressions += re.findall(r"expr: >?\s*(.+(?:\n {10}\S.*)*)", alerts)
    named = {name for text in expressions for name in re.findall(r"\b(?:pysched|process)_\w+", text)}
    assert len(named) >= 18
    assert named <= known, named - known
