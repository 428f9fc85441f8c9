"""Machines: their lifecycle, their devices in order, and the exchange of device state between two of them."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import attrs
import pytest

from sim_vmm.clock import ManualClock
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
from sim_vmm.lifecycle import NEXT, IllegalTransition, MachineState, Verb
from sim_vmm.machine import DeviceState, Machine, MachineError, Obstacle
from sim_vmm.payloads import Schema
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.components import (
    BootSettings,
    Component,
    MigrationFailureInjector,
    PciBridge,
    Pvpanic,
    SerialNumber,
    SerialPort,
    VirtioSocket,
)
from tests.machines import BLOB, COM1, EVERY_DEVICE, MIB, make_machine, make_spec

VERBS: dict[Verb, Callable[[Machine], None]] = {
    Verb.START: Machine.start,
    Verb.RECEIVE: Machine.receive,
    Verb.PAUSE: Machine.pause,
    Verb.RESUME: Machine.resume,
    Verb.STOP: Machine.stop,
    Verb.FAIL: lambda machine: machine.fail("a reason"),
}


@pytest.fixture
def source() -> Iterator[Machine]:
    """Booted and paused."""
    with make_machine() as machine:
        machine.start()
        for device in machine.devices.values():
            device.driver_probe()
            device.driver_io()
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


def test_closing_leaks_no_file() -> None:
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
            "pvpanic",
            "qemu-fwcfg",
        ]


def test_a_pvpanic_without_isa_is_no_device() -> None:
    with make_machine({**COM1, "pvpanic": Pvpanic(False)}) as machine:
        assert list(machine.devices) == ["com1", "qemu-fwcfg"]


def test_only_com1_is_kept_in_the_console_history() -> None:
    components = {"a": SerialPort(SerialNumber.COM2), "b": SerialPort(SerialNumber.COM1)}
    with make_machine(components) as machine:
        machine.com1.transmit(b"login: ")
        assert machine.com1.key == "b"
        machine.devices["a"].driver_probe()
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

    def choose(key: str, schemas: tuple[Schema, ...]) -> Schema:
        asked.append((key, schemas))
        return schemas[-1]

    source.preflight(choose)
    assert ("nic", (Schema("pci-virtio-viona", 1),)) in asked
    with pytest.raises(SchemaNotOffered, match="it exports nvme-ctrl v2, then pci-device v1"):
        source.preflight(lambda _key, schemas: Schema(schemas[0].kind, 99))


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
            attrs.evolve(state, key=state.key.upper().replace("QEMU-FWCFG", "qemu-fwcfg"))
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
