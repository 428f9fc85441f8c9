"""Machines that keep a ledger over real files, and what they leave for its reader."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import attrs

from migrate.daemon.artefacts import write_artefacts
from migrate.payloads import decode_payload, encode_payload
from migrate.rehearsal.ledger import LedgerAudit
from migrate.rehearsal.leftovers import Leftovers, audit_leftovers
from sim_vmm.birth import NEWEST, Birth
from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import GuestProgram, LedgerGuest, guest_in
from sim_vmm.guest.ledger import PHASE_REGISTER, LedgerState, Phase
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import DeviceState, Machine
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.components import (
    Component,
    FileStorageBackend,
    NvmeDisk,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
)
from sim_vmm.storage import Storage
from sim_vmm.wire import Hub, HubWires, SequencedFrame
from tests.machines import COM1, make_spec

MS: Final = 10**6
BLOCKS: Final = 64
NIC: Final[Mapping[str, Component]] = {
    "nic": VirtioNic(SpecKey.parse("net"), UUID(int=0xABCDEF), PciPath(0, 8, 0)),
    "net": VirtioNetworkBackend("vnic0"),
}
VIRTIO: Final[Mapping[str, Component]] = {
    **COM1,
    **NIC,
    "data": VirtioDisk(SpecKey.parse("disk"), PciPath(0, 16, 0)),
    "disk": FileStorageBackend("/dev/zvol/none-of-ours", False, 512, None),
}
NVME: Final[Mapping[str, Component]] = {
    **COM1,
    **NIC,
    "data": NvmeDisk(SpecKey.parse("disk"), PciPath(0, 16, 0), b"data".ljust(20, b"\0"), True),
    "disk": FileStorageBackend("/dev/zvol/none-of-ours", False, 4096, None),
}


@attrs.define
class House:
    """A place for one machine and its successors: its disks below `directory`, a network, a clock for all hosts."""

    directory: Path
    components: Mapping[str, Component] = VIRTIO
    clock: ManualClock = attrs.field(factory=lambda: ManualClock(monotonic=10**9, wall=1_700_000_000 * 10**9))
    hub: Hub = attrs.field(factory=Hub)
    heard: list[str] = attrs.field(factory=list)
    machines: list[Machine] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.hub.observers.append(self._note)

    @property
    def leftovers(self) -> Leftovers:
        return Leftovers(
            left=self.directory / "left", storage=self.directory / "storage", wire=self.directory / "wire.jsonl"
        )

    def machine(self, birth: Birth = NEWEST) -> Machine:
        """A machine newly made, over the disks that are there."""
        self.leftovers.storage.mkdir(exist_ok=True)
        made = Machine.create(
            make_spec(self.components),
            host_clock=self.clock,
            counters=InjectionCounters(),
            birth=birth,
            storage=Storage(self.leftovers.storage, {"disk": BLOCKS * 512}),
            wires=HubWires(self.hub),
        )
        self.machines.append(made)
        return made

    def booted(self, guest: GuestProgram | None = None, birth: Birth = NEWEST) -> Machine:
        machine = self.machine(birth)
        (guest or LedgerGuest()).boot(machine)
        machine.start()
        return machine

    def run(self, machine: Machine, steps: int) -> None:
        """Steps of the program that is found in the machine, a millisecond apart, by an object made anew each time."""
        for _ in range(steps):
            self.clock.advance(MS)
            guest_in(machine.memory).step(machine)
            machine.poll()

    def moved(self, here: Machine, away_ms: int = 0) -> Machine:
        """What a migration carries, through its bytes; `here` ends, the machine runs on as the one returned."""
        here.pause()
        there = self.machine(here.birth)
        there.receive()
        here.memory.dirty.begin_round()
        while (pages := here.memory.dirty.take(256)).size:
            there.memory.pages[pages] = here.memory.pages[pages]
            there.memory.mark_dirty(pages)
        there.clock.import_(here.clock.export())
        there.import_devices([_through_bytes(state) for state in here.export_devices()])
        there.console.import_(here.console.export())
        here.stop()
        here.close()
        self.clock.advance(away_ms * MS)
        there.start()
        return there

    def audit(self, machine: Machine) -> LedgerAudit:
        """Stop the machine, and have what is left of it read."""
        if machine.state is MachineState.RUNNING:
            machine.pause()
        write_artefacts(machine, self.leftovers.left)
        assert self.leftovers.wire is not None
        self.leftovers.wire.write_text("".join(self.heard))
        audit = audit_leftovers(self.leftovers, machine.spec)
        assert audit is not None
        return audit

    def close(self) -> None:
        for machine in self.machines:
            with suppress(ValueError):
                machine.close()

    def _note(self, raw: bytes) -> None:
        frame = SequencedFrame.parse(raw)
        if frame is not None:
            line: dict[str, Any] = {"at_ns": self.clock.monotonic_ns(), "source": frame.source.hex(":")}
            self.heard.append(json.dumps(line | {"sequence": frame.sequence}) + "\n")


def _through_bytes(state: DeviceState) -> DeviceState:
    return DeviceState(
        state.key, tuple(decode_payload(payload.SCHEMA, encode_payload(payload)) for payload in state.payloads)
    )


def ledger_of(machine: Machine) -> LedgerState:
    state = LedgerState.load(machine.memory)
    assert state is not None
    return state


def phase_of(machine: Machine) -> Phase:
    return Phase(machine.vcpus[0].registers[PHASE_REGISTER])
