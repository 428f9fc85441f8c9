"""Machines: their lifecycle, their devices in order, and the exchange of device state between two of them."""

import gc
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import attrs
import pytest

from sim_vmm.clock import ManualClock
from sim_vmm.devices.base import Device
from sim_vmm.devices.blob import BlobBackend
from sim_vmm.devices.errors import (
    DeviceTwice,
    InjectedFailure,
    NotMigratable,
    PayloadMissing,
    SchemaNotOffered,
    UnknownDevice,
)
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.devices.fw_cfg import FwCfg
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.places import Place
from sim_vmm.devices.virtio_disk import VirtioDisk
from sim_vmm.devices.virtio_nic import VirtioNic
from sim_vmm.drivers import driver_area, driver_vector
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.drivers.uart import UartDriver
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.drivers.virtio_net import VirtioNetDriver
from sim_vmm.fence import Fence
from sim_vmm.lifecycle import NEXT, IllegalTransition, MachineState, Verb
from sim_vmm.machine import DeviceState, Machine, MachineError, Obstacle
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import Schema
from sim_vmm.spec import PciPath, Spec, SpecKey
from sim_vmm.spec.components import (
    BootSettings,
    Component,
    FileStorageBackend,
    MigrationFailureInjector,
    PciBridge,
    Pvpanic,
    SerialNumber,
    SerialPort,
    VirtioSocket,
)
from sim_vmm.spec.components import VirtioDisk as VirtioDiskComponent
from sim_vmm.storage import Storage
from tests.machines import BLOB, COM1, EVERY_DEVICE, MIB, make_machine, make_spec

VERBS: dict[Verb, Callable[[Machine], None]] = {
    Verb.START: Machine.start,
    Verb.RECEIVE: Machine.receive,
    Verb.PAUSE: Machine.pause,
    Verb.RESUME: Machine.resume,
    Verb.STOP: Machine.stop,
    Verb.FAIL: lambda machine: machine.fail("a reason"),
}


PROBES: dict[type[Device], Any] = {Nvme: NvmeDriver, VirtioDisk: VirtioBlkDriver, VirtioNic: VirtioNetDriver}


@pytest.fixture
def source() -> Iterator[Machine]:
    """Booted and paused."""
    with make_machine() as machine:
        machine.start()
        for index, (key, path) in enumerate(machine.pci_paths.items()):
            PROBES[type(machine.devices[key])](machine, driver_area(index)).probe(path, vector=driver_vector(index))
        machine.pause()
        yield machine


@pytest.fixture
def target() -> Iterator[Machine]:
    with make_machine() as machine:
        machine.receive()
        yield machine


@pytest.mark.parametrize(("state", "verb"), sorted(product(MachineState, Verb)))
def test_only_moves_of_the_table_are_made(state: MachineState, verb: Verb) -> None:
    with make_machine(COM1) as machine:
        machine.state = state
        if (state, verb) in NEXT:
            VERBS[verb](machine)
            assert machine.state is NEXT[state, verb]
        else:
            with pytest.raises(IllegalTransition, match=f"cannot {verb} a machine that is {state}; it must be "):
                VERBS[verb](machine)
            assert machine.state is state


def test_a_machine_lives_through_a_migration_away_and_one_in() -> None:
    with make_machine(COM1) as here, make_machine(COM1) as there:
        here.start()
        there.receive()
        here.pause()
        there.import_devices(here.export_devices())
        there.start()
        here.stop()
        assert (here.state, there.state) == (MachineState.STOPPED, MachineState.RUNNING)


def test_a_failed_machine_says_why() -> None:
    with make_machine(COM1) as machine:
        machine.fail("the disk is gone")
        assert machine.failure == "the disk is gone"


def test_a_spec_that_makes_no_machine_is_refused_with_every_reason() -> None:
    spec = make_spec({}, cpus=0, memory_mb=0)
    with pytest.raises(
        MachineError, match=r"board, cpus: 0; .*; board, memory_mb: 0; .*; board, components: without a serial port"
    ) as caught:
        Machine.create(spec, host_clock=ManualClock(), counters=InjectionCounters())
    assert len(caught.value.errors) == 3


