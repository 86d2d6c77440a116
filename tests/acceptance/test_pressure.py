"""A machine that is short of memory, as the kernel's files say; here they are the test's."""

from __future__ import annotations

import os
from pathlib import Path

from pysched.store.store import Store

from .conftest import Site, wait_until


def say(folder: Path, percent: int) -> None:
    part = folder / "memory.part"
    part.write_text(f"some avg10={percent}.00 avg60=0.00 avg300=0.00 total=0\n")
    part.rename(folder / "memory")


def test_a_node_that_is_short_of_memory_runs_fewer_and_says_so(site: Site) -> None:
    pressed = site.root / "pressed"
    pressed.mkdir()
    site.home.mkdir()
    (site.home / "pysched.toml").write_text(f'pressure = "{pressed}"\n')
    say(pressed, 0)
    node = site.node(workers=2)
    for name in ("first", "second"):
        os.mkfifo(site.root / name)
        site.drop(name, {"command": f": > {name}.began; read line < {name}", "cwd": str(site.root)})
        wait_until((site.root / f"{name}.began").exists, f"{name} to run")
    say(pressed, 60)
    node.await_message("running fewer attempts")
    site.drop("third", {"command": "true"})
    (site.root / "first").write_text("go\n")
    site.done("first")
    with Store(site.database) as store:
        wait_until(lambda: store.nodes()[0]["short_of"] == "memory", "the store to know")
        assert store.nodes()[0]["allowed"] == 1
        wait_until(lambda: "short of memory" in str(store.explain("third")["message"]), "an explanation")
        say(pressed, 0)
        assert site.done("third")["status"] == "succeeded"
        wait_until(lambda: store.nodes()[0]["short_of"] is None, "the store to know that it is over")
        assert store.nodes()[0]["allowed"] == 2
    node.await_message("running as many attempts as before")
    (site.root / "second").write_text("go\n")
    assert site.done("second")["status"] == "succeeded"
