"""What the API gives a node: started once it is committed, asked about when nobody says, never started twice."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pysched import offers
from pysched._core import Core, Launch, Pattern, Program
from pysched.engine import offers as module
from pysched.engine.attempts import Attempts
from pysched.engine.offers import Offers
from pysched.engine.starting import Starter
from pysched.errors import PyschedError
from pysched.model import AttemptKey, Claim
from pysched.resources import NOTHING
from pysched.task import Task

DEADLINE_S = 60.0
NODE = uuid.uuid4()


class StillCore:
    """Starts nothing, and keeps what it was given."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def submit(self, launches: Iterable[Launch]) -> None:
        self.launches += launches


class Rig:
    """A node's end, with what it did."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.core = StillCore()
        self.attempts = Attempts()
        self.room = 4
        self.crowded = self.fenced = False
        self.doubts = 0
        self.cancelled: list[int] = []
        self.back: list[AttemptKey] = []
        self.unstartable: list[tuple[AttemptKey, str]] = []
        self._changed = threading.Condition()
        self.starter = Starter(
            cast(Core, self.core),
            self.attempts,
            prepare=self._prepare,
            unstartable=self._refuse,
            cancel=self.cancelled.append,
            capacity=NOTHING,
        )
        self.offers = Offers(
            home,
            node=NODE,
            schema=7,
            starter=self.starter,
            vacancy=lambda: self.room,
            crowded=lambda: self.crowded,
            back=self._hand_back,
            fenced=lambda: self.fenced,
            doubt=self._doubt,
            taken=self._tell,
        )
        self.offers.start()

    def wait(self, until: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(until, DEADLINE_S)

    def held(self) -> list[str]:
        keys = self.attempts.keys()
        return sorted(key.id for key in keys)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _doubt(self) -> None:
        self.doubts += 1
        self._tell()

    def _hand_back(self, keys: Sequence[AttemptKey]) -> None:
        self.back += keys

    def _refuse(self, claim: Claim, error: PyschedError) -> None:
        self.unstartable.append((claim.key, str(error)))

    def _prepare(self, key: AttemptKey, task: Task, params: str) -> Program:
        if task.command == "none":
            raise PyschedError("nothing to run")
        return PROGRAM


PROGRAM = Program(
    Pattern(argv=[b"true"], candidates=[b"/bin/true"], env=[], cwd=b"/", grace_s=1.0),
    "t", 1, "n", "", ("o", "e", "r", "p"),
)  # fmt: skip


class Api:
    """The API's end, which says what a test says."""

    def __init__(self, home: Path) -> None:
        self.link = offers.connection(home)
        self.link.setblocking(True)
        self.link.settimeout(DEADLINE_S)
        self._tokens = 0

    def hear(self) -> list[Any]:
        return offers.unpacked(self.link.recv(offers.PACKET_BYTES))

    def may(self, *ids: str, spec: str = '{"command":"x"}') -> None:
        self.link.send(offers.packet("may", [[each, 1, 0, spec] for each in ids]))

    def did(self, *tokens: int | None) -> None:
        self.link.send(offers.packet("did", [token and [token, token, 1_700_000_000_000_000] for token in tokens]))

    def close(self) -> None:
        self.link.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    instance = Rig(tmp_path)
    try:
        yield instance
    finally:
        instance.offers.stop()


@pytest.fixture
def api(rig: Rig) -> Iterator[Api]:
    instance = Api(rig.home)
    assert instance.hear() == ["node", str(NODE), 7]
    assert instance.hear() == ["room", 4]
    try:
        yield instance
    finally:
        instance.close()


def test_what_is_committed_is_started(rig: Rig, api: Api) -> None:
    api.may("a", "b", "c")
    api.did(5, None, 6)  # b was there already
    rig.wait(lambda: rig.held() == ["a", "c"])
    assert [launch.token for launch in rig.core.launches] == [5, 6]
    assert rig.attempts.keys() == {AttemptKey("a", 1, 5), AttemptKey("c", 1, 6)}


def test_room_is_told_when_it_halves_or_doubles(rig: Rig, api: Api) -> None:
    for number, room in enumerate((3, 2, 1, 0, 1, 2, 4)):
        rig.room = room
        if number < 4:
            api.may(f"t{number}")
            api.did(number + 1)
            rig.wait(lambda: len(rig.core.launches) == len(rig.held()) and f"t{number}" in rig.held())  # noqa: B023
        else:
            rig.offers.look()
    # What is given away needs no telling; that there is some again does, and when it is more than twice as much.
    assert [api.hear(), api.hear()] == [["room", 5], ["room", 8]]


def test_a_node_that_has_no_room_says_so(rig: Rig, api: Api) -> None:
    rig.room = 0
    rig.offers.look()
    assert api.hear() == ["room", 0]


def test_what_is_under_way_takes_room(rig: Rig, api: Api) -> None:
    api.may("a", "b", "c", "d")
    api.may("e")  # more than there is: what was told is old
    api.did(1, 2, 3, 4)
    rig.wait(lambda: len(rig.held()) == 4)
    api.did(5)
    rig.room = 0
    rig.wait(lambda: len(rig.held()) == 5)
    assert api.hear()[0] == "room"


def test_an_api_that_ends_before_it_has_told_is_asked_about(rig: Rig, api: Api) -> None:
    api.may("a")
    api.close()
    rig.wait(lambda: rig.doubts == 1)
    assert not rig.held()
    other = Api(rig.home)  # the next one is served
    assert other.hear()[0] == "node"
    other.close()


