"""What makes a valid spec no machine: the limits outside the spec parser (instance-specs §6).

All violations are reported, not the first one, because this runs while a migration is negotiated and a person will
read the answer.  Elsewhere: whether a Crucible request parses, which takes a reader of JSON (migrate).

One rule is ours: a component must not have the name of a chipset device.  Upstream accepts it and the two devices'
payloads collide.
"""

import re
from collections.abc import Iterator
from typing import Final

import attrs

from sim_vmm.devices.blob import decode_blob
from sim_vmm.spec import PciPath, Spec, SpecKey
from sim_vmm.spec.components import (
    BlobStorageBackend,
    BootSettings,
    NvmeDisk,
    PciBridge,
    PciDevice,
    SerialNumber,
    SerialPort,
    VirtioDisk,
    VirtioSocket,
)

VCPUS_MAX: Final = 32
GUEST_CID_MIN: Final = 3
GUEST_CID_MAX: Final = 0xFFFF_FFFF

CHIPSET_SLOTS: Final = {
    PciPath(0, 0, 0): "host bridge",
    PciPath(0, 1, 0): "LPC bridge",
    PciPath(0, 1, 3): "power management",
}

RESERVED_NAMES: Final = re.compile(
    r"vcpu-[0-9]+|qemu-fwcfg|lpc-bhyve-hpet|pci-i440fx-hb|pci-piix3-lpc|pci-piix3-pm|lpc-ps2ctrl|qemu-lpc-debug"
    r"|qemu-ramfb|guest-hv-interface"
)


@attrs.frozen
class InitialisationError:
    """`component` is a component key, or `board`; `message`: what `field` is, a semicolon, what would do."""

    component: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.component}, {self.field}: {self.message}"


def check_initialisation(spec: Spec) -> list[InitialisationError]:
    """Every violation in `spec`: those of the board first, then by component in key order.  Empty for a machine."""
    return [
        *_board(spec),
        *_names(spec),
        *_pci(spec),
        *_vsock(spec),
        *_blobs(spec),
        *_boot_order(spec),
    ]


def _board(spec: Spec) -> Iterator[InitialisationError]:
    board = spec.board
    if not 1 <= board.cpus <= VCPUS_MAX:
        yield InitialisationError("board", "cpus", f"{board.cpus}; 1 to {VCPUS_MAX} vCPUs")
    if board.memory_mb < 1:
        yield InitialisationError("board", "memory_mb", f"{board.memory_mb}; at least 1 MiB of RAM")
    if all(port.num is not SerialNumber.COM1 for _, port in spec.of_kind(SerialPort)):
        yield InitialisationError(
            "board", "components", "without a serial port com1; one, which is the console of every machine"
        )


def _names(spec: Spec) -> Iterator[InitialisationError]:
    for key in spec.components:
        if key.uuid is None and RESERVED_NAMES.fullmatch(key.name):
            yield InitialisationError(str(key), "key", "the name of a chipset device; another")


def _pci(spec: Spec) -> Iterator[InitialisationError]:
    """Slots that are taken by the chipset, buses behind two bridges, buses behind none."""
    bridge_to: dict[int, SpecKey] = {}
    for key, bridge in spec.of_kind(PciBridge):
        bus = bridge.downstream_bus
        if bus == 0:
            yield InitialisationError(str(key), "downstream_bus", "0, the root bus; 1 to 255")
        elif bus in bridge_to:
            yield InitialisationError(
                str(key), "downstream_bus", f"{bus}, which lies behind bridge {str(bridge_to[bus])!r}; a bus of its own"
            )
        else:
            bridge_to[bus] = key
    for key, component in spec.components.items():
        if not isinstance(component, PciDevice):
            continue
        path = component.pci_path
        if path in CHIPSET_SLOTS:
            yield InitialisationError(
                str(key), "pci_path", f"{path}; a slot other than this one of the chipset's {CHIPSET_SLOTS[path]}"
            )
        if path.bus != 0 and path.bus not in bridge_to:
            yield InitialisationError(str(key), "pci_path", f"{path}; a bridge with downstream_bus {path.bus}")


def _vsock(spec: Spec) -> Iterator[InitialisationError]:
    for key, vsock in spec.of_kind(VirtioSocket):
        if not GUEST_CID_MIN <= vsock.guest_cid <= GUEST_CID_MAX:
            yield InitialisationError(
                str(key), "guest_cid", f"{vsock.guest_cid}; a number from {GUEST_CID_MIN} to {GUEST_CID_MAX:#x}"
            )


def _blobs(spec: Spec) -> Iterator[InitialisationError]:
    for key, backend in spec.of_kind(BlobStorageBackend):
        try:
            decode_blob(backend.base64)
        except ValueError as error:
            yield InitialisationError(str(key), "base64", str(error))


def _boot_order(spec: Spec) -> Iterator[InitialisationError]:
    for key, settings in spec.of_kind(BootSettings):
        for index, entry in enumerate(settings.order):
            disk = spec.components[entry]
            if isinstance(disk, VirtioDisk | NvmeDisk) and disk.pci_path.bus != 0:
                yield InitialisationError(
                    str(key),
                    f"order[{index}]",
                    f"disk {str(entry)!r} on bus {disk.pci_path.bus}; a disk on bus 0, from which firmware boots",
                )
