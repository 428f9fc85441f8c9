"""Ways to move guest RAM over TCP on loopback, from this process into a forked one.

*Ours* is what a migration does: a round of the engine's sender and receiver over the daemons' links, with checksums.
*Raw* is the least that could be done: a blocking `sendall` from the mapping, and `recv_into` the other; with several
connections, a thread for each.  *Pages* is a message for every page of 4 KiB, as bare frames over trio's streams: the
shape of a migration over websocket messages, without what a websocket would cost.

*Cold* target memory was never touched before, so the kernel makes every page on the way, from memory that the host of
this machine has at hand; *warm* memory has been received into before.
"""

import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import attrs
import numpy as np
import trio

from benchmarks.measure import MIB, have_memory
from migrate.daemon.clock import TrioClock
from migrate.daemon.events import EventLog
from migrate.daemon.link import SocketLink
from migrate.engine.ram import RamReceiver, RamSender
from migrate.protocol.conversation import Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role, RoundEnd, RoundStored
from sim_vmm.memory import PAGE_SIZE, GuestMemory

COLD_SPARE: Final = 2
"""The host has so many times the memory at hand that a move is to find untouched: or the first to come pays for it."""
PATIENT: Final = Deadlines(opening_s=600, phase_s=600)
TICK_S: Final = 0.001

Way = Literal["ours", "raw", "pages"]
Target = Literal["warm", "cold"]

_ORDER: Final = struct.Struct("!5s4sBQ")
_PAGE: Final = struct.Struct("!QI")


@attrs.frozen
class Moved:
    """What one move of RAM took.  `stall_s` is the longest that an event loop of ours was kept from its other tasks."""

    seconds: float
    stall_s: float
    anonymous_bytes: int
    """Memory of the receiving process beside guest RAM, when it was done."""


_ANSWER: Final = struct.Struct("!dQ")


