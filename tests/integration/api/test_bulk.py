"""Many tasks at once: filters, bulk actions, reasons, draining a node."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.integration.api.conftest import Api, Worker, assert_problem


def listed(api: Api, **query: Any) -> list[str]:
    ids: list[str] = []
    before: dict[str, Any] = {}
    while True:
        page = api.http.get("/tasks", params={"limit": 2, **query, **before}).json()
        ids += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            return ids
        before = {"before": page["next"]}


def test_filters_reach_the_store(api: Api) -> None:
    tag = uuid.uuid4().hex
    one = api.submit(tags=[tag, "x"], name="alpha one", priority="HIGH")
    two = api.submit(tags=[tag], name="alpha two", type="ml", command="grep needle")
    api.worker.run(one)
    done = api.http.get(f"/tasks/{one}").json()
    assert listed(api, tag=tag) == [two, one]
    assert listed(api, tag=[tag, "x"]) == [one]
    assert listed(api, tag=tag, status=["queued", "succeeded"]) == [two, one]
    assert listed(api, tag=tag, status="succeeded") == [one]
    assert listed(api, tag=tag, priority=["high", "LOW"]) == [one]
    assert listed(api, tag=tag, type="ml") == [two]
    assert listed(api, tag=tag, name="alpha t") == [two]
    assert listed(api, tag=tag, text="NEEDLE") == [two]
    assert listed(api, id=one) == [one]
    assert listed(api, tag=tag, node=done["node"], status="succeeded") == [one]
    assert listed(api, tag=tag, node=str(uuid.uuid4())) == []
    assert listed(api, tag=tag, finished_since=done["finished_at"]) == [one]
    assert listed(api, tag=tag, submitted_until=done["submitted_at"]) == []
    assert listed(api, tag=tag, submitted_since=done["submitted_at"]) == [two, one]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("node=me", "node"),
        ("submitted_since=yesterday", "submitted_since"),
        ("finished_until=1767225600", "finished_until"),
        ("submitted_since=2026-01-01T00:00:00", "submitted_since"),  # whose midnight?
        ("id=..", "id"),
        ("tag=", "tag"),
        ("text=%00", "text"),
        ("name=" + "x" * 201, "name"),
        ("status=queued&status=done", "status"),
        ("stat=queued", "stat"),
        ("name=a&name=b", "name"),
    ],
)
@pytest.mark.parametrize("route", ["GET /tasks", "POST /tasks/cancel", "POST /tasks/retry"])
def test_a_wrong_filter_is_named_everywhere(api: Api, route: str, query: str, field: str) -> None:
    method, path = route.split(" ")
    document = assert_problem(api.http.request(method, f"{path}?{query}"), 422)
    assert [error["field"] for error in document["errors"]] == [field]


def test_bulk_cancel_and_retry(api: Api) -> None:
    tag = uuid.uuid4().hex
    ids = [api.submit(tags=[tag], max_retries=0) for _ in range(5)]
    api.worker.start(ids[0])
    api.worker.finish(ids[0], exit_code=1)
    done = api.http.post("/tasks/cancel", params={"tag": tag, "limit": 2}).json()
    assert (done["requested"] + done["cancelled"], done["unchanged"]) == (2, 0)
    rest = api.http.post("/tasks/cancel", params={"tag": tag, "before": done["next"]}).json()
    assert (rest["requested"] + rest["cancelled"], rest["unchanged"], rest["next"]) == (2, 1, None)
    retried = api.http.post("/tasks/retry", params={"tag": tag, "status": "failed"}).json()
    assert retried == {"retried": 1, "refused": 0, "errors": [], "next": None}
    refused = api.http.post("/tasks/retry", params={"id": ids[0]}).json()
    assert (refused["retried"], refused["refused"], refused["errors"][0]["id"]) == (0, 1, ids[0])


@pytest.mark.parametrize("what", ["cancel", "retry"])
@pytest.mark.parametrize("query", ["", "all=false", "all=true&type=ml", "all=x", "limit=0", "limit=1001"])
def test_everything_has_to_be_said(api: Api, what: str, query: str) -> None:
    assert_problem(api.http.post(f"/tasks/{what}?{query}"), 422)


def test_reasons(api: Api) -> None:
    first = api.submit(delay_s=3600)
    second = api.submit(after=[first])
    explained = api.http.get(f"/tasks/{second}/explain").json()
    assert (explained["why"], explained["waiting_for"]) == ("blocked", [{"id": first, "status": "scheduled"}])
    assert api.http.get(f"/tasks/{first}/explain").json()["why"] == "delayed"


def test_a_drained_node_takes_nothing_more(api: Api) -> None:
    worker = Worker(api.store)
    path = f"/nodes/{worker.incarnation}/drain"
    assert api.http.post(path).json() == {"incarnation": str(worker.incarnation), "draining": True}
    task_id = api.submit()
    assert worker.claim() == []
    api.worker.run(task_id)
    assert_problem(api.http.post(f"/nodes/{uuid.uuid4()}/drain"), 404)


def test_secrets_are_for_the_job_alone(api: Api) -> None:
    env = {
        "API_KEY": "hush-1", "DB_PASSWORD": "hush-2", "GITHUB_PAT": "hush-3", "PATH": "/bin", "MONKEYS": "hush-4",
        "DATABASE_URL": "postgresql://me:hush-5@db/x", "PLAIN": "a:b@c", "COMPAT": "shown",
    }  # fmt: skip
    task_id = api.submit(env=env)
    shown = api.http.get(f"/tasks/{task_id}").json()["task"]["env"]
    assert "hush" not in str(shown).replace("hush-4", "***")
    assert shown["DATABASE_URL"] == "postgresql://me:***@db/x"
    assert (shown["PATH"], shown["PLAIN"], shown["COMPAT"]) == ("/bin", "a:b@c", "shown")
    assert api.store.get(task_id)["task"]["env"] == env
    assert listed(api, text="hush-1", id=task_id) == []
    for wrong in ({"API_KEY": 5}, "API_KEY=hush", {"API_KEY": ["hush"]}, {"a-b": "hush"}):
        assert "hush" not in api.http.post("/submit", json={"env": wrong}).text
        assert " 5 " not in api.http.post("/submit", json={"env": wrong}).text
