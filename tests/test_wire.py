"""Frames, networks in memory, and wires between processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from migrate.daemon.guests import SETTLE_S, STEP_EVERY_S, GuestRunner
from migrate.daemon.wire import (
    PATH_BYTES_MAX,
    SocketWire,
    SocketWires,
    WireError,
    WireObserver,
    WireRecord,
    ends_of,
    read_records,
    recorder,
)
from sim_vmm.guest import make_guest
from sim_vmm.guest.ledger import LedgerState
from sim_vmm.wire import (
    BACKLOG_FRAMES_MAX,
    BROADCAST,
    Frame,
    Hub,
    HubWires,
    SequencedFrame,
    Unplugged,
    is_group_address,
)
from tests.commands import start, start_within
from tests.machines import make_machine

A = b"\xa8\x40\x25\0\0\1"
B = b"\xa8\x40\x25\0\0\2"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Shorter than pytest's, which do not leave a socket enough of its 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="wire-") as directory:
        yield Path(directory)


def frame(number: int = 1, source: bytes = A) -> bytes:
    return SequencedFrame(destination=BROADCAST, source=source, sequence=number, uptime_ns=10 * number).encode()


# Frames


def test_a_sequenced_frame_has_the_layout_of_the_standard() -> None:
    raw = SequencedFrame(destination=BROADCAST, source=A, sequence=0x0102, uptime_ns=3).encode()
    assert raw == bytes.fromhex("ffffffffffff a84025000001 88b5 0000000000000102 0000000000000003") + bytes(30)
    assert len(raw) == 60


addresses = st.binary(min_size=6, max_size=6)
u64 = st.integers(0, 2**64 - 1)


@given(addresses, addresses, u64, u64)
def test_a_sequenced_frame_is_read_back(destination: bytes, source: bytes, sequence: int, uptime_ns: int) -> None:
    frame = SequencedFrame(destination=destination, source=source, sequence=sequence, uptime_ns=uptime_ns)
    assert SequencedFrame.parse(frame.encode()) == frame


@given(addresses, addresses, st.integers(0, 0xFFFF), st.binary(min_size=46, max_size=200))
def test_a_frame_is_read_back(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> None:
    frame = Frame(destination=destination, source=source, ethertype=ethertype, payload=payload)
    assert Frame.parse(frame.encode()) == frame


@given(st.binary(max_size=29))
def test_what_is_too_short_is_no_frame(raw: bytes) -> None:
    assert SequencedFrame.parse(raw) is None
    assert (Frame.parse(raw) is None) is (len(raw) < 14)


def test_a_frame_of_another_type_carries_no_sequence_number() -> None:
    assert SequencedFrame.parse(Frame(destination=A, source=B, ethertype=0x0800, payload=b"").encode()) is None


@pytest.mark.parametrize(("address", "group"), [(A, False), (BROADCAST, True), (b"\x01\0\x5e\0\0\1", True)])
def test_group_addresses_are_told_by_their_first_bit(address: bytes, group: bool) -> None:
    assert is_group_address(address) is group


# In memory


def test_a_hub_brings_a_frame_to_everybody_else() -> None:
    hub = Hub()
    seen: list[bytes] = []
    hub.observers.append(seen.append)
    first, second, third = hub.plug(), hub.plug(), hub.plug()
    for plug in (first, second, third):
        assert plug.receive() == ()
    first.send(frame(1))
    second.send(frame(2))
    assert [plug.receive() for plug in (first, second, third)] == [(frame(2),), (frame(1),), (frame(1), frame(2))]
    assert first.receive() == ()
    assert seen == [frame(1), frame(2)]


def test_a_plug_hears_nothing_from_before_its_first_look_or_after_it_was_pulled() -> None:
    hub = Hub()
    plug = hub.plug()
    hub.carry(frame(1))
    assert plug.receive() == ()
    hub.carry(frame(2))
    assert plug.receive() == (frame(2),)
    hub.carry(frame(3))
    plug.pull()
    plug.pull()
    assert hub.plugs == []
    assert plug.receive() == ()


def test_a_plug_that_nobody_looks_at_drops_frames() -> None:
    hub = Hub()
    plug = hub.plug()
    plug.receive()
    for number in range(BACKLOG_FRAMES_MAX + 3):
        hub.carry(frame(number))
    assert plug.dropped == 3
    assert len(tuple(plug.receive())) == BACKLOG_FRAMES_MAX


def test_without_a_cable_nothing_goes_or_comes() -> None:
    wire = Unplugged()
    wire.send(frame())
    assert list(wire.receive()) == []


def test_a_machine_that_is_closed_is_off_the_network() -> None:
    hub = Hub()
    wires = HubWires(hub)
    machine = make_machine(wires=wires)
    machine.start()
    machine.poll()
    assert len(hub.plugs) == 1
    machine.close()
    assert hub.plugs == []
    make_machine().close()


# Between processes


class Clock:
    """One nanosecond later with every look."""

    now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


def observer(path: Path) -> tuple[WireObserver, list[WireRecord]]:
    records: list[WireRecord] = []
    return WireObserver(path, records.append, Clock()), records


async def happens(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # it happens in the kernel or in the hub, which tell nobody
            await trio.lowlevel.checkpoint()


async def until(wire: SocketWire, count: int) -> list[bytes]:
    """The next `count` frames at the end `wire`."""
    frames: list[bytes] = []
    with trio.fail_after(5):
        while len(frames) < count:
            frames += wire.receive()
            await trio.lowlevel.checkpoint()
    return frames


async def test_a_hub_carries_and_records_what_ends_say(tmp_path: Path, nursery: trio.Nursery) -> None:
    hub, records = observer(tmp_path / "w")
    await nursery.start(hub.serve)
    wires = SocketWires(tmp_path / "w")
    first, second = wires.plug("nic-a", A), wires.plug("nic-b", B)
    first.receive(), second.receive()
    first.send(frame(7))
    assert await until(second, 1) == [frame(7)]
    second.send(frame(8, B))
    assert await until(first, 1) == [frame(8, B)]
    assert [attrs.evolve(record, sender=None) for record in records] == [
        WireRecord(at_ns=1, source="a8:40:25:00:00:01", sequence=7, uptime_ns=70, length=60),
        WireRecord(at_ns=2, source="a8:40:25:00:00:02", sequence=8, uptime_ns=80, length=60),
    ]
    assert [record.sender for record in records] == sorted(end.name for end in ends_of(tmp_path / "w").iterdir())
    assert (hub.seen, hub.undelivered, wires.dropped) == (2, 0, 0)
    wires.close()
    assert list(ends_of(tmp_path / "w").iterdir()) == []
    nursery.cancel_scope.cancel()


async def test_a_busy_hub_gets_everything_in_order(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The kernel queues a few datagrams only; the rest waits with the sender."""
    hub, records = observer(tmp_path / "w")
    await nursery.start(hub.serve)
    wire = SocketWire(tmp_path / "w", A)
    for number in range(500):
        wire.send(frame(number))
    with trio.fail_after(5):
        while len(records) < 500:
            await trio.lowlevel.checkpoint()
            wire.flush()
    assert [record.sequence for record in records] == list(range(500))
    assert wire.dropped == 0
    wire.close()
    nursery.cancel_scope.cancel()


