"""Tables: aligned, cut to the terminal, and never moved by what a name holds."""

from __future__ import annotations

from pysched.cli import table
from pysched.cli.table import Cell, Column


def test_columns_line_up() -> None:
    columns = [Column("ID"), Column("N", right=True)]
    assert list(table.lines(columns, [["a", "1"], ["bcd", "200"]], width=None, colour=False)) == [
        "ID     N", "a      1", "bcd  200",
    ]  # fmt: skip


def test_the_widest_gives_way_and_the_end_is_marked() -> None:
    columns = [Column("ID"), Column("NAME", shrinks=True, least=4), Column("WHY", shrinks=True, least=4)]
    rows = [["12345678", "x" * 30, "y" * 12]]
    lines = list(table.lines(columns, rows, width=30, colour=False))
    assert lines[1] == "12345678  xxxxxxxx…  yyyyyyyy…"
    assert max(map(len, lines)) == 30
    assert list(table.lines(columns, rows, width=None, colour=False))[1] == f"12345678  {'x' * 30}  {'y' * 12}"


def test_too_narrow_is_too_narrow() -> None:
    line = list(
        table.lines([Column("A"), Column("B", shrinks=True, least=4)], [["1234", "56789"]], width=3, colour=False)
    )
    assert line[1] == "1234  567…"


def test_colours_take_no_room() -> None:
    rows: list[list[Cell | str]] = [[Cell("ok", "green"), "x"], ["failed", "y"]]
    lines = list(table.lines([Column("S"), Column("T")], rows, width=None, colour=True))
    assert lines[1:] == ["\x1b[32mok\x1b[0m      x", "failed  y"]


def test_wide_and_combining_characters_are_counted_as_they_are_drawn() -> None:
    assert table.width_of("日本") == 4
    assert table.width_of("e\u0301") == 1
    assert table.cut("日本語", 5) == "日本…"
    assert table.cut("日本語", 4) == "日…"
    columns = [Column("N"), Column("S")]
    (_, *lines) = table.lines(columns, [["日本", "a"], ["xy", "b"]], width=None, colour=False)
    assert lines == ["日本  a", "xy    b"]


def test_a_name_cannot_write_to_the_terminal() -> None:
    (_, line) = table.lines([Column("N")], [["a\x1b[2Jb\nc\u009bd\te"]], width=None, colour=False)
    assert line == "a·[2Jb·c·d·e"