def test_an_api_that_has_told_all_leaves_no_doubt(rig: Rig, api: Api) -> None:
    api.may("a")
    api.did(1)
    api.close()
    rig.wait(lambda: rig.held() == ["a"])
    other = Api(rig.home)
    other.hear()
    other.close()
    assert rig.doubts == 0


def test_what_an_api_has_told_before_its_end_counts_whatever_it_has_not_read(rig: Rig, tmp_path: Path) -> None:
    link = offers.connection(rig.home)  # reads nothing: its end is a reset
    link.send(offers.packet("may", [["a", 1, 0, "{}"]]))
    link.send(offers.packet("did", [[1, 1, 1]]))
    link.close()
    rig.wait(lambda: rig.held() == ["a"])
    other = Api(rig.home)
    other.hear()
    other.close()
    assert rig.doubts == 0


def test_an_api_that_falls_silent_is_asked_about(rig: Rig, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    api.may("a")
    rig.wait(lambda: rig.doubts == 1)
    assert api.link.recv(1) == b""


@pytest.mark.parametrize("words", [b"{", b"[]", b'["what",[]]', b'["did",[[1,1,1]]]', b'["may",[["a"]]]', b'["may"]'])
def test_what_makes_no_sense_ends_the_connection(rig: Rig, api: Api, words: bytes) -> None:
    api.link.send(words)
    assert api.link.recv(1) == b""
    other = Api(rig.home)
    assert other.hear()[0] == "node"
    other.close()


def test_what_was_handed_back_does_not_start_when_it_comes_after_all(rig: Rig, api: Api) -> None:
    api.may("a", "b")
    late = AttemptKey("a", 1, 1)
    assert rig.starter.refuse([late], known=lambda: rig.attempts.keys()) == [late]
    api.did(1, 2)
    rig.wait(lambda: rig.held() == ["b"])


def test_what_is_known_is_not_refused(rig: Rig, api: Api) -> None:
    api.may("a")
    api.did(1)
    rig.wait(lambda: rig.held() == ["a"])
    assert rig.starter.refuse([AttemptKey("a", 1, 1)], known=lambda: rig.attempts.keys()) == []


def test_a_cancel_that_comes_first_waits_for_its_task(rig: Rig, api: Api) -> None:
    api.may("a", "b")
    rig.starter.cancel([AttemptKey("a", 1, 1)])
    api.did(1, 2)
    rig.wait(lambda: len(rig.cancelled) == 1)
    assert rig.attempts.get(rig.cancelled[0]).claim.key.id == "a"


def test_a_fenced_node_starts_nothing(rig: Rig, api: Api) -> None:
    rig.fenced = True
    api.may("a")
    api.did(1)
    rig.wait(lambda: rig.doubts == 1)
    assert not rig.held()


def test_what_would_wait_is_handed_back(rig: Rig, api: Api) -> None:
    rig.crowded = True
    api.may("a")
    api.did(1)
    rig.wait(lambda: rig.back == [AttemptKey("a", 1, 1)])
    assert not rig.held()


def test_what_cannot_be_prepared_is_recorded_once_it_is_committed(rig: Rig, api: Api) -> None:
    api.may("a", spec='{"command":"none"}')
    api.may("b", spec='{"command":"none"}')
    api.did(None)
    api.did(2)
    rig.wait(lambda: rig.unstartable)
    assert rig.unstartable == [(AttemptKey("b", 1, 2), "nothing to run")]


def test_a_node_that_stops_waits_for_what_is_open(rig: Rig, api: Api) -> None:
    api.may("a")
    stopping = threading.Thread(target=rig.offers.stop)
    stopping.start()
    assert api.link.recv(1) == b""  # the node takes no more, and listens
    assert stopping.is_alive()
    api.did(1)
    api.close()
    stopping.join(DEADLINE_S)
    assert rig.held() == ["a"]
    assert rig.doubts == 0
    with pytest.raises(OSError, match="refused"):
        offers.connection(rig.home)


def test_a_node_that_stops_waits_for_nobody_else(rig: Rig) -> None:
    rig.offers.stop()
    with pytest.raises(OSError, match="refused"):
        offers.connection(rig.home)


def test_an_api_that_does_not_listen_is_given_up(rig: Rig, api: Api) -> None:
    for turn in range(20_000):
        rig.room = 0 if turn % 2 else 4
        rig.offers.look()
    while api.link.recv(offers.PACKET_BYTES):
        pass
    other = Api(rig.home)
    assert other.hear()[0] == "node"
    other.close()


def test_the_socket_is_the_users_alone(rig: Rig) -> None:
    assert (rig.home / "offers.sock").stat().st_mode & 0o777 == 0o600


def test_a_home_with_a_long_path_has_its_socket(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    home.mkdir()
    with offers.listener(home) as listening, offers.connection(home) as connected:
        with listening.accept()[0] as peer:
            peer.send(b"hello")
        connected.setblocking(True)
        assert connected.recv(10) == b"hello"
    with offers.listener(home), offers.connection(home):  # what a dead node left is replaced
        pass


def test_what_surely_fits_fits() -> None:
    spec = "\x01" * 10_000
    assert offers.fits([spec])
    assert not offers.fits([spec] * 2)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        assert offers.say(left, offers.packet("may", [["i" * 200, 2, -(2**31), spec]]))
        assert len(right.recv(2 * offers.PACKET_BYTES)) < offers.PACKET_BYTES