def test_memory_has_the_size_of_the_spec_unless_told() -> None:
    with make_machine(COM1) as machine:
        assert machine.memory.page_count == 4 * MIB // 4096
    with Machine.create(
        make_spec(COM1), host_clock=ManualClock(), counters=InjectionCounters(), memory_bytes=8192
    ) as machine:
        assert machine.memory.page_count == 2


def test_a_machine_takes_ram_that_is_there_already(tmp_path: Path) -> None:
    with GuestMemory.create(4 * MIB, tmp_path / "ram") as old:
        old.write(5000, b"content")
    memory = GuestMemory.open(tmp_path / "ram", 4 * MIB)
    with Machine.create(
        make_spec(COM1), host_clock=ManualClock(), counters=InjectionCounters(), memory=memory
    ) as machine:
        assert machine.memory is memory
        assert machine.memory.read(5000, 7) == b"content"
        assert machine.memory.dirty.dirty_pages().tolist() == [1]
    with pytest.raises(ValueError, match="closed"):
        memory.read(0, 1)


def test_a_machine_that_cannot_be_made_closes_what_it_was_given(tmp_path: Path) -> None:
    good, bad = make_spec({**COM1, **FILE_DISK}), make_spec(COM1, cpus=0)
    (tmp_path / "disk-backend.disk").mkdir()  # no disk can be opened there
    cases: list[tuple[Spec, int, int | None, type[Exception], str]] = [
        (good, MIB, None, ValueError, f"RAM of {MIB} bytes for a machine that has {4 * MIB}"),
        (good, 4 * MIB, MIB, ValueError, f"RAM of {4 * MIB} bytes for a machine that has {MIB}"),
        (good, 4 * MIB, None, OSError, "directory"),
        (bad, 4 * MIB, None, MachineError, "cpus"),
    ]
    for spec, ram_bytes, memory_bytes, error, text in cases:
        memory, fence = GuestMemory.create(ram_bytes), Fence(tmp_path)
        with pytest.raises(error, match=text):
            Machine.create(
                spec,
                host_clock=ManualClock(),
                counters=InjectionCounters(),
                memory_bytes=memory_bytes,
                storage=Storage(tmp_path, fence=fence),
                memory=memory,
            )
        for closed in (lambda memory=memory: memory.read(0, 1), fence.read):
            with pytest.raises(ValueError, match="closed"):
                closed()


def test_closing_leaks_no_file() -> None:
    gc.collect()  # what earlier tests have dropped must not go during this one
    before = sorted(Path("/proc/self/fd").iterdir())
    make_machine().close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_devices_are_in_key_order_with_fw_cfg_and_blobs_among_them() -> None:
    components = {**EVERY_DEVICE, "3F0E0000-0000-0000-0000-000000000000": SerialPort(SerialNumber.COM3)}
    with make_machine(components) as machine:
        assert list(machine.devices) == [
            "3f0e0000-0000-0000-0000-000000000000",
            "boot",
            "cloud-init",
            "cloud-init-backend",
            "com1",
            "com2",
            "nic",
            "pci-piix3-lpc",
            "pvpanic",
            "qemu-fwcfg",
            "vcpu-0",
            "vcpu-1",
        ]


def test_a_pvpanic_without_isa_is_no_device() -> None:
    with make_machine({**COM1, "pvpanic": Pvpanic(False)}) as machine:
        assert list(machine.devices) == ["com1", "pci-piix3-lpc", "qemu-fwcfg", "vcpu-0", "vcpu-1"]


def test_only_com1_is_kept_in_the_console_history() -> None:
    components = {"a": SerialPort(SerialNumber.COM2), "b": SerialPort(SerialNumber.COM1)}
    with make_machine(components) as machine:
        machine.com1.transmit(b"login: ")
        assert machine.com1.key == "b"
        UartDriver(machine.bus, 0x2F8).write(b"nobody hears this")
        assert machine.console.read(from_start=0).data == b"login: "