@attrs.frozen
class Talker:
    """A machine that is running on a wire, and the hub of that, which takes nothing unless it is asked to."""

    runner: GuestRunner
    wires: SocketWires
    listener: socket.socket

    def take(self) -> int | None:
        """The number of the next frame that waits at the hub."""
        with suppress(BlockingIOError):
            sent = SequencedFrame.parse(self.listener.recv(100))
            assert sent is not None
            return sent.sequence
        return None

    def take_all(self) -> list[int]:
        """What there is, and what comes into its place when there is room."""
        taken = []
        while (sequence := self.take()) is not None:
            taken.append(sequence)
            self.wires.flush()
        return taken

    @property
    def sent(self) -> int:
        state = LedgerState.load(self.runner.machine.memory)
        assert state is not None
        return state.acknowledged


@pytest.fixture
async def talker(tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery) -> AsyncIterator[Talker]:
    """Its guest has sent more than a kernel queues."""
    wires = SocketWires(tmp_path / "w")
    with observer(tmp_path / "w")[0]._listening() as listener, make_machine(wires=wires) as machine:
        talker = Talker(GuestRunner(machine, make_guest("ledger"), nursery), wires, listener)
        await talker.runner.start_over()
        while wires.flush():  # noqa: ASYNC110  # until the guest has made steps enough
            await trio.sleep(STEP_EVERY_S)
        yield talker
        await talker.runner.stop()


