"""The composition root of a node: builds every stage, wires them, starts and stops them in order.

Threads, and what each owns::

    intake      queue folder                  ─ accept ─►  store
    listener    notifications                 ─ hints ─►   dispatcher
    dispatcher  claims                        ─ start ─►   core (lanes: native threads, the running processes)
    offers      what the API gives            ─ start ─►   core
    reaper      events of the core            ─ put ─►     recorder
    recorder    outcomes not yet in the store, spool ─ put ─► deliverer
    deliverer   records without `.done`
    heartbeat   the lease; ends nodes that let theirs run out
    fence       ends all jobs when the lease could not be renewed
    sweeper     attempts of nodes that are gone
    profiler    profiler.csv
    publisher   what was measured             ─ now and then ─► store
    zygote      the process from which ML jobs are forked

Stopping goes down the same list, so nothing is ever sent to a stage that has stopped.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

import pysched
from pysched import _core, latencies, machine
from pysched._core import PlainEnds
from pysched.ending import Ending
from pysched.engine import pressure, reaper, recovery
from pysched.engine.adoption import Adopter
from pysched.engine.attempts import Attempts
from pysched.engine.depths import Depths
from pysched.engine.disks import Disks
from pysched.engine.dispatcher import Dispatcher
from pysched.engine.heartbeat import Heartbeat
from pysched.engine.lease import LEASE_S
from pysched.engine.listener import Listener
from pysched.engine.offers import Offers
from pysched.engine.pressure import Balance, Rule
from pysched.engine.publisher import Publisher
from pysched.engine.reaper import Reaper
from pysched.engine.room import Rooms
from pysched.engine.starting import Starter
from pysched.engine.sweeper import Sweeper
from pysched.engine.upkeep import Upkeep
from pysched.errors import NodeError, NodeSuperseded, PyschedError, StoreError
from pysched.executors.files import LogFolder, check_result, read_result, remove_log, remove_result, result_texts
from pysched.executors.launch import Launcher, inherited
from pysched.executors.zygote import Zygote
from pysched.guard import Link
from pysched.home import Home
from pysched.intake.intake import Intake
from pysched.ml import _sibling
from pysched.model import Acceptance, AttemptKey, Claim, NodeInfo, Outcome, Priority, Record, State
from pysched.profiler import End, Ended, Profiler, Sample
from pysched.recorder.done import CompletedFolder
from pysched.recorder.recorder import Deliverer, Recorder
from pysched.recorder.spool import Spool
from pysched.settings import Settings
from pysched.store.store import Store
from pysched.task import Task

_ABANDONED_BATCH = 1_000
_ROWS_AHEAD = 8_192  # of the table of attempts: ends that wait to be committed, beside two rows a worker
_KILL_GRACE_S = 5.0  # for jobs that a stopping node hands back
_KILLED_S = 10.0  # a process that lives this long after KILL hangs in the kernel


class Node:
    """The stages of one incarnation, wired: `start` them, then either `stop` or `leave`.

    Raises `NodeError` where a folder, the table of attempts or a GPU cannot be used.
    """

    def __init__(
        self, settings: Settings, guard: Link, home: Home, store: Store, ending: Ending, incarnation: uuid.UUID,
        cgroup: Path | None, limited: Path | None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._guard = guard
        self._home = home
        self._store = store
        self._ending = ending
        self._incarnation = incarnation
        self._cgroup, self._limited = cgroup, limited
        self._home_id = home.identity()
        self._attempts = Attempts()
        self._log = structlog.get_logger("node").bind(node=str(incarnation)[:8])
        self._build_core()
        self._build_recording()
        self._build_dispatch()
        self._build_lease()
        self._build_edges()

    def _build_core(self) -> None:
        """The core, what it offers, and what becomes of a task before it gets there."""
        settings = self._settings
        self._logs = LogFolder(self._home.logs)
        self._logs.prepare()
        try:
            self._capacity, gpus = machine.offer(settings.cpus, settings.mem, settings.gpus, os.environ)
        except ValueError as error:
            raise NodeError(f"gpus: {error}") from None
        capacity = self._capacity
        self._info = NodeInfo(
            incarnation=self._incarnation,
            home=self._home_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            workers=settings.workers,
            lanes=settings.lane_count,
            version=pysched.__version__,
            cpus=capacity.cpus,
            mem=capacity.memory,
            gpus=capacity.gpus,
        )
        warm = settings.warm and _sibling.available()
        self._launcher = Launcher(
            node=str(self._incarnation), work=self._home.work, logs=self._logs, environ=os.environ, warm=warm,
            reuse=settings.reused,
        )  # fmt: skip
        try:
            self._table = _core.AttemptTable(
                str(self._home.attempts), self._guard.token, rows=2 * settings.workers + _ROWS_AHEAD
            )
        except (OSError, ValueError) as error:
            raise NodeError(f"the table of attempts cannot be used: {error}") from None
        self._core = _core.Core(
            lanes=settings.lane_count,
            workers=settings.workers,
            ageing_s=settings.ageing_s,
            subreaper=True,
            log_limit=settings.log_limit,
            log_limit_ends=settings.on_log_limit == "fail",
            table=self._table,
            guard=(self._guard.pid, self._guard.bell),
            cpus=capacity.cpus,
            memory=capacity.memory,
            gpus=list(map(os.fsencode, gpus)),
            affinity=settings.affinity,
            cgroup=self._cgroup,
            limited=self._limited,
        )
        self._zygote = self._make_zygote() if warm else None

    def _build_recording(self) -> None:
        """From an outcome to its `.done` file."""
        store = self._store
        completed = CompletedFolder(self._settings.completed_folder)
        try:
            completed.prepare()
        except OSError as error:
            raise NodeError(
                f"completed folder {completed.path}: {error.strerror}; choose another with --completed"
            ) from None
        self._disks = Disks([self._home.path, completed.path])
        spool = Spool(self._home.path / "spool")
        try:
            spool.prepare()
        except OSError as error:
            raise NodeError(f"home {self._home.path}: spool: {error.strerror}; choose another with --home") from None
        self._deliverer = Deliverer(
            write=completed.write,
            undelivered=self._owed,
            delivered=store.delivered,
            write_plain=lambda ends: ends.write_done(completed.path, str(self._incarnation)),
            delivered_batches=store.delivered_batches,
            backlog=self._has_backlog,
        )
        self._recorder = Recorder(
            spool,
            start=store.start,
            finish=self._finish,
            finish_plain=self._finish_plain,
            outcomes=lambda ends: self._reaper.outcomes(ends),
            deliver=self._deliverer.put,
            deliver_plain=self._deliverer.put_plain,
            finished=self._recorded,
            disowned=self._disown,
            backlog=self._has_backlog,
        )

    def _build_dispatch(self) -> None:
        """From a claim to the core, and from the core's events to an outcome."""
        settings, store, home_id, capacity = self._settings, self._store, self._home_id, self._capacity
        rooms = Rooms(self._core, self._attempts, capacity, alone=lambda: self._heartbeat.alone)
        claimer = store.claimer(self._incarnation, rooms.look)
        self._starter = Starter(
            self._core,
            self._attempts,
            prepare=self._launcher.prepare,
            unstartable=self._unstartable,
            cancel=self._cancel,
            capacity=capacity,
        )
        self._dispatcher = Dispatcher(
            self._core,
            self._attempts,
            claim=lambda lowest, limit, overdue: claimer.claim(lowest=lowest, limit=limit, overdue=overdue),
            promote=store.promote,
            start=self._starter.start,
            ageing_s=settings.ageing_s,
            hold=self._why_not_claim,
            fenced=lambda: self._heartbeat.fenced,
            alone=lambda: self._heartbeat.alone,
            reconcile=self._reconcile,
            short=lambda: claimer.short,
            settled=lambda: self._offers.look(),
        )
        self._offers = Offers(
            self._home.path,
            node=self._incarnation,
            schema=store.schema,
            starter=self._starter,
            vacancy=self._dispatcher.vacancy,
            crowded=lambda: not self._heartbeat.alone and not self._dispatcher.has_free_worker(),
            back=self._hand_back,
            fenced=lambda: self._heartbeat.fenced,
            doubt=self._dispatcher.resume,
            taken=lambda: self._depths.news(),
        )
        self._reaper = Reaper(
            self._core,
            self._attempts,
            record=self._recorder.put,
            room=self._roomier,
            due=self._dispatcher.due,
            read_result=read_result,
            check_result=check_result,
            result_texts=result_texts,
        )
        self._adopter = Adopter(
            self._core,
            self._table,
            self._attempts,
            adopt=lambda tokens, suspects: store.adopt(home_id, self._incarnation, tokens=tokens, suspects=suspects),
            prepare=lambda item, task: self._launcher.prepare(item.claim.key, task, node=item.node),
            crashed_ns=self._guard.crashed_ns,
        )

    def _build_lease(self) -> None:
        """What keeps this node alive in the store's eyes, and judges others."""
        settings, store, home_id = self._settings, self._store, self._home_id
        retention_s = settings.retention_days * 86_400
        self._upkeep = Upkeep(
            standing=lambda: store.standing(self._incarnation, home_id),
            hand_back=self._core.withdraw_all,
            superseded=lambda why: self._ending.fail(NodeSuperseded(why)),
            sweep=self._recover,
            deliver=self._deliverer.look,
            prune=(lambda after, limit: store.prune(home=home_id, retention_s=retention_s, after=after, limit=limit))
            if retention_s > 0
            else None,
            logs=self._home.logs,
            remove_log=remove_log,
        )
        self._sweeper = Sweeper(self._upkeep.round)
        self._heartbeat = Heartbeat(
            renew=lambda: store.renew(
                self._incarnation,
                LEASE_S,
                running=self._core.running,
                allowed=self._balance.allowed,
                short_of=self._balance.by,
            ),
            revive=lambda: store.revive(self._info, LEASE_S),
            judge=store.end_expired,
            judged=self._sweeper.wake,
            fence=self._fence,
            idle=lambda: not self._attempts,
            doubted=lambda: store.be_brief(True),
            resumed=self._resume,
            trusts=lambda alone: _trusts_a_refusal(settings, alone=alone, on_a_socket=store.is_on_a_socket),
        )

    def _build_edges(self) -> None:
        """What comes in, and what is told about all of it."""
        settings, store = self._settings, self._store
        self._depths = Depths(store.depths)
        self._listener = Listener(
            store.notifications,
            store.hush,
            {
                "ready": lambda: self._queue_changed(self._dispatcher.work),
                "due": lambda: self._queue_changed(self._dispatcher.due),
                "accepted": self._depths.news,
                "cancel": lambda: self._starter.cancel(store.cancellations(self._incarnation)),
                "drain": self._upkeep.heed,
            },
        )
        self._intake = Intake(settings.queue_folder, self._accept, poll_s=settings.poll_s)
        self._balance = Balance(
            Rule(
                workers=settings.workers, processors=os.cpu_count() or 1, memory=settings.memory_pressure,
                cpu=settings.cpu_pressure,
            ),
            read=pressure.reader(settings.pressure),
            running=lambda: self._core.running,
            allow=self._allow,
        )  # fmt: skip
        self._profiler = Profiler(self._home.profile, self._sample)
        self._publisher = Publisher(
            counts=self._core.counters,
            publish=lambda: store.publish_latencies(self._incarnation, latencies.dump(self._core.histograms())),
        )

    def _make_zygote(self) -> Zygote:
        return Zygote(
            lanes=self._settings.lane_count,
            preload=self._settings.preload,
            environ=inherited(os.environ),
            table=str(self._home.attempts),
            meet=self._core.meet_zygote,
            awaited_s=self._core.awaits_zygote_s,
        )

    def start(self) -> None:
        self._submitted_before = self._store.submitted()
        self._recorder.replay()
        registered = self._heartbeat.now()
        self._store.register(self._info, LEASE_S)
        self._heartbeat.start(registered=registered)
        self._adopt()
        self._store.take_over(self._home_id, self._incarnation)
        while self._recover():
            pass
        if self._zygote is not None:
            self._zygote.start()
        for stage in (self._deliverer, self._recorder, self._reaper, self._sweeper, self._dispatcher, self._listener):
            stage.start()
        self._profiler.start()
        self._publisher.start()
        try:
            self._offers.start()
        except OSError as error:
            self._log.warning("the API cannot give tasks to this node, it claims all", error=error.strerror)
        try:
            self._intake.start()
        except OSError as error:
            folder = self._settings.queue_folder
            self._ending.fail(NodeError(f"queue folder {folder}: {error.strerror}; choose another with --queue"))
            return
        self._guard.serving()
        self._log.info(
            "ready",
            workers=self._settings.workers,
            lanes=self._settings.lane_count,
            cpus=self._info.cpus / 1000,
            mem=self._info.mem,
            gpus=self._info.gpus // 1000,
            queue=str(self._settings.queue_folder),
            completed=str(self._settings.completed_folder),
            cgroup=None if self._cgroup is None else str(self._cgroup),
            memory_limits="watched" if self._limited is None else "kernel",
        )

    def stop(self) -> None:
        self._intake.stop()
        self._listener.stop()
        self._offers.stop()
        self._dispatcher.stop()
        self._core.withdraw_all()
        if self._core.running:
            self._log.info("draining; a second signal stops at once", running=self._core.running)
        self._await_jobs()
        self._stop_zygote()
        self._reaper.stop()
        self._recorder.stop()
        self._deliverer.stop()
        self._sweeper.stop()
        self._heartbeat.stop()
        self._profiler.stop()
        self._publisher.stop()
        self._core.close()
        with suppress(StoreError):
            self._store.end_node(self._incarnation)
        self._log.info("stopped")

    def leave(self) -> None:
        """As `stop`, but jobs run on, and the lease with them: the next incarnation takes it over."""
        self._intake.stop()
        self._listener.stop()
        self._offers.stop()
        self._dispatcher.stop()
        self._core.withdraw_all()
        self._sweeper.stop()
        self._stop_zygote()  # what it has not forked yet has never run
        left = self._core.running
        self._core.close()
        self._reaper.stop()
        self._recorder.stop()
        self._deliverer.stop()
        self._heartbeat.stop()
        self._profiler.stop()
        self._publisher.stop()
        self._log.info("handed over", running=left)

    def _await_jobs(self) -> None:
        """Until no attempt is held: by themselves within the drain time, then by TERM and KILL, or KILL at once."""
        ended = threading.Event()

        def watch() -> None:
            self._attempts.wait_empty(None)
            ended.set()
            self._ending.at_once.set()

        threading.Thread(target=watch, name="drain", daemon=True).start()
        if not self._ending.at_once.wait(self._settings.drain_timeout):
            self._log.info("drain time is over, handing back", running=self._core.running)
            self._kill(self._attempts.handles(), _KILL_GRACE_S, _core.CAUSE_SHUTDOWN)
        self._ending.at_once.wait()
        if not ended.is_set():
            self._kill(self._attempts.handles(), 0.0, _core.CAUSE_SHUTDOWN)
            self._stop_zygote()  # what is still waiting to be forked ends with it
        if not ended.wait(_KILLED_S):
            self._log.error("processes survive KILL, leaving them", running=self._core.running)

    def _stop_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.stop()

    def _accept(self, tasks: Sequence[Task]) -> Sequence[Acceptance | PyschedError]:
        verdicts = self._store.accept(tasks, source=self._incarnation, atomic=False)
        self._dispatcher.work()
        if any(isinstance(verdict, Acceptance) and verdict.state is State.SCHEDULED for verdict in verdicts):
            self._dispatcher.due()
        return verdicts

    def _has_backlog(self) -> bool:
        return any(self._core.depths())

    def _recorded(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes are durable: pass news on to whoever acts on it."""
        delays = [outcome.delay_s for outcome in outcomes if outcome.next_state is State.SCHEDULED]
        if delays and not self._ending.leaving:  # then the core is closed, and the next incarnation looks by itself
            self._dispatcher.due_in(min(delays))
        self._profiler.observe_many([_ended(outcome) for outcome in outcomes if not outcome.void])

    def _finish(self, outcomes: Sequence[Outcome]) -> tuple[Sequence[Record], Sequence[AttemptKey]]:
        """Commit outcomes; from then on nobody needs their rows and the files of their results, ours or not."""
        verdict = self._store.finish(outcomes, home=self._home_id)
        for outcome in outcomes:
            end = outcome.exit
            if end.result is not None and end.result_file and end.stdout is not None:
                remove_result(end.stdout)
        self._table.release([outcome.key.token for outcome in outcomes])
        return verdict

    def _finish_plain(self, ends: PlainEnds) -> int | None:
        """The same for plain ends, all or none; they have left no files of results."""
        batch = self._store.finish_plain(ends, node=self._incarnation, home=self._home_id)
        if batch is not None:
            self._table.release(ends.tokens())
            self._profiler.observe_all(_counts(ends), ends.waits_ms(), ends.runs_ms())
        return batch

    def _owed(self, limit: int) -> Sequence[Record]:
        """Whose `.done` nobody has written; who committed them may have been killed before it did any more."""
        records = self._store.undelivered(self._home_id, limit)
        self._logs.forget_results(records)
        return records

    def _adopt(self) -> None:
        """Take over what the incarnation before has left running, before anybody sweeps it."""
        adoption = self._adopter.run()
        if adoption.outcomes:
            records, _ = self._finish(adoption.outcomes)
            self._deliverer.put(records)
        self._table.release(adoption.forgotten)
        self._reaper.take(adoption.ends, PlainEnds())
        if adoption.running or adoption.ends or adoption.outcomes:
            self._log.info(
                "adopted",
                running=adoption.running,
                ended=len(adoption.ends),
                lost=len(adoption.outcomes),
                processes_ended=adoption.killed,
            )

    def _recover(self) -> int:
        """End what nodes that are gone have left; how many attempts that were."""
        abandoned = self._store.abandoned(_ABANDONED_BATCH)
        killed = recovery.end_processes(abandoned)
        if abandoned:
            records, _ = self._store.finish(recovery.outcomes(abandoned), home=self._home_id)
            self._deliverer.put(records)
            self._dispatcher.work()
            self._dispatcher.due()
            self._log.info("recovered", attempts=len(abandoned), processes_ended=killed)
        return len(abandoned)

    def _unstartable(self, claim: Claim, error: PyschedError) -> None:
        self._recorder.put([], [reaper.unstartable(claim.key, claim.failures, error)])

    def _cancel(self, handle: int) -> None:
        with suppress(KeyError):  # ended meanwhile
            self._core.kill(handle, self._attempts.get(handle).task.grace_s, _core.CAUSE_CANCEL)

    def _disown(self, keys: Iterable[AttemptKey]) -> None:
        self._kill(self._attempts.handles(keys), 0.0, _core.CAUSE_SHUTDOWN)

    def _kill(self, handles: Iterable[int], grace_s: float, cause: int) -> None:
        for handle in handles:
            self._core.kill(handle, grace_s, cause)

    def _why_not_claim(self) -> str | None:
        if not self._heartbeat.sure:
            return "the lease is not renewed"
        if self._recorder.full:
            return "the spool is full, or its disk fails"
        place = str(self._settings.completed_folder) if self._deliverer.out_of_space else self._disks.full()
        return None if place is None else f"out of disk space: {place}"

    def _fence(self) -> None:
        """Others may run our attempts soon, or do already: end them all; the store drops their results by the fence."""
        if not self._ending.leaving:  # then they are the next incarnation's
            self._core.withdraw_all()
            self._kill(self._attempts.handles(), 0.0, _core.CAUSE_SHUTDOWN)

    def _resume(self) -> None:
        """The store answers again."""
        self._store.be_brief(False)
        self._recorder.hurry()
        self._dispatcher.resume()
        self._sweeper.wake()

    def _reconcile(self) -> None:
        """Hand back what the store has given us in an answer that never came."""
        before = self._known()
        counted = self._store.unstarted(self._incarnation)
        unknown = self._starter.refuse(counted, known=lambda: before | self._known())
        if unknown:
            self._log.info("handing back claims whose answer was lost", attempts=len(unknown))
            self._hand_back(unknown)

    def _known(self) -> set[AttemptKey]:
        known = self._attempts.keys()
        return known | self._recorder.pending()  # after: an attempt goes from there to here

    def _hand_back(self, keys: Sequence[AttemptKey]) -> None:
        self._recorder.put([], [reaper.withdrawn(key) for key in keys])

    def _roomier(self) -> None:
        """A worker may be free."""
        self._dispatcher.room()
        self._offers.look()

    def _queue_changed(self, tell: Callable[[], None]) -> None:
        self._depths.news()
        tell()

    def _allow(self, workers: int) -> None:
        """Run no more attempts than so many."""
        self._core.set_workers(workers)
        self._dispatcher.room()

    def _sample(self) -> Sample:
        self._balance.look()
        depths, submitted = self._depths.look()
        return Sample(
            queued_high=depths[Priority.HIGH],
            queued_med=depths[Priority.MED],
            queued_low=depths[Priority.LOW],
            running=self._core.running,
            submitted=submitted - self._submitted_before,
        )


def _trusts_a_refusal(settings: Settings, *, alone: bool, on_a_socket: bool) -> bool:
    """Whether a server that refuses us is down for all other nodes as well; `ARCHITECTURE.md` argues this."""
    if settings.on_outage == "auto":
        return on_a_socket or alone
    return settings.on_outage == "keep"


def _counts(ends: PlainEnds) -> dict[End, int]:
    counts: dict[End, int] = {}
    for (state, _), count in ends.tally().items():
        kind = End(state)
        counts[kind] = counts.get(kind, 0) + count
    return counts


def _ended(outcome: Outcome) -> Ended:
    end = outcome.exit
    run_ms = None if end.started_at is None else round((end.finished_at - end.started_at).total_seconds() * 1000)
    return Ended(End.of(outcome), None if end.wait_ms is None else round(end.wait_ms), run_ms)
