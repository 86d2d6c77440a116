"""The OpenAPI document is true: it describes what is sent and what comes back."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jsonschema
import pytest

from pysched.api.problems import MEDIA_TYPE
from pysched.task import FIELDS
from tests.integration.api.conftest import Api, Worker


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    answer: dict[str, Any] = api.http.get("/openapi.json").json()
    return answer


def check(document: dict[str, Any], method: str, path: str, answer: httpx.Response) -> None:
    """`answer` has a status, media type and content that the document foresees."""
    described = document["paths"][path][method]["responses"][str(answer.status_code)]["content"]
    media_type = answer.headers["content-type"].split(";")[0]
    schema = described[media_type]["schema"]
    if media_type.endswith("json"):
        jsonschema.validate(
            answer.json(),
            {**schema, "components": document["components"]},
            cls=jsonschema.Draft202012Validator,
            format_checker=jsonschema.FormatChecker(),
        )


def test_the_task_schema_is_the_contracts(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["Task"]
    assert tuple(schema["properties"]) == FIELDS
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    body = document["paths"]["/submit"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Task"}


def test_no_reference_leads_nowhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [each for part in value.values() for each in references(part)]
        return [each for part in value for each in references(part)] if isinstance(value, list) else []

    found = references(document)
    assert found
    for each in found:
        kind = each.removeprefix("#/components/schemas/")
        assert kind in document["components"]["schemas"], each
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_operation_describes_its_refusals(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path == "/health":
                continue
            for status in ("400", "401", "403", "421", "503"):
                assert operation["responses"][status]["content"].keys() == {MEDIA_TYPE}, (path, status)
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert response["content"].keys() == {MEDIA_TYPE}, (path, status)


def test_every_answer_is_as_described(api: Api, document: dict[str, Any], tmp_path: Path) -> None:
    ended = api.task_with_logs(tmp_path, stdout=b"x")
    running = api.submit(command="sleep 1", env={"A": "b"})
    api.worker.start(running)
    waiting = api.submit(delay_s=3600)
    other = Worker(api.store)
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("post", "/submit", {"json": {"id": "openapi"}}),
        ("post", "/submit", {"json": {"id": "openapi"}}),
        ("post", "/submit", {"json": {"id": "openapi", "rank": 1}}),
        ("post", "/submit", {"json": {"nonsense": 1}}),
        ("post", "/submit", {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
        ("post", "/submit", {"content": b" " * (1 << 21), "headers": {"Content-Type": "application/json"}}),
        ("post", "/submit", {"json": {}, "headers": {"Host": "evil"}}),
        ("post", "/submit", {"json": {}, "headers": {"Authorization": "Bearer x"}}),
        ("post", "/submit", {"json": {}, "headers": {"Origin": "http://evil"}}),
        ("post", "/submit/batch", {"json": [{"id": "openapi"}]}),
        ("post", "/submit/batch", {"json": [{"rank": 2}]}),
        ("post", "/submit/batch", {"json": [{"rank": "2"}]}),
        ("post", "/submit/batch", {"json": [{"id": "openapi", "rank": 1}]}),
        ("get", "/tasks", {"params": {"limit": 1000}}),
        ("get", "/tasks", {"params": {"limit": "x"}}),
        *[("get", "/tasks/{id}", {"id": each}) for each in (ended, running, waiting, "none", "-")],
        *[("get", "/tasks/{id}/logs", {"id": each}) for each in (ended, waiting, "none", "-")],
        *[("post", "/tasks/{id}/cancel", {"id": each}) for each in (ended, running, waiting, "none", "-")],
        *[("post", "/tasks/{id}/retry", {"id": each}) for each in (waiting, ended, "none", "-")],
        *[("get", "/tasks/{id}/explain", {"id": each}) for each in (ended, running, waiting, "none", "-")],
        ("get", "/tasks/{id}/logs/follow", {"id": ended}),
        *[("get", "/tasks/{id}/logs/follow", {"id": each}) for each in ("none", "-")],
        ("post", "/tasks/cancel", {"params": {"id": "none"}}),
        ("post", "/tasks/cancel", {}),
        ("post", "/tasks/retry", {"params": {"status": "succeeded"}}),
        ("post", "/tasks/retry", {"params": {"all": "true", "name": "x"}}),
        ("post", "/tokens", {"json": {"name": "openapi", "scope": "read"}}),
        ("post", "/tokens", {"json": {"name": "openapi", "scope": "read"}}),
        ("post", "/tokens", {"json": {"name": "openapi", "scope": "root"}}),
        ("post", "/tokens", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("get", "/tokens", {}),
        ("delete", "/tokens/{name}", {"name": "openapi"}),
        ("delete", "/tokens/{name}", {"name": "openapi"}),
        ("post", "/nodes/{id}/drain", {"id": str(other.incarnation)}),
        *[("post", "/nodes/{id}/drain", {"id": each}) for each in (str(uuid.uuid4()), "-")],
        ("get", "/stats", {}),
        ("get", "/nodes", {}),
        ("post", "/queue/pause", {}),
        ("post", "/queue/resume", {}),
        ("get", "/health", {}),
        ("get", "/metrics", {}),
    ]
    reached = set()
    for method, path, how in calls:
        where = path.replace("{id}", how.pop("id", "")).replace("{name}", how.pop("name", ""))
        answer = api.http.request(method, where, **how)
        check(document, method, path, answer)
        reached.add((method, path))
    api.worker.finish(running)
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert described - reached == {("get", "/events")}  # never ends; see test_streams.py
