"""A virtio NIC: the virtio transport over a link of the host kernel, viona (device-payloads §4, §5).

Queues alternate receive and transmit, up to eleven pairs; a control queue follows the pairs in use.  The kernel runs
the rings of the pairs, so the link has copies of what it was told: features, number of pairs, ring indices, filters.
They do not travel: an import programs the link anew.  (Forgetting the indices was upstream's #1135: rings restarted
at 0 over live memory.)
"""

from typing import ClassVar, Final

import attrs

from sim_vmm.devices.base import Arrived, refusal
from sim_vmm.devices.virtio import (
    DEVICE_NET,
    TRANSPORT_FEATURES,
    TYPE_NET,
    QueueShape,
    VirtioDevice,
    VirtioTransport,
    virtio_function,
)
from sim_vmm.integers import U16_MAX
from sim_vmm.payloads import Payload, PciDeviceV1, PciVirtioV3, PciVirtioVionaV1, Promisc, Schema
from sim_vmm.spec import PciPath

RX_QUEUE_SIZE: Final = 2048
TX_QUEUE_SIZE: Final = 256
CONTROL_QUEUE_SIZE: Final = 32
PAIRS_MAX: Final = 11
#: The pairs that a driver of ours agrees on.
PAIRS_WANTED: Final = 2
CONFIG_BYTES: Final = 24

FEATURE_CSUM: Final = 1 << 0
FEATURE_MAC: Final = 1 << 5
FEATURE_MRG_RXBUF: Final = 1 << 15
FEATURE_STATUS: Final = 1 << 16
FEATURE_CTRL_VQ: Final = 1 << 17
FEATURE_CTRL_RX: Final = 1 << 18
FEATURE_MQ: Final = 1 << 22
LINK_FEATURES: Final = (
    FEATURE_CSUM | FEATURE_MAC | FEATURE_MRG_RXBUF | FEATURE_STATUS | FEATURE_CTRL_VQ | FEATURE_CTRL_RX | FEATURE_MQ
)

#: Promiscuous, all-multicast, all-unicast, no-multicast, no-unicast, no-broadcast.
FILTER_KNOWN: Final = 0x3F
FILTER_PROMISC: Final = 1 << 0
FILTER_ALL_MULTICAST: Final = 1 << 1
FILTER_NO_BROADCAST: Final = 1 << 5

BROADCAST: Final = b"\xff" * 6


@attrs.define
class KernelLink:
    """The host kernel's end of a NIC: it runs the rings as it was programmed, and knows nothing else."""

    features: int = 0
    pairs: int = 0
    rings: dict[int, tuple[int, int]] = attrs.field(factory=dict)
    promisc: Promisc = Promisc.NONE
    receives: frozenset[bytes] = frozenset()

    def move_packet(self, queue: int) -> tuple[int, int]:
        """Use one buffer of a ring: its available and used index after that."""
        avail, used = self.rings[queue]
        self.rings[queue] = (avail + 1) & U16_MAX, (used + 1) & U16_MAX
        return self.rings[queue]


def queue_shapes(pairs: int) -> list[QueueShape]:
    """The queues of `pairs` pairs: receive and transmit for each, then the control queue."""
    return [QueueShape(RX_QUEUE_SIZE), QueueShape(TX_QUEUE_SIZE)] * pairs + [QueueShape(CONTROL_QUEUE_SIZE, True)]


