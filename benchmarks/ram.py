"""Guest RAM, one stream over TCP on loopback, from this process into a forked one.

Ours is what a migration does: the engine's sender and receiver over the daemons' link, with checksums.  The peer is the
least that could be done: a blocking `sendall` from the mapping, and `recv_into` the other.  *Cold* target memory was
never touched before, so the kernel makes every page on the way; *warm* memory has been received into before.
"""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import Final

import numpy as np
import trio

from benchmarks.measure import Result
from migrate.daemon.clock import TrioClock
from migrate.daemon.events import EventLog
from migrate.daemon.link import SocketLink
from migrate.engine.ram import RamReceiver, RamSender
from migrate.protocol.conversation import Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role, RoundEnd, RoundStored
from sim_vmm.memory import GuestMemory

MIB: Final = 1 << 20
RAM_BYTES: Final = 512 * MIB
RUNS: Final = 5
PATIENT: Final = Deadlines(opening_s=600, phase_s=600)


def results() -> Iterator[Result]:
    with forked_target() as connect, closing(random_memory()) as memory:
        times: dict[tuple[str, str], list[float]] = {}
        for number in range(RUNS + 1):
            for state in ("warm", "cold"):
                for way, send in (("ours", send_ours), ("peer", send_raw)):
                    elapsed = timed(connect(f"{way} {state}"), memory, send)
                    if number:  # the first time round only warms up
                        times.setdefault((way, state), []).append(elapsed)
    for state, limit in (("warm", 0.33), ("cold", 0.35)):
        yield Result(
            path=f"RAM, one stream, 512 MiB of random pages, {state} target memory",
            peer="sendall and recv_into",
            ours_s=median(times["ours", state]),
            peer_s=median(times["peer", state]),
            runs=RUNS,
            limit=limit,
            amount=RAM_BYTES / 1e9,
            unit="GB",
        )


def random_memory() -> GuestMemory:
    memory = GuestMemory.create(RAM_BYTES)
    memory.view[:] = np.random.Generator(np.random.SFC64(1)).bytes(RAM_BYTES)
    return memory


def timed(connection: socket.socket, memory: GuestMemory, send: Callable[[socket.socket, GuestMemory], None]) -> float:
    memory.dirty.mark_range(0, memory.page_count)
    gc.collect()
    start = time.perf_counter()
    with connection:
        send(connection, memory)
        return time.perf_counter() - start


def send_raw(connection: socket.socket, memory: GuestMemory) -> None:
    connection.sendall(memory.view)
    assert connection.recv(1) == b"!"


def send_ours(connection: socket.socket, memory: GuestMemory) -> None:
    trio.run(_send_round, connection, memory)


async def _send_round(connection: socket.socket, memory: GuestMemory) -> None:
    async with link_over(Role.SOURCE, connection) as link:
        await send_round(link, memory)


async def _receive_round(connection: socket.socket, memory: GuestMemory) -> None:
    async with link_over(Role.TARGET, connection) as link:
        await receive_round(link, memory)


async def send_round(link: SocketLink, memory: GuestMemory) -> None:
    """All that is dirty, until the other end has stored it."""
    await RamSender(memory, link, TrioClock(), EventLog("source")).send_round()
    assert isinstance(await link.receive(), RoundStored)


async def receive_round(link: SocketLink, memory: GuestMemory) -> None:
    """The other end of `send_round`."""
    assert await RamReceiver(memory, link).receive_round() == RoundEnd(round=0, pages=memory.page_count, zero_pages=0)
    await link.send(RoundStored(round=0))


def receive_raw(connection: socket.socket, memory: GuestMemory) -> None:
    received = 0
    while received < RAM_BYTES:
        received += connection.recv_into(memory.view[received : received + MIB])
    connection.sendall(b"!")


def link_over(role: Role, connection: socket.socket) -> SocketLink:
    """A link that is past negotiation."""
    connection.setblocking(False)
    link = SocketLink(role, trio.SocketStream(trio.socket.from_stdlib_socket(connection)), PATIENT)
    link.conversation.phase = Phase.RAM
    return link


@contextmanager
def forked_target() -> Iterator[Callable[[str], socket.socket]]:
    """A child that receives; the function gives a connection on which it awaits RAM in the way that it was told."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        try:
            receive_all(listener)
        finally:
            os._exit(0)

    def connect(how: str) -> socket.socket:
        connection = socket.create_connection(listener.getsockname())
        connection.sendall(how.encode())
        assert connection.recv(1) == b"?"
        return connection

    try:
        yield connect
    finally:
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"that's all")
        os.waitpid(child, 0)
        listener.close()


def receive_all(listener: socket.socket) -> None:
    warm = GuestMemory.create(RAM_BYTES)
    while True:
        connection, _ = listener.accept()
        how = connection.recv(64).decode()
        if how not in ("ours warm", "ours cold", "peer warm", "peer cold"):
            return
        way, state = how.split()
        memory = warm if state == "warm" else GuestMemory.create(RAM_BYTES)
        connection.sendall(b"?")
        if way == "ours":
            trio.run(_receive_round, connection, memory)
        else:
            receive_raw(connection, memory)
        connection.close()
        if memory is not warm:
            memory.close()
