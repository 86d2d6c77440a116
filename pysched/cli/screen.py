"""What `scheduler top` shows, as a function of what is known: no terminal, no server, no clock here.

::

             ┌──────── q ────────► (end)
    list ────┼─ enter ─► logs ── esc ─► list
             ├─ c, r ──► asked ─ y ───► act, list
             │                 └ other ► list
             └─ tab ───► list of the next kind
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pysched.cli import table, units
from pysched.cli.ls import elapsed, shortened, waited, why
from pysched.cli.session import styled
from pysched.cli.table import Cell, Column, cut, paint, printable

if TYPE_CHECKING:
    from pysched.client.results import Node, Stats, TaskSummary

VIEWS: Mapping[str, Sequence[str]] = {
    "running": ("running",),
    "waiting": ("queued", "scheduled", "blocked"),
    "failed": ("failed",),
    "all": (),
}
_BARS = "▁▂▃▄▅▆▇█"
_SAMPLES = 40
_NODES_SHOWN = 4
_LOG_LINES = 2000
_HELP = {
    "list": "↑↓ choose  enter logs  e explain  c cancel  r retry  p pause/resume  tab view  q quit",
    "logs": "esc back  s stdout/stderr  ↑↓ scroll  end follow  q quit",
    "asked": "y yes  any other key no",
}
_TASKS = [
    Column(" "), Column("ID"), Column("NAME", shrinks=True, least=10), Column("STATUS"), Column("PRI"),
    Column("WAIT", right=True), Column("TIME", right=True), Column("TRIES", right=True), Column("NODE"),
    Column("WHY", shrinks=True),
]  # fmt: skip


@dataclass(slots=True)
class Log:
    """The log that is looked at."""

    task_id: str
    name: str
    stream: str = "stdout"
    offset: int = 0
    attempt: int = 0
    rest: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    up: int = 0  # lines scrolled back from the end

    def take(self, data: bytes, offset: int, attempt: int) -> None:
        """The next bytes; another attempt begins anew."""
        if attempt != self.attempt:
            self.lines.clear()
            self.rest, self.attempt = "", attempt
        *lines, self.rest = (self.rest + data.decode("utf-8", "replace")).split("\n")
        self.lines.extend(lines)
        self.offset = offset


@dataclass(slots=True)
class Screen:
    """Everything that `top` knows."""

    url: str
    stats: Stats | None = None
    nodes: Sequence[Node] = ()
    tasks: Sequence[TaskSummary] = ()
    more: bool = False
    view: str = "running"
    mode: str = "list"
    chosen: str | None = None  # id of the task under the cursor
    question: str = ""
    action: str = ""  # what a yes does
    message: str = ""  # of the last action, or of what went wrong
    bad: bool = False  # the message is an error
    log: Log | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    _ended: tuple[float, int] | None = None

    def take(self, stats: Stats, nodes: Sequence[Node], tasks: Sequence[TaskSummary], more: bool, at_s: float) -> None:
        """A new look at the server, at `at_s` of a clock that only runs forward."""
        ended = sum(stats["states"].get(state, 0) for state in ("succeeded", "failed", "cancelled"))
        if self._ended is not None and at_s > self._ended[0]:
            self.rates.append(max(0, ended - self._ended[1]) / (at_s - self._ended[0]))
        self._ended = (at_s, ended)
        self.stats, self.nodes, self.tasks, self.more = stats, nodes, tasks, more
        ids = [task["id"] for task in tasks]
        if self.chosen not in ids:
            self.chosen = ids[0] if ids else None

    def say(self, message: str, *, bad: bool = False) -> None:
        self.message, self.bad = message, bad

    def press(self, key: str) -> str:
        """React to a key; what is left to do by whoever has the server: '' or quit, look, act, explain, pause."""
        if key == "q" and self.mode != "asked":
            return "quit"
        return {"list": self._press_in_list, "logs": self._press_in_logs, "asked": self._press_asked}[self.mode](key)

    def _press_in_list(self, key: str) -> str:
        self.say("")
        if key in {"up", "down", "k", "j", "home", "end", "pageup", "pagedown"}:
            self._move(key)
        elif key == "tab":
            names = list(VIEWS)
            self.view = names[(names.index(self.view) + 1) % len(names)]
            return "look"
        elif key == "p":
            return "pause"
        elif self.chosen is None:
            if key in {"enter", "l", "c", "r", "e"}:
                self.say("no task is chosen")
        elif key in {"enter", "l"}:
            name = next(task["name"] for task in self.tasks if task["id"] == self.chosen)
            self.mode, self.log = "logs", Log(self.chosen, name)
            return "look"
        elif key == "e":
            return "explain"
        elif key in {"c", "r"}:
            self.action = "cancel" if key == "c" else "retry"
            self.mode, self.question = "asked", f"{self.action} {shortened(self.chosen)}?"
        return ""

    def _press_in_logs(self, key: str) -> str:
        log = self.log
        if key in {"esc", "left", "backspace"} or log is None:
            self.mode, self.log = "list", None
        elif key == "s":
            self.log = Log(log.task_id, log.name, "stderr" if log.stream == "stdout" else "stdout")
            return "look"
        elif key in {"up", "k", "pageup"}:
            log.up = min(max(0, len(log.lines) - 1), log.up + (10 if key == "pageup" else 1))
        elif key in {"down", "j", "pagedown"}:
            log.up = max(0, log.up - (10 if key == "pagedown" else 1))
        elif key == "end":
            log.up = 0
        return ""

    def _press_asked(self, key: str) -> str:
        self.mode, self.question = "list", ""
        return "act" if key == "y" else ""

    def _move(self, key: str) -> None:
        ids = [task["id"] for task in self.tasks]
        if not ids:
            return
        here = ids.index(self.chosen) if self.chosen in ids else 0
        step = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -10, "pagedown": 10, "home": -len(ids)}.get(
            key, len(ids)
        )
        self.chosen = ids[max(0, min(len(ids) - 1, here + step))]


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────


def render(screen: Screen, now: datetime, width: int, height: int, *, colour: bool) -> list[str]:
    """Exactly `height` lines of at most `width` cells."""
    head = [*_head(screen, now, width, colour), ""]
    foot = _foot(screen, width, colour)
    room = max(0, height - len(head) - len(foot))
    body = _log(screen, width, room, colour) if screen.log is not None else _tasks(screen, now, width, room, colour)
    lines = [*head, *(body + [""] * room)[:room], *foot]
    return lines[:height]


def _head(screen: Screen, now: datetime, width: int, colour: bool) -> list[str]:
    def bold(text: str) -> str:
        return paint(text, "bold", colour=colour)

    clock = now.astimezone().strftime("%H:%M:%S")
    title = f"pysched  {screen.url}"
    lines = [
        bold(cut(title, width - 10)) + " " * max(1, width - table.width_of(cut(title, width - 10)) - len(clock)) + clock
    ]
    stats = screen.stats
    if stats is None:
        return lines
    states = stats["states"]
    depths = stats["priorities"].get("queued", {})
    workers = sum(units.allowed(node) for node in screen.nodes)
    parts = [
        f"running {states.get('running', 0)}/{workers}",
        "queued " + " ".join(f"{name} {depths.get(name, 0):,}" for name in ("HIGH", "MED", "LOW")),
        f"scheduled {states.get('scheduled', 0):,}",
        f"blocked {states.get('blocked', 0):,}",
    ]
    lines.append(cut("  ".join(parts), width))
    ended = [f"{states.get(state, 0):,} {state}" for state in ("succeeded", "failed", "cancelled")]
    rate = screen.rates[-1] if screen.rates else 0.0
    line = f"{'  '.join(ended)}  {_rate(rate)}  "
    lines.append(cut(line + _spark(screen.rates, min(_SAMPLES, width - len(line))), width))
    if stats["paused"]:
        lines.append(paint(cut("PAUSED: nothing starts until you press p", width), "yellow", colour=colour))
    lines += _nodes(screen, width, now, colour)
    return lines


def standing(node: Node) -> Cell:
    """Whether it takes tasks, and as many as it has workers for."""
    if node["draining"]:
        return Cell("draining", "yellow")
    lacks = units.short_of(node)
    return Cell("ready", "green") if lacks is None else Cell(f"short of {lacks}", "yellow")


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second * 60:,.0f}/min"


def _spark(rates: Sequence[float], room: int) -> str:
    shown = list(rates)[-room:] if room > 0 else []
    top = max(shown, default=0.0)
    return "".join(_BARS[min(7, int(rate / top * 7.999))] if top else _BARS[0] for rate in shown)


def _nodes(screen: Screen, width: int, now: datetime, colour: bool) -> list[str]:
    if not screen.nodes:
        return [paint(cut("no node is running: nothing starts", width), "yellow", colour=colour)]
    columns = [
        Column("NODE"), Column("HOST", shrinks=True), Column("BUSY"), Column("CPUS", right=True),
        Column("MEM", right=True), Column("GPUS", right=True), Column("LANES", right=True),
        Column("UP", right=True), Column("STATE"),
    ]  # fmt: skip
    busiest = sorted(screen.nodes, key=lambda node: -node["running"])
    rows: list[list[Cell | str]] = []
    for node in busiest[:_NODES_SHOWN]:
        share = min(1.0, node["running"] / max(1, units.allowed(node)))
        bar = "█" * round(share * 10)
        up = units.duration(max(0.0, (now - units.moment(node["started_at"])).total_seconds()))
        busy = f"{bar:·<10} {node['running']}/{units.allowed(node)}"
        identity: list[Cell | str] = [node["incarnation"][:8], node["host"], Cell(busy, "cyan")]
        rows.append([*identity, *units.resources(node), str(node["lanes"]), up, standing(node)])
    lines = list(table.lines(columns, rows, width=width, colour=colour))
    if len(busiest) > _NODES_SHOWN:
        lines.append(f"and {len(busiest) - _NODES_SHOWN} more nodes")
    return ["", *lines]


def _tasks(screen: Screen, now: datetime, width: int, room: int, colour: bool) -> list[str]:
    tabs = "  ".join(f"[{name}]" if name == screen.view else f" {name} " for name in VIEWS)
    lines = [paint(cut(tabs, width), "bold", colour=colour)]
    if not screen.tasks:
        return [*lines, paint("nothing here", "dim", colour=colour)]
    ids = [task["id"] for task in screen.tasks]
    place = ids.index(screen.chosen) if screen.chosen in ids else 0
    visible = max(1, room - 3)
    first = max(0, min(place - visible // 2, len(ids) - visible))
    rows: list[list[Cell | str]] = []
    for task in screen.tasks[first : first + visible]:
        at = task["id"] == screen.chosen
        row: list[Cell | str] = [
            Cell("▶" if at else " ", "bold"), Cell(shortened(task["id"]), "bold" if at else ""), task["name"],
            styled(task["status"]), task["priority"], waited(task, now), elapsed(task, now), str(task["attempts"]),
            (task["node"] or "-")[:8], why(task, now),
        ]  # fmt: skip
        rows.append(row)
    lines += table.lines(_TASKS, rows, width=width, colour=colour)
    hidden = len(ids) - len(rows)
    if hidden > 0 or screen.more:
        lines.append(paint(f"{first + len(rows)} of {len(ids)}{'+' if screen.more else ''}", "dim", colour=colour))
    return lines


def _log(screen: Screen, width: int, room: int, colour: bool) -> list[str]:
    log = screen.log
    assert log is not None  # noqa: S101 - who calls has looked
    attempt = f", attempt {log.attempt}" if log.attempt else ""
    title = f"{log.stream} of {shortened(log.task_id)} {printable(log.name)}{attempt}"
    lines = [*log.lines, *([log.rest] if log.rest else [])]
    end = len(lines) - log.up
    shown = [cut(printable(line.expandtabs()), width) for line in lines[max(0, end - max(0, room - 1)) : end]]
    return [paint(cut(title, width), "bold", colour=colour), *(shown or [paint("nothing yet", "dim", colour=colour)])]


def _foot(screen: Screen, width: int, colour: bool) -> list[str]:
    text = screen.question or screen.message
    style = "yellow" if screen.question else "red" if screen.bad else ""
    return [
        paint(cut(printable(text), width), style, colour=colour),
        paint(cut(_HELP[screen.mode], width), "dim", colour=colour),
    ]
