"""The virtio transport over PCI: device status, feature negotiation, virtqueues (device-payloads §5).

Virtqueues are registers here; the rings in guest RAM are not walked yet: a kick consumes one available index
and publishes one used index, both modulo 2**16.

Derived, and rebuilt on import: the notification hooks (a kick reaches live queues only) and the interrupt pin
(from the legacy interrupt causes, unless MSI-X is in use).
"""

from collections.abc import Sequence
from typing import Final

import attrs

from sim_vmm.devices.base import Refuse, refusal
from sim_vmm.devices.pci import EMPTY_BAR, PciFunction
from sim_vmm.integers import U16_MAX
from sim_vmm.payloads import Bar, BarKind, PciVirtioV3, VirtioDeviceState, VirtQueuesState, VirtQueueState

STATUS_ACK: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 0x40
STATUS_FAILED: Final = 0x80
STATUS_READY: Final = STATUS_ACK | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK
STATUS_KNOWN: Final = STATUS_READY | STATUS_NEEDS_RESET | STATUS_FAILED

MODE_LEGACY: Final = 0
MODE_MODERN: Final = 1
MODE_TRANSITIONAL: Final = 2
MODES: Final = (MODE_LEGACY, MODE_MODERN, MODE_TRANSITIONAL)

FEATURE_INDIRECT_DESC: Final = 1 << 28
FEATURE_VERSION_1: Final = 1 << 32
TRANSPORT_FEATURES: Final = FEATURE_INDIRECT_DESC | FEATURE_VERSION_1

NO_VECTOR: Final = 0xFFFF
#: The vector for configuration changes, as guests assign them; queue n has vector n + 1.
CONFIG_VECTOR: Final = 0


#: A port BAR for the legacy interface, one for the MSI-X table, a 64-bit one for the modern interface.
VIRTIO_BARS: Final = (
    Bar(BarKind.PIO, 0x200, 0),
    Bar(BarKind.MMIO, 0x1000, 0),
    Bar(BarKind.MMIO64, 0x4000, 0),
    EMPTY_BAR,
    EMPTY_BAR,
    EMPTY_BAR,
)


@attrs.frozen
class QueueShape:
    """A queue as the device offers it: its size (the largest, except in legacy mode) and its purpose."""

    size_max: int
    is_control: bool = False


def _fresh_queue(number: int, shape: QueueShape) -> VirtQueueState:
    return VirtQueueState(
        id=number,
        size=shape.size_max,
        descr_gpa=0,
        avail_gpa=0,
        used_gpa=0,
        mapping_valid=False,
        live=False,
        enabled=False,
        is_control=shape.is_control,
        notify_data=number,
        avail_cur_idx=0,
        used_idx=0,
    )


