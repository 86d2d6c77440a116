"""Pictures of a `profiler.csv`: for the terminal, and as one HTML page that needs no network.

`read` gives a `Profile`; `terminal` and `write_html` draw it.  Both thin out long profiles: a point then
stands for several seconds (the mean; of waits and run times the largest, so that no bad second hides).
Where the node was down, lines break.  Times are local.
"""

from __future__ import annotations

import csv
import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from pysched.errors import InputError
from pysched.profile_csv import COLUMNS

GAP_MS = 5_000  # rows come every second; a longer pause means that nobody was there to write
HTML_POINTS = 4_000
TERMINAL_ROWS = 9  # a panel

Column = Sequence["float | None"]

_TOTALS = frozenset({"submitted", "succeeded", "failed", "retried", "cancelled"})


@dataclass(frozen=True)
class Profile:
    """The columns of a profile, all of one length, by name; None is an empty cell."""

    path: Path
    columns: Mapping[str, Column]
    skipped: int = 0  # rows of the file that could not be read
    seconds: int = 1  # that a point stands for

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    @property
    def times(self) -> list[datetime]:
        return [datetime.fromtimestamp((ts or 0) / 1000).astimezone() for ts in self["ts_ms"]]

    def thinned(self, points: int) -> Profile:
        """At most about `points` points (and one a gap), with an empty row in each gap."""
        seconds = -(-len(self["ts_ms"]) // points)
        groups: list[range | None] = []
        for part in self._parts():
            if groups:
                groups.append(None)
            groups.extend(part[at : at + seconds] for at in range(0, len(part), seconds))
        columns = {name: self._merge(name, groups) for name in self.columns}
        return Profile(self.path, columns, self.skipped, seconds)

    def _parts(self) -> list[range]:
        """Rows without a gap between them."""
        ts = self["ts_ms"]
        starts = [i for i in range(len(ts)) if i == 0 or (ts[i] or 0) - (ts[i - 1] or 0) > GAP_MS]
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(ts)], strict=True)]

    def _merge(self, name: str, groups: Sequence[range | None]) -> list[float | None]:
        merge: Callable[[list[float]], float]
        if name == "ts_ms" or name in _TOTALS:
            merge = _last
        elif name.startswith(("wait_", "run_")):
            merge = max
        else:
            merge = _mean
        column = self[name]
        merged: list[float | None] = []
        for group in groups:
            if group is None:  # a gap: no values, at the time of the row before it
                merged.append(merged[-1] if name == "ts_ms" else None)
            else:
                known = [value for i in group if (value := column[i]) is not None]
                merged.append(merge(known) if known else None)
        return merged


def _last(values: list[float]) -> float:
    return values[-1]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def read(path: Path) -> Profile:
    """The profile in `path`.  Rows that cannot be read, such as a torn last line, are left out.

    Raises `InputError`: no such file, a file of other columns, or no row in it.
    """
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a node writes it while it runs: give its path, or --home") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it should be a profiler.csv") from None
    lines = text.split("\n")
    torn = lines.pop()  # what follows the last newline
    header = lines[0].rstrip("\r").split(",") if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path}: line 1 lacks {', '.join(missing)}; it should be a profiler.csv with its header")
    rows = [row for cells in csv.reader(lines[1:]) if (row := _numbers(cells, len(header))) is not None]
    rows = [row for row in rows if row[header.index("ts_ms")] is not None]
    if not rows:
        raise InputError(f"{path}: no row in it yet; a node adds one a second")
    columns = {name: [row[header.index(name)] for row in rows] for name in COLUMNS}
    return Profile(path, columns, len(lines) - 1 - len(rows) + bool(torn))


def _numbers(cells: list[str], width: int) -> list[float | None] | None:
    if len(cells) != width:
        return None
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return None


def terminal(profile: Profile, *, width: int = 80, colour: bool = False) -> str:
    """Three panels of text, `width` columns wide: throughput, waiting tasks by class, 95th percentile of the wait.

    Without `colour`, lines that share a panel are drawn in letters, so that they can be told apart.
    """
    seen = profile.thinned(max(20, (width - 10) * 2))  # two dots a column
    panel = partial(_panel, seen, width=width, colour=colour)
    parts = [
        panel("finished attempts a second", [("throughput", "", "braille")]),
        panel("waiting tasks", [("queued_high", "HIGH", "H"), ("queued_med", "MED", "M"), ("queued_low", "LOW", "L")]),
        panel("wait before the start, 95th percentile, ms", [("wait_p95_ms", "", "braille")]),
    ]
    return "\n".join([_summary(profile), "", *parts])