def test_a_blob_is_a_device_under_its_backends_key(source: Machine) -> None:
    blob = source.devices["cloud-init-backend"]
    assert isinstance(blob, BlobBackend)
    assert blob.read(0, len(BLOB)) == BLOB


OBSTACLES: dict[str, Component] = {
    "bridge": PciBridge(1, PciPath(0, 27, 0)),
    "vsock": VirtioSocket(3, PciPath(0, 26, 0)),
}


def test_devices_that_cannot_migrate_are_known_before_anything_moves() -> None:
    with make_machine({**COM1, **OBSTACLES}) as machine:
        assert [(obstacle.component, obstacle.kind) for obstacle in machine.obstacles()] == [
            ("bridge", "pci_pci_bridge"),
            ("vsock", "virtio_socket"),
        ]
        assert machine.obstacles()[1] == Obstacle("vsock", "virtio_socket", "its connections end in the host (#1065)")
        with pytest.raises(NotMigratable):
            machine.preflight()


def test_a_machine_without_obstacles_has_none(source: Machine) -> None:
    assert source.obstacles() == ()


def test_the_state_of_every_device_moves(source: Machine, target: Machine) -> None:
    states = source.export_devices()
    assert [state.key for state in states] == [key for key in source.devices if key != "pvpanic"]
    target.import_devices(states)
    assert target.preflight() == states


def test_a_preflight_shows_what_would_be_exported_while_the_machine_runs(source: Machine) -> None:
    states = source.export_devices()
    source.resume()
    assert source.preflight() == states


def test_devices_are_exported_from_a_paused_machine_only(source: Machine) -> None:
    source.resume()
    with pytest.raises(IllegalTransition, match="cannot export the devices of a machine that is running"):
        source.export_devices()


def test_devices_are_imported_into_a_machine_that_is_being_filled_only(source: Machine) -> None:
    with pytest.raises(IllegalTransition, match="cannot import devices into a machine that is paused"):
        source.import_devices(source.export_devices())


def test_the_caller_chooses_the_schemas(source: Machine) -> None:
    asked: list[tuple[str, tuple[Schema, ...]]] = []

    def choose(place: Place) -> Schema:
        asked.append((place.device, place.schemas))
        return place.schemas[0]

    source.preflight(choose)
    assert ("nic", (Schema("pci-virtio-viona", 1),)) in asked
    with pytest.raises(SchemaNotOffered, match="cannot export nvme-ctrl v99; it exports nvme-ctrl v2 or nvme-ctrl v1"):
        source.preflight(lambda place: Schema(place.kind, 99))


def test_state_for_a_device_that_the_machine_lacks_is_refused(source: Machine, target: Machine) -> None:
    with pytest.raises(UnknownDevice, match="'ghost'"):
        target.import_devices([*source.export_devices(), DeviceState("ghost", ())])


def test_state_that_arrives_twice_is_refused(source: Machine, target: Machine) -> None:
    states = source.export_devices()
    with pytest.raises(DeviceTwice, match="'boot'"):
        target.import_devices([*states, states[0]])


def test_a_device_for_which_nothing_arrives_is_an_error(source: Machine, target: Machine) -> None:
    with pytest.raises(PayloadMissing, match="device 'nic'"):
        target.import_devices([state for state in source.export_devices() if state.key != "nic"])


def test_keys_are_compared_as_keys_not_as_text() -> None:
    components = {"3f0e0000-0000-0000-0000-000000000000": SerialPort(SerialNumber.COM1)}
    with make_machine(components) as here, make_machine(components) as there:
        here.start()
        here.pause()
        there.receive()
        there.import_devices(
            attrs.evolve(state, key=state.key.upper() if state.key[0] == "3" else state.key)
            for state in here.export_devices()
        )


