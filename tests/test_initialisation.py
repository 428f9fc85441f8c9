"""What makes a valid spec no machine: all of it is reported."""

import re
from uuid import UUID

import pytest

from sim_vmm.initialisation import RESERVED_NAMES, check_initialisation
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.components import (
    BlobStorageBackend,
    BootSettings,
    Component,
    PciBridge,
    SerialNumber,
    SerialPort,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
    VirtioSocket,
)
from tests.machines import COM1, EVERY_DEVICE, make_spec


def disk_at(path: PciPath, base64: str = "AAAA") -> dict[str, Component]:
    return {"disk": VirtioDisk(SpecKey.parse("blob"), path), "blob": BlobStorageBackend(base64, True)}


def nic_at(path: PciPath) -> dict[str, Component]:
    return {
        "nic": VirtioNic(SpecKey.parse("nic-backend"), UUID(int=1), path),
        "nic-backend": VirtioNetworkBackend("net0"),
    }


def test_a_machine_with_every_device_has_nothing_wrong() -> None:
    assert check_initialisation(make_spec(EVERY_DEVICE)) == []


def test_a_device_behind_a_bridge_has_nothing_wrong() -> None:
    behind = {"bridge": PciBridge(5, PciPath(0, 3, 0)), **nic_at(PciPath(5, 0, 0))}
    assert check_initialisation(make_spec({**COM1, **behind})) == []


BROKEN: list[tuple[str, dict[str, Component], list[tuple[str, str, str]]]] = [
    ("no com1", {"com2": SerialPort(SerialNumber.COM2)}, [("board", "components", "without a serial port com1")]),
    ("host bridge", {**COM1, **nic_at(PciPath(0, 0, 0))}, [("nic", "pci_path", "0.0.0; .* host bridge")]),
    ("LPC", {**COM1, **nic_at(PciPath(0, 1, 0))}, [("nic", "pci_path", "0.1.0; .* LPC bridge")]),
    ("power", {**COM1, **nic_at(PciPath(0, 1, 3))}, [("nic", "pci_path", "0.1.3; .* power management")]),
    ("a bridge", {**COM1, **nic_at(PciPath(2, 4, 0))}, [("nic", "pci_path", "a bridge with downstream_bus 2")]),
    (
        "one bus behind two bridges",
        {**COM1, "a": PciBridge(1, PciPath(0, 3, 0)), "b": PciBridge(1, PciPath(0, 4, 0))},
        [("b", "downstream_bus", "1, which lies behind bridge 'a'")],
    ),
    (
        "the root bus behind a bridge",
        {**COM1, "a": PciBridge(0, PciPath(0, 3, 0))},
        [("a", "downstream_bus", "0, the root bus")],
    ),
    (
        "boot from behind a bridge",
        {
            **COM1,
            **disk_at(PciPath(1, 4, 0)),
            "bridge": PciBridge(1, PciPath(0, 3, 0)),
            "boot": BootSettings((SpecKey.parse("disk"),)),
        },
        [("boot", r"order\[0\]", "disk 'disk' on bus 1")],
    ),
    ("CID 2", {**COM1, "v": VirtioSocket(2, PciPath(0, 3, 0))}, [("v", "guest_cid", "a number from 3 to 0xffffffff")]),
    (
        "CID 2**32",
        {**COM1, "v": VirtioSocket(2**32, PciPath(0, 3, 0))},
        [("v", "guest_cid", "4294967296; a number from")],
    ),
    ("blob", {**COM1, **disk_at(PciPath(0, 3, 0), "A=")}, [("blob", "base64", "not standard base64")]),
    ("reserved name", {"vcpu-7": SerialPort(SerialNumber.COM1)}, [("vcpu-7", "key", "name of a chipset device")]),
    (
        "several at once",
        {**nic_at(PciPath(0, 0, 0)), **disk_at(PciPath(3, 0, 0), "!")},
        [
            ("board", "components", "without a serial port"),
            ("disk", "pci_path", "a bridge"),
            ("nic", "pci_path", "0.0.0"),
            ("blob", "base64", "not standard"),
        ],
    ),
]


@pytest.mark.parametrize(("components", "expected"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_each_violation_is_reported(components: dict[str, Component], expected: list[tuple[str, str, str]]) -> None:
    errors = check_initialisation(make_spec(components))
    assert [error.component for error in errors] == [component for component, _, _ in expected]
    for error, (_, field, message) in zip(errors, expected, strict=True):
        assert re.fullmatch(field, error.field)
        assert re.search(message, error.message)


@pytest.mark.parametrize(("cpus", "wrong"), [(0, True), (1, False), (32, False), (33, True), (255, True)])
def test_a_machine_has_one_to_32_vcpus(cpus: int, wrong: bool) -> None:
    fields = [error.field for error in check_initialisation(make_spec(COM1, cpus=cpus))]
    assert fields == (["cpus"] if wrong else [])


def test_a_machine_has_at_least_a_mib_of_ram() -> None:
    assert [error.field for error in check_initialisation(make_spec(COM1, memory_mb=0))] == ["memory_mb"]


@pytest.mark.parametrize(
    "name", ["vcpu-0", "vcpu-31", "qemu-fwcfg", "pci-i440fx-hb", "guest-hv-interface", "qemu-ramfb"]
)
def test_names_of_chipset_devices_are_reserved(name: str) -> None:
    assert RESERVED_NAMES.fullmatch(name)


@pytest.mark.parametrize("name", ["vcpu", "vcpu-x", "my-qemu-fwcfg", "QEMU-FWCFG", ""])
def test_other_names_are_free(name: str) -> None:
    assert not RESERVED_NAMES.fullmatch(name)