_COLOURS = ("red", "green", "blue")  # by name: the terminal's own shades fit its background
_ESCAPES = dict(zip(_COLOURS, ("\x1b[31m", "\x1b[32m", "\x1b[34m"), strict=True))


def _panel(profile: Profile, title: str, series: list[tuple[str, str, str]], *, width: int, colour: bool) -> str:
    """One plot under its heading; `series` gives (column, label, marker without colour)."""
    import plotext

    paints = _COLOURS if len(series) > 1 else ("green",)
    legend = [
        f"{_ESCAPES[paint]}━ {label}\x1b[0m" if colour else f"{plain} {label}"
        for (_, label, plain), paint in zip(series, paints, strict=False)
        if label
    ]
    heading = "  ".join([title, *legend])
    top = max((value for name, *_ in series for value in profile[name] if value is not None), default=None)
    if top is None:
        return f"{heading}\n     nothing measured yet\n"
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, TERMINAL_ROWS)
    ts = [value or 0.0 for value in profile["ts_ms"]]
    for (name, _, plain), paint in zip(series, paints, strict=False):
        known = [i for i, value in enumerate(profile[name]) if value is not None]
        marker = plotext.marker("braille", paint) if colour else plain
        signal = figure.signal([ts[i] for i in known], [profile[name][i] for i in known], marker=marker).lines()
        for at in range(1, len(known)):
            if known[at] != known[at - 1] + 1:
                signal.line(at, False)  # no line over what was not measured
        figure.draw(signal)
    figure.ruler("x").lim(ts[0], max(ts[-1], ts[0] + 1_000))
    figure.ruler("x").ticks(*_time_ticks(ts[0], ts[-1]))
    ceiling = max(top, 1.0)
    figure.ruler("y").lim(0, ceiling)
    figure.ruler("y").ticks([0, ceiling / 2, ceiling], [_short(value) for value in (0, ceiling / 2, ceiling)])
    text: str = figure.build().string(colorless=not colour)
    return "\n".join([heading, *(line.rstrip() for line in text.splitlines())]) + "\n"


def _time_ticks(first: float, last: float) -> tuple[list[float], list[str]]:
    shape = "%H:%M:%S" if last - first < 86_400_000 else "%m-%d %H:%M"
    count = 4 if last - first >= 3_000 else 1
    at = [first + (last - first) * i / 3 for i in range(count)]
    return at, [datetime.fromtimestamp(ms / 1000).astimezone().strftime(shape) for ms in at]


def _short(value: float) -> str:
    """At most six characters, right-aligned, so that all panels have the same margin."""
    for limit, divisor, unit in ((1e4, 1, ""), (1e7, 1e3, "k"), (1e10, 1e6, "M")):
        if value < limit:
            scaled = value / divisor
            return (
                f"{scaled:.0f}{unit}".rjust(6)
                if scaled >= 10 or scaled == int(scaled)
                else f"{scaled:.1f}{unit}".rjust(6)
            )
    return f"{value:.0e}".rjust(6)


def _summary(profile: Profile) -> str:
    times = profile.times
    first, last = times[0], times[-1]
    until = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
    totals = [
        f"{profile[name][-1]:,.0f} {name}"
        for name in ("submitted", "succeeded", "failed", "retried", "cancelled")
        if profile[name][-1]
    ]
    return f"{first:%Y-%m-%d %H:%M:%S} – {until} {last:%Z}: {', '.join(totals) or 'no task yet'}"


def write_html(profile: Profile, path: Path) -> None:
    """Write the page, about 5 MB, at once or not at all; the page holds all it needs."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(_page(profile), "utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write the page: {error.strerror}; name another place with --html") from None


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1400px; padding: 1rem; font: 15px/1.4 system-ui, sans-serif;
        color: #222; background: #fff }}
h1 {{ font-size: 1.3rem; margin: 0 0 .2rem .6rem }}
p {{ margin: 0 0 .2rem .6rem; color: #555 }}
</style>
<script>{script}</script>
</head>
<body>
<h1>pysched profile</h1>
<p>{summary}</p>
<p>{note}</p>
{plot}
</body>
</html>
"""