async def test_a_pause_waits_until_a_busy_hub_has_what_the_guest_has_sent(talker: Talker) -> None:
    taken: list[int] = []
    async with trio.open_nursery() as pausing:
        pausing.start_soon(talker.runner.pause)
        await trio.sleep(0.9 * SETTLE_S)
        assert not talker.wires.flush()
        assert pausing.child_tasks  # still
        taken += talker.take_all()
    assert talker.wires.dropped == 0
    assert taken == list(range(1, len(taken) + 1))
    assert len(taken) - talker.sent in (0, 1)  # that of the record in progress may have left as well


async def test_a_pause_does_not_wait_for_ever_and_what_waits_then_leaves_when_the_guest_goes_on(talker: Talker) -> None:
    began = trio.current_time()
    await talker.runner.pause()
    assert trio.current_time() - began == pytest.approx(SETTLE_S, abs=2 * STEP_EVERY_S)
    assert not talker.wires.flush()
    before = talker.sent
    await talker.runner.resume()
    taken: list[int] = []
    while len(taken) < before + 3:
        taken += talker.take_all()
        await trio.sleep(STEP_EVERY_S)
    assert talker.wires.dropped == 0
    assert taken == list(range(1, len(taken) + 1))


async def test_what_waits_is_bounded(tmp_path: Path, nursery: trio.Nursery) -> None:
    hub, _ = observer(tmp_path / "w")
    await nursery.start(hub.serve)
    wire = SocketWire(tmp_path / "w", A)
    for number in range(2 * BACKLOG_FRAMES_MAX):
        wire.send(frame(number))
    assert 0 < wire.dropped < BACKLOG_FRAMES_MAX
    wire.close()
    assert wire.dropped > BACKLOG_FRAMES_MAX
    nursery.cancel_scope.cancel()


def test_an_end_without_a_hub_drops_and_goes_on(tmp_path: Path) -> None:
    wire = SocketWire(tmp_path / "nobody", A)
    assert wire.receive() == []
    wire.send(frame())
    wire.send(frame())
    assert wire.dropped == 2
    wire.close()
    wire.close()


async def test_hubs_come_and_go_and_ends_stay(tmp_path: Path) -> None:
    listening, speaking = SocketWire(tmp_path / "w", A), SocketWire(tmp_path / "w", B)
    listening.receive()
    for number in (1, 2):
        hub, _ = observer(tmp_path / "w")
        async with trio.open_nursery() as nursery:
            await nursery.start(hub.serve)
            speaking.send(frame(number))
            assert await until(listening, 1) == [frame(number)]
            nursery.cancel_scope.cancel()
        assert not (tmp_path / "w").exists()
        speaking.send(frame(99))
    assert speaking.dropped == 2
    listening.close()
    speaking.close()


