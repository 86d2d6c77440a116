"""Which lines of `csrc/*.pyx` have run, from what gcov counted: `coverage.py FOLDER [LEAST_PERCENT]`.

FOLDER is that of a build with `PYSCHED_COVERAGE`, whose tests have run.  Prints a line a file, then those that never
ran; exits with 1 if fewer than LEAST_PERCENT of all lines ran.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "csrc"


def counted(folder: Path) -> dict[str, dict[int, int]]:
    """How often each line that has code ran, by file.

    The glue that Cython appends to a module is counted on from the last line it named; there is nothing of ours there.
    """
    files: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for data in folder.rglob("*.gcda"):
        command = ["gcov", "--json-format", "--stdout", data.name]
        told = subprocess.run(command, cwd=data.parent, stdout=subprocess.PIPE, check=True).stdout
        for unit in map(json.loads, told.splitlines()):
            for file in unit["files"]:
                if file["file"].endswith(".pyx"):
                    for line in file["lines"]:
                        files[Path(file["file"]).name][line["line_number"]] += line["count"]
    for name, lines in files.items():
        text = (SOURCES / name).read_text().splitlines()
        for number in [number for number in lines if number > len(text) or not text[number - 1].strip()]:
            del lines[number]
    return files


def spans(lines: list[int]) -> str:
    """Ascending numbers, runs of neighbours as one."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return " ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def main(folder: str, least: str = "95") -> int:
    files = counted(Path(folder))
    if not files:
        sys.exit(f"{folder}: holds no counts; run the tests on a build with PYSCHED_COVERAGE first")
    ran = total = 0
    for name, lines in sorted(files.items()):
        missed = sorted(line for line, times in lines.items() if not times)
        ran += len(lines) - len(missed)
        total += len(lines)
        print(f"{name:24} {100 * (1 - len(missed) / len(lines)):5.1f}%  {spans(missed)}")
    percent = 100 * ran / total
    print(f"{'all':24} {percent:5.1f}%  {ran} of {total} lines")
    return percent < float(least)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
