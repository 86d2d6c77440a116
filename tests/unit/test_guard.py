"""The guard without a node: what it tells a node, how it locks its home, what it weighs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pysched.errors import HomeInUse
from pysched.guard import Link
from pysched.home import Home


@pytest.mark.parametrize("crashed_ns", [None, 12])
def test_a_node_reads_what_its_guard_says(crashed_ns: int | None) -> None:
    link = Link(pid=7, token=bytes(range(16)), bell=3, ready=4, crashed_ns=crashed_ns)
    assert Link.from_text(str(link), 7) == link


def test_a_home_has_one_guard_which_can_be_found(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.guard_pid() is None
    holds = (
        "import sys; from pathlib import Path; from pysched.home import Home\n"
        f"with Home(Path({str(tmp_path)!r})).guarded(): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert home.guard_pid() == other.pid
        with pytest.raises(HomeInUse, match=f"pid {other.pid}"), home.guarded():
            pass
        other.communicate()
    assert home.guard_pid() is None
    with home.guarded():
        pass


def test_it_weighs_little() -> None:
    """What it imports before anything goes wrong."""
    heavy = ["psycopg", "pydantic", "fastapi", "numpy", "structlog", "psutil"]
    script = f"import sys, pysched.cli.run, pysched.guard; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