def test_an_injected_failure_strikes_the_export_and_not_the_preflight() -> None:
    counters = InjectionCounters()
    components = {**COM1, "fail": MigrationFailureInjector(1, 1)}
    with make_machine(components, counters=counters) as here:
        here.start()
        here.preflight()
        here.pause()
        with pytest.raises(InjectedFailure, match="injected failure 1 of 1 on export"):
            here.export_devices()
        here.resume()
        here.pause()
        states = here.export_devices()
    for attempt in range(2):
        with make_machine(components, counters=counters) as there:
            there.receive()
            if attempt == 0:
                with pytest.raises(InjectedFailure, match="on import"):
                    there.import_devices(states)
            else:
                there.import_devices(states)


def firmware_of(machine: Machine) -> FwCfg:
    firmware = machine.devices["qemu-fwcfg"]
    assert isinstance(firmware, FwCfg)
    return firmware


def test_the_guest_finds_its_memory_map_and_system_table_in_fw_cfg() -> None:
    nvme = {key: EVERY_DEVICE[key] for key in ("boot", "boot-backend")}
    with make_machine({**COM1, **nvme}) as machine:
        firmware = firmware_of(machine)
        assert firmware.read_file("etc/e820") == bytes(8) + (4 * MIB).to_bytes(8, "little") + b"\1\0\0\0"
        table = firmware.read_file("etc/smbios/smbios-tables")
        assert table[:2] == b"\x01\x1b"
        assert b"Oxide\0OxVM\0" in table
        assert firmware.read_file("bootorder") == b"\0"


def test_the_boot_order_names_disks_by_place() -> None:
    order = BootSettings((SpecKey.parse("boot"), SpecKey.parse("cloud-init")))
    with make_machine({**EVERY_DEVICE, "boot-settings": order}) as machine:
        text = firmware_of(machine).read_file("bootorder")
        assert text == b"/pci@i0cf8/pci8086,5845@4,0\n/pci@i0cf8/scsi@18,0\n\0"


# Storage, polling, and the way of an interrupt


def disk_driver(machine: Machine) -> VirtioBlkDriver:
    """The guest's driver of the first PCI device, which is the virtio disk over a file."""
    return VirtioBlkDriver(machine, driver_area(0))


FILE_DISK: dict[str, Component] = {
    **COM1,
    "disk": VirtioDiskComponent(SpecKey.parse("disk-backend"), PciPath(0, 16, 0)),
    "disk-backend": FileStorageBackend("/etc/passwd", False, 512, None),
}


def test_a_machine_whose_disk_would_stay_behind_does_not_go() -> None:
    with make_machine(FILE_DISK) as machine:
        machine.start()
        disk_driver(machine).probe(PciPath(0, 16, 0), vector=driver_vector(0))
        assert machine.obstacles() == ()
        disk_driver(machine).submit_write(0, b"x" * 512)
        (obstacle,) = machine.obstacles()
        assert (obstacle.component, obstacle.kind) == ("disk-backend", "file_storage_backend")
        machine.pause()
        with pytest.raises(NotMigratable, match="give both daemons the same --storage DIR"):
            machine.export_devices()


def test_a_disk_in_a_shared_directory_goes_with_requests_in_flight(tmp_path: Path) -> None:
    def machine_here() -> Machine:
        return Machine.create(
            make_spec(FILE_DISK), host_clock=ManualClock(), counters=InjectionCounters(), storage=Storage(tmp_path)
        )

    with machine_here() as here, machine_here() as there:
        here.start()
        disk_driver(here).probe(PciPath(0, 16, 0), vector=driver_vector(0))
        for sector in range(12):
            disk_driver(here).submit_write(sector, bytes([sector]) * 512, token=sector, notify=False)
        disk_driver(here).notify()
        here.pause()
        there.receive()
        there.memory.view[:] = here.memory.view
        there.import_devices(here.export_devices())
        there.start()
        done = [completion.token for completion in disk_driver(there).poll()]
        there.poll()
        done += [completion.token for completion in disk_driver(there).poll()]
        assert done == list(range(12))
        assert (tmp_path / "disk-backend.disk").read_bytes()[: 12 * 512] == b"".join(
            bytes([sector]) * 512 for sector in range(12)
        )


def test_only_a_running_machine_is_polled(source: Machine) -> None:
    with pytest.raises(IllegalTransition, match="cannot poll a machine that is paused"):
        source.poll()
