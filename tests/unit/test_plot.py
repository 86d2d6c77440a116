"""Pictures of a profile: what is read, how long profiles are thinned, and what the pictures hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pysched import plot
from pysched.cli.plot import command
from pysched.errors import InputError
from pysched.profile_csv import COLUMNS, HEADER

START_MS = 1_790_000_000_000


def line(second: int, **cells: object) -> str:
    given = {"ts_ms": START_MS + second * 1000, "throughput": 1.0, "submitted": 50, "succeeded": second, **cells}
    return ",".join(str(given.get(name, "")) for name in COLUMNS) + "\n"


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join([f"{HEADER}\n", *lines]))
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    cells = {
        "queued_high": 1,
        "queued_med": 20,
        "queued_low": 30,
        "running": 8,
        "failed": 2,
        "cpu_pct": 50.5,
        "rss_mb": 70,
    }
    waits = {"wait_p50_ms": 100, "wait_p95_ms": 4321, "wait_p99_ms": 5000, "run_p50_ms": 10, "run_p95_ms": 20}
    return write(tmp_path / "profiler.csv", *(line(s, **cells, **(waits if s != 3 else {})) for s in range(10)))


def test_reads_the_columns(csv: Path) -> None:
    profile = plot.read(csv)
    assert list(profile["ts_ms"]) == [START_MS + s * 1000 for s in range(10)]
    assert profile["wait_p95_ms"][2:5] == [4321, None, 4321]
    assert profile.skipped == 0


@pytest.mark.parametrize("torn", ["17", line(10)[:-1], line(10)[:-6], f"{START_MS},x"])
def test_leaves_out_a_torn_last_line(csv: Path, torn: str) -> None:
    """Even one that has all its commas: its last number may lack digits."""
    with csv.open("a") as file:
        file.write(torn)
    profile = plot.read(csv)
    assert len(profile["ts_ms"]) == 10
    assert profile.skipped == 1


def test_leaves_out_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", line(0), "1,2,3\n", line(1, running="many"), "\n", line(2, ts_ms=""), line(3))
    profile = plot.read(path)
    assert list(profile["ts_ms"]) == [START_MS, START_MS + 3000]


def test_reads_columns_by_name(tmp_path: Path) -> None:
    """A later version may add columns."""
    path = tmp_path / "p.csv"
    path.write_text(f"new,{HEADER}\n7,{line(0)}")
    assert plot.read(path)["throughput"] == [1.0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "line 1 lacks ts_ms, throughput"),
        ("a,b\n1,2\n", "line 1 lacks ts_ms"),
        (HEADER.replace(",rss_mb", "") + "\n", "line 1 lacks rss_mb; it should be a profiler.csv"),
        (f"{HEADER}\n", "no row in it yet"),
        (f"{HEADER}\n123", "no row in it yet"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "profiler.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=re.escape(says)):
        plot.read(path)
    with pytest.raises(InputError, match=r"it should be a profiler\.csv"):
        plot.read(tmp_path)


def test_thinning_hides_no_bad_second(tmp_path: Path) -> None:
    lines = [line(s, throughput=float(s % 2), wait_p95_ms=9000 if s == 55 else 10) for s in range(100)]
    thin = plot.read(write(tmp_path / "p.csv", *lines)).thinned(10)
    assert thin.seconds == 10
    assert list(thin["throughput"]) == [0.5] * 10  # the mean
    assert list(thin["wait_p95_ms"]) == [10, 10, 10, 10, 10, 9000, 10, 10, 10, 10]  # the largest
    assert list(thin["succeeded"]) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]  # the last
    assert thin["ts_ms"][-1] == START_MS + 99_000


def test_lines_break_where_the_node_was_down(tmp_path: Path) -> None:
    thin = plot.read(write(tmp_path / "p.csv", line(0), line(1), line(100), line(101))).thinned(1000)
    assert thin["throughput"] == [1, 1, None, 1, 1]
    assert [(ts or 0) - START_MS for ts in thin["ts_ms"]] == [0, 1000, 1000, 100_000, 101_000]


def test_the_terminal_plot_fits_and_has_no_colour(csv: Path) -> None:
    text = plot.terminal(plot.read(csv), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "50 submitted, 9 succeeded, 2 failed" in text
    for title in ("finished attempts a second", "waiting tasks  H HIGH  M MED  L LOW", "wait before the start"):
        assert title in text
    assert "4321┤" in text
    assert text.count("┌") == 3


def test_the_terminal_plot_in_colour(csv: Path) -> None:
    coloured = plot.terminal(plot.read(csv), width=80, colour=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert plain != coloured
    assert max(map(len, plain.splitlines())) <= 80
    assert "\x1b[48;" not in coloured  # the terminal keeps its own background


def test_a_panel_without_data_says_so(tmp_path: Path) -> None:
    text = plot.terminal(plot.read(write(tmp_path / "p.csv", line(0))))
    assert text.count("nothing measured yet") == 2  # queue and wait; throughput is there
    assert text.count("┌") == 1


def test_the_page_needs_no_network_and_offers_no_upload(csv: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    plot.write_html(plot.read(csv), page)
    text = page.read_text("utf-8")
    own = re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.DOTALL)  # without the bundled library
    assert len(own) < len(text) / 100
    assert not re.search(r"""(src|href)\s*=|@import|url\(|https?://""", own)
    assert '"showSendToCloud": false' in own
    for name in (
        "throughput",
        "HIGH waiting",
        "MED waiting",
        "LOW waiting",
        "running",
        "wait p95",
        "run p50",
        "CPU",
        "memory",
    ):
        assert f'"name":"{name}"' in own
    assert set(os.listdir(tmp_path)) == {"profiler.csv", "page.html"}


def test_the_page_escapes_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "<b>x&y"
    folder.mkdir()
    page = tmp_path / "page.html"
    plot.write_html(plot.read(write(folder / "p.csv", line(0))), page)
    assert "&lt;b&gt;x&amp;y/p.csv" in page.read_text("utf-8")


def test_a_place_where_no_page_can_be(csv: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "nowhere" / "page.html", tmp_path / "folder"):
        with pytest.raises(InputError, match="cannot write the page"):
            plot.write_html(plot.read(csv), place)
    assert set(os.listdir(tmp_path)) == {"profiler.csv", "folder"}


def test_the_command_draws_and_writes_beside_the_csv(csv: Path) -> None:
    result = CliRunner().invoke(command, [str(csv)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "finished attempts a second" in result.output
    assert "\x1b" not in result.output
    page = csv.with_suffix(".html")
    assert result.output.splitlines()[-1] == str(page)
    assert page.stat().st_size > 1_000_000


def test_the_command_finds_the_profile_of_a_home(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--terminal", "--home", str(csv.parent)], ["--terminal"]):
        monkeypatch.setenv("PYSCHED_HOME", str(csv.parent))
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert "50 submitted" in result.output
    assert os.listdir(csv.parent) == ["profiler.csv"]


def test_the_command_writes_where_it_is_told(csv: Path) -> None:
    page = csv.with_name("other.html")
    CliRunner().invoke(command, [str(csv), "--html", str(page)], catch_exceptions=False)
    assert set(os.listdir(csv.parent)) == {"profiler.csv", "other.html"}


def test_contradictory_options(csv: Path) -> None:
    result = CliRunner().invoke(command, [str(csv), "--html", "x.html", "--terminal"])
    assert result.exit_code == 2


def test_the_command_line_tells_of_a_missing_file_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pysched.cli", "plot", str(tmp_path / "none.csv")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "none.csv: no such file; " in done.stderr
