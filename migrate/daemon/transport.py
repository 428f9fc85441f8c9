"""The byte stream below the link: a TCP connection, or TLS 1.3 over one.

The link needs five things of a stream and no more: take some bytes, give some bytes (now, if that can be, or after a
wait), say whether anything is there to be heard, see to it that what was taken is on its way, and part in peace.

In the clear, the descriptor is read and written directly: the event loop has its turn only when the socket has nothing
to give or no room, or after `TURN_BYTES` or `TURN_NS`, so that a fast peer does not keep everybody else waiting.  A
frame's head and the guest RAM behind it leave in one call.  Whoever waits for much is not woken for little
(SO_RCVLOWAT): most of what a receiver loses, it loses by being woken for the first few KiB of a MiB.

TLS is driven here by hand, over `ssl.SSLObject` and two memory BIOs, and not by `trio.SSLStream`, which copies every
byte three times more: page contents are encrypted from the sender's buffer, and decrypted into the receiver's.  Records
are made and read many at a time, so that there is one system call for a few hundred KiB.

What `send` has taken is encrypted and will follow in order; it returns before the kernel has all of it, as the kernel
returns before the peer has.  So a cancelled `send` has taken nothing, and no record is ever torn: whatever is said next
goes out behind what was taken before.
"""

import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import trio

from migrate.daemon.tls import UNEXPECTED_MESSAGE, explained
from migrate.errors import MigrationError, NotOurProtocol
from migrate.protocol.messages import Role

DRAIN_CHUNK: Final = 1 << 16
TURN_BYTES: Final = 1 << 22
"""Some two milliseconds of moving bytes."""
TURN_NS: Final = 4_000_000
"""Of a receiver: bytes that go into memory which the host has yet to find take longer."""
CALL_COST_BYTES: Final = 4096
"""What one system call takes of a turn, whatever it moves."""
LOW_WATER_BYTES: Final = 1 << 20
"""Measured best for batches of 2 MiB: half a batch arrives while the other half is taken."""
ENCRYPT_AT_ONCE: Final = 1 << 18
"""Bytes of one `send`: what stays in a processor's cache between the cipher and the kernel."""
READ_FIRST: Final = 1 << 14
READ_MAX: Final = 1 << 19
"""A connection reads so much at once to begin with, and at most: whoever says little costs little."""
CLOSED: Final = -1
NO_LOW_WATER: Final = (1 << 31) - 1
"""trio has the kernel refuse more than 16 KiB that are not on their way yet, and a batch of RAM would go out in six."""
ROUND_TRIP: Final = struct.Struct("=I")
ROUND_TRIP_AT: Final = 148
"""Where `tcpi_min_rtt` lies in `struct tcp_info` (linux/tcp.h), in microseconds."""
NO_ROUND_TRIP: Final = 0xFFFF_FFFF
TCP_INFO_BYTES: Final = ROUND_TRIP_AT + ROUND_TRIP.size
RECORD_MAX: Final = 1 << 14
"""Plaintext in one record (RFC 8446 §5.1)."""
FIRST_WORDS: Final = 8
"""Bytes that tell what somebody speaks who does not speak TLS."""


class Transport(Protocol):
    """A byte stream.  What the kernel reports is raised as OSError; ClosedResourceError if it is closed meanwhile."""

    async def send(self, parts: Sequence[memoryview]) -> int:
        """Take some of `parts`, none of them empty, from the first on, and return how many bytes, at least one.

        Cancelled, it has taken none.
        """

    def send_now(self, parts: Sequence[memoryview]) -> int:
        """The same without waiting; 0 if there is no room, or somebody else is to have a turn.  Needs no `flush`."""

    def has_room(self) -> bool:
        """Whether `send_now` would take much."""

    async def room(self) -> None:
        """Return when `has_room` may be true."""

    async def flush(self) -> None:
        """Return when the kernel has everything that was taken."""

    async def recv_into(self, buffer: memoryview, *, want_all: bool = False) -> int:
        """Fill some of `buffer` and return how many bytes, 0 when the peer says no more; cancelled, none are lost.

        With `want_all` the caller will come back until it is full, and need not be woken for little.
        """

    def recv_now(self, buffer: memoryview) -> int | None:
        """The same without waiting; None if nothing has come, or somebody else is to have a turn."""

    def has_news(self) -> bool:
        """Whether `recv_into` would return, or raise, without waiting."""

    async def news(self) -> None:
        """Return when `has_news` may be true."""

    def way_ns(self) -> int | None:
        """The shortest round trip that the kernel has measured; None if it cannot say."""

    async def leave(self) -> None:
        """Say that no more comes, and read until the peer hangs up: a reset would destroy our last words."""

    def close(self) -> None: ...


