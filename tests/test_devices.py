"""Devices: what they export another takes over whole; what they cannot take they refuse by name."""

from collections.abc import Callable

import pytest

from sim_vmm.devices.base import Device
from sim_vmm.devices.blob import BlobBackend
from sim_vmm.devices.errors import (
    ImportFailed,
    NotMigratable,
    PayloadMissing,
    PayloadUnexpected,
    SchemaNotOffered,
)
from sim_vmm.devices.fixed import P9fs, PciBridge, SoftNpuP9, SoftNpuPciPort, SoftNpuPort, VirtioSocket
from sim_vmm.devices.pci import PciFunction
from sim_vmm.devices.virtio_disk import VirtioDisk
from sim_vmm.payloads import PAYLOADS, Bar, BarKind
from tests.devices import (
    DEVICES,
    PATH,
    blob,
    booted,
    disk,
    export,
    fw_cfg,
    moved,
    nic,
    nvme,
    on_bench,
    replaced,
    uart,
    use,
)

every_device = pytest.mark.parametrize("make", DEVICES, ids=lambda make: make().kind)


@every_device
def test_a_device_exports_one_payload_for_each_schema_it_names(make: Callable[[], Device]) -> None:
    device = booted(make)
    payloads = export(device)
    assert [payload.SCHEMA for payload in payloads] == [schemas[0] for schemas in device.exports()]


@every_device
def test_an_export_of_what_was_imported_is_the_same(make: Callable[[], Device]) -> None:
    for device in (make(), booted(make)):
        for _ in range(3):
            assert export(moved(device, make)) == export(device)
            use(device)


@every_device
def test_payloads_are_taken_in_any_order(make: Callable[[], Device]) -> None:
    device, new = booted(make), make()
    new.import_(reversed(export(device)))
    assert export(new) == export(device)


@every_device
def test_each_missing_payload_is_an_error(make: Callable[[], Device]) -> None:
    device = booted(make)
    payloads = export(device)
    for missing in (payload for payload in payloads if payload.SCHEMA.kind not in device.OPTIONAL):
        with pytest.raises(PayloadMissing, match=f"no {missing.SCHEMA} has arrived"):
            make().import_([payload for payload in payloads if payload is not missing])


@every_device
def test_a_payload_twice_is_an_error(make: Callable[[], Device]) -> None:
    payloads = export(booted(make))
    for payload in payloads:
        with pytest.raises(PayloadUnexpected, match="it must arrive once"):
            make().import_([*payloads, payload])


@every_device
def test_a_payload_that_the_device_does_not_want_is_an_error(make: Callable[[], Device]) -> None:
    device = booted(make)
    wanted = {schemas[0] for schemas in device.exports()}
    strangers = [payload for other in DEVICES for payload in export(other()) if payload.SCHEMA not in wanted]
    assert strangers
    for stranger in strangers:
        with pytest.raises(PayloadUnexpected, match=f"{stranger.SCHEMA} has arrived; this device wants"):
            make().import_([*export(device), stranger])


@every_device
def test_a_choice_that_is_not_offered_is_refused(make: Callable[[], Device]) -> None:
    device = make()
    wrong = [next(schema for schema in PAYLOADS if (schema,) not in device.exports())]
    with pytest.raises(SchemaNotOffered):
        device.export([*wrong, *(schemas[0] for schemas in device.exports()[1:])])


def test_every_registered_payload_is_exported_by_some_device() -> None:
    assert {schema for make in DEVICES for schemas in make().exports() for schema in schemas} == set(PAYLOADS)


@pytest.mark.parametrize("cls", [PciBridge, VirtioSocket, SoftNpuPciPort, SoftNpuPort, SoftNpuP9, P9fs])
def test_a_device_that_cannot_migrate_says_why(cls: type[Device]) -> None:
    device = cls("key")
    assert device.not_migratable
    with pytest.raises(NotMigratable, match=f"device 'key': a {cls.kind} cannot migrate: {device.not_migratable[:10]}"):
        device.export([])


# Refused values