async def test_an_end_hears_nothing_from_before_its_first_look(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A machine that is being filled must not collect what its source still receives."""
    hub, records = observer(tmp_path / "w")
    await nursery.start(hub.serve)
    late, speaking = SocketWire(tmp_path / "w", A), SocketWire(tmp_path / "w", B)
    speaking.send(frame(1))
    await happens(lambda: bool(records))
    assert late.receive() == []
    speaking.send(frame(2))
    assert await until(late, 1) == [frame(2)]
    late.close()
    speaking.close()
    nursery.cancel_scope.cancel()


async def test_what_a_killed_process_left_is_cleared(tmp_path: Path, nursery: trio.Nursery) -> None:
    killed = SocketWire(tmp_path / "w", A)
    killed.receive()
    killed._socket.close()
    left = next(ends_of(tmp_path / "w").iterdir())
    hub, records = observer(tmp_path / "w")
    await nursery.start(hub.serve)
    wire = SocketWire(tmp_path / "w", B)
    wire.send(frame())
    await happens(lambda: not left.exists())
    assert len(records) == 1
    wire.close()
    nursery.cancel_scope.cancel()


async def test_a_second_hub_is_refused_and_a_dead_ones_socket_is_not_in_the_way(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "w"
    with observer(path)[0]._listening() as listener:
        with pytest.raises(WireError, match="there is a hub already"):
            await observer(path)[0].serve()
        listener.close()
        await nursery.start(observer(path)[0].serve)
        assert path.is_socket()
        nursery.cancel_scope.cancel()


async def test_a_path_that_is_no_wire_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(WireError, match="something that is no wire"):
        await observer(file)[0].serve()
    assert file.read_text() == "precious"
    with pytest.raises(WireError, match="cannot be listened at: No such file or directory"):
        await observer(tmp_path / "nowhere" / "w")[0].serve()
    with pytest.raises(WireError, match="too long for a wire; it can have"):
        SocketWire(Path("/" + "x" * PATH_BYTES_MAX), A)


async def test_only_our_user_may_speak(tmp_path: Path, nursery: trio.Nursery) -> None:
    hub, _ = observer(tmp_path / "w")
    await nursery.start(hub.serve)
    assert (tmp_path / "w").stat().st_mode & 0o077 == 0
    assert ends_of(tmp_path / "w").stat().st_mode & 0o077 == 0
    nursery.cancel_scope.cancel()


def test_records_are_lines_that_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    records = [WireRecord.of(frame(3), 5), WireRecord.of(bytes(60), 6)]
    with (tmp_path / "record").open("w") as stream:
        note = recorder(stream)
        for record in records:
            note(record)
        stream.write('{"at_ns": 7')
        stream.flush()
        with (tmp_path / "record").open() as lines:
            assert list(read_records(lines)) == records
    with pytest.raises(ValueError, match="is no record of a wire"):
        list(read_records(['{"what": 1}\n']))


def test_records_of_before_a_sender_was_noted_can_be_read() -> None:
    old = '{"at_ns": 5, "source": "a8:40:25:00:00:01", "sequence": 3, "uptime_ns": 30, "length": 60}\n'
    assert list(read_records([old])) == [WireRecord.of(frame(3), 5)]


def test_the_command_carries_and_records(tmp_path: Path) -> None:
    path, record = tmp_path / "w", tmp_path / "record"
    command = [sys.executable, "-m", "migrate", "wire", os.fspath(path), "--record", os.fspath(record)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as hub:
        assert hub.stderr is not None
        assert "is there" in hub.stderr.readline()
        wire = SocketWire(path, A)
        wire.send(frame(12))
        while not record.read_text().endswith("\n"):
            pass
        hub.send_signal(signal.SIGINT)
        assert "has carried 1 frames" in hub.stderr.readline()
        assert hub.wait() == 0
        wire.close()
    document = json.loads(record.read_text())
    assert (document["source"], document["sequence"], document["length"]) == ("a8:40:25:00:00:01", 12, 60)
    assert document["at_ns"] > 0


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, complaint in (
        ([tmp_path / "file"], "something that is no wire"),
        ([tmp_path / "w", "--record", tmp_path], "cannot be written"),
    ):
        said = start("wire", *arguments)
        assert said.code == 2
        assert complaint in said.complaint


def test_a_rehearsal_is_heard_on_the_wire_from_both_sides_and_nothing_twice(tmp_path: Path) -> None:
    spec = Path(__file__).parent / "fixtures/specs/valid/v2-smbios-bare.json"
    path, record = tmp_path / "w", tmp_path / "record"
    hub_command = [sys.executable, "-m", "migrate", "wire", os.fspath(path), "--record", os.fspath(record)]
    with subprocess.Popen(hub_command, stderr=subprocess.PIPE, text=True) as hub:
        assert hub.stderr is not None
        assert "is there" in hub.stderr.readline()
        said = start_within(60, "rehearse", spec, "--memory-mb", "16", "--wire", path, "--json")
        hub.send_signal(signal.SIGINT)
        assert hub.wait() == 0
    assert said.document["outcome"] == "migrated", said.err
    with record.open() as lines:
        by_source: dict[str, list[int | None]] = {}
        for line in read_records(lines):
            by_source.setdefault(line.source, []).append(line.sequence)
    assert by_source
    for sequences in by_source.values():
        assert sequences == list(range(1, len(sequences) + 1))
    assert not ends_of(path).exists() or list(ends_of(path).iterdir()) == []