class ForkedTarget:
    """A child that receives RAM of `ram_bytes`, in whichever way it is told, into memory that is warm or cold."""

    def __init__(self, ram_bytes: int) -> None:
        self._ram_bytes = ram_bytes
        gc.collect()
        gc.freeze()  # as the daemons do
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._child = os.fork()
        if self._child == 0:
            try:
                self._receive_all()
            finally:
                os._exit(0)

    def move(self, way: Way, target: Target, memory: GuestMemory, streams: int = 1) -> Moved:
        """All that is dirty in `memory`, which is all of it in any way but ours, until the child has it."""
        connections = [socket.create_connection(self._listener.getsockname()) for _ in range(streams)]
        connections[0].sendall(_ORDER.pack(way.ljust(5).encode(), target.encode(), streams, memory.page_count))
        assert connections[0].recv(1) == b"?"
        gc.collect()
        start, stall_s = time.perf_counter(), 0.0
        match way:
            case "ours":
                stall_s = trio.run(_send_ours, connections, memory)
            case "raw":
                in_threads(connections, memory, _send_part)
            case "pages":
                trio.run(_send_pages, connections[0], memory)
        seconds = time.perf_counter() - start
        for connection in connections:
            connection.close()
        with socket.create_connection(self._listener.getsockname()) as asking:
            asking.sendall(_ORDER.pack(b"how  ", b"    ", 0, 0))
            theirs_s, anonymous = _ANSWER.unpack(asking.recv(_ANSWER.size, socket.MSG_WAITALL))
        return Moved(seconds, max(stall_s, theirs_s), anonymous)

    def end(self) -> None:
        with socket.create_connection(self._listener.getsockname()) as connection:
            connection.sendall(_ORDER.pack(b"end  ", b"    ", 0, 0))
        os.waitpid(self._child, 0)
        self._listener.close()

    def _receive_all(self) -> None:
        warm = GuestMemory.create(self._ram_bytes)
        stall_s = 0.0
        while True:
            connection, _ = self._listener.accept()
            way, target, streams, _ = _ORDER.unpack(connection.recv(_ORDER.size, socket.MSG_WAITALL))
            match way.strip():
                case b"end":
                    return
                case b"how":
                    connection.sendall(_ANSWER.pack(stall_s, anonymous_bytes()))
                    connection.close()
                    continue
            memory = warm if target == b"warm" else GuestMemory.create(self._ram_bytes)
            if target == b"cold":
                have_memory(COLD_SPARE * self._ram_bytes // MIB)
            connections = [connection, *(self._listener.accept()[0] for _ in range(streams - 1))]
            connection.sendall(b"?")
            match way.strip():
                case b"ours":
                    stall_s = trio.run(_receive_ours, connections, memory)
                case b"raw":
                    in_threads(connections, memory, _receive_part)
                case b"pages":
                    trio.run(_receive_pages, connection, memory)
            for each in connections:
                each.close()
            if memory is not warm:
                memory.close()


@contextmanager
def forked_target(ram_bytes: int) -> Iterator[ForkedTarget]:
    target = ForkedTarget(ram_bytes)
    try:
        yield target
    finally:
        target.end()


def anonymous_bytes() -> int:
    """This process's memory that is no guest RAM, which lies in shared files."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))


# Ours


async def _send_ours(connections: Sequence[socket.socket], memory: GuestMemory) -> float:
    async with stalls() as longest, link_over(Role.SOURCE, connections) as link:
        await send_round(link, memory)
    return longest()


async def _receive_ours(connections: Sequence[socket.socket], memory: GuestMemory) -> float:
    async with stalls() as longest, link_over(Role.TARGET, connections) as link:
        await receive_round(link, memory)
    return longest()


async def send_round(link: SocketLink, memory: GuestMemory) -> None:
    """All that is dirty, until the other end has stored it."""
    await RamSender(memory, link, TrioClock(), EventLog("source"), protocol_version=2).send_round()
    assert isinstance(await link.receive(), RoundStored)


async def receive_round(link: SocketLink, memory: GuestMemory) -> None:
    """The other end of `send_round`."""
    end = await RamReceiver(memory, link).receive_round()
    assert isinstance(end, RoundEnd)
    await link.send(RoundStored(round=0))


def link_over(role: Role, connections: Sequence[socket.socket]) -> SocketLink:
    """A link that is past negotiation, and its streams."""
    first, *more = (_link(role, connection, Phase.STREAM) for connection in connections)
    first.conversation.phase = Phase.RAM
    first.streams.rules.others.extend(more)
    return first


def _link(role: Role, connection: socket.socket, phase: Phase) -> SocketLink:
    link = SocketLink(role, _stream(connection), PATIENT)
    link.conversation.phase = phase
    link.has_time()
    return link


class stalls:  # noqa: N801  # used as a function
    """Inside the block, somebody else in the event loop who wants a turn every ms; gives the longest that took."""

    def __init__(self) -> None:
        self._manager = trio.open_nursery()
        self._longest_s = 0.0

    async def __aenter__(self) -> Callable[[], float]:
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._tick)
        return lambda: self._longest_s

    async def __aexit__(self, *error: object) -> bool | None:
        self._nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(*error)  # type: ignore[arg-type]

    async def _tick(self) -> None:
        while True:
            due = trio.current_time() + TICK_S
            await trio.sleep_until(due)
            self._longest_s = max(self._longest_s, trio.current_time() - due)


# Others


def in_threads(
    connections: Sequence[socket.socket], memory: GuestMemory, work: Callable[[socket.socket, memoryview], None]
) -> None:
    """Each connection has its part of the memory, and a thread; the last one is this."""
    part = len(memory.view) // len(connections)
    parts = [memory.view[number * part :][:part] for number in range(len(connections))]
    threads = [threading.Thread(target=work, args=pair) for pair in list(zip(connections, parts, strict=True))[1:]]
    for thread in threads:
        thread.start()
    work(connections[0], parts[0])
    for thread in threads:
        thread.join()


def _send_part(connection: socket.socket, part: memoryview) -> None:
    connection.sendall(part)
    assert connection.recv(1) == b"!"


def _receive_part(connection: socket.socket, part: memoryview) -> None:
    received = 0
    while received < len(part):
        received += connection.recv_into(part[received : received + MIB])
    connection.sendall(b"!")


async def _send_pages(connection: socket.socket, memory: GuestMemory) -> None:
    async with _stream(connection) as stream:
        for page in range(memory.page_count):
            offset = page * PAGE_SIZE
            await stream.send_all(_PAGE.pack(offset, PAGE_SIZE) + memory.view[offset : offset + PAGE_SIZE])
        assert await stream.receive_some(1) == b"!"


async def _receive_pages(connection: socket.socket, memory: GuestMemory) -> None:
    async with _stream(connection) as stream:
        heard = bytearray()
        for _ in range(memory.page_count):
            while len(heard) < _PAGE.size + PAGE_SIZE:
                heard += await stream.receive_some(MIB)
            offset, length = _PAGE.unpack_from(heard)
            memory.view[offset : offset + length] = heard[_PAGE.size : _PAGE.size + length]
            del heard[: _PAGE.size + length]
        await stream.send_all(b"!")


def _stream(connection: socket.socket) -> trio.SocketStream:
    connection.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(connection))


def random_memory(ram_bytes: int) -> GuestMemory:
    """Nothing in it can be left out or compressed."""
    memory = GuestMemory.create(ram_bytes)
    random = np.random.Generator(np.random.SFC64(1))
    for start in range(0, ram_bytes, 64 * MIB):
        part = memory.view[start : start + 64 * MIB]
        part[:] = random.bytes(len(part))
    return memory