E = Bar(BarKind.EMPTY, 0, 0)
REFUSED: list[tuple[Callable[[], Device], str, str, object, str]] = [
    (disk, "pci-device", "reg_command", 0x8, "unknown bits 0x8"),
    (disk, "pci-device", "bars.entries", (E,) * 5, "5 entries"),
    (disk, "pci-device", "bars.entries[5]", Bar(BarKind.MMIO64, 4096, 0), "it takes two"),
    (disk, "pci-device", "bars.entries[1]", Bar(BarKind.MMIO64, 4096, 0), "takes the next slot too, which is mmio64"),
    (disk, "pci-device", "bars.entries[0].size", 0x1_0000, "does not fit the 16 bits"),
    (disk, "pci-device", "bars.entries[1].size", 0x1_0000_0000, "does not fit the 32 bits"),
    (disk, "pci-device", "msix", None, "absent; this device has 2 vectors"),
    (disk, "pci-device", "msix.count", 3, "3; this device has 2 vectors"),
    (disk, "pci-device", "msix.entries", (), "0 entries; this device has 2 vectors"),
    (disk, "pci-virtio", "device.status", 0x10, "unknown bits 0x10"),
    (disk, "pci-virtio", "device.mode", 3, "expected 0"),
    (disk, "pci-virtio", "device.device_config_size", 24, "24; this device has 60"),
    (disk, "pci-virtio", "device.negotiated_features", 1 << 22, "does not offer"),
    (disk, "pci-virtio", "device.msix_queue_vec", (), "0 vectors; this device has 1 queues"),
    (disk, "pci-virtio", "device.msix_queue_vec[0]", 2, "vectors 0 to 1, or 0xffff"),
    (disk, "pci-virtio", "device.msix_cfg_vec", 9, "vectors 0 to 1, or 0xffff"),
    (disk, "pci-virtio", "queues.len", 0, "this device has 1 to 1 queues"),
    (disk, "pci-virtio", "queues.peak", 2, "this device has 1 to 1 queues"),
    (disk, "pci-virtio", "queues.queues", (), "0 queues; peak says 1"),
    (nic, "pci-virtio", "queues.queues", (), "0 queues; peak says 3"),
    (disk, "pci-virtio", "queues.queues[0].id", 1, "listed by id"),
    (disk, "pci-virtio", "queues.queues[0].notify_data", 7, "this device uses 0"),
    (disk, "pci-virtio", "queues.queues[0].is_control", True, "no control queue"),
    (disk, "pci-virtio", "queues.queues[0].size", 0, "power of two from 1 to 256"),
    (disk, "pci-virtio", "queues.queues[0].size", 255, "power of two from 1 to 256"),
    (disk, "pci-virtio", "queues.queues[0].size", 512, "power of two from 1 to 256"),
    (nic, "pci-virtio", "queues.queues[1].size", 512, "power of two from 1 to 256"),
    (nic, "pci-virtio", "queues.queues[2].size", 64, "power of two from 1 to 32"),
    (nic, "pci-virtio", "queues.len", 24, "1 to 23 queues"),
    (nic, "pci-virtio", "queues.len", 23, "more than the most ever, 3"),
    (nic, "pci-virtio", "queues.len", 2, "queues come in pairs"),
    (nic, "pci-virtio", "queues.peak", 24, "1 to 23 queues"),
    (nic, "pci-virtio", "device.negotiated_features", 1 << 3, "does not offer"),
    (nic, "pci-virtio-viona", "filter", 0x40, "unknown bits 0x40"),
    (nic, "pci-virtio-viona", "unicast_mac_filters", (b"12345",), "an Ethernet address has 6"),
    (nic, "pci-virtio-viona", "multicast_mac_filters", (b"1234567",), "an Ethernet address has 6"),
    (nvme, "nvme-ctrl", "cqs[1].id", 16, "ids 0 to 15"),
    (nvme, "nvme-ctrl", "cqs[1].id", 0, "0 occurs twice"),
    (nvme, "nvme-ctrl", "sqs[1].id", 16, "ids 0 to 15"),
    (nvme, "nvme-ctrl", "sqs[1].id", 0, "0 occurs twice"),
    (nvme, "nvme-ctrl", "cqs[0].base", 0x1001, "not a multiple of the page size"),
    (nvme, "nvme-ctrl", "sqs[1].base", 0x800, "not a multiple of the page size"),
    (nvme, "nvme-ctrl", "cqs[1].size", 1, "queue 1 has 2 to 65536 entries"),
    (nvme, "nvme-ctrl", "sqs[1].size", 65537, "queue 1 has 2 to 65536 entries"),
    (nvme, "nvme-ctrl", "sqs[0].size", 4097, "queue 0 has 2 to 4096 entries"),
    (nvme, "nvme-ctrl", "cqs[0].size", 1, "queue 0 has 2 to 4096 entries"),
    (nvme, "nvme-ctrl", "sqs[1].cq_id", 5, "completion queue 5 does not exist"),
    (nvme, "nvme-ctrl", "sqs[1].cq_id", 0, "must not complete to the admin queue"),
    (nvme, "nvme-ctrl", "sqs[1].head", 64, "outside a queue of 64"),
    (nvme, "nvme-ctrl", "cqs[1].tail", 64, "outside a queue of 64"),
    (nvme, "nvme-ctrl", "cqs[1].avail", 64, "from head and tail, 63 of 64 entries are free"),
    (nvme, "nvme-ctrl", "cqs[1].iv", 16, "vectors 0 to 15"),
    (uart, "uart-16550", "rx_fifo", b"ab", "2 bytes; this port's FIFO holds 1"),
    (uart, "uart-16550", "tx_fifo", b"abc", "3 bytes; this port's FIFO holds 1"),
    (uart, "uart-16550", "intr_status", 0x02, "do not give rise to"),
    (fw_cfg, "qemu-fwcfg", "entries[1].selector", 0xFFFF, "selects nothing"),
    (fw_cfg, "qemu-fwcfg", "entries[1].selector", 0x19, "0x19 occurs twice"),
    (fw_cfg, "qemu-fwcfg", "entries[2].name", "etc/e820", "'etc/e820' occurs twice"),
    (fw_cfg, "qemu-fwcfg", "entries[1].name", "x" * 56, "at most 55 fit"),
    (fw_cfg, "qemu-fwcfg", "entries[0].bytes", b"x", "an entry of kind file_dir has none of its own"),
    (blob, "in-memory-block-backend", "bytes", bytes(99), "99 bytes; this machine's blob has 100"),
]


