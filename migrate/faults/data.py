"""What faults make of data on its way: pure, and the same in a simulated network and in a proxy between two daemons."""

from collections.abc import Iterable
from typing import Final

from migrate.faults.lies import told
from migrate.faults.plan import Action, Duplicate, FlipBit, Lie, Replay
from migrate.protocol.frames import PREFACE
from migrate.protocol.messages import Message, Role

PIECES_MAX: Final = 256

#: A message that was said, without the preface, and the number of its connection.
Said = tuple[int, bytes]


def stand_in(
    do: Lie | Replay, sender: Role, message: Message, data: bytes, said: Iterable[Said], connection: int
) -> bytes | None:
    """What goes in the place of `message`, whose bytes are `data`; None if nothing is there that could.

    `said` is everything that its sender has said of the kind, in order; `connection` is the one of `data`.
    """
    if isinstance(do, Lie):
        return told(do.what, sender, message, data, do.way)
    older = [earlier for number, earlier in said if number < connection]
    return (PREFACE if data.startswith(PREFACE) else b"") + older[-1] if older else None


def altered(do: Action, data: bytes, offset: int) -> bytes | None:
    """`data` after a fault that struck at its byte `offset`; None if what `do` does is not to its content."""
    match do:
        case FlipBit(bit=bit):
            return flip(data, offset * 8 + bit)
        case Duplicate():
            return data + data
        case _:
            return None


def flip(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed, counted modulo its length."""
    changed = bytearray(data)
    bit %= len(data) * 8
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def piece_bytes(wanted: int, data: bytes) -> int:
    """Into pieces of how many bytes `data` is cut: as wanted, unless that were very many."""
    return max(wanted, len(data) // PIECES_MAX)
