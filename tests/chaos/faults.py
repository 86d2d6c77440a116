"""What goes wrong, one function a fault.  Each returns how many processes it killed and whether it had an effect.

A fault that found nothing to hurt has no effect: a process that was already dead, a connection that was not there.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import processes
from tests.chaos.world import World, stopped

LEASE_S = 10.0


@dataclass(frozen=True, slots=True)
class Effect:
    """What a fault did; `kills` counts processes that SIGKILL ended."""

    kills: int = 0
    other: int = 0

    def __bool__(self) -> bool:
        return self.kills + self.other > 0


Fault = Callable[[World, random.Random, threading.Event], Effect]


def kill_node(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """The node alone: its guard, if there is one, goes on."""
    _, node = rng.choice(world.nodes).parts()
    return Effect(kills=node is not None and processes.kill(node))


def kill_guard(world: World, rng: random.Random, over: threading.Event) -> Effect:
    guard, node = rng.choice(world.nodes).parts()
    victim = guard or node
    return Effect(kills=victim is not None and processes.kill(victim))


def kill_machine(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """Guard, node and every process below them."""
    top = rng.choice(world.nodes).pid
    if top is None:
        return Effect()
    return Effect(kills=sum(processes.kill(pid) for pid in [top, *processes.descendants(top)]))


def kill_job(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """One running job, which ends as `signal SIGKILL`; or a worker between two calls."""
    return _kill_one(world, rng, processes.is_marked)


def kill_zygote(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """What forks the calls of entrypoints, or a fork of it that is no job yet."""
    return _kill_one(world, rng, lambda pid: b"zygote.py" in processes.command(pid) and not processes.is_marked(pid))


def kill_api(world: World, rng: random.Random, over: threading.Event) -> Effect:
    pid = world.api.pid if world.api is not None else None
    return Effect(kills=pid is not None and processes.kill(pid))


def kill_backend(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """PostgreSQL then ends all others and recovers."""
    backends = world.cluster.backends()
    return Effect(kills=bool(backends) and processes.kill(rng.choice(backends)))


def kill_postmaster(world: World, rng: random.Random, over: threading.Event) -> Effect:
    return Effect(kills=_restart(world, rng, over, signal.SIGKILL))


def restart_immediate(world: World, rng: random.Random, over: threading.Event) -> Effect:
    return Effect(other=_restart(world, rng, over, signal.SIGQUIT))


def restart_fast(world: World, rng: random.Random, over: threading.Event) -> Effect:
    return Effect(other=_restart(world, rng, over, signal.SIGINT))


def terminate_backends(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """As an administrator ends sessions: no recovery, only lost connections."""
    victims = world.cluster.backends()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return Effect(other=len(victims))


def stop_node(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """Node (and guard) stand still for longer than a lease; the jobs run on."""
    parts = [pid for pid in rng.choice(world.nodes).parts() if pid is not None]
    with contextlib.ExitStack() as stack:
        still = [stack.enter_context(stopped(pid)) for pid in parts]
        over.wait(rng.uniform(1.2, 2.0) * LEASE_S)
    return Effect(other=sum(still))


def pause_node(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """Still for a moment, within the lease."""
    _, node = rng.choice(world.nodes).parts()
    if node is None:
        return Effect()
    with stopped(node) as still:
        over.wait(rng.uniform(0.1, 3.0))
    return Effect(other=still)


def pause_network(world: World, rng: random.Random, over: threading.Event) -> Effect:
    return _network(world, rng, over, "paused", rng.choice((0.5, 3.0, 13.0)))


def blackhole_network(world: World, rng: random.Random, over: threading.Event) -> Effect:
    return _network(world, rng, over, "blackhole", rng.choice((0.2, 4.0, 13.0)))


def reset_network(world: World, rng: random.Random, over: threading.Event) -> Effect:
    return _network(world, rng, over, "refusing", rng.choice((0.0, 1.0, 5.0)))


def lose_answers(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """Statements are carried out, and nobody hears of it."""
    return _network(world, rng, over, "deaf", rng.uniform(0.2, 1.5))


def fill_disk(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """No room for `.done` files.  Needs a small file system of its own, which only root can have."""
    node = rng.choice(world.nodes)
    if not os.path.ismount(node.completed):
        return Effect()
    ballast = node.completed / ".ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(b"\0" * 65_536)
            file.flush()
    over.wait(rng.uniform(1.0, 3.0))
    ballast.unlink(missing_ok=True)
    return Effect(other=1)


def set_clock(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """The wall clock of a node jumps, to stay there."""
    node = rng.choice(world.nodes)
    node.clock.set(realtime_s=rng.choice((-3600.0, -2.0, 2.0, 3600.0)))
    return Effect(other=node.pid is not None)


def suspend(world: World, rng: random.Random, over: threading.Event) -> Effect:
    """As if the node's machine had slept: time has passed on CLOCK_BOOTTIME, and its lease may be over."""
    node = rng.choice(world.nodes)
    node.clock.advance(boottime_s=rng.choice((1.0, 0.8 * LEASE_S, 1.5 * LEASE_S)))
    return Effect(other=node.pid is not None)


KILLS: dict[Fault, int] = {  # with weights
    kill_node: 36,
    kill_guard: 10,
    kill_machine: 6,
    kill_job: 10,
    kill_zygote: 6,
    kill_api: 10,
    kill_backend: 14,
    kill_postmaster: 8,
}
OTHERS: dict[Fault, int] = {
    restart_immediate: 4,
    restart_fast: 4,
    terminate_backends: 4,
    stop_node: 2,
    pause_node: 5,
    pause_network: 4,
    blackhole_network: 4,
    reset_network: 5,
    lose_answers: 6,
    fill_disk: 3,
    set_clock: 3,
    suspend: 3,
}


def _kill_one(world: World, rng: random.Random, is_meant: Callable[[int], bool]) -> Effect:
    top = rng.choice(world.nodes).pid
    found = [pid for pid in processes.descendants(top) if is_meant(pid)] if top is not None else []
    return Effect(kills=bool(found) and processes.kill(rng.choice(found)))


def _restart(world: World, rng: random.Random, over: threading.Event, wish: signal.Signals) -> bool:
    with world.cluster.lock:
        ran = world.cluster.stop(wish)
        over.wait(rng.choice((0.0, 0.5, 2.0)))
        world.cluster.start()
    return ran


def _network(world: World, rng: random.Random, over: threading.Event, mode: str, seconds: float) -> Effect:
    proxy = rng.choice(world.proxies)
    hit = proxy.switch(mode)
    over.wait(seconds)
    proxy.switch("open")
    return Effect(other=hit)
