"""A virtio device on the PCI bus: where its two register interfaces lie, and what it says that it is."""

from typing import Final

from sim_vmm.devices.pci import EMPTY_BAR, PciDevice, PciFunction, PciIdentity
from sim_vmm.devices.virtio.legacy import PORT_BAR, legacy_read, legacy_write
from sim_vmm.devices.virtio.modern import MODERN_BAR, capabilities, modern_read, modern_write
from sim_vmm.devices.virtio.status import VENDOR
from sim_vmm.devices.virtio.transport import VirtioTransport
from sim_vmm.payloads import Bar, BarKind
from sim_vmm.platform import Platform
from sim_vmm.spec import PciPath

MSIX_BAR: Final = 1

#: A port BAR for the legacy interface, one for the MSI-X table, a 64-bit one for the modern interface.
VIRTIO_BARS: Final = (
    Bar(BarKind.PIO, 0x200, 0),
    Bar(BarKind.MMIO, 0x1000, 0),
    Bar(BarKind.MMIO64, 0x4000, 0),
    EMPTY_BAR,
    EMPTY_BAR,
    EMPTY_BAR,
)
LEGACY_BARS: Final = (*VIRTIO_BARS[:2], *(EMPTY_BAR,) * 4)


def virtio_function(
    key: str,
    path: PciPath,
    *,
    vectors: int,
    device: int,
    virtio_type: int,
    class_code: int,
    config_size: int,
    legacy_only: bool,
) -> PciFunction:
    """The PCI face of a transitional virtio device, or of one that shows the legacy interface only."""
    return PciFunction(
        key,
        LEGACY_BARS if legacy_only else VIRTIO_BARS,
        vectors,
        path=path,
        msix_bar=MSIX_BAR,
        identity=PciIdentity(
            vendor=VENDOR, device=device, class_code=class_code, subsystem_vendor=VENDOR, subsystem=virtio_type
        ),
        capabilities=() if legacy_only else capabilities(config_size),
    )


class VirtioDevice(PciDevice):
    """The base of virtio devices: routes registers to `virtio`, which its maker sets, as `pci`.

    It is the owner of its transport; of what a transport tells and asks its owner, only notifications must be heeded.
    """

    virtio: VirtioTransport

    def attach(self, platform: Platform) -> None:
        super().attach(platform)
        self.virtio.attach(platform)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        match bar:
            case _ if bar == PORT_BAR:
                return legacy_read(self.virtio, offset, size)
            case _ if bar == MODERN_BAR:
                return modern_read(self.virtio, offset, size)
            case _:
                return 0

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        match bar:
            case _ if bar == PORT_BAR:
                legacy_write(self.virtio, offset, size, value)
            case _ if bar == MODERN_BAR:
                modern_write(self.virtio, offset, size, value)

    def queue_notified(self, number: int) -> None:
        """See `Owner.queue_notified`."""
        raise NotImplementedError

    def serves(self, number: int) -> bool:
        """See `Owner.serves`."""
        return True

    def features_agreed(self) -> None:
        """See `Owner.features_agreed`."""

    def transport_reset(self) -> None:
        """See `Owner.transport_reset`."""

    def config_space(self) -> bytes:
        """See `Owner.config_space`."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """See `Owner.write_config`."""
