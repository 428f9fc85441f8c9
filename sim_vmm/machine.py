"""A machine: memory, clock, console, processors and devices, made from a spec; when what may be done: lifecycle.py.

A guest reaches `memory`, its `vcpus`, and the devices through `bus`.  Devices act when the guest touches them and when
the machine is polled, which whoever runs the guest does between its steps.

Devices are in key order, UUIDs by their bytes before names by theirs, and are exported in it (device-payloads §3).
Import is strict: every device that has state must get it, and nothing else may arrive.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Protocol, Self

import attrs

from sim_vmm.birth import NEWEST, Birth
from sim_vmm.bus import Bus
from sim_vmm.clock import NS_PER_S, GuestClock, HostClock
from sim_vmm.console import ConsoleHistory
from sim_vmm.devices import fw_cfg, rtc
from sim_vmm.devices.base import Device
from sim_vmm.devices.errors import DeviceTwice, NotMigratable, UnknownDevice
from sim_vmm.devices.factory import Surroundings, make_devices
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.devices.pci import PciDevice
from sim_vmm.devices.places import Place
from sim_vmm.devices.uart import Uart
from sim_vmm.devices.vcpu import InterruptController, Vcpu
from sim_vmm.initialisation import InitialisationError, check_initialisation
from sim_vmm.lifecycle import IllegalTransition, Lifecycle, MachineState, Verb
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import Payload, Schema
from sim_vmm.platform import Platform, Wires
from sim_vmm.spec import PciPath, Spec, SpecKey
from sim_vmm.spec.components import SerialNumber, SerialPort
from sim_vmm.storage import Storage
from sim_vmm.wire import NoWires

__all__ = [
    "MIB",
    "Choose",
    "DeviceState",
    "IllegalTransition",
    "Machine",
    "MachineError",
    "MachineState",
    "Obstacle",
    "newest",
]

MIB: Final = 1 << 20


@attrs.frozen(str=False)
class MachineError(Exception):
    """The spec makes no machine; `errors` are all the reasons."""

    errors: tuple[InitialisationError, ...]

    def __str__(self) -> str:
        return "the spec makes no machine: " + "; ".join(map(str, self.errors))


@attrs.frozen
class Obstacle:
    """A device because of which the machine cannot migrate."""

    component: str
    kind: str
    reason: str


@attrs.frozen
class DeviceState:
    """The exported state of the device `key`."""

    key: str
    payloads: tuple[Payload, ...]


#: Chooses what is to stand in a place: one of its schemas, or None to leave an optional one empty.
Choose = Callable[[Place], Schema | None]


def newest(place: Place) -> Schema:
    """The choice between two daemons of the same release."""
    return place.schemas[0]


class Machine(Lifecycle):
    """One emulated machine.  Make it with `create`; close it, or use it as a context manager."""

    def __init__(
        self,
        spec: Spec,
        memory: GuestMemory,
        clock: GuestClock,
        counters: InjectionCounters,
        birth: Birth,
        storage: Storage,
        wires: Wires,
    ) -> None:
        super().__init__()
        self.spec: Final = spec
        self.birth: Final = birth
        self.memory: Final = memory
        self.clock: Final = clock
        self.console: Final = ConsoleHistory()
        self.failure: str | None = None
        self.stolen_ns = 0
        """Steal time: for how long its host kept its processors from running, since the machine is on it."""
        self.storage: Final = storage
        self.wires: Final = wires
        around = Surroundings(console=self.console.append, counters=counters, storage=storage, birth=birth, wires=wires)
        made = make_devices(spec, around)
        made[SpecKey.parse(fw_cfg.KEY)] = fw_cfg.FwCfg(fw_cfg.birth_entries(spec, len(memory.view), birth))
        made[SpecKey.parse(rtc.KEY)] = rtc.Rtc(clock, clock.export().hres_sec * NS_PER_S)
        self.interrupts: Final = InterruptController(spec.board.cpus)
        made |= {SpecKey.parse(vcpu.key): vcpu for vcpu in self.interrupts.vcpus}
        self.devices: Final[Mapping[str, Device]] = MappingProxyType(
            {str(key): device for key, device in sorted(made.items())}
        )
        platform = Platform(memory, self.interrupts)
        for device in self.devices.values():
            device.attach(platform)
        self.bus: Final = Bus(self.devices.values())

    @classmethod
    def create(
        cls,
        spec: Spec,
        *,
        host_clock: HostClock,
        counters: InjectionCounters,
        memory_bytes: int | None = None,
        birth: Birth = NEWEST,
        storage: Storage | None = None,
        wires: Wires | None = None,
        memory: GuestMemory | None = None,
    ) -> Self:
        """A new machine, all reset, which shows its guest what `birth` says.

        `memory_bytes` replaces the RAM size of the spec, for tests.  `memory` is RAM of that size which is there
        already, with content or without.  Without `storage` disks outside the machine are volatile, without `wires` no
        NIC has a cable.  The machine closes all three with itself; if none can be made, they are closed as well.

        Raises:
            MachineError: `spec` breaks limits of instance-specs §6; the error lists them all.
            ValueError: the RAM size is not a positive multiple of the page size, or not that of `memory`.
            OSError: the host does not give the memory or a disk.
        """
        storage = Storage() if storage is None else storage
        wires = NoWires() if wires is None else wires
        try:
            errors = check_initialisation(spec)
            if errors:
                raise MachineError(tuple(errors))
            size = spec.board.memory_mb * MIB if memory_bytes is None else memory_bytes
            if memory is None:
                memory = GuestMemory.create(size)
            elif len(memory.view) != size:
                raise ValueError(f"guest RAM of {len(memory.view)} bytes for a machine that has {size}")
            return cls(spec, memory, GuestClock(host_clock), counters, birth, storage, wires)
        except BaseException:
            wires.close()
            storage.close()
            if memory is not None:
                memory.close()
            raise

    def pause(self) -> None:
        """Stop the guest; devices finish what must not be cut in two, and keep the rest in their queues."""
        super().pause()
        for device in self.devices.values():
            device.quiesce()

    def fail(self, reason: str) -> None:
        """The machine is lost; `failure` says why."""
        self._advance(Verb.FAIL)
        self.failure = reason

    def poll(self) -> None:
        """Let every device do the work that waits for it, in key order: see `Device.poll`.

        Raises:
            IllegalTransition: the machine is not running.
        """
        self._require("poll", MachineState.RUNNING)
        for device in self.devices.values():
            device.poll()

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        return self.interrupts.vcpus

    @property
    def lines(self) -> Mapping[str, bool]:
        """The level of each device's interrupt pin, by device key, of those that have driven theirs."""
        return self.interrupts.lines

    @property
    def pci_paths(self) -> dict[str, PciPath]:
        """Where each PCI device is, by device key and in key order: the index in it is the one of `driver_area`."""
        return {key: device.pci.path for key, device in self.devices.items() if isinstance(device, PciDevice)}

    @property
    def com1(self) -> Uart:
        """The serial port whose output `console` keeps."""
        key = next(key for key, port in self.spec.of_kind(SerialPort) if port.num is SerialNumber.COM1)
        port = self.devices[str(key)]
        assert isinstance(port, Uart)
        return port

    def obstacles(self) -> tuple[Obstacle, ...]:
        """What cannot migrate, devices in key order, then backends whose content would be lost.

        To be reported before anything moves; a guest may still write to a volatile disk after that.
        """
        devices = (
            Obstacle(device.key, device.kind, device.not_migratable)
            for device in self.devices.values()
            if device.not_migratable is not None
        )
        return *devices, *(Obstacle(lost.key, lost.kind, lost.reason) for lost in self.storage.lost_on_migration())

    def preflight(self, choose: Choose = newest) -> tuple[DeviceState, ...]:
        """What `export_devices` would give now, as a rehearsal: in any state, and no fault is injected.

        Raises:
            NotMigratable, SchemaNotOffered, StateNotRepresentable: as `Device.export`.
        """
        return tuple(self._export(device, choose) for device in self.devices.values() if _travels(device))

    def export_devices(self, choose: Choose = newest) -> tuple[DeviceState, ...]:
        """All of `exports`, and its errors."""
        return tuple(self.exports(choose))

    def exports(self, choose: Choose = newest) -> Iterator[DeviceState]:
        """The state of every device that has any, in key order, each payload in the schema that `choose` picks.

        It is exported when it is asked for.

        Raises:
            IllegalTransition: the machine is not paused.
            NotMigratable, SchemaNotOffered, StateNotRepresentable: as `Device.export`; also for a volatile disk that
                was written.
            InjectedFailure: by a failure injector.
        """
        self._require("export the devices of", MachineState.PAUSED)
        for lost in self.storage.lost_on_migration():
            raise NotMigratable(lost.key, lost.kind, lost.reason)
        for device in self.devices.values():
            if _travels(device):
                device.begin_export()
                yield self._export(device, choose)

    def import_devices(self, states: Iterable[DeviceState]) -> None:
        """Take over the state of all devices, in the order in which it comes.

        A failure leaves earlier devices imported: the machine is then good for nothing and must `fail`.

        Raises:
            IllegalTransition: the machine is not being filled by a migration.
            UnknownDevice, DeviceTwice: state for a device that the machine does not have, or has state for already.
            PayloadMissing, PayloadUnexpected, ImportFailed, InjectedFailure: as `Device.import_`.
        """
        self._require("import devices into", MachineState.MIGRATING)
        hand_out(self.devices, ((str(SpecKey.parse(state.key)), state.payloads) for state in states))

    def close(self) -> None:
        """Give the memory back, and the disks."""
        self.wires.close()
        self.storage.close()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _export(self, device: Device, choose: Choose) -> DeviceState:
        expressed = (place.express(choose(place)) for place in device.places())
        return DeviceState(device.key, tuple(payload for payload in expressed if payload is not None))


class Importer(Protocol):
    """A device, as far as its state comes from elsewhere."""

    def import_(self, payloads: tuple[Payload, ...]) -> None: ...


def hand_out(devices: Mapping[str, Importer], states: Iterable[tuple[str, tuple[Payload, ...]]]) -> None:
    """Give every device its payloads, in the order in which they come; then no payloads to those that had none.

    Raises:
        UnknownDevice, DeviceTwice: payloads for a device that is not among `devices`, or has had some already.
        DeviceStateError: as the device's `import_`.
    """
    left = dict(devices)
    for key, payloads in states:
        if key not in devices:
            raise UnknownDevice(key)
        if key not in left:
            raise DeviceTwice(key)
        left.pop(key).import_(payloads)
    for device in left.values():
        device.import_(())


def _travels(device: Device) -> bool:
    return bool(device.exports()) or device.not_migratable is not None