class VirtioNic(VirtioDevice):
    kind: ClassVar[str] = "virtio_nic"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = (
        (PciVirtioV3.SCHEMA,),
        (PciDeviceV1.SCHEMA,),
        (PciVirtioVionaV1.SCHEMA,),
    )
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({PciVirtioVionaV1.SCHEMA.kind})

    def __init__(self, key: str, path: PciPath, mac: bytes, *, legacy_only: bool = False) -> None:
        """`mac` is the NIC's own address, 6 bytes."""
        super().__init__(key)
        self._path = path
        self._mac = mac
        self.pci = virtio_function(
            key,
            path,
            vectors=2 * PAIRS_MAX + 2,
            device=DEVICE_NET,
            virtio_type=TYPE_NET,
            class_code=0x020000,
            config_size=CONFIG_BYTES,
            legacy_only=legacy_only,
        )
        self.virtio = VirtioTransport(
            self.pci,
            self,
            shapes=queue_shapes(1),
            size_maxima=[RX_QUEUE_SIZE, TX_QUEUE_SIZE] * PAIRS_MAX + [CONTROL_QUEUE_SIZE],
            control_size_max=CONTROL_QUEUE_SIZE,
            features=LINK_FEATURES,
            config_size=CONFIG_BYTES,
            legacy_only=legacy_only,
        )
        self._viona = PciVirtioVionaV1(promisc=Promisc.NONE, filter=0, unicast_mac_filters=(), multicast_mac_filters=())
        self.link = KernelLink()
        self.note_birth()

    def queue_notified(self, number: int) -> None:
        pass

    def transmit(self, pair: int = 0) -> bool:
        """The guest sends a packet; says whether it went out."""
        return self._move_packet(2 * pair + 1)

    def receive(self, destination: bytes, pair: int = 0) -> bool:
        """A packet to the address `destination` comes in; says whether the guest gets it."""
        if self.link.promisc is Promisc.ALL or destination in self.link.receives:
            return self._move_packet(2 * pair)
        is_multicast = bool(destination[0] & 1) and destination != BROADCAST
        if is_multicast and self.link.promisc is Promisc.ALL_MULTI:
            return self._move_packet(2 * pair)
        return False

    def set_filters(
        self, *, filter_bits: int, unicast: tuple[bytes, ...] = (), multicast: tuple[bytes, ...] = ()
    ) -> None:
        """The guest sets its receive filters over the control queue.  Addresses are 6 bytes each."""
        promisc = Promisc.NONE
        if filter_bits & FILTER_PROMISC:
            promisc = Promisc.ALL
        elif filter_bits & FILTER_ALL_MULTICAST:
            promisc = Promisc.ALL_MULTI
        self._viona = PciVirtioVionaV1(
            promisc=promisc, filter=filter_bits, unicast_mac_filters=unicast, multicast_mac_filters=multicast
        )
        self._program_link()

    def _move_packet(self, queue: int) -> bool:
        if queue >= 2 * self.link.pairs or not self.virtio.is_live(queue):
            return False
        self.virtio.set_ring_indices(queue, *self.link.move_packet(queue))
        return True

    def _program_link(self) -> None:
        queues = [queue for queue in self.virtio.queues if not queue.is_control]
        viona = self._viona
        own = {self._mac} if viona.filter & FILTER_NO_BROADCAST else {self._mac, BROADCAST}
        self.link = KernelLink(
            features=self.virtio.negotiated_features & ~TRANSPORT_FEATURES,
            pairs=len(queues) // 2,
            rings={queue.id: (queue.avail_cur_idx, queue.used_idx) for queue in queues},
            promisc=viona.promisc,
            receives=frozenset(own | {*viona.unicast_mac_filters, *viona.multicast_mac_filters}),
        )

    def _payloads(self) -> tuple[Payload, ...]:
        return self.virtio.export(), self.pci.export(), self._viona

    def _take(self, arrived: Arrived) -> None:
        pci, virtio, viona = arrived.of(PciDeviceV1), arrived.of(PciVirtioV3), arrived.of(PciVirtioVionaV1)
        self.pci.check(pci)
        self.virtio.check(virtio)
        in_use = virtio.queues.queues[: virtio.queues.len]
        pair_queues = sum(not queue.is_control for queue in in_use)
        if pair_queues % 2:
            refuse = refusal(self.key, PciVirtioV3.SCHEMA)
            raise refuse(
                "queues.len", f"{pair_queues} queues beside the control queue; receive and transmit come in pairs"
            )
        if unknown := viona.filter & ~FILTER_KNOWN:
            refuse = refusal(self.key, PciVirtioVionaV1.SCHEMA)
            raise refuse("filter", f"unknown bits {unknown:#x}; known are {FILTER_KNOWN:#x}")
        for field, addresses in (
            ("unicast_mac_filters", viona.unicast_mac_filters),
            ("multicast_mac_filters", viona.multicast_mac_filters),
        ):
            for index, address in enumerate(addresses):
                if len(address) != 6:
                    refuse = refusal(self.key, PciVirtioVionaV1.SCHEMA)
                    raise refuse(f"{field}[{index}]", f"{len(address)} bytes; an Ethernet address has 6")
        self.pci.take(pci)
        self.virtio.take(virtio)
        self._viona = viona
        self._program_link()
