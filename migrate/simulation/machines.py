"""Machines for a simulated world, made in two ways, and the program that runs in them.

`RealMachines` makes emulated machines as the daemons do.  `LightMachines` makes machines that have real RAM with real
dirty tracking, a real clock, console and table of states, and devices of one payload each that nobody can drive: what a
migration sees of a machine is all there, and making one takes a fraction of the time.  Both answer the same calls, so
the engines cannot tell.

The program is the same in both.  All that it knows is in RAM: how often the machine was set going anywhere (its run
number, which whoever sets it going writes there), how many steps it has done, and of each page of a working set which
step wrote it last.  So a page that was forgotten, or an image older than the last run, can be seen in RAM alone.
"""

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final, Protocol, cast

import attrs
import numpy as np

from sim_vmm.birth import Birth
from sim_vmm.clock import GuestClock, HostClock
from sim_vmm.console import ConsoleHistory
from sim_vmm.devices.errors import PayloadMissing
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.devices.places import Place
from sim_vmm.lifecycle import Lifecycle, MachineState
from sim_vmm.light_memory import LightMemory
from sim_vmm.machine import MIB, Choose, DeviceState, Machine, hand_out, newest
from sim_vmm.memory import PAGE_SIZE, GuestMemory
from sim_vmm.payloads import InMemoryBlockBackendV1, Payload, Uart16550V1, VcpuRunstateV1
from sim_vmm.spec import Spec

STATE_PAGE: Final = 1
WORKING_SET: Final = range(2, 10)
WORKING_SET_PAGES: Final = len(WORKING_SET)
COLD_PAGE: Final = 10
"""Written when the program begins and never again: what is written over and over hides that it was lost once."""
USED_BYTES: Final = 11 * PAGE_SIZE
"""All content of RAM lies below; that nothing ever lies above is looked at when all is over."""
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_STATE: Final = struct.Struct("<QQQ")
_STATE_BYTES: Final = _STATE.size
_STATE_GPA: Final = STATE_PAGE * PAGE_SIZE
_MAGIC: Final = int.from_bytes(b"rehearse", "little")
_COLD: Final = b"written once"
_NOTHING: Final = bytes(_STATE_BYTES)
ZEROED_AT: Final = 7
"""Of eight steps, the one that leaves zeros in the last page of the working set, which has nothing else."""


class Foundry(Protocol):
    """Makes machines."""

    def make(self, spec: Spec, birth: Birth, clock: HostClock, ram: GuestMemory | None = None) -> Machine:
        """A machine that does not run; with `ram`, its RAM has the content of that."""


@attrs.frozen
class RealMachines:
    """Emulated machines, with every device that the spec asks for."""

    def make(self, spec: Spec, birth: Birth, clock: HostClock, ram: GuestMemory | None = None) -> Machine:
        memory = with_content_of(ram, GuestMemory.create(spec.board.memory_mb * MIB))
        return Machine.create(spec, host_clock=clock, counters=InjectionCounters(), birth=birth, memory=memory)


@attrs.frozen
class LightMachines:
    """See the module: the real machine's face, and devices that only have a state."""

    def make(self, spec: Spec, birth: Birth, clock: HostClock, ram: GuestMemory | None = None) -> Machine:
        memory = with_content_of(ram, LightMemory.lend(spec.board.memory_mb * MIB))
        return cast(Machine, LightMachine(spec, birth, memory, clock))


def with_content_of(ram: GuestMemory | None, memory: GuestMemory) -> GuestMemory:
    """`memory`, which is new; what it finds in `ram` is dirty, as of a file that is opened."""
    if ram is not None:
        for data in ram.data_ranges():
            memory.view[data.start : data.stop] = ram.view[data.start : data.stop]
        memory.mark_dirty(np.array(content_pages(memory), dtype=np.int64))
    return memory