@pytest.mark.parametrize(
    ("make", "kind", "field", "value", "problem"), REFUSED, ids=[f"{case[1]}-{case[2]}-{case[4]}" for case in REFUSED]
)
def test_a_value_that_a_device_cannot_take_is_refused_and_changes_nothing(
    make: Callable[[], Device], kind: str, field: str, value: object, problem: str
) -> None:
    payloads = export(booted(make))
    spoilt = [replaced(payload, field, value) if payload.SCHEMA.kind == kind else payload for payload in payloads]
    device = make()
    before = export(device)
    with pytest.raises(ImportFailed, match=problem) as caught:
        device.import_(spoilt)
    assert (caught.value.device, caught.value.kind) == (device.key, kind)
    assert field.startswith(caught.value.field) or caught.value.field.startswith(field)
    assert export(device) == before


def legacy_disk() -> VirtioDisk:
    return VirtioDisk("disk", PATH, blob(), legacy_only=True)


def test_in_legacy_mode_a_queue_has_the_size_of_the_device() -> None:
    virtio, pci = export(legacy_disk())
    legacy_disk().import_([virtio, pci])
    with pytest.raises(ImportFailed, match="in legacy mode this queue has 256"):
        legacy_disk().import_([replaced(virtio, "queues.queues[0].size", 128), pci])


def test_a_disk_that_shows_more_than_the_guest_was_born_with_is_refused() -> None:
    with pytest.raises(ImportFailed, match="this device was born with the legacy interface only"):
        legacy_disk().import_(export(disk()))
    with pytest.raises(ImportFailed, match="this device was born with the modern interface too"):
        disk().import_(export(legacy_disk()))


def test_a_device_without_msix_refuses_it() -> None:
    payload = export(booted(disk))[1]
    with pytest.raises(ImportFailed, match="this device has no MSI-X"):
        PciFunction("bare", (E,) * 6, vectors=0, path=PATH).check(payload)  # type: ignore[arg-type]  # the second is PCI's


def test_features_that_only_a_read_only_disk_has_are_refused_by_another() -> None:
    source = booted(lambda: on_bench(VirtioDisk("disk", PATH, BlobBackend("blob", bytes(512), readonly=True))))
    with pytest.raises(ImportFailed, match="features 0x20 are in force"):
        disk().import_(export(source))
