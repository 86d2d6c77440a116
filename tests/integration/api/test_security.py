"""The gate: hosts, origins, tokens, media types, and how much is read of whom."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
import structlog

from pysched.api.app import create_app
from pysched.api.keyring import load_or_create_token
from pysched.api.security import allowed_hosts, is_loopback
from pysched.api.submit import SUBMIT_BYTES
from pysched.errors import SettingsError
from pysched.settings import Settings
from tests.integration.api.conftest import TOKEN, Api, assert_problem
from tests.integration.api.control_plane import running

MIB = 1024 * 1024


class TestToken:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer ü".encode("latin-1"),
        ],
    )
    def test_only_the_right_one_opens(self, api: Api, header: str | bytes | None) -> None:
        headers: Any = {} if header is None else {"Authorization": header}
        answer = httpx.get(f"{api.url}/stats", headers=headers)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_the_scheme_has_no_case(self, api: Api, scheme: str) -> None:
        assert httpx.get(f"{api.url}/stats", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200

    def test_two_headers_are_none(self, api: Api) -> None:
        headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
        assert_problem(httpx.get(f"{api.url}/stats", headers=headers), 401)

    def test_health_says_only_whether_without_a_token(self, api: Api) -> None:
        answer = httpx.get(f"{api.url}/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    def test_health_does_not_forgive_a_wrong_token(self, api: Api) -> None:
        assert_problem(httpx.get(f"{api.url}/health", headers={"Authorization": "Bearer x"}), 401)

    def test_no_route_answers_without_a_token_but_health(self, api: Api) -> None:
        document = api.http.get("/openapi.json").json()
        asked = 0
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                url = api.url + path.replace("{id}", "a").replace("{name}", "a")
                answer = httpx.request(method.upper(), url)
                if path == "/health":
                    assert operation["security"] == [{}, {"token": []}]
                else:
                    assert [*operation["security"][0]] == ["token"], path
                    assert_problem(answer, 401)
                asked += 1
        assert document["security"] == [{"token": []}]
        assert asked >= 12
        for path in ("/openapi.json", "/docs", "/redoc", "/", "/nowhere", "/health/", "//health", "/health/../stats"):
            assert httpx.get(api.url + path).status_code == 401, path


class TestHost:
    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:99", "[::1]:8321", "[::1]"])
    def test_names_of_this_machine_are_known(self, api: Api, host: str) -> None:
        assert api.http.get("/health", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8321", "localhost.evil.example", "10.0.0.1", "127.0.0.2"]
    )
    def test_a_rebound_name_is_refused_on_every_route(self, api: Api, host: str) -> None:
        assert_problem(api.http.get("/health", headers={"Host": host}), 421)
        assert_problem(api.http.post("/submit", json={}, headers={"Host": host}), 421)

    @pytest.mark.parametrize("host", ["", "user@localhost", "localhost:x", "local host", "[::1", "localhost/x"])
    def test_what_is_no_host_is_malformed(self, api: Api, host: str) -> None:
        assert b" 400 " in raw(api, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())

    @pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: localhost\r\n"])
    def test_there_is_exactly_one(self, api: Api, hosts: str) -> None:
        assert b" 400 " in raw(api, f"GET /health HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())

    def test_the_bound_name_is_known_beside_loopback(self) -> None:
        assert allowed_hosts("Box.example") == (frozenset({"localhost", "127.0.0.1", "::1", "box.example"}), False)
        names, any_address = allowed_hosts("0.0.0.0")
        assert any_address
        assert socket.gethostname().lower() in names

    def test_bound_to_all_addresses_any_address_is_known_but_no_foreign_name(self, api: Api, tmp_path: Path) -> None:
        app = create_app(api.store, Settings(home=tmp_path, host="0.0.0.0"), token=TOKEN)
        with running(app) as url:
            ask = {
                host: httpx.get(f"{url}/health", headers={"Host": host}).status_code
                for host in ("10.1.2.3:5", "evil.example")
            }
        assert ask == {"10.1.2.3:5": 200, "evil.example": 421}


class TestOrigin:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://", ""])
    def test_a_foreign_one_is_refused_on_every_method(self, api: Api, method: str, origin: str) -> None:
        answer = api.http.request(method, "/health", headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers

    def test_our_own_is_welcome(self, api: Api) -> None:
        assert api.http.get("/stats", headers={"Origin": api.url}).status_code == 200


class TestMediaType:
    @pytest.mark.parametrize(
        "given",
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=latin-1",
            "application/xml",
            "",
        ],
    )
    @pytest.mark.parametrize("path", ["/submit", "/submit/batch", "/tasks/a/cancel"])
    def test_only_json_is_read(self, api: Api, path: str, given: str) -> None:
        assert_problem(api.http.post(path, content=b"{}", headers={"Content-Type": given}), 415)

    def test_lines_are_for_batches(self, api: Api) -> None:
        answer = api.http.post("/submit", content=b"{}", headers={"Content-Type": "application/x-ndjson"})
        assert_problem(answer, 415)

    @pytest.mark.parametrize("given", ["application/json; charset=UTF-8", "Application/JSON"])
    def test_json_may_say_that_it_is_utf8(self, api: Api, given: str) -> None:
        assert api.http.post("/submit", content=b"{}", headers={"Content-Type": given}).status_code == 201

    def test_a_compressed_body_is_refused(self, api: Api) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert_problem(api.http.post("/submit", content=b"{}", headers=headers), 415)


class TestSize:
    def test_the_limit_is_exact(self, api: Api) -> None:
        body = b'{"name": "edge"}'
        assert api.http.post("/submit", content=body.ljust(SUBMIT_BYTES), headers=JSON).status_code == 201
        assert_problem(api.http.post("/submit", content=body.ljust(SUBMIT_BYTES + 1), headers=JSON), 413)

    def test_a_stream_of_unknown_length_is_cut_at_the_limit(self, api: Api) -> None:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(64):
                sent += MIB
                yield b" " * MIB

        assert_problem(api.http.post("/submit", content=endless(), headers=JSON), 413)
        assert sent < 64 * MIB

    def test_a_stated_length_is_refused_before_anything_is_read(self, api: Api) -> None:
        head = request_head(api, "POST /submit", f"Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n")
        answer = raw(api, head)  # not a byte of the body was sent
        assert b" 413 " in answer
        assert b"connection: close" in answer.lower()

    def test_no_body_of_an_intruder_is_read(self, api: Api) -> None:
        head = f"POST /submit/batch HTTP/1.1\r\nHost: {urlsplit(api.url).netloc}\r\nContent-Length: {1 << 30}\r\n\r\n"
        answer = raw(api, head.encode())
        assert b" 401 " in answer
        assert b"connection: close" in answer.lower()

    def test_half_a_request_harms_nobody(self, api: Api) -> None:
        before = api.store.stats()
        head = request_head(api, "POST /submit", "Content-Type: application/json\r\nContent-Length: 16\r\n")
        with connection(api) as half:
            half.sendall(head + b'{"name"')
        assert api.http.post("/submit", json={"id": "after-the-half"}).status_code == 201
        assert api.store.get("after-the-half")["name"] == "after-the-half"
        assert sum(api.store.stats()["states"].values()) == sum(before["states"].values()) + 1


class TestHeaders:
    @pytest.mark.parametrize("path", ["/health", "/stats", "/nowhere", "/tasks/none", "/tasks?limit=x"])
    def test_every_answer_is_inert(self, api: Api, path: str) -> None:
        headers = api.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-frame-options"] == "DENY"

    def test_so_is_the_answer_to_a_mistake_of_ours(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> dict[str, Any]:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(api.store, "stats", broken)
        with structlog.testing.capture_logs() as logged:
            answer = api.http.get("/stats")
        assert_problem(answer, 500)
        assert [entry["log_level"] for entry in logged] == ["error"]
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


class TestExposure:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "box.example"])
    def test_no_auth_is_refused_unless_loopback(self, api: Api, host: str, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="no_auth"):
            create_app(api.store, Settings(home=tmp_path, host=host, no_auth=True), token=None)

    def test_a_missing_token_is_not_no_auth(self, api: Api, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="token"):
            create_app(api.store, Settings(home=tmp_path), token=None)

    @pytest.mark.parametrize("token", ["", "a b", "ü"])
    def test_a_token_that_no_header_carries_is_refused(self, api: Api, token: str, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="token"):
            create_app(api.store, Settings(home=tmp_path), token=token)

    def test_without_authentication_the_origin_still_counts(self, api: Api, tmp_path: Path) -> None:
        app = create_app(api.store, Settings(home=tmp_path, no_auth=True), token=None)
        with running(app) as url:
            assert httpx.get(f"{url}/health").json()["database"] == "ok"
            assert httpx.post(f"{url}/submit", json={}, headers={"Origin": "http://evil.example"}).status_code == 403

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [("127.8.8.8", True), ("::1", True), ("LocalHost", True), ("0.0.0.0", False), ("h", False)],
    )
    def test_what_loopback_is(self, host: str, loopback: bool) -> None:
        assert is_loopback(host) is loopback


class TestTokenFile:
    def test_it_is_made_once_and_private(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        old = os.umask(0)
        try:
            token = load_or_create_token(home)
        finally:
            os.umask(old)
        assert load_or_create_token(home) == token
        assert len(token) >= 43
        assert stat.S_IMODE((home / "token").stat().st_mode) == 0o600
        assert [name for name in os.listdir(home) if "token" in name] == ["token"]

    def test_all_who_start_at_once_agree(self, tmp_path: Path) -> None:
        barrier = threading.Barrier(16)
        tokens: list[str] = []

        def start() -> None:
            barrier.wait(30)
            tokens.append(load_or_create_token(tmp_path))

        threads = [threading.Thread(target=start) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tokens) == 16
        assert len(set(tokens)) == 1

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
    def test_one_that_others_can_use_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "token"
        path.write_text("secret\n")
        path.chmod(mode)
        with pytest.raises(SettingsError, match="chmod 600"):
            load_or_create_token(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"\xff\xfe\n"])
    def test_one_without_a_token_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "token"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(SettingsError, match="printable ASCII"):
            load_or_create_token(tmp_path)

    def test_links_pipes_and_folders_are_refused(self, tmp_path: Path) -> None:
        link, pipe, folder = (tmp_path / name for name in ("link", "pipe", "folder"))
        for home in (link, pipe, folder):
            home.mkdir()
        (link / "token").symlink_to("/etc/hostname")
        os.mkfifo(pipe / "token", 0o600)
        (folder / "token").mkdir(0o700)
        for home in (link, pipe, folder):
            with pytest.raises(SettingsError, match="token"):
                load_or_create_token(home)


JSON = {"Content-Type": "application/json"}


def request_head(api: Api, line: str, headers: str) -> bytes:
    netloc = urlsplit(api.url).netloc
    return f"{line} HTTP/1.1\r\nHost: {netloc}\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n".encode()


def connection(api: Api) -> socket.socket:
    parts = urlsplit(api.url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def raw(api: Api, data: bytes) -> bytes:
    """All that comes back for `data`, until the server closes the connection."""
    received = b""
    with connection(api) as channel:
        channel.sendall(data)
        while chunk := channel.recv(65536):
            received += chunk
    return received