def _page(profile: Profile) -> str:
    from plotly.offline import get_plotlyjs

    seen = profile.thinned(HTML_POINTS)
    note = str(profile.path)
    if seen.seconds > 1:
        note += f" · each point stands for {seen.seconds} s: their mean, of wait and run times their largest"
    return _PAGE.format(
        title="pysched profile",
        script=get_plotlyjs(),
        summary=html.escape(_summary(profile)),
        note=html.escape(note),
        plot=_figure(seen),
    )


# Okabe and Ito's palette, which people with colour blindness can tell apart.
_VERMILION, _ORANGE, _SKY, _BLUE, _GREEN, _PURPLE, _BLACK = (
    "#d55e00", "#e69f00", "#56b4e9", "#0072b2", "#009e73", "#cc79a7", "#222222"
)  # fmt: skip

# (column, label, colour, factor, line)
_PANELS = (
    ("Finished attempts", "attempts / s", (("throughput", "throughput", _GREEN, 1, "area"),)),
    (
        "Waiting and running",
        "tasks",
        (
            ("queued_high", "HIGH waiting", _VERMILION, 1, "stack"),
            ("queued_med", "MED waiting", _ORANGE, 1, "stack"),
            ("queued_low", "LOW waiting", _SKY, 1, "stack"),
            ("running", "running", _BLACK, 1, "line"),
        ),
    ),
    (
        "Wait before the start, and run time",
        "seconds",
        (
            ("wait_p50_ms", "wait p50", _SKY, 0.001, "line"),
            ("wait_p95_ms", "wait p95", _BLUE, 0.001, "line"),
            ("wait_p99_ms", "wait p99", _BLACK, 0.001, "line"),
            ("run_p50_ms", "run p50", _ORANGE, 0.001, "dash"),
            ("run_p95_ms", "run p95", _VERMILION, 0.001, "dash"),
        ),
    ),
    (
        "Machine CPU, and memory of the node",
        "CPU %",
        (("cpu_pct", "CPU", _PURPLE, 1, "line"), ("rss_mb", "memory", _BLUE, 1, "second")),
    ),
)


def _figure(profile: Profile) -> str:
    """The four panels as a <div> with its script."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(_PANELS),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        subplot_titles=[title for title, _, _ in _PANELS],
        specs=[[{"secondary_y": row == len(_PANELS) - 1}] for row in range(len(_PANELS))],
    )
    times = [time.strftime("%Y-%m-%d %H:%M:%S.%f") for time in profile.times]
    for row, (_, unit, series) in enumerate(_PANELS, start=1):
        legend = "legend" if row == 1 else f"legend{row}"
        for name, label, colour, factor, style in series:
            figure.add_scatter(
                x=times,
                y=[None if value is None else round(value * factor, 4) for value in profile[name]],
                name=label,
                mode="lines",
                line={"color": colour, "width": 1.5, "dash": "dot" if style == "dash" else "solid"},
                fill="tozeroy" if style == "area" else None,
                stackgroup="waiting" if style == "stack" else None,
                legend=legend,
                row=row,
                col=1,
                secondary_y=(style == "second") if row == len(_PANELS) else None,
            )
        domain = figure.layout["yaxis" if row == 1 else f"yaxis{row}"].domain
        place = {"y": domain[1], "yanchor": "bottom", "x": figure.layout.xaxis.domain[1], "xanchor": "right"}
        figure.update_layout({legend: {**place, "orientation": "h", "traceorder": "normal"}})
        figure.update_yaxes(title_text=unit, rangemode="tozero", row=row, col=1, secondary_y=False)
    figure.update_yaxes(range=[0, 100], row=len(_PANELS), col=1, secondary_y=False)
    memory = {"title_text": "MiB", "showgrid": False, "tickmode": "auto", "tickformat": ",d"}
    figure.update_yaxes(**memory, rangemode="tozero", row=len(_PANELS), col=1, secondary_y=True)
    figure.update_xaxes(title_text=f"local time ({profile.times[-1]:%Z})", row=len(_PANELS), col=1)
    figure.update_xaxes(showticklabels=True, tickformat="%H:%M:%S\n%Y-%m-%d")
    figure.update_annotations(x=0, xanchor="left", font={"size": 15})
    figure.update_layout(
        template="plotly_white",
        height=260 * len(_PANELS),
        margin={"l": 70, "r": 70, "t": 50, "b": 60},
        hovermode="x unified",
    )
    # The bundled script would offer to upload the figure to its maker's servers: not from here.
    config = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
