"""Networks in memory, and the frames on them.

A NIC is on a wire from its first look at it (`receive`) on, not from being made: a machine that a migration is filling
must not collect what its source still receives, or the guest would get frames twice.

Frames are Ethernet frames without preamble and check sequence:

    destination 6, source 6, ethertype u16 big-endian, payload; padded with zeros to 60 bytes (IEEE 802.3 §3.2.8)

Guest programs of ours send *sequenced* frames: an ethertype for local experiments (IEEE 802, clause 9.2.4), and as
payload a sequence number and the guest's uptime in ns, u64 big-endian each, so that whoever listens can tell who spoke
when, what was lost, and what was said twice.

Elsewhere: wires between processes (migrate/daemon/wire.py).
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from sim_vmm.platform import Wire

HEADER: Final = struct.Struct(">6s6sH")
FRAME_BYTES_MIN: Final = 60
#: The largest that a virtio driver may be given or give us: an IPv6 packet without jumbo option behind the header.
FRAME_BYTES_MAX: Final = HEADER.size + 65535
BROADCAST: Final = b"\xff" * 6
ETHERTYPE_EXPERIMENTAL: Final = 0x88B5

#: Frames that wait for one NIC; more are lost, as in a switch.
BACKLOG_FRAMES_MAX: Final = 1024

_SEQUENCED: Final = struct.Struct(">6s6sHQQ")


def is_group_address(address: bytes) -> bool:
    """Multicast or broadcast: the first bit on the wire is set."""
    return bool(address[0] & 1)


def mac_text(address: bytes) -> str:
    return address.hex(":")


@attrs.frozen(kw_only=True)
class Frame:
    """An Ethernet frame; addresses have 6 bytes.  A payload that was padded keeps its padding when parsed."""

    destination: bytes
    source: bytes
    ethertype: int
    payload: bytes

    def encode(self) -> bytes:
        raw = HEADER.pack(self.destination, self.source, self.ethertype) + self.payload
        return raw.ljust(FRAME_BYTES_MIN, b"\0")

    @classmethod
    def parse(cls, raw: bytes) -> "Frame | None":
        """None for what is too short to be a frame."""
        if len(raw) < HEADER.size:
            return None
        destination, source, ethertype = HEADER.unpack_from(raw)
        return cls(destination=destination, source=source, ethertype=ethertype, payload=raw[HEADER.size :])


@attrs.frozen(kw_only=True)
class SequencedFrame:
    """The frame of record `sequence`, sent at `uptime_ns` of the guest's clock: see the module."""

    destination: bytes
    source: bytes
    sequence: int
    uptime_ns: int

    def encode(self) -> bytes:
        raw = _SEQUENCED.pack(self.destination, self.source, ETHERTYPE_EXPERIMENTAL, self.sequence, self.uptime_ns)
        return raw.ljust(FRAME_BYTES_MIN, b"\0")

    @classmethod
    def parse(cls, raw: bytes) -> "SequencedFrame | None":
        """None for a frame of another ethertype, or one that is too short."""
        if len(raw) < _SEQUENCED.size:
            return None
        destination, source, ethertype, sequence, uptime_ns = _SEQUENCED.unpack_from(raw)
        if ethertype != ETHERTYPE_EXPERIMENTAL:
            return None
        return cls(destination=destination, source=source, sequence=sequence, uptime_ns=uptime_ns)


class Unplugged:
    """The wire of a NIC without a cable: what is sent is lost, and nothing comes."""

    def send(self, frame: bytes) -> None:
        pass

    def receive(self) -> Iterable[bytes]:
        return ()


class NoWires:
    """No NIC of a machine has a cable; a Wires (sim_vmm/platform.py)."""

    def plug(self, key: str, mac: bytes) -> Wire:
        return Unplugged()

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        pass


class Hub:
    """A network in memory: what one plug sends, all others receive, and every observer sees."""

    def __init__(self) -> None:
        self.observers: list[Callable[[bytes], None]] = []
        self.plugs: list[Plug] = []

    def plug(self) -> "Plug":
        """The end of a new cable."""
        return Plug(self)

    def carry(self, frame: bytes, sender: "Plug | None" = None) -> None:
        """Bring `frame` to everybody but `sender`."""
        for observer in self.observers:
            observer(frame)
        for plug in self.plugs:
            if plug is not sender:
                plug.hear(frame)


class Plug:
    """The end of a cable to `hub`; a Wire (sim_vmm/platform.py).  `dropped` counts frames that found no room."""

    def __init__(self, hub: Hub) -> None:
        self.dropped = 0
        self._hub = hub
        self._waiting: deque[bytes] = deque()

    def send(self, frame: bytes) -> None:
        self._hub.carry(frame, self)

    def receive(self) -> Iterable[bytes]:
        if self not in self._hub.plugs:
            self._hub.plugs.append(self)
        frames = tuple(self._waiting)
        self._waiting.clear()
        return frames

    def hear(self, frame: bytes) -> None:
        if len(self._waiting) < BACKLOG_FRAMES_MAX:
            self._waiting.append(frame)
        else:
            self.dropped += 1

    def pull(self) -> None:
        """Off the network; what was waiting is lost."""
        if self in self._hub.plugs:
            self._hub.plugs.remove(self)
        self._waiting.clear()


class HubWires:
    """The plugs of one machine's NICs in `hub`; a Wires."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._plugs: list[Plug] = []

    def plug(self, key: str, mac: bytes) -> Plug:
        self._plugs.append(self._hub.plug())
        return self._plugs[-1]

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        for plug in self._plugs:
            plug.pull()
