"""Devices that export nothing: one has no state, the others refuse to migrate (device-payloads §4)."""

from typing import ClassVar

from sim_vmm.devices.base import Device


class Pvpanic(Device):
    """Tells the host that the guest has panicked; there is nothing to carry over."""

    kind: ClassVar[str] = "qemu_pvpanic"


class PciBridge(Device):
    kind: ClassVar[str] = "pci_pci_bridge"
    not_migratable: ClassVar[str | None] = "the bus numbers that the guest has given to a bridge are not carried over"


class VirtioSocket(Device):
    kind: ClassVar[str] = "virtio_socket"
    not_migratable: ClassVar[str | None] = "its connections end in the host (#1065)"


class SoftNpuPciPort(Device):
    kind: ClassVar[str] = "soft_npu_pci_port"
    not_migratable: ClassVar[str | None] = "the program and tables of a SoftNPU are not carried over"


class SoftNpuPort(Device):
    kind: ClassVar[str] = "soft_npu_port"
    not_migratable: ClassVar[str | None] = "it is a port of a SoftNPU, which cannot migrate"


class SoftNpuP9(Device):
    kind: ClassVar[str] = "soft_npu_p9"
    not_migratable: ClassVar[str | None] = "the files it shares are the host's"


class P9fs(Device):
    kind: ClassVar[str] = "p9fs"
    not_migratable: ClassVar[str | None] = "the files it shares are the host's"