def content_pages(memory: GuestMemory) -> list[int]:
    """The pages that are not all zero, ascending: what the target of a new attempt would lack."""
    found = []
    for data in memory.data_ranges():
        content, first = bytes(memory.view[data.start : data.stop]), data.start // PAGE_SIZE
        for number in range(len(content) // PAGE_SIZE):
            at = number * PAGE_SIZE
            if content[at] or not content.startswith(_ZERO_PAGE, at):  # nearly every page that is not zero begins so
                found.append(first + number)
    return found


# The light machine


@attrs.define(eq=False)
class LightDevice:
    """Has a state, which travels in one payload, and takes another's."""

    key: str
    born: Payload
    state: Payload
    kind: str = "light"
    not_migratable: str | None = None

    def places(self) -> tuple[Place, ...]:
        return (Place(device=self.key, state=self.state, born=self.born, optional=False),)

    def import_(self, payloads: tuple[Payload, ...]) -> None:
        schema = self.state.SCHEMA
        if [payload.SCHEMA for payload in payloads] != [schema]:
            raise PayloadMissing(self.key, schema.kind, schema.version)
        (self.state,) = payloads


@cache
def _uart(scratch: int) -> Uart16550V1:
    return Uart16550V1(
        intr_enable=0,
        intr_status=1,
        line_ctrl=3,
        line_status=0x60,
        modem_ctrl=0,
        modem_status=0,
        scratch=scratch,
        div_low=1,
        div_high=0,
        thre_state=False,
        rx_fifo=b"",
        tx_fifo=b"",
    )


@cache
def _vcpu() -> VcpuRunstateV1:
    return VcpuRunstateV1(
        run_state=3,
        sipi_vector=0,
        intr_shadow=False,
        pending_nmi=False,
        pending_extint=False,
        pending_exception=0,
        pending_intinfo=0,
    )


BORN: Final[dict[str, Payload]] = {
    "com1": _uart(0),
    "com2": _uart(0),
    "disk": InMemoryBlockBackendV1(b"block"),
    "vcpu-0": _vcpu(),
    "vcpu-1": _vcpu(),
}
"""The devices of a light machine, and their states at birth."""


_NO_STORAGE: Final = SimpleNamespace(lost_on_migration=lambda: (), fence=None)


def expressed(choose: Choose, *states: Payload) -> tuple[DeviceState, ...]:
    """What a light machine's devices, which have these states, export."""
    exported = []
    for (key, born), state in zip(BORN.items(), states, strict=True):
        place = Place(device=key, state=state, born=born, optional=False)
        payload = place.express(choose(place))
        exported.append(DeviceState(key, () if payload is None else (payload,)))
    return tuple(exported)


class LightMachine(Lifecycle):
    """See the module; the calls are those of `sim_vmm.machine.Machine`, with the same meaning."""

    def __init__(self, spec: Spec, birth: Birth, memory: GuestMemory, clock: HostClock) -> None:
        super().__init__()
        self.spec, self.birth, self.memory = spec, birth, memory
        self.clock = GuestClock(clock)
        self.console = ConsoleHistory()
        self.failure: str | None = None
        self.storage = _NO_STORAGE
        self._devices = [LightDevice(key, born, born) for key, born in BORN.items()]
        self.devices = MappingProxyType({device.key: device for device in self._devices})

    def poll(self) -> None:
        """Its devices have nothing to do."""

    def obstacles(self) -> tuple[()]:
        return ()

    def preflight(self, choose: Choose = newest) -> tuple[DeviceState, ...]:
        return expressed(choose, *self.states)

    def export_devices(self, choose: Choose = newest) -> tuple[DeviceState, ...]:
        return tuple(self.exports(choose))

    def exports(self, choose: Choose = newest) -> Iterator[DeviceState]:
        self._require("export the devices of", MachineState.PAUSED)
        return iter(expressed(choose, *self.states))

    def import_devices(self, states: Iterable[DeviceState]) -> None:
        self._require("import devices into", MachineState.MIGRATING)
        hand_out(self.devices, ((state.key, state.payloads) for state in states))

    def close(self) -> None:
        self.memory.close()

    @property
    def states(self) -> list[Payload]:
        return [device.state for device in self._devices]


# The program


def boot(machine: Machine) -> None:
    """The program begins: once, at the birth of a machine and whenever it starts from its disks."""
    for page in WORKING_SET[::2]:
        machine.memory.write((page + 1) * PAGE_SIZE - _STATE_BYTES, _STATE.pack(0, page, _MAGIC) * 2)
    machine.memory.write(COLD_PAGE * PAGE_SIZE, _COLD)
    _store(machine, 0, 0)
    machine.console.append(b"booted\n")


def step(machine: Machine) -> None:
    """Write the number of the step to the end of one page of the working set and the beginning of the next.

    Now and then a line is printed, and a device changes; and the last page of the working set becomes zero again.
    """
    memory = machine.memory
    run, steps, _ = _STATE.unpack(memory.read(_STATE_GPA, _STATE_BYTES))
    steps += 1
    page = WORKING_SET[steps * 2 % WORKING_SET_PAGES]
    stamp = _STATE.pack(steps, page, run)
    memory.write((page + 1) * PAGE_SIZE - _STATE_BYTES, stamp + (_NOTHING if steps % 8 == ZEROED_AT else stamp))
    memory.write(_STATE_GPA, _STATE.pack(run, steps, _MAGIC))
    if steps % 4 == 0:
        machine.console.append(b"step %d\n" % steps)
        _work_devices(machine, steps)


def _work_devices(machine: Machine, steps: int) -> None:
    """The devices of a light machine have a state that changes; those of a real one are left to its own guests."""
    com2: object = machine.devices.get("com2")
    if isinstance(com2, LightDevice):
        com2.state = _uart(steps % 256)


def lost_of_ledger(machine: Machine, steps: int) -> list[str]:
    """What is not in the program's own records, though it has done so many steps; empty if all is."""
    _, found = _load(machine)
    if found != steps:
        return [f"it has done {steps} steps, and knows of {found}"]
    lost = []
    for number in range(max(1, steps + 1 - WORKING_SET_PAGES // 2), steps + 1):
        page = WORKING_SET[number * 2 % WORKING_SET_PAGES]
        written = machine.memory.read((page + 1) * PAGE_SIZE - _STATE_BYTES, 2 * _STATE_BYTES)
        stamp, again = written[:_STATE_BYTES], written[_STATE_BYTES:]
        expected = _NOTHING if number % 8 == ZEROED_AT else stamp
        if _STATE.unpack(stamp)[:2] != (number, page) or again != expected:
            lost.append(f"step {number} is not in pages {page} and {page + 1}")
    if machine.memory.read(COLD_PAGE * PAGE_SIZE, len(_COLD)) != _COLD:
        lost.append(f"what was written at its beginning is not in page {COLD_PAGE}")
    lines = b"".join(b"step %d\n" % number for number in range(4, steps + 1, 4))
    if machine.console.export().beginning != b"booted\n" + lines:
        lost.append(f"the console does not have the lines of {steps} steps")
    return lost


def run_number(machine: Machine) -> int:
    """How often the machine had been set going when its RAM was as it is."""
    return _load(machine)[0]


def note_run(machine: Machine, run: int) -> None:
    """The machine is set going for the `run`-th time."""
    _store(machine, run, _load(machine)[1])


def _load(machine: Machine) -> tuple[int, int]:
    run, steps, magic = _STATE.unpack(machine.memory.read(_STATE_GPA, _STATE_BYTES))
    assert magic == _MAGIC, "the program was booted in this machine"
    return run, steps


def _store(machine: Machine, run: int, steps: int) -> None:
    machine.memory.write(_STATE_GPA, _STATE.pack(run, steps, _MAGIC))


@attrs.frozen
class Facts:
    """What must be the same wherever the machine goes on: content of RAM, state of the devices, console; and time."""

    ram: bytes
    devices: tuple[DeviceState, ...]
    console: Any
    uptime_ns: int = attrs.field(eq=False)

    @classmethod
    def of(cls, machine: Machine) -> "Facts":
        return cls(
            bytes(machine.memory.view[:USED_BYTES]),
            machine.preflight(),
            machine.console.export(),
            machine.clock.uptime_ns(),
        )

    def differences(self, other: "Facts") -> list[str]:
        """What is not the same in `other`, which is later; empty if all is."""
        found = ["the guest's clock, which went back"] if other.uptime_ns < self.uptime_ns else []
        if self == other:
            return found
        pages = [
            first // PAGE_SIZE
            for first in range(0, USED_BYTES, PAGE_SIZE)
            if self.ram[first : first + PAGE_SIZE] != other.ram[first : first + PAGE_SIZE]
        ]
        found += [f"RAM pages {pages}"] if pages else []
        found += [
            f"device {mine.key!r}" for mine, theirs in zip(self.devices, other.devices, strict=True) if mine != theirs
        ]
        if self.console != other.console:
            found.append("the console")
        return found
