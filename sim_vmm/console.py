"""What COM1 has printed since the machine was born: the first and the last MiB of it (control-api §7).

Offsets count bytes since birth, across migrations.  Output first fills `beginning`; once that is full, `rolling` holds
the most recent bytes of the rest.  What has been pushed out of `rolling` is the *gap*: a read that starts there is
refused, and one that starts in the beginning stops at its end, without jumping the gap.
"""

from typing import Final

import attrs

from sim_vmm.integers import U64

BUFFER_SIZE: Final = 1 << 20
#: How much one query returns unless it says otherwise (control-api §7).
DEFAULT_MAX_BYTES: Final = 16384


class ConsoleQueryError(ValueError):
    """A query that cannot be answered; on the HTTP route status 400."""


class ConsoleStateError(ValueError):
    """A history from another host that contradicts itself."""


@attrs.frozen
class ConsoleData:
    """Bytes of the history; `last_byte_offset` is the offset after the last of them."""

    data: bytes
    last_byte_offset: int


@attrs.frozen(kw_only=True)
class ConsoleState:
    """A history as it travels (protocol-phases §7); `buffer_size` is the capacity of each buffer in bytes."""

    beginning: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    rolling: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    total_bytes: U64
    buffer_size: U64


class ConsoleHistory:
    """The history of one console; see the module."""

    def __init__(self, buffer_size: int = BUFFER_SIZE) -> None:
        self._buffer_size = buffer_size
        self._beginning = bytearray()
        self._rolling = bytearray()
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def append(self, data: bytes) -> None:
        self._total_bytes += len(data)
        room = self._buffer_size - len(self._beginning)
        self._beginning += data[:room]
        self._rolling += data[room:]
        excess = len(self._rolling) - self._buffer_size
        if excess > 0:
            del self._rolling[:excess]

    def read(
        self, *, from_start: int | None = None, most_recent: int | None = None, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> ConsoleData:
        """At most `max_bytes` bytes from offset `from_start`, or from `most_recent` bytes before the end.

        Raises:
            ConsoleQueryError: not exactly one starting point, a negative number, or a start in the expired gap.
        """
        start = self._start(from_start, most_recent)
        if max_bytes < 0:
            raise ConsoleQueryError(f"max_bytes is {max_bytes}; it must not be negative")
        rolling_start = self._total_bytes - len(self._rolling)
        if len(self._beginning) <= start < rolling_start:
            raise ConsoleQueryError(
                f"byte {start} of the console has expired; kept are 0-{len(self._beginning) - 1} and "
                f"{rolling_start}-{self._total_bytes - 1}"
            )
        if start >= rolling_start:
            data = bytes(self._rolling[start - rolling_start :][:max_bytes])
        else:
            data = bytes(self._beginning[start : start + max_bytes])
            if rolling_start == len(self._beginning):
                data += bytes(self._rolling[: max_bytes - len(data)])
        return ConsoleData(data, start + len(data))

    def export(self) -> ConsoleState:
        return ConsoleState(
            beginning=bytes(self._beginning),
            rolling=bytes(self._rolling),
            total_bytes=self._total_bytes,
            buffer_size=self._buffer_size,
        )

    def import_(self, state: ConsoleState) -> None:
        """Go on from another host's history, its buffer size included.

        Raises:
            ConsoleStateError: the buffers do not hold as much as `total_bytes` and `buffer_size` say; nothing changed.
        """
        if not 1 <= state.buffer_size <= BUFFER_SIZE:
            raise ConsoleStateError(f"buffer_size is {state.buffer_size}; a console history keeps 1 to {BUFFER_SIZE}")
        beginning = min(state.total_bytes, state.buffer_size)
        rolling = min(state.total_bytes - beginning, state.buffer_size)
        for name, data, expected in (("beginning", state.beginning, beginning), ("rolling", state.rolling, rolling)):
            if len(data) != expected:
                raise ConsoleStateError(
                    f"{name} has {len(data)} bytes; with total_bytes {state.total_bytes} and buffer_size "
                    f"{state.buffer_size} it must have {expected}"
                )
        self._buffer_size = state.buffer_size
        self._beginning = bytearray(state.beginning)
        self._rolling = bytearray(state.rolling)
        self._total_bytes = state.total_bytes

    def _start(self, from_start: int | None, most_recent: int | None) -> int:
        match from_start, most_recent:
            case int(offset), None if offset >= 0:
                return min(offset, self._total_bytes)
            case None, int(count) if count >= 0:
                return max(self._total_bytes - count, 0)
            case (None, None) | (int(), int()):
                raise ConsoleQueryError("give exactly one of from_start and most_recent")
            case _:
                raise ConsoleQueryError(f"from_start={from_start}, most_recent={most_recent}: must not be negative")
