"""A node that is told to stop while it stands still hears of it when it goes on."""

from __future__ import annotations

import os
import signal

from tests.acceptance.conftest import DEADLINE_S, Site, wait_until
from tests.chaos import processes
from tests.chaos.world import stopped


def test_a_term_that_comes_while_the_node_stands_still_is_heard(site: Site) -> None:
    process = site.node()
    node = next(pid for pid in processes.children(process.popen.pid) if b"--guard" in processes.command(pid))
    with stopped(node) as still:
        assert still
        os.kill(node, signal.SIGTERM)
    wait_until(lambda: "stopped" in process.messages, "the node to stop", DEADLINE_S)
    process.terminate()
