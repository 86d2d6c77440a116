"""Tokens and their scopes: what each opens, how they come and go, and who guesses too often."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psycopg
import pytest

from pysched.api import keyring
from pysched.api.app import create_app
from pysched.api.keyring import Failures, Keyring
from pysched.api.scopes import Scope
from pysched.errors import DatabaseUnreachable
from tests.integration.api.conftest import TOKEN, Api, assert_problem
from tests.integration.api.control_plane import running


def made(api: Api, scope: str) -> str:
    answer = api.http.post("/tokens", json={"name": f"t-{os.urandom(6).hex()}", "scope": scope})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def tokens(api: Api) -> dict[str, str]:
    return {scope.value: made(api, scope.value) for scope in Scope}


def operations(api: Api) -> Iterator[tuple[str, str, str]]:
    for path, methods in api.http.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            if path != "/health":
                ((scope,),) = [list(each["token"]) for each in operation["security"]]
                yield method.upper(), path, scope


def test_every_route_demands_the_scope_it_states(api: Api, tokens: dict[str, str]) -> None:
    order = [scope.value for scope in Scope]
    asked = 0
    for method, path, needed in operations(api):
        for held, token in tokens.items():
            url = api.url + path.replace("{id}", "-").replace("{name}", "-")  # which no task, node or token has
            with httpx.stream(method, url, headers=headers(token)) as answer:
                if order.index(held) < order.index(needed):
                    answer.read()
                    assert_problem(answer, 403)
                    assert f"scope {needed}" in answer.json()["detail"]
                else:
                    assert answer.status_code != 403, (method, path, held)
            asked += 1
    api.http.post("/queue/resume")
    assert asked >= 60


def test_only_looking_needs_the_least(api: Api) -> None:
    assert {scope for method, _, scope in operations(api) if method != "GET"} == {"submit", "admin"}
    assert {path for method, path, scope in operations(api) if method == "GET" and scope != "read"} == {"/tokens"}


def test_the_store_keeps_digests_alone(api: Api) -> None:
    token = made(api, "read")
    with psycopg.connect(api.database_url) as conn:
        rows = conn.execute("SELECT t::text, digest FROM pysched.access_tokens AS t").fetchall()
    assert hashlib.sha256(token.encode()).digest() in [bytes(digest) for _, digest in rows]
    assert not any(token in text for text, _ in rows)
    assert token not in api.http.get("/tokens").text


def test_a_revoked_one_is_refused_at_once(api: Api) -> None:
    token = api.http.post("/tokens", json={"name": "short-lived", "scope": "submit"}).json()["token"]
    assert httpx.post(f"{api.url}/submit", json={}, headers=headers(token)).status_code == 201
    assert api.http.delete("/tokens/short-lived").json()["scope"] == "submit"
    assert_problem(httpx.post(f"{api.url}/submit", json={}, headers=headers(token)), 401)
    assert_problem(api.http.delete("/tokens/short-lived"), 404)


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "a"}, {"scope": "read"}, {"name": "a b", "scope": "read"}, {"name": 1, "scope": "read"},
     {"name": "a", "scope": "root"}, {"name": "a", "scope": "read", "token": "mine"}, []],
)  # fmt: skip
def test_a_wrong_request_makes_none(api: Api, body: Any) -> None:
    assert_problem(api.http.post("/tokens", json=body), 422)


def test_a_name_is_taken_once(api: Api) -> None:
    assert api.http.post("/tokens", json={"name": "twice", "scope": "read"}).status_code == 201
    assert_problem(api.http.post("/tokens", json={"name": "twice", "scope": "admin"}), 400)


def test_the_administrators_changes_with_its_file(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "FILE_LOOK_S", 0)
    file = tmp_path / "token"

    def write(token: str, mode: int) -> None:
        (tmp_path / "new").write_text(token)
        (tmp_path / "new").chmod(mode)
        (tmp_path / "new").replace(file)

    write("first", 0o600)

    def statuses() -> list[int]:
        return [httpx.get(f"{url}/stats", headers=headers(token)).status_code for token in ("first", "second")]

    with running(create_app(api.store, api.settings, token="first", token_file=file)) as url:
        assert statuses() == [200, 401]
        write("second", 0o644)  # not private: refused
        assert statuses() == [200, 401]
        write("second", 0o600)
        assert statuses() == [401, 200]
        file.unlink()
        assert statuses() == [401, 200]


def test_what_is_known_is_asked_for_anew_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    rows = [({"scope": "read"}, hashlib.sha256(b"other").digest())]

    def stored() -> list[Any]:
        nonlocal asked
        asked += 1
        return rows

    async def run() -> None:
        ring = Keyring("admin", stored)
        assert await ring.scope(b"admin") is Scope.ADMIN
        assert asked == 0
        assert [await ring.scope(b"other") for _ in range(3)] == [Scope.READ] * 3
        assert await ring.scope(b"unknown") is None
        assert asked == 1
        monkeypatch.setattr(keyring, "REFRESH_S", 0)
        rows.clear()
        assert await ring.scope(b"other") is None

    asyncio.run(run())


def test_nobody_is_let_in_while_nobody_can_tell(api: Api) -> None:
    def down() -> Any:
        raise DatabaseUnreachable("gone")

    with api.served_with(tokens=down) as http_client:
        assert http_client.get("/stats").status_code == 200  # the administrator's needs no store
        assert_problem(http_client.get("/stats", headers=headers("x")), 503)


def test_wrong_tokens_are_counted_by_address() -> None:
    failures = Failures(burst=3, every_s=10, addresses=2)
    for _ in range(3):
        assert failures.wait_s("a", 100) == 0
        failures.count("a", 100)
    assert failures.wait_s("a", 100) == 10
    assert failures.wait_s("a", 105) == 5
    assert failures.wait_s("b", 100) == 0
    assert failures.wait_s("a", 110) == 0
    failures.count("a", 110)
    assert failures.wait_s("a", 110) == 10
    failures.count("b", 110)
    failures.count("c", 110)  # forgets the oldest
    assert failures.wait_s("a", 110) == 0


def test_who_guesses_is_told_to_wait_and_the_right_token_still_opens_here(api: Api) -> None:
    with running(create_app(api.store, api.settings, token=TOKEN)) as url:
        answers = [httpx.get(f"{url}/stats", headers=headers(f"guess-{number}")) for number in range(60)]
        assert answers[0].status_code == 401
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited
        assert_problem(limited[0], 429)
        assert int(limited[0].headers["retry-after"]) >= 1
        assert httpx.get(f"{url}/stats", headers=headers(TOKEN)).status_code == 200
