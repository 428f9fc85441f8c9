"""A virtio NIC over a wire (VIRTIO 1.2 §5.1, device-payloads §4, §5).

Frames go out when the driver notifies, `FRAMES_AT_ONCE` of them at most; the others stay in the ring in guest RAM, so
they travel with it, and the next poll goes on with them.  A frame is given back to the driver after the wire has it.

Frames come in when the machine is polled.  What the filter lets through waits, `WAITING_FRAMES_MAX` for each pair of
queues, until the driver has buffers for it.  Frames that wait are the network's, not the machine's: they do not travel,
and may be lost as anywhere in a network, which `counters` tell; none is delivered twice.

A driver that has agreed on several pairs has all of them, but the device runs only as many as it was told to: those
alone are live, which is also how their number travels.  Which pair receives a frame depends on its source address
alone, so the frames of one sender stay in order.

Derived, and programmed anew by an import: the link, which is the filter, the form of the frames' headers, and the pairs
that run.  Where each ring stands, the transport restores (forgetting that was upstream's #1135).
"""

import zlib
from collections import deque
from typing import ClassVar, Final

import attrs

from sim_vmm.birth import NEWEST, Birth
from sim_vmm.devices.base import Arrived, refusal
from sim_vmm.devices.virtio import DEVICE_NET, TYPE_NET, VirtioDevice, VirtioTransport, virtio_function
from sim_vmm.devices.virtio_nic.control import (
    ACK_ERROR,
    ACK_OK,
    COMMAND_BYTES_MAX,
    HEADER_BYTES,
    Settings,
    obey,
)
from sim_vmm.devices.virtio_nic.layout import (
    CONFIG,
    CONFIG_BYTES,
    CONTROL_QUEUE_SIZE,
    FEATURE_CTRL_VQ,
    FEATURE_MQ,
    FILTER_FEATURES,
    LINK_FEATURES,
    PAIRS_MAX,
    RX_QUEUE_SIZE,
    STATUS_LINK_UP,
    TX_QUEUE_SIZE,
    frame_to_send,
    header_bytes,
    is_mergeable,
    queue_shapes,
    receive_header,
)
from sim_vmm.devices.virtio_nic.receive_filter import ADDRESS_BYTES, NO_FILTERS, ReceiveFilter, check_filters
from sim_vmm.integers import U16_MAX
from sim_vmm.payloads import Payload, PciDeviceV1, PciVirtioV3, PciVirtioVionaV1, Schema, VirtQueuesState
from sim_vmm.platform import Wire
from sim_vmm.spec import PciPath
from sim_vmm.virtqueue import Chain
from sim_vmm.wire import FRAME_BYTES_MAX, HEADER, Unplugged

CLASS_CODE: Final = 0x020000
FRAMES_AT_ONCE: Final = 32
WAITING_FRAMES_MAX: Final = 256


@attrs.define
class NicCounters:
    """What has happened to frames since the device was made here: the host's statistics, no state of the machine."""

    sent: int = 0
    received: int = 0
    filtered: int = 0
    not_ready: int = 0
    """Came in before a driver was there to receive, or waited when it went."""
    overrun: int = 0
    """Found no room among those that wait."""
    too_long: int = 0
    """Fitted into no receive buffers that there were."""
    malformed: int = 0
    """No frames, or asking for what was not offered, on their way out or in."""


@attrs.frozen
class Link:
    """How frames go between the wire and the rings."""

    features: int
    pairs: int
    receive_filter: ReceiveFilter


