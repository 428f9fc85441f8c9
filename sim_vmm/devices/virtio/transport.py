"""The virtio transport over PCI: device status, feature negotiation, virtqueues, interrupts (VIRTIO 1.2 §2, §3, §4.1).

The driver reaches it through one of two register interfaces (modern.py, legacy.py), which are two views of what is
here.  What is behind the transport, a disk or a NIC, is its `owner`: told of notifications, it takes buffers with
`pop`, gives them back with `push`, and says `interrupt` when the driver should look.

Life of a queue: the driver says where its rings are (`mapping_valid`), and from DRIVER_OK on it is live.  A ring that
no device could follow raises no error here: the device says NEEDS_RESET, interrupts, and stops its queues until the
driver resets it (§2.1.2).

Derived, and rebuilt on import: the device's side of each live queue, which is also what a notification reaches, and the
interrupt pin (from the legacy interrupt causes, unless MSI-X is in use).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from sim_vmm.devices.pci import PciFunction
from sim_vmm.devices.virtio.checks import check_payload
from sim_vmm.devices.virtio.queues import QueueShape, fresh_queue
from sim_vmm.devices.virtio.status import (
    FEATURE_VERSION_1,
    ISR_CONFIG,
    ISR_QUEUE,
    MODE_LEGACY,
    MODE_MODERN,
    MODE_TRANSITIONAL,
    NO_VECTOR,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    STATUS_READY,
    TRANSPORT_FEATURES,
)
from sim_vmm.integers import U16_MAX
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import PciVirtioV3, VirtioDeviceState, VirtQueuesState, VirtQueueState
from sim_vmm.platform import Platform
from sim_vmm.virtqueue import Chain, DeviceQueue, QueueAddresses, QueueBroken


class Owner(Protocol):
    """The device behind a transport."""

    def queue_notified(self, number: int) -> None:
        """The driver says that there may be new buffers in the live queue `number`."""

    def serves(self, number: int) -> bool:
        """Whether the device runs queue `number`, once the driver has set it up and is ready."""

    def features_agreed(self) -> None:
        """The driver has accepted `negotiated_features`; over the legacy interface it may do so several times."""

    def transport_reset(self) -> None:
        """The driver has reset the device; the transport is fresh again."""

    def config_space(self) -> bytes:
        """The device's own configuration, as many bytes as `config_size` says."""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes to the device's own configuration."""


class VirtioTransport:
    """The virtio registers of the device behind `pci`.

    `shapes` are the queues in use at reset, `size_maxima` the largest sizes by position up to the device's capacity,
    `control_size_max` that of a control queue, which may be in any position.  `features` are those that the device
    offers beside the transport's own; of a `legacy_only` device no driver sees more than the legacy interface.
    """

    def __init__(
        self,
        pci: PciFunction,
        owner: Owner,
        *,
        shapes: Sequence[QueueShape],
        size_maxima: Sequence[int],
        control_size_max: int = 0,
        features: int,
        config_size: int,
        legacy_only: bool = False,
    ) -> None:
        self.pci = pci
        self.owner = owner
        self.legacy_only = legacy_only
        self.size_maxima = tuple(size_maxima)
        self.control_size_max = control_size_max
        self.offered = features if legacy_only else features | TRANSPORT_FEATURES
        self.config_size = config_size
        self._shapes = tuple(shapes)
        self._memory: GuestMemory | None = None
        self._device = self._fresh_device()
        self._queues: list[VirtQueueState] = [fresh_queue(number, shape) for number, shape in enumerate(shapes)]
        self._in_use = len(self._queues)
        self._running: dict[int, DeviceQueue] = {}

    def attach(self, platform: Platform) -> None:
        self._memory = platform.memory

    @property
    def capacity(self) -> int:
        return len(self.size_maxima)

    @property
    def state(self) -> VirtioDeviceState:
        """The registers that are not of a queue."""
        return self._device

    @property
    def negotiated_features(self) -> int:
        return self._device.negotiated_features

    @property
    def queues(self) -> tuple[VirtQueueState, ...]:
        """The queues in use, by position."""
        self._sync()
        return tuple(self._queues[: self._in_use])

    def is_live(self, number: int) -> bool:
        """Whether queue `number` processes buffers."""
        return number in self._running

    # What the device behind the transport does

    def use_queues(self, shapes: Sequence[QueueShape]) -> None:
        """Another set of queues has been agreed on; those are reset.  Queues used before stay known (`peak`)."""
        self._sync()
        fresh = [fresh_queue(number, shape) for number, shape in enumerate(shapes)]
        self._queues[: len(fresh)] = fresh
        self._in_use = len(fresh)
        self._derive()

    def pop(self, number: int) -> Chain | None:
        """The next buffer of queue `number`; None if there is none, or the queue is not live, or it is broken now."""
        queue = self._running.get(number)
        if queue is None:
            return None
        try:
            return queue.pop()
        except QueueBroken:
            self.need_reset()
            return None

    def read(self, number: int, chain: Chain) -> bytes | None:
        """What the driver has put into `chain`; None if it is not in RAM, and the device is broken now."""
        try:
            return self._running[number].read(chain)
        except QueueBroken:
            self.need_reset()
            return None

    def push(self, number: int, chain: Chain, data: bytes = b"", offset: int = 0) -> bool:
        """Put `data` into the writable part of `chain` from `offset` on and give the buffer back.

        The driver is told that `offset + len(data)` bytes were written, cut to what fits.  False if `chain` is not in
        RAM; the device is broken then, and the buffer is not given back.
        """
        queue = self._running[number]
        try:
            written = queue.write(chain, data, offset)
            queue.push(chain, min(offset, chain.writable_bytes) + written)
        except QueueBroken:
            self.need_reset()
            return False
        return True

    def interrupt(self, number: int) -> None:
        """Buffers of queue `number` have been used: interrupt the driver, unless it does not want that now."""
        queue = self._running.get(number)
        try:
            wanted = queue is not None and queue.wants_interrupt()
        except QueueBroken:
            self.need_reset()
            return
        if wanted:
            self._interrupt(ISR_QUEUE, self._device.msix_queue_vec[number])

    def need_reset(self) -> None:
        """Nothing more can be done with this driver until it resets the device (§2.1.2)."""
        ready = self._device.status & STATUS_DRIVER_OK
        self._change(status=self._device.status | STATUS_NEEDS_RESET)
        self.refresh_live()
        if ready:
            self._interrupt(ISR_CONFIG, self._device.msix_cfg_vec)

    def change_config(self) -> None:
        """The device's own configuration has changed: a new generation, if the last one was seen, and an interrupt."""
        if self._device.config_generation_seen:
            generation = (self._device.config_generation + 1) & 0xFF
            self._change(config_generation=generation, config_generation_seen=False)
        self._interrupt(ISR_CONFIG, self._device.msix_cfg_vec)

    def set_ring_indices(self, number: int, avail_cur_idx: int, used_idx: int) -> None:
        """A backend that runs the ring itself (viona) tells how far it has come."""
        self._set_queue(number, avail_cur_idx=avail_cur_idx, used_idx=used_idx)

    # What the driver does, over either interface

    def notify(self, number: int) -> None:
        """New buffers; a notification of a queue that is not live reaches nobody, as on hardware."""
        if number in self._running:
            self.owner.queue_notified(number)

    def read_isr(self) -> int:
        """The driver reads the interrupt causes (1 queue, 2 configuration), which clears them."""
        causes = ISR_QUEUE * self._device.isr_queue | ISR_CONFIG * self._device.isr_cfg
        self._change(isr_queue=False, isr_cfg=False)
        self._set_pin()
        return causes

    def write_status(self, value: int, *, modern: bool) -> None:
        """The driver adds bits to the status, or resets the device with 0.

        A modern driver gets FEATURES_OK only with VERSION_1, and DRIVER_OK only after that (§3.1.1); the legacy
        interface has no FEATURES_OK.
        """
        if value == 0:
            self._reset()
            return
        value = value & (STATUS_READY | STATUS_FAILED) | self._device.status
        if not modern:
            value &= ~STATUS_FEATURES_OK
        agreed = False
        if modern and value & ~self._device.status & STATUS_FEATURES_OK:
            agreed = bool(self._device.negotiated_features & FEATURE_VERSION_1)
            value &= value if agreed else ~STATUS_FEATURES_OK
        if modern and not value & STATUS_FEATURES_OK:
            value &= ~STATUS_DRIVER_OK
        self._change(status=value, mode=MODE_MODERN if agreed else self._device.mode)
        if agreed:
            self.owner.features_agreed()
        self.refresh_live()

    def accept_features(self, value: int, *, modern: bool) -> None:
        """The driver accepts features; those not offered are left out, and after FEATURES_OK nothing changes."""
        if self._device.status & (STATUS_FEATURES_OK | STATUS_DRIVER_OK):
            return
        self._change(negotiated_features=value & self.offered)
        if not modern:
            self.owner.features_agreed()

    def select(self, **windows: int) -> None:
        """The driver moves one of its windows: `queue_select`, `device_feature_select`, `driver_feature_select`."""
        self._change(**windows)

    def see_generation(self) -> int:
        """The driver reads the configuration generation."""
        self._change(config_generation_seen=True)
        return self._device.config_generation

    @property
    def selected(self) -> VirtQueueState | None:
        """The queue that the driver has selected; None if there is no such queue."""
        number = self._device.queue_select
        return self._queues[number] if number < self._in_use else None

    def set_selected(self, **changes: Any) -> None:
        """Change registers of the selected queue, if there is one."""
        queue = self.selected
        if queue is not None:
            self._sync()
            self._set_queue(queue.id, **changes)
            self.refresh_live()
            self._derive()

    def set_config_vector(self, vector: int) -> None:
        """A vector that there is not becomes NO_VECTOR, which tells the driver (§4.1.5.1.2)."""
        self._change(msix_cfg_vec=vector if vector < self.pci.vectors else NO_VECTOR)

    def set_queue_vector(self, vector: int) -> None:
        queue = self.selected
        if queue is not None:
            vectors = list(self._device.msix_queue_vec)
            vectors[queue.id] = vector if vector < self.pci.vectors else NO_VECTOR
            self._change(msix_queue_vec=tuple(vectors))

    # State

    def export(self) -> PciVirtioV3:
        self._sync()
        return PciVirtioV3(
            device=self._device,
            queues=VirtQueuesState(len=self._in_use, peak=len(self._queues), queues=tuple(self._queues)),
        )

    def check(self, payload: PciVirtioV3) -> None:
        """Raises ImportFailed for the first value that this transport cannot take (device-payloads §5)."""
        check_payload(self, payload)

    def take(self, payload: PciVirtioV3) -> None:
        """Take over state that `check` has passed.  The PCI function has its state already: the pin depends on it."""
        self._device = payload.device
        self._queues = list(payload.queues.queues)
        self._in_use = payload.queues.len
        self._derive()

    def _derive(self) -> None:
        self._running = {
            queue.id: DeviceQueue(
                self._memory,
                QueueAddresses(queue.size, queue.descr_gpa, queue.avail_gpa, queue.used_gpa),
                queue.avail_cur_idx,
                queue.used_idx,
            )
            for queue in self._queues[: self._in_use]
            if queue.live and self._memory is not None
        }
        self._set_pin()

    def _fresh_device(self) -> VirtioDeviceState:
        return VirtioDeviceState(
            status=0,
            queue_select=0,
            negotiated_features=0,
            device_feature_select=0,
            driver_feature_select=0,
            config_generation=0,
            config_generation_seen=False,
            device_config_size=self.config_size,
            mode=MODE_LEGACY if self.legacy_only else MODE_TRANSITIONAL,
            msix_cfg_vec=NO_VECTOR,
            msix_queue_vec=(NO_VECTOR,) * self.capacity,
            isr_queue=False,
            isr_cfg=False,
        )

    def _reset(self) -> None:
        self._device = self._fresh_device()
        self._running = {}
        known = [fresh_queue(queue.id, QueueShape(self._largest(queue), queue.is_control)) for queue in self._queues]
        fresh = [fresh_queue(number, shape) for number, shape in enumerate(self._shapes)]
        self._queues = fresh + known[len(fresh) :]
        self._in_use = len(fresh)
        self._derive()
        self.owner.transport_reset()

    def _largest(self, queue: VirtQueueState) -> int:
        return self.control_size_max if queue.is_control else self.size_maxima[queue.id]

    def refresh_live(self) -> None:
        """Queues live or not, after a change of the status, of their registers, or of what the owner serves."""
        self._sync()
        device_runs = self._device.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET | STATUS_FAILED) == STATUS_DRIVER_OK
        changed = False
        for number, queue in enumerate(self._queues[: self._in_use]):
            live = bool(device_runs and queue.mapping_valid and self.owner.serves(number))
            if live != queue.live:
                self._queues[number] = attrs.evolve(queue, live=live)
                changed = True
        if changed:
            self._derive()

    def _sync(self) -> None:
        """Bring the ring indices of live queues into their registers."""
        for number, running in self._running.items():
            queue = self._queues[number]
            if (queue.avail_cur_idx, queue.used_idx) != (running.available_index, running.used_index):
                self._queues[number] = attrs.evolve(
                    queue, avail_cur_idx=running.available_index, used_idx=running.used_index
                )

    def _set_queue(self, number: int, **changes: Any) -> None:
        self._queues[number] = attrs.evolve(self._queues[number], **changes)
        running = self._running.get(number)
        if running is not None:
            running.available_index = self._queues[number].avail_cur_idx & U16_MAX
            running.used_index = self._queues[number].used_idx & U16_MAX

    def _change(self, **changes: Any) -> None:
        self._device = attrs.evolve(self._device, **changes)

    def _interrupt(self, cause: int, vector: int) -> None:
        if not self.pci.uses_msix:
            self._change(**{"isr_queue" if cause == ISR_QUEUE else "isr_cfg": True})
            self._set_pin()
        elif vector != NO_VECTOR:
            self.pci.raise_vector(vector)

    def _set_pin(self) -> None:
        self.pci.set_pin(self._device.isr_queue or self._device.isr_cfg)
