"""`python -m tests.chaos`: episodes of faults until so many processes were killed, or time is up.

Exit code 1 with a violation, which is printed with the command that replays its seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.chaos import episode

_KILLS = 50  # of an episode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first episode; the next ones count on")
    parser.add_argument("--kills", type=int, default=200, help="how many")
    parser.add_argument("--episode", type=int, default=_KILLS, metavar="KILLS", help="of an episode; %(default)s")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no further episode after this time")
    parser.add_argument(
        "--tasks", type=int, help="orders an episode; by default up to 8 a kill, as the nodes can take them"
    )
    parser.add_argument("--pause", type=float, default=1.0, metavar="FACTOR", help="between two faults, of the usual")
    given = parser.parse_args()
    began = time.monotonic()
    kills = others = tasks = executions = again = episodes = 0
    causes: Counter[str] = Counter()
    wrong: list[int] = []
    seed = given.seed
    while kills < given.kills and (time.monotonic() - began < given.minutes * 60 or not episodes):
        count = min(given.episode, given.kills - kills)
        report = episode.run(seed, count, tasks=given.tasks, pause=given.pause)
        print(report, flush=True)
        if report.violations:
            wrong.append(seed)
            for violation in report.violations[:50]:
                print(f"  VIOLATION {violation}", flush=True)
            options = f" --episode {count}" if count > _KILLS else ""
            options += "" if given.tasks is None else f" --tasks {given.tasks}"
            options += "" if given.pause == 1.0 else f" --pause {given.pause:g}"
            replay = f"python -m tests.chaos --seed {seed} --kills {count}{options}"
            print(f"  kept: {report.kept}\n  replay: {replay}", flush=True)
        kills, others, episodes = kills + report.kills, others + report.others, episodes + 1
        tasks, executions, again = tasks + report.tasks, executions + report.executions, again + report.again
        causes += report.causes
        seed += 1
    explained = ", ".join(f"{count} {name}" for name, count in causes.most_common())
    print(
        f"{kills} kills and {others} other faults in {episodes} episodes, {time.monotonic() - began:.0f} s: "
        f"{tasks} tasks, {executions} executions, {again} of them again ({explained})\n"
        + (f"violations with seeds {wrong}" if wrong else "0 lost, 0 recorded twice, 0 unexplained re-executions")
    )
    if kills < given.kills:
        print(f"only {kills} of {given.kills} kills in {given.minutes:g} minutes")
    return 1 if wrong or kills < given.kills else 0


if __name__ == "__main__":
    sys.exit(main())
