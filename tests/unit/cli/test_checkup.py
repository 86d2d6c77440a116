"""What `scheduler doctor` sees, and that each finding names what mends it."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from pysched import delegation
from pysched.cli import checkup
from pysched.cli.checkup import Finding
from tests.command_line import CommandLine


def examine(home: Path, database: str | None = None) -> dict[str, Finding]:
    found = checkup.examine({"home": home, "url": "http://127.0.0.1:1", "token": None}, database, 1)
    assert len({each.check for each in found}) == len(found)
    for each in found:
        assert each.level in {"ok", "warn", "fail"}
        assert bool(each.mend) == (each.level != "ok")
        assert "\n" not in each.found + each.mend
    return {each.check: each for each in found}


def test_a_machine_on_which_it_works(tmp_path: Path) -> None:
    found = examine(tmp_path / "new" / "home")
    assert found["native core"].level == "ok"
    assert found["database"].level == "ok"
    assert found["home"].level in {"ok", "warn"}  # as the disk is
    assert "will be made" in found["home"].found or found["home"].level == "warn"
    assert found["token"].found == "none yet; the first start makes it"
    assert (found["server"].level, found["server"].mend) == ("warn", "scheduler up")
    assert not (tmp_path / "new").exists()


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    token = tmp_path / "a token" / "token"
    token.parent.mkdir()
    token.write_text("secret\n")
    for mode in (0o644, 0o640, 0o604):
        token.chmod(mode)
        found = examine(token.parent)["token"]
        assert (found.level, found.mend) == ("fail", f"chmod 600 '{token}'")
        assert "secret" not in found.found
    token.chmod(0o600)
    assert examine(token.parent)["token"].level == "ok"
    token.write_text("\n")
    assert "is empty" in examine(token.parent)["token"].found


def test_a_home_that_others_can_write(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    found = examine(home)["home"]
    assert found.level == "warn"
    assert found.mend.startswith(("chmod go-w", "du "))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    found = examine(tmp_path / "home")["home"]
    tmp_path.chmod(0o700)
    assert found.level == "fail"
    assert found.mend.startswith("sudo chown")


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    assert examine(tmp_path / "home" / "below")["home"].level == "fail"


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    found = examine(tmp_path, "postgresql://u:secret@127.0.0.1:1/d")["database"]
    assert (found.level, found.mend) == ("fail", "pg_isready -h 127.0.0.1")
    assert "secret" not in found.found


def test_a_database_that_answers(tmp_path: Path, database_url: str) -> None:
    assert "answers, up to" in examine(tmp_path, database_url)["database"].found


def test_limits_that_are_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, resource.RLIM_INFINITY))
    found = {each.check: each for each in checkup._limits(1000)}
    assert found["open files"].mend == "ulimit -n 4256"
    assert found["processes"].mend == "ulimit -u 8000"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    found = {each.check: each for each in checkup._limits(1000)}
    assert "limits.conf" in found["open files"].mend


def test_who_ends_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise delegation.NotDelegated("it is not ours")

    monkeypatch.setattr(delegation, "check", lambda: Path("/sys/fs/cgroup/x"))
    found = examine(tmp_path)["killing"]
    assert (found.level, "/sys/fs/cgroup/x" in found.found) == ("ok", True)
    monkeypatch.setattr(delegation, "check", refuse)
    found = examine(tmp_path)["killing"]
    assert (found.level, "it is not ours" in found.found) == ("warn", True)
    assert "Delegate=yes" in found.mend
    (tmp_path / "pysched.toml").write_text('cgroup = "off"\n')
    assert examine(tmp_path)["killing"].level == "ok"


def test_a_settings_file_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "pysched.toml").write_text("wrokers = 3\n")
    (found,) = checkup.examine({"home": tmp_path, "url": None, "token": None}, None, 1)
    assert found.level == "fail"
    assert "wrokers" in found.found


def test_the_command(scheduler: CommandLine, tmp_path: Path) -> None:
    words = ["doctor", "--home", str(tmp_path), "--url", "http://127.0.0.1:1"]
    done = scheduler(*words)
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("ok    native core  ")
    assert "mend it: scheduler up" in done.out
    document = json.loads(scheduler(*words, "-o", "json").out)
    assert document["version"] == 1
    assert document["findings"][0]["check"] == "native core"
    assert "warn server" in scheduler(*words, "-q").out
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o644)
    assert scheduler(*words).code == 1


def test_how_memory_limits_are_kept_and_whether_pressure_is_known(tmp_path: Path) -> None:
    assert "KILL" in examine(tmp_path)["memory limits"].found
    home, folder = tmp_path / "home", tmp_path / "pressed"
    home.mkdir()
    folder.mkdir()
    (home / "pysched.toml").write_text(f'pressure = "{folder}"\n')
    assert examine(home)["pressure"].level == "warn"
    (folder / "memory").write_text("some avg10=12.00 avg60=0.00 avg300=0.00 total=1\n")
    found = examine(home)["pressure"]
    assert (found.level, "memory 12%" in found.found) == ("ok", True)
    (home / "pysched.toml").write_text("memory_pressure = 0\ncpu_pressure = 0\n")
    assert "is not looked at" in examine(home)["pressure"].found
