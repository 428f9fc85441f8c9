"""The guest's virtio-net driver: frames out, frames in, receive filters.

Beside what `VirtioPciDriver` keeps in RAM, from the driver's buffers on:

    + 0x0000     `_STATE`, then for each pair a bitmap (u64) of the transmit buffers that the device has
    + 0x0400     a control command, one at a time          + 0x03F0     its answer
    + 0x1000     for each pair `RX_BUFFERS` receive buffers, then `TX_BUFFERS` transmit buffers, of `BUFFER_BYTES` each

Every buffer is one descriptor, so the descriptor that the device gives back says which buffer it is.
"""

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from sim_vmm.devices.virtio_nic.control import ACK_OK, pairs_command, switch_command, tables_command
from sim_vmm.devices.virtio_nic.layout import (
    FEATURE_CTRL_VQ,
    FEATURE_MAC,
    FEATURE_MQ,
    FEATURE_STATUS,
    FILTER_FEATURES,
    NET_HEADER,
    NUM_BUFFERS,
    PAIRS_MAX,
    header_bytes,
    is_mergeable,
)
from sim_vmm.devices.virtio_nic.receive_filter import ADDRESS_BYTES
from sim_vmm.drivers import DriverFailed, GuestView
from sim_vmm.drivers.virtio_pci import VirtioPciDriver
from sim_vmm.spec import PciPath
from sim_vmm.virtqueue import DESCRIPTOR, Segment

RX_BUFFERS: Final = 16
TX_BUFFERS: Final = 16
BUFFER_BYTES: Final = 2048
PAIR_BYTES: Final = (RX_BUFFERS + TX_BUFFERS) * BUFFER_BYTES
QUEUE_ENTRIES: Final = 32

_STATE: Final = struct.Struct("<HHI")
_BITMAP: Final = struct.Struct("<Q")
_BITMAPS: Final = 0x10
_ANSWER: Final = 0x3F0
_COMMAND: Final = 0x400
_BUFFERS: Final = 0x1000
_UNANSWERED: Final = 0xFF


@attrs.frozen
class _State:
    """How many pairs are in use, which queue is for control, how much of each receive buffer the device is given."""

    pairs: int
    control: int
    receive_bytes: int


