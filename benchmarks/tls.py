"""Guest RAM over mutual TLS on loopback, from this process into a forked one: what TLS costs, and what trio's would.

Three ways, in turns: a round of the engine's sender and receiver over the daemons' link with TLS; the same in the
clear; and the least that could be done with `trio.SSLStream`: `send_all` from the mapping, `receive_some` copied into
the other, without frames, checksums or a look at what is sent.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import trio

from benchmarks.measure import MIB, Result
from benchmarks.ram_ways import PATIENT, receive_round, send_round
from migrate.daemon.access import Access
from migrate.daemon.certificates import write_throw_away
from migrate.daemon.link import SocketLink
from migrate.daemon.tls import Tls
from migrate.daemon.transport import Transport
from migrate.protocol.conversation import Phase
from migrate.protocol.messages import Role
from sim_vmm.memory import GuestMemory

RAM_BYTES: Final = 128 * MIB
RUNS: Final = 5

WAYS: Final = ("TLS", "plain", "SSLStream")


def results() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="migrate-bench-") as directory:
        access = accesses(Path(directory))
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        with closing(GuestMemory.create(RAM_BYTES)) as sent, closing(GuestMemory.create(RAM_BYTES)) as received:
            sent.view[:] = np.random.Generator(np.random.SFC64(2)).bytes(RAM_BYTES)
            for number in range(RUNS + 1):
                for way in WAYS:
                    sent.dirty.mark_range(0, sent.page_count)
                    elapsed = round_s(way, sent, received, access)
                    if number:  # the first time round only warms up
                        times[way].append(elapsed)
    for way, peer, limit in (
        ("plain", "the same round in the clear", 0.35),
        ("SSLStream", "a bare copy over trio.SSLStream", 1.1),
    ):
        yield Result(
            path=f"RAM over mutual TLS 1.3, one stream, {RAM_BYTES // MIB} MiB of random pages, against {way}",
            peer=peer,
            ours_s=median(times["TLS"]),
            peer_s=median(times[way]),
            runs=RUNS,
            limit=limit,
            amount=RAM_BYTES / 1e9,
            unit="GB",
        )


def accesses(directory: Path) -> dict[Role, Access]:
    sides = write_throw_away(directory, days=1)
    return {
        role: Access(tls=Tls.load(side.certificate, side.key, side.authority, peers=[side.peer]))
        for role, side in sides.items()
    }


def round_s(way: str, sent: GuestMemory, received: GuestMemory, access: dict[Role, Access]) -> float:
    """Seconds from the first byte after the handshake to the receipt; the receiver is a fork of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        try:
            with socket.create_connection(listener.getsockname()) as connection:
                trio.run(_converse, way, Role.TARGET, connection, received, access[Role.TARGET])
        finally:
            os._exit(0)
    with listener, listener.accept()[0] as connection:
        elapsed: float = trio.run(_converse, way, Role.SOURCE, connection, sent, access[Role.SOURCE])
    os.waitpid(child, 0)
    return elapsed


async def _converse(way: str, role: Role, connection: socket.socket, memory: GuestMemory, access: Access) -> float:
    connection.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    if way == "SSLStream":
        assert access.tls is not None
        context = access.tls.context(role)
        secured = trio.SSLStream(stream, context, server_side=role is Role.SOURCE)
        await secured.do_handshake()
        start = time.perf_counter()
        await (_send_raw if role is Role.SOURCE else _receive_raw)(secured, memory)
        return time.perf_counter() - start
    transport: Transport | trio.SocketStream = stream
    if way == "TLS":
        transport = await access.secured(stream, role, PATIENT)
    link = SocketLink(role, transport, PATIENT)
    link.conversation.phase = Phase.RAM
    start = time.perf_counter()
    await (send_round if role is Role.SOURCE else receive_round)(link, memory)
    return time.perf_counter() - start


async def _send_raw(stream: trio.SSLStream[trio.SocketStream], memory: GuestMemory) -> None:
    for start in range(0, RAM_BYTES, MIB):
        await stream.send_all(memory.view[start : start + MIB])
    assert await stream.receive_some(1) == b"!"


async def _receive_raw(stream: trio.SSLStream[trio.SocketStream], memory: GuestMemory) -> None:
    received = 0
    while received < RAM_BYTES:
        data = await stream.receive_some(MIB)
        memory.view[received : received + len(data)] = data
        received += len(data)
    await stream.send_all(b"!")