class VirtioNic(VirtioDevice):
    """The NIC with address `mac`, 6 bytes, showing its guest what `birth` says."""

    kind: ClassVar[str] = "virtio_nic"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = (
        (PciVirtioV3.SCHEMA,),
        (PciDeviceV1.SCHEMA,),
        (PciVirtioVionaV1.SCHEMA,),
    )
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({PciVirtioVionaV1.SCHEMA.kind})

    def __init__(self, key: str, path: PciPath, mac: bytes, *, birth: Birth = NEWEST, wire: Wire | None = None) -> None:
        super().__init__(key)
        self.mac: Final = mac
        self.counters: Final = NicCounters()
        self._wire: Final[Wire] = Unplugged() if wire is None else wire
        self._waiting: list[deque[bytes]] = [deque() for _ in range(PAIRS_MAX)]
        self._settings = Settings(NO_FILTERS, pairs=1)
        self._pairs_max = PAIRS_MAX if birth.multi_queue else 1
        legacy_only = not birth.modern_virtio
        capacity = 2 * self._pairs_max + 1
        self.pci = virtio_function(
            key,
            path,
            vectors=capacity + 1,
            device=DEVICE_NET,
            virtio_type=TYPE_NET,
            class_code=CLASS_CODE,
            config_size=CONFIG_BYTES,
            legacy_only=legacy_only,
        )
        self.virtio = VirtioTransport(
            self.pci,
            self,
            shapes=queue_shapes(1),
            size_maxima=[RX_QUEUE_SIZE, TX_QUEUE_SIZE] * self._pairs_max + [CONTROL_QUEUE_SIZE],
            control_size_max=CONTROL_QUEUE_SIZE,
            features=LINK_FEATURES
            | (FILTER_FEATURES if birth.mac_filters else 0)
            | (FEATURE_MQ if birth.multi_queue else 0),
            config_size=CONFIG_BYTES,
            legacy_only=legacy_only,
        )
        self._program_link()
        self.note_birth()

    # What the driver and the network do

    def serves(self, number: int) -> bool:
        return number // 2 < self._settings.pairs or number == self._control

    def queue_notified(self, number: int) -> None:
        if number == self._control:
            self._obey()
        elif number % 2:
            self._transmit(number)
        else:
            self._deliver(number // 2)

    def poll(self) -> None:
        for frame in self._wire.receive():
            self._hear(frame)
        for pair in range(self.link.pairs):
            self._deliver(pair)
            self._transmit(2 * pair + 1)
        self._obey()

    def features_agreed(self) -> None:
        several = FEATURE_MQ | FEATURE_CTRL_VQ
        pairs = self._pairs_max if self.virtio.negotiated_features & several == several else 1
        if len(self.virtio.queues) != 2 * pairs + 1:
            self.virtio.use_queues(queue_shapes(pairs))
        self._program_link()

    def transport_reset(self) -> None:
        self._settings = Settings(NO_FILTERS, pairs=1)
        self._program_link()

    def config_space(self) -> bytes:
        return CONFIG.pack(self.mac, STATUS_LINK_UP, self._pairs_max)

    @property
    def _control(self) -> int:
        """The number of the control queue."""
        return len(self.virtio.queues) - 1

    # Out

    def _transmit(self, queue: int) -> None:
        done = 0
        while done < FRAMES_AT_ONCE and (chain := self.virtio.pop(queue)) is not None:
            if not self._send(queue, chain):
                return
            done += 1
        if done:
            self.virtio.interrupt(queue)

    def _send(self, queue: int, chain: Chain) -> bool:
        """Send the frame in `chain` and give the buffer back; False if the device is broken now."""
        header = header_bytes(self.link.features)
        frame = None
        if header + HEADER.size <= chain.readable_bytes <= header + FRAME_BYTES_MAX:
            data = self.virtio.read(queue, chain)
            if data is None:
                return False
            frame = frame_to_send(data[:header], data[header:])
        if frame is None:
            self.counters.malformed += 1
        else:
            self._wire.send(frame)
            self.counters.sent += 1
        return self.virtio.push(queue, chain)

    # In

    def _hear(self, frame: bytes) -> None:
        """A frame has come in: who is it for?"""
        waiting = self._waiting[zlib.crc32(frame[6:12]) % self.link.pairs]
        if not HEADER.size <= len(frame) <= FRAME_BYTES_MAX:
            self.counters.malformed += 1
        elif not self.virtio.is_live(0):
            self.counters.not_ready += 1
        elif not self.link.receive_filter.accepts(frame[:ADDRESS_BYTES]):
            self.counters.filtered += 1
        elif len(waiting) >= WAITING_FRAMES_MAX:
            self.counters.overrun += 1
        else:
            waiting.append(frame)

    def _deliver(self, pair: int) -> None:
        waiting = self._waiting[pair]
        before = self.counters.received
        while waiting and self._receive(2 * pair, waiting[0]):
            waiting.popleft()
        if self.counters.received != before:
            self.virtio.interrupt(2 * pair)

    def _receive(self, queue: int, frame: bytes) -> bool:
        """Put `frame` into receive buffers, or drop it; False if it has to wait for more of them.

        Buffers that turn out not to be enough are left in the ring, as if never taken.
        """
        needed = header_bytes(self.link.features) + len(frame)
        buffers_max = self.virtio.queues[queue].size if is_mergeable(self.link.features) else 1
        chains: list[Chain] = []
        room = 0
        while room < needed and len(chains) < buffers_max:
            chain = self.virtio.pop(queue)
            if chain is None:
                self._give_up(queue, len(chains))
                return False
            chains.append(chain)
            room += chain.writable_bytes
        if room < needed:
            self._give_up(queue, len(chains))
            self.counters.too_long += 1
            return True
        data = receive_header(self.link.features, len(chains)) + frame
        for chain in chains:
            if not self.virtio.push(queue, chain, data[: chain.writable_bytes]):
                return True
            data = data[chain.writable_bytes :]
        self.counters.received += 1
        return True

    def _give_up(self, queue: int, taken: int) -> None:
        state = self.virtio.queues[queue]
        self.virtio.set_ring_indices(queue, (state.avail_cur_idx - taken) & U16_MAX, state.used_idx)

    # Control

    def _obey(self) -> None:
        queue = self._control
        done = 0
        while (chain := self.virtio.pop(queue)) is not None:
            if chain.readable_bytes < HEADER_BYTES or not chain.writable:
                self.virtio.need_reset()
                return
            command = self.virtio.read(queue, chain) if chain.readable_bytes <= COMMAND_BYTES_MAX else b""
            if command is None or not self.virtio.push(queue, chain, bytes([self._change_settings(command)])):
                return
            done += 1
        if done:
            self.virtio.interrupt(queue)

    def _change_settings(self, command: bytes) -> int:
        """Carry out `command`; the answer to it.  Pairs whose queues are not placed cannot run."""
        settings = obey(command, self._settings, self.link.features)
        if settings is None or 2 * settings.pairs > self._control:
            return ACK_ERROR
        if not all(queue.mapping_valid for queue in self.virtio.queues[: 2 * settings.pairs]):
            return ACK_ERROR
        self._settings = settings
        self._program_link()
        self.virtio.refresh_live()
        return ACK_OK

    def _program_link(self) -> None:
        """Tell the link what the registers say, and forget frames that wait for queues which no longer run."""
        self.link = Link(
            features=self.virtio.negotiated_features,
            pairs=self._settings.pairs,
            receive_filter=ReceiveFilter.of(self.mac, self._settings.filters),
        )
        for waiting in self._waiting[self.link.pairs if self.virtio.is_live(0) else 0 :]:
            self.counters.not_ready += len(waiting)
            waiting.clear()

    # State

    def _payloads(self) -> tuple[Payload, ...]:
        return self.virtio.export(), self.pci.export(), self._settings.filters

    def _take(self, arrived: Arrived) -> None:
        pci, virtio, filters = arrived.of(PciDeviceV1), arrived.of(PciVirtioV3), arrived.of(PciVirtioVionaV1)
        self.pci.check(pci)
        self.virtio.check(virtio)
        self._check_queues(virtio.queues)
        refuse = refusal(self.key, PciVirtioVionaV1.SCHEMA)
        check_filters(filters, refuse)
        if filters != NO_FILTERS and not self.virtio.offered & FILTER_FEATURES:
            raise refuse("filter", "this NIC was born without receive filters")
        self.pci.take(pci)
        self.virtio.take(virtio)
        self._settings = Settings(filters, pairs=_running_pairs(virtio.queues))
        self._program_link()

    def _check_queues(self, queues: VirtQueuesState) -> None:
        """Raises ImportFailed unless the queues are those of one pair or of all."""
        refuse = refusal(self.key, PciVirtioV3.SCHEMA)
        if queues.len not in (3, 2 * self._pairs_max + 1):
            raise refuse(
                "queues.len",
                f"{queues.len}; queues come in pairs, one or all {self._pairs_max}, and one more for control",
            )
        for number, queue in enumerate(queues.queues[: queues.len]):
            if queue.is_control is not (number == queues.len - 1):
                raise refuse(
                    f"queues.queues[{number}].is_control", "the last queue in use, and no other, is for control"
                )


def _running_pairs(queues: VirtQueuesState) -> int:
    """How many pairs the device was told to run: up to the last that is live, and the first in any case."""
    return max([1, *(queue.id // 2 + 1 for queue in queues.queues[: queues.len - 1] if queue.live)])