class VirtioNetDriver:
    """The driver of one NIC, with its memory at guest address `base`, a multiple of the page size."""

    def __init__(self, machine: GuestView, base: int) -> None:
        self.pci = VirtioPciDriver(machine, base)
        self._memory = machine.memory

    def probe(
        self,
        path: PciPath,
        *,
        vector: int | None = None,
        legacy: bool = False,
        entries: int = QUEUE_ENTRIES,
        pairs: int = 1,
        features: int = FILTER_FEATURES,
        receive_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Set up the NIC at `path`, as `VirtioPciDriver.probe`, with `pairs` pairs of queues in use.

        `features` are wanted beside those that this driver always wants; with MRG_RXBUF among them, receive
        buffers may be smaller than a frame (`receive_bytes`).

        Raises:
            DriverFailed: as `VirtioPciDriver.probe`, among them that the NIC has fewer pairs.
        """
        several = FEATURE_MQ if pairs > 1 else 0
        control = 2 * PAIRS_MAX if several else 2
        sizes = [entries] * 2 * pairs + [0] * (control - 2 * pairs) + [entries]
        wanted = features | FEATURE_MAC | FEATURE_STATUS | FEATURE_CTRL_VQ | several
        self.pci.probe(path, features=wanted, queue_sizes=sizes, vector=vector, legacy=legacy)
        area = self.pci.buffers
        if area.start + _BUFFERS + pairs * PAIR_BYTES > area.stop:
            raise DriverFailed(f"the buffers of {pairs} pairs do not fit into the driver's memory")
        self._store(_State(pairs, control, receive_bytes))
        for pair in range(pairs):
            self._store_busy(pair, 0)
            self._fill(pair)
        if several and not self.command(pairs_command(pairs)):
            raise DriverFailed(f"the NIC at {path} does not run {pairs} pairs")
        for pair in range(pairs):
            self.pci.notify(2 * pair)

    @property
    def mac(self) -> bytes:
        return self.pci.read_config_bytes(0, ADDRESS_BYTES)

    @property
    def link_is_up(self) -> bool:
        return bool(self.pci.read_config(ADDRESS_BYTES, 2) & 1)

    # Out

    def send(self, frame: bytes, *, pair: int = 0, notify: bool = True) -> bool:
        """Give `frame` to the NIC; False if no buffer is free."""
        header = header_bytes(self.pci.features)
        if header + len(frame) > BUFFER_BYTES:
            raise ValueError(f"a frame of {len(frame)} bytes; a buffer has room for {BUFFER_BYTES - header}")
        self.reclaim(pair=pair)
        busy = self._busy(pair)
        slot = next((slot for slot in range(TX_BUFFERS) if not busy >> slot & 1), None)
        if slot is None:
            return False
        at = self._transmit_buffers(pair) + slot * BUFFER_BYTES
        self._memory.write(at, bytes(header) + frame)
        if self.pci.queue(2 * pair + 1).add([Segment(at, header + len(frame))], []) is None:
            return False
        self._store_busy(pair, busy | 1 << slot)
        if notify:
            self.pci.notify(2 * pair + 1)
        return True

    def notify(self, *, pair: int = 0) -> None:
        """Tell the NIC of frames that were given to it without notice."""
        self.pci.notify(2 * pair + 1)

    def reclaim(self, *, pair: int = 0) -> int:
        """Take back the buffers of frames that have gone out, in the order of sending; how many there were."""
        queue = self.pci.queue(2 * pair + 1)
        count = 0
        while (used := queue.take_used()) is not None:
            slot = (self._address_of(2 * pair + 1, used[0]) - self._transmit_buffers(pair)) // BUFFER_BYTES
            self._store_busy(pair, self._busy(pair) & ~(1 << slot))
            count += 1
        return count

    def outstanding(self, *, pair: int = 0) -> int:
        """How many frames have been given to the NIC and not come back yet, as far as `reclaim` has seen."""
        return self._busy(pair).bit_count()

    # In

    def poll(self) -> list[bytes]:
        """The frames that have come in, if the NIC has interrupted since the last call; else nothing."""
        return self.receive() if self.pci.take_interrupt() else []

    def receive(self) -> list[bytes]:
        """The frames that have come in, pair by pair, whether or not the NIC has interrupted; their buffers go back."""
        frames: list[bytes] = []
        for pair in range(self._load().pairs):
            found = list(self._received(pair))
            if found:
                frames += found
                self.pci.notify(2 * pair)
        return frames

    def _received(self, pair: int) -> Iterator[bytes]:
        header = header_bytes(self.pci.features)
        while (data := self._take_buffer(pair)) is not None:
            buffers = 1
            if is_mergeable(self.pci.features):
                (buffers,) = NUM_BUFFERS.unpack_from(data, NET_HEADER.size)
            for _ in range(buffers - 1):
                more = self._take_buffer(pair)
                if more is None:
                    raise DriverFailed("the NIC has given back fewer buffers than a frame's header says")
                data += more
            yield data[header:]

    def _take_buffer(self, pair: int) -> bytes | None:
        """What the next receive buffer that has come back holds; the buffer is made available again."""
        queue = self.pci.queue(2 * pair)
        used = queue.take_used()
        if used is None:
            return None
        at = self._address_of(2 * pair, used[0])
        data = self._memory.read(at, used[1])
        queue.add([], [Segment(at, self._load().receive_bytes)])
        return data

    def _fill(self, pair: int) -> None:
        """Make all receive buffers of `pair` available."""
        queue = self.pci.queue(2 * pair)
        start = self._receive_buffers(pair)
        for at in range(start, start + RX_BUFFERS * BUFFER_BYTES, BUFFER_BYTES):
            queue.add([], [Segment(at, self._load().receive_bytes)])

    # Control

    def set_filters(
        self, switches: int = 0, unicast: tuple[bytes, ...] = (), multicast: tuple[bytes, ...] = ()
    ) -> bool:
        """Set the six switches of the receive filter (receive_filter.py) and both lists; False once a command fails."""
        commands = [switch_command(number, bool(switches >> number & 1)) for number in range(6)]
        return all(self.command(command) for command in (*commands, tables_command(unicast, multicast)))

    def command(self, command: bytes) -> bool:
        """Carry out one control command; False if the NIC answers with an error.

        Raises:
            DriverFailed: it does not answer at once.
        """
        self.submit_command(command)
        answer = self.take_answer()
        if answer is None:
            raise DriverFailed("the NIC does not answer a control command")
        return answer == ACK_OK

    def submit_command(self, command: bytes, *, notify: bool = True) -> None:
        """Give one control command to the NIC; `take_answer` must follow before the next."""
        area, control = self.pci.buffers.start, self._load().control
        self._memory.write(area + _COMMAND, command)
        self._memory.write(area + _ANSWER, bytes([_UNANSWERED]))
        self.pci.queue(control).add([Segment(area + _COMMAND, len(command))], [Segment(area + _ANSWER, 1)])
        if notify:
            self.pci.notify(control)

    def take_answer(self) -> int | None:
        """The answer to the command that was submitted; None if there is none yet."""
        if self.pci.queue(self._load().control).take_used() is None:
            return None
        return self._memory.read(self.pci.buffers.start + _ANSWER, 1)[0]

    # Memory

    def _address_of(self, queue: int, head: int) -> int:
        """The guest address that descriptor `head` of a queue holds."""
        table = self.pci.queue(queue).addresses.descriptors
        gpa, _, _, _ = DESCRIPTOR.unpack(self._memory.read(table + DESCRIPTOR.size * head, DESCRIPTOR.size))
        return int(gpa)

    def _receive_buffers(self, pair: int) -> int:
        return self.pci.buffers.start + _BUFFERS + pair * PAIR_BYTES

    def _transmit_buffers(self, pair: int) -> int:
        return self._receive_buffers(pair) + RX_BUFFERS * BUFFER_BYTES

    def _busy(self, pair: int) -> int:
        at = self.pci.buffers.start + _BITMAPS + pair * _BITMAP.size
        (bitmap,) = _BITMAP.unpack(self._memory.read(at, _BITMAP.size))
        return int(bitmap)

    def _store_busy(self, pair: int, bitmap: int) -> None:
        self._memory.write(self.pci.buffers.start + _BITMAPS + pair * _BITMAP.size, _BITMAP.pack(bitmap))

    def _load(self) -> _State:
        return _State(*_STATE.unpack(self._memory.read(self.pci.buffers.start, _STATE.size)))

    def _store(self, state: _State) -> None:
        self._memory.write(self.pci.buffers.start, _STATE.pack(*attrs.astuple(state)))