class PlainTransport:
    """TCP as it is."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._file = self._socket.fileno()
        self._low_water = 1
        self._renew_turn()
        self._readable = polled(stream, select.POLLIN)
        self._writable = polled(stream, select.POLLOUT)
        with suppress(OSError):  # it has gone already, which whoever uses it is told
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NO_LOW_WATER)

    async def send(self, parts: Sequence[memoryview]) -> int:
        await self._take_turn(is_over=self._turn_left <= 0)
        while not (count := self.send_now(parts)):
            await trio.lowlevel.wait_writable(self._file)
            self._renew_turn()
        return count

    def send_now(self, parts: Sequence[memoryview]) -> int:
        if self._turn_left <= 0:
            return 0
        try:
            count = os.writev(self._file, parts)
        except BlockingIOError:
            return 0
        self._turn_left -= count + CALL_COST_BYTES
        return count

    def has_room(self) -> bool:
        return self._turn_left > 0 and bool(self._writable.poll(0))

    async def room(self) -> None:
        await self._take_turn(is_over=self._turn_left <= 0)
        if not self._writable.poll(0):
            await trio.lowlevel.wait_writable(self._file)
            self._renew_turn()

    async def recv_into(self, buffer: memoryview, *, want_all: bool = False) -> int:
        await self._take_turn(is_over=self._receivers_turn_is_over())
        while (count := self.recv_now(buffer)) is None:
            self._wake_at(min(len(buffer), LOW_WATER_BYTES) if want_all else 1)
            await trio.lowlevel.wait_readable(self._file)
            self._renew_turn()
        return count

    def recv_now(self, buffer: memoryview) -> int | None:
        if self._receivers_turn_is_over():
            return None
        try:
            count = os.readv(self._file, (buffer,))
        except BlockingIOError:
            return None
        self._turn_left -= count + CALL_COST_BYTES
        return count

    async def flush(self) -> None:
        """The kernel has taken it."""

    def has_news(self) -> bool:
        return bool(self._readable.poll(0))

    async def news(self) -> None:
        self._wake_at(1)
        await trio.lowlevel.wait_readable(self._file)

    def way_ns(self) -> int | None:
        return way_of(self._socket)

    async def leave(self) -> None:
        self._wake_at(1)
        await hang_up(self._socket)

    def close(self) -> None:
        self._socket.close()
        self._file = CLOSED  # the number may be another file's soon

    def _wake_at(self, bytes_waiting: int) -> None:
        """A mark above what still comes would wake nobody ever, so it is set anew for each wait."""
        if bytes_waiting != self._low_water:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, bytes_waiting)
            self._low_water = bytes_waiting

    def _renew_turn(self) -> None:
        self._turn_left, self._turn_until_ns = TURN_BYTES, time.monotonic_ns() + TURN_NS

    def _receivers_turn_is_over(self) -> bool:
        return self._turn_left <= 0 or time.monotonic_ns() > self._turn_until_ns

    async def _take_turn(self, *, is_over: bool) -> None:
        if is_over:
            await trio.lowlevel.checkpoint()
            self._renew_turn()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()


class TlsTransport:
    """TLS 1.3 over TCP, seen from `role`; the source is TLS's server.  `handshake` comes first.

    What the peer does to TLS itself is raised as a MigrationError: see `tls.explained`.
    """

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, role: Role) -> None:
        self.role = role
        self._socket = stream.socket
        self._readable = polled(stream, select.POLLIN)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=role is Role.SOURCE)
        self._encrypted = memoryview(b"")  # the kernel has not taken it yet
        self._decrypted = memoryview(b"")  # nobody has asked for it yet
        self._failure: MigrationError | None = None  # behind what has been decrypted
        self._read_buffer = bytearray(READ_FIRST)
        self._heard_first = b""

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """DNS names and IP addresses in the peer's certificate, which was verified."""
        certificate: dict[str, Any] = self._tls.getpeercert() or {}
        names = certificate.get("subjectAltName", ())
        return tuple(value for kind, value in names if kind in ("DNS", "IP Address"))

    async def handshake(self) -> None:
        """Agree on keys, and verify the peer's certificate.

        Raises:
            NotOurProtocol: the peer does not speak TLS.
            Distrusted: one of both does not accept the other's certificate, as far as that shows already.
            RemoteProtocolError: its TLS is wrong.
            OSError, ClosedResourceError: the connection is lost.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self._read():
                    raise ConnectionAbortedError("the peer hung up in the TLS handshake") from None
            except ssl.SSLError as error:
                failure = explained(error, self.role, self._heard_first)
                if isinstance(failure, NotOurProtocol) and self.role is Role.SOURCE and not self._outgoing.pending:
                    self._outgoing.write(UNEXPECTED_MESSAGE)  # OpenSSL says nothing to who speaks something else
                await self.flush()
                raise failure from None
            else:
                await self.flush()
                return

    async def send(self, parts: Sequence[memoryview]) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.flush()
        try:
            taken = self._tls.write(parts[0][:ENCRYPT_AT_ONCE])
        except ssl.SSLError as error:
            raise explained(error, self.role, self._heard_first) from None
        self._send_now()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return taken

    def send_now(self, parts: Sequence[memoryview]) -> int:
        return 0  # what is encrypted may have to wait, and must not be encrypted twice

    def has_room(self) -> bool:
        return not self._encrypted

    async def room(self) -> None:
        await self.flush()
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        self._take_encrypted()
        while self._encrypted:
            self._encrypted = self._encrypted[await self._socket.send(self._encrypted) :]

    async def recv_into(self, buffer: memoryview, *, want_all: bool = False) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            filled = self._decrypt_into(buffer)
            self._send_now()  # what the peer said may want an answer of TLS's own
            if filled is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return filled
            if not await self._read():
                raise ConnectionAbortedError("it broke off without TLS's word of an end")

    def recv_now(self, buffer: memoryview) -> int | None:
        return None  # what the peer says may want an answer of TLS's own

    def has_news(self) -> bool:
        """Records that carry nothing for us, such as those that change keys, are no news."""
        while not self._decrypted:
            try:
                found = self._decrypt_ahead()
            except MigrationError as failure:
                self._failure = failure
                return True
            if found:
                return True
            if not self._readable.poll(0):
                return False
            if not self._read_now():
                return bool(self._readable.poll(0))  # the end, or an error
        return True

    async def news(self) -> None:
        while not self.has_news():
            await trio.lowlevel.wait_readable(self._socket.fileno())

    def way_ns(self) -> int | None:
        return way_of(self._socket)

    async def leave(self) -> None:
        with suppress(ssl.SSLError):  # it would wait for the peer's word; ours is in the BIO, as is any alert
            self._tls.unwrap()
        await self.flush()
        await hang_up(self._socket)

    def close(self) -> None:
        self._socket.close()

    def _decrypt_ahead(self) -> bool:
        """Whether anything has come for `recv_into`, be it the end."""
        if not self._tls.pending() and not self._incoming.pending:
            return False
        record = memoryview(bytearray(RECORD_MAX))
        filled = self._decrypt_into(record)
        if filled:
            self._decrypted = record[:filled]
        return filled is not None

    def _decrypt_into(self, buffer: memoryview) -> int | None:
        """How many bytes were there, 0 at the end of the stream; None if there is nothing to be decrypted yet."""
        if self._decrypted:
            filled = min(len(buffer), len(self._decrypted))
            buffer[:filled], self._decrypted = self._decrypted[:filled], self._decrypted[filled:]
            return filled
        if self._failure is not None:
            raise self._failure
        filled = 0
        try:
            while filled < len(buffer):
                count: int = self._tls.read(len(buffer) - filled, buffer[filled:])  # type: ignore[assignment]
                if not count:
                    break  # the peer has said that no more comes
                filled += count
        except ssl.SSLWantReadError:
            return filled or None
        except ssl.SSLZeroReturnError:
            return filled
        except ssl.SSLError as error:
            self._failure = explained(error, self.role, self._heard_first)
            if not filled:
                raise self._failure from None
        return filled

    async def _read(self) -> int:
        """How many bytes came from the peer, to be decrypted; 0 at the end."""
        return self._note(await self._socket.recv_into(self._read_buffer))

    def _read_now(self) -> int:
        """The same without waiting; 0 also if there are none."""
        try:
            return self._note(os.readv(self._socket.fileno(), [self._read_buffer]))
        except OSError:
            return 0

    def _note(self, count: int) -> int:
        data = memoryview(self._read_buffer)[:count]
        if len(self._heard_first) < FIRST_WORDS:
            self._heard_first += bytes(data[: FIRST_WORDS - len(self._heard_first)])
        self._incoming.write(data)
        if count == len(self._read_buffer) < READ_MAX:
            self._read_buffer = bytearray(2 * count)
        return count

    def _take_encrypted(self) -> None:
        if not self._encrypted and self._outgoing.pending:
            self._encrypted = memoryview(self._outgoing.read())

    def _send_now(self) -> None:
        """As much as the kernel takes without waiting.  What is wrong with the connection, the next wait finds."""
        self._take_encrypted()
        if self._encrypted:
            with suppress(OSError):
                self._encrypted = self._encrypted[os.write(self._socket.fileno(), self._encrypted) :]


def polled(stream: trio.SocketStream, event: int) -> select.poll:
    """`poll(0)` tells whether anything has come, the end included, or whether there is room for much."""
    poll = select.poll()
    poll.register(stream.socket.fileno(), event)
    return poll


def way_of(connection: trio.socket.SocketType) -> int | None:
    """The shortest round trip of a TCP connection lately, in ns (tcp(7), TCP_INFO); None if the kernel does not say.

    Others are longer by what was waiting on the way.
    """
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return None
    if len(told) < TCP_INFO_BYTES:
        return None
    (microseconds,) = ROUND_TRIP.unpack_from(told, ROUND_TRIP_AT)
    return None if microseconds in (0, NO_ROUND_TRIP) else int(microseconds) * 1000


async def hang_up(connection: trio.socket.SocketType) -> None:
    """Say that no more comes, and read until the peer says so, too."""
    connection.shutdown(socket.SHUT_WR)
    while await connection.recv(DRAIN_CHUNK):
        pass
