"""How a client finds its server and its token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pysched.discovery import discover
from pysched.errors import SettingsError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment and no home of the person who runs the tests."""
    for name in ("PYSCHED_URL", "PYSCHED_TOKEN", "PYSCHED_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pysched.discovery.default_home", lambda: tmp_path / "default-home")


class TestDiscovery:
    @staticmethod
    def home(path: Path, *, url: str | None = None, token: str | None = None) -> Path:
        path.mkdir()
        if url:
            (path / "api.json").write_text(json.dumps({"url": url, "pid": 1}))
        if token:
            (path / "token").write_text(token + "\n")
        return path

    def test_nothing_is_known(self) -> None:
        address = discover()
        assert (address.url, address.token) == ("http://127.0.0.1:8321", None)

    def test_the_default_home_says_where(self, tmp_path: Path) -> None:
        self.home(tmp_path / "default-home", url="http://127.0.0.1:9", token="t")
        address = discover()
        assert (address.url, address.token) == ("http://127.0.0.1:9", "t")

    def test_arguments_before_environment_before_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = self.home(tmp_path / "home", url="http://h:1", token="home")
        monkeypatch.setenv("PYSCHED_HOME", str(home))
        assert discover() == discover(home=home)
        assert (discover().url, discover().token) == ("http://h:1", "home")
        monkeypatch.setenv("PYSCHED_URL", "http://e:1/")
        monkeypatch.setenv("PYSCHED_TOKEN", "env")
        assert (discover().url, discover().token) == ("http://e:1", "env")
        assert (discover(url="http://a:1").url, discover(token="arg").token) == ("http://a:1", "arg")

    def test_the_default_homes_token_stays_on_this_machine(self, tmp_path: Path) -> None:
        self.home(tmp_path / "default-home", url="http://10.0.0.1:5", token="t")
        assert discover(url="http://elsewhere:8321").token is None
        assert discover(url="http://127.0.0.1:7").token == "t"
        assert discover(url="http://[::1]:7").token == "t"
        assert discover(url="http://10.0.0.1:5").token == "t"

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"url": 5}'])
    def test_a_broken_address_file_is_as_none(self, tmp_path: Path, content: str) -> None:
        home = self.home(tmp_path / "home")
        (home / "api.json").write_text(content)
        assert discover(home=home).url == "http://127.0.0.1:8321"

    @pytest.mark.parametrize("url", ["localhost:8321", "ftp://a", "http://", "http://a:b", "http://[x"])
    def test_a_url_that_is_none_is_one_line(self, url: str) -> None:
        with pytest.raises(SettingsError, match="write http://HOST:PORT"):
            discover(url=url)

    @pytest.mark.parametrize("token", ["a b", "ü", "a\nb"])
    def test_a_token_that_no_header_carries(self, token: str) -> None:
        with pytest.raises(SettingsError, match="token"):
            discover(token=token)

    def test_the_token_is_not_in_the_repr(self) -> None:
        assert "secret" not in repr(discover(token="secret"))
