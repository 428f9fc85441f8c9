"""A virtio block device: one queue over the virtio transport (device-payloads §4)."""

from typing import ClassVar, Final

from sim_vmm.devices.base import Arrived
from sim_vmm.devices.pci import PciDevice, PciFunction, mmio_base, ring_base
from sim_vmm.devices.virtio import VIRTIO_BARS, QueueShape, VirtioTransport
from sim_vmm.payloads import Payload, PciDeviceV1, PciVirtioV3, Schema
from sim_vmm.spec import PciPath

QUEUE_SIZE: Final = 256
CONFIG_BYTES: Final = 60

FEATURE_READ_ONLY: Final = 1 << 5
FEATURE_BLOCK_SIZE: Final = 1 << 6
FEATURE_FLUSH: Final = 1 << 9


class VirtioDisk(PciDevice):
    kind: ClassVar[str] = "virtio_disk"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((PciVirtioV3.SCHEMA,), (PciDeviceV1.SCHEMA,))

    def __init__(self, key: str, path: PciPath, *, readonly: bool) -> None:
        super().__init__(key)
        self._path = path
        self.pci = PciFunction(key, VIRTIO_BARS, vectors=2, path=path, msix_bar=1)
        self.virtio = VirtioTransport(
            self.pci,
            shapes=[QueueShape(QUEUE_SIZE)],
            size_maxima=[QUEUE_SIZE],
            features=FEATURE_BLOCK_SIZE | FEATURE_FLUSH | (FEATURE_READ_ONLY if readonly else 0),
            config_size=CONFIG_BYTES,
        )
        self.note_birth()

    def driver_probe(self) -> None:
        self.pci.configure(mmio_base(self._path))
        self.virtio.configure(ring_base(self._path))

    def driver_io(self) -> None:
        self.virtio.kick(0)

    def _payloads(self) -> tuple[Payload, ...]:
        return self.virtio.export(), self.pci.export()

    def _take(self, arrived: Arrived) -> None:
        pci, virtio = arrived.of(PciDeviceV1), arrived.of(PciVirtioV3)
        self.pci.check(pci)
        self.virtio.check(virtio)
        self.pci.take(pci)
        self.virtio.take(virtio)
