"""Bytes through a TCP connection, with as little as possible between the caller's memory and the socket.

The descriptor is read and written directly: the event loop has its turn only when the socket has nothing to give or no
room, or after `TURN_BYTES`, so that a fast peer does not keep everybody else waiting.  A frame's head and the guest RAM
behind it leave in one call.  Whoever waits for much is not woken for little (SO_RCVLOWAT): most of the time that a
receiver loses is in being woken for the first few KiB of a MiB.
"""

import os
import select
import socket
from collections.abc import Sequence
from typing import Final

import trio

TURN_BYTES: Final = 1 << 20
"""About half a millisecond of moving bytes."""
CALL_COST_BYTES: Final = 4096
"""What one system call takes of a turn, whatever it moves."""
LOW_WATER_BYTES: Final = 512 * 1024
"""Measured best for batches of 1 MiB: half a batch arrives while the other half is taken."""


class PlainTransport:
    """One connection.  Every method but `readable` raises OSError if it is lost."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._file = self._socket.fileno()
        self._low_water = 1
        self._turn_left = TURN_BYTES
        self._readable = select.poll()
        self._readable.register(self._file, select.POLLIN)

    @property
    def readable(self) -> bool:
        """Whether bytes, or the end of the stream, are there now."""
        return bool(self._readable.poll(0))

    async def send(self, parts: Sequence[memoryview]) -> int:
        """Send some of `parts`, from the first on; returns how many bytes, at least one."""
        while True:
            await self._take_turn()
            try:
                count = os.writev(self._file, parts)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._file)
                self._turn_left = TURN_BYTES
            else:
                self._turn_left -= count + CALL_COST_BYTES
                return count

    async def recv_into(self, buffer: memoryview, *, want_all: bool = False) -> int:
        """Receive at least one byte into `buffer`; returns how many, 0 at the end of the stream.

        With `want_all` the caller will come back until it is full, so it is not woken for less than the low-water mark.
        """
        while True:
            await self._take_turn()
            try:
                count = os.readv(self._file, (buffer,))
            except BlockingIOError:
                self._wake_at(min(len(buffer), LOW_WATER_BYTES) if want_all else 1)
                await trio.lowlevel.wait_readable(self._file)
                self._turn_left = TURN_BYTES
            else:
                self._turn_left -= count + CALL_COST_BYTES
                return count

    def shutdown(self) -> None:
        """Nothing more will be sent."""
        self._wake_at(1)
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def _wake_at(self, bytes_waiting: int) -> None:
        """A mark above what still comes would wake nobody ever, so it is set anew for each wait."""
        if bytes_waiting != self._low_water:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, bytes_waiting)
            self._low_water = bytes_waiting

    async def _take_turn(self) -> None:
        if self._turn_left <= 0:
            self._turn_left = TURN_BYTES
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
