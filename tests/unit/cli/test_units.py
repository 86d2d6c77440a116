"""Durations, moments and sizes as people write and read them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pysched.cli import units

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("2h30m", 9000), ("1.5d", 129_600), ("200ms", 0.2), ("1w", 604_800), ("0", 0),
        (" 5 min ", 300), ("2 hours 5 minutes", 7500), ("1H", 3600),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "h", "-5s", "5x", "1h 30", "30 1h", "1h-2m", "5s!", "1e3", "five"])
def test_what_is_no_duration_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="as in 90s or 2h30m"):
        units.parse_duration(text)


def test_moments() -> None:
    assert units.parse_moment("2h", NOW) == NOW - timedelta(hours=2)
    assert units.parse_moment("2026-11-24T10:00:00Z", NOW) == datetime(2026, 11, 24, 10, tzinfo=timezone.utc)
    assert units.parse_moment("2026-11-24T10:00+02:00", NOW) == datetime(2026, 11, 24, 8, tzinfo=timezone.utc)
    assert units.parse_moment("2026-11-24", NOW) == datetime(2026, 11, 24).astimezone()
    for wrong in ("yesterday", "2026-13-01", "1e9w", "9999999999999w"):
        with pytest.raises(ValueError, match="how long ago"):
            units.parse_moment(wrong, NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"), (0.0851, "85ms"), (0.0996, "0.1s"), (4.24, "4.2s"), (59.96, "1m00"), (723, "12m03"),
        (3599.6, "1h00"), (12_000, "3h20"), (172_799, "47h59"), (172_800, "2d00"), (532_800, "6d04"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (812, "812B"), (1000, "1.0K"), (1_468_006, "1.4M"), (23 << 30, "23G"), (2 << 50, "2048T")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert units.size(count) == text


def test_a_moment_is_shown_here_with_its_day_unless_that_is_today() -> None:
    today = datetime.now().astimezone().replace(hour=12, minute=34, second=56)
    assert units.local(today.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")) == "12:34:56"
    assert units.local((today - timedelta(days=400)).isoformat())[4] == "-"
    assert units.local(None) == "-"