class VirtioTransport:
    """The virtio registers of the device behind `pci`.

    `shapes` are the queues in use at reset, `size_maxima` the largest sizes by position up to the device's capacity,
    `control_size_max` that of a control queue, which may be in any position.  `features` are those
    that the device offers beside the transport's own.
    """

    def __init__(
        self,
        pci: PciFunction,
        *,
        shapes: Sequence[QueueShape],
        size_maxima: Sequence[int],
        control_size_max: int = 0,
        features: int,
        config_size: int,
    ) -> None:
        self.pci = pci
        self._size_maxima = tuple(size_maxima)
        self._control_size_max = control_size_max
        self._offered = features | TRANSPORT_FEATURES
        self._device = VirtioDeviceState(
            status=0,
            queue_select=0,
            negotiated_features=0,
            device_feature_select=0,
            driver_feature_select=0,
            config_generation=0,
            config_generation_seen=False,
            device_config_size=config_size,
            mode=MODE_TRANSITIONAL,
            msix_cfg_vec=NO_VECTOR,
            msix_queue_vec=(NO_VECTOR,) * self.capacity,
            isr_queue=False,
            isr_cfg=False,
        )
        self._queues: list[VirtQueueState] = [_fresh_queue(number, shape) for number, shape in enumerate(shapes)]
        self._in_use = len(self._queues)
        self._hooked: frozenset[int] = frozenset()

    @property
    def capacity(self) -> int:
        return len(self._size_maxima)

    @property
    def negotiated_features(self) -> int:
        return self._device.negotiated_features

    @property
    def queues(self) -> tuple[VirtQueueState, ...]:
        """The queues in use, by position."""
        return tuple(self._queues[: self._in_use])

    def use_queues(self, shapes: Sequence[QueueShape]) -> None:
        """The driver has agreed on another set of queues; those are reset.  Queues used before stay known (`peak`)."""
        fresh = [_fresh_queue(number, shape) for number, shape in enumerate(shapes)]
        self._queues[: len(fresh)] = fresh
        self._in_use = len(fresh)
        self._derive()

    def configure(self, ring_base: int) -> None:
        """What a modern driver does at boot: accept all features, place the rings, enable queues, be DRIVER_OK.

        `ring_base` is the guest address of the first ring; every queue gets 64 KiB.
        """
        for number in range(self._in_use):
            base = ring_base + number * 0x1_0000
            self._queues[number] = attrs.evolve(
                self._queues[number],
                descr_gpa=base,
                avail_gpa=base + 0x8000,
                used_gpa=base + 0xA000,
                mapping_valid=True,
                live=True,
                enabled=True,
            )
        self._device = attrs.evolve(
            self._device,
            status=STATUS_READY,
            negotiated_features=self._offered,
            device_feature_select=1,
            driver_feature_select=1,
            config_generation_seen=True,
            msix_cfg_vec=CONFIG_VECTOR,
            msix_queue_vec=tuple(range(1, self.capacity + 1)),
        )
        self._derive()

    def kick(self, number: int) -> bool:
        """The guest has made one buffer available in queue `number`; says whether the device has used it.

        A kick of a queue that is not live reaches nobody, as on hardware.
        """
        if number not in self._hooked:
            return False
        queue = self._queues[number]
        self._queues[number] = attrs.evolve(
            queue, avail_cur_idx=(queue.avail_cur_idx + 1) & U16_MAX, used_idx=(queue.used_idx + 1) & U16_MAX
        )
        self._interrupt(self._device.msix_queue_vec[number])
        return True

    def set_ring_indices(self, number: int, avail_cur_idx: int, used_idx: int) -> None:
        """A backend that runs the ring itself (viona) tells how far it has come."""
        self._queues[number] = attrs.evolve(self._queues[number], avail_cur_idx=avail_cur_idx, used_idx=used_idx)

    def change_config(self) -> None:
        """The device changes its configuration space and says so to the guest."""
        generation = (self._device.config_generation + 1) & 0xFF
        self._device = attrs.evolve(
            self._device, config_generation=generation, config_generation_seen=False, isr_cfg=True
        )
        self._derive()

    def read_isr(self) -> int:
        """The guest reads the interrupt causes (1 queue, 2 configuration), which clears them."""
        causes = self._device.isr_queue | self._device.isr_cfg << 1
        self._device = attrs.evolve(self._device, isr_queue=False, isr_cfg=False)
        self._derive()
        return causes

    def export(self) -> PciVirtioV3:
        return PciVirtioV3(
            device=self._device,
            queues=VirtQueuesState(len=self._in_use, peak=len(self._queues), queues=tuple(self._queues)),
        )

    def check(self, payload: PciVirtioV3) -> None:
        """Raises ImportFailed for the first value that this transport cannot take (device-payloads §5)."""
        refuse = refusal(self.pci.key, PciVirtioV3.SCHEMA)
        self._check_device(payload.device, refuse)
        self._check_counts(payload.queues, refuse)
        for position, queue in enumerate(payload.queues.queues):
            self._check_queue(position, queue, payload.device.mode, refuse)

    def take(self, payload: PciVirtioV3) -> None:
        """Take over state that `check` has passed.  The PCI function has its state already: the pin depends on it."""
        self._device = payload.device
        self._queues = list(payload.queues.queues)
        self._in_use = payload.queues.len
        self._derive()

    def _interrupt(self, vector: int) -> None:
        if not self.pci.uses_msix:
            self._device = attrs.evolve(self._device, isr_queue=True)
            self._derive()
        elif vector != NO_VECTOR:
            self.pci.raise_vector(vector)

    def _derive(self) -> None:
        self._hooked = frozenset(number for number, queue in enumerate(self.queues) if queue.live)
        self.pci.set_pin(self._device.isr_queue or self._device.isr_cfg)

    def _check_device(self, device: VirtioDeviceState, refuse: Refuse) -> None:
        if unknown := device.status & ~STATUS_KNOWN:
            raise refuse("device.status", f"unknown bits {unknown:#x}; known are {STATUS_KNOWN:#x}")
        if device.mode not in MODES:
            raise refuse("device.mode", f"{device.mode}; expected 0 (legacy), 1 (modern) or 2 (transitional)")
        if unknown := device.negotiated_features & ~self._offered:
            raise refuse(
                "device.negotiated_features", f"features {unknown:#x} are in force, and this device does not offer them"
            )
        if len(device.msix_queue_vec) != self.capacity:
            raise refuse(
                "device.msix_queue_vec", f"{len(device.msix_queue_vec)} vectors; this device has {self.capacity} queues"
            )
        for field, vector in (
            ("msix_cfg_vec", device.msix_cfg_vec),
            *((f"msix_queue_vec[{queue}]", vector) for queue, vector in enumerate(device.msix_queue_vec)),
        ):
            if vector != NO_VECTOR and vector >= self.pci.vectors:
                raise refuse(
                    f"device.{field}", f"{vector}; this device has vectors 0 to {self.pci.vectors - 1}, or 0xffff"
                )

    def _check_counts(self, queues: VirtQueuesState, refuse: Refuse) -> None:
        for field, count in (("len", queues.len), ("peak", queues.peak)):
            if not 1 <= count <= self.capacity:
                raise refuse(f"queues.{field}", f"{count}; this device has 1 to {self.capacity} queues")
        if queues.len > queues.peak:
            raise refuse("queues.len", f"{queues.len} queues in use, more than the most ever, {queues.peak}")
        if len(queues.queues) != queues.peak:
            raise refuse("queues.queues", f"{len(queues.queues)} queues; peak says {queues.peak}")

    def _check_queue(self, position: int, queue: VirtQueueState, mode: int, refuse: Refuse) -> None:
        field = f"queues.queues[{position}]"
        if queue.id != position:
            raise refuse(f"{field}.id", f"{queue.id}; queues are listed by id, from 0")
        if queue.is_control and not self._control_size_max:
            raise refuse(f"{field}.is_control", "set; this device has no control queue")
        if queue.notify_data != position:
            raise refuse(f"{field}.notify_data", f"{queue.notify_data}; this device uses {position}")
        largest = self._control_size_max if queue.is_control else self._size_maxima[position]
        if mode == MODE_LEGACY:
            if queue.size != largest:
                raise refuse(f"{field}.size", f"{queue.size}; in legacy mode this queue has {largest}")
        elif queue.size == 0 or queue.size & (queue.size - 1) or queue.size > largest:
            raise refuse(f"{field}.size", f"{queue.size}; expected a power of two from 1 to {largest}")
