"""A guest's view of one NIC, for tests: RAM, a bus, interrupts, and a network in memory."""

from typing import Any, Self

import attrs

from sim_vmm.birth import NEWEST, Birth
from sim_vmm.bus import Bus
from sim_vmm.devices.base import Device
from sim_vmm.devices.vcpu import InterruptController, Vcpu
from sim_vmm.devices.virtio_nic import VirtioNic
from sim_vmm.drivers.virtio_net import VirtioNetDriver
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import Payload
from sim_vmm.platform import Platform
from sim_vmm.spec import PciPath
from sim_vmm.wire import Hub, SequencedFrame

PATH = PciPath(0, 8, 0)
MAC = b"\xa8\x40\x25\0\0\1"
NEIGHBOUR = b"\xa8\x40\x25\0\0\2"
BASE = 0x1_0000
RAM_BYTES = 1 << 19
VECTOR = 0x40


@attrs.define
class Rig:
    """A machine with one NIC and nothing else.  `said` is what the NIC has sent, here and where it was before."""

    memory: GuestMemory
    hub: Hub
    said: list[bytes]
    nic: VirtioNic
    interrupts: InterruptController
    bus: Bus

    @classmethod
    def make(cls, *, birth: Birth = NEWEST, said: list[bytes] | None = None) -> Self:
        memory = GuestMemory.create(RAM_BYTES)
        hub = Hub()
        said = [] if said is None else said
        hub.observers.append(said.append)
        nic = VirtioNic("nic", PATH, MAC, birth=birth, wire=hub.plug())
        interrupts = InterruptController(1)
        nic.attach(Platform(memory, interrupts))
        return cls(memory, hub, said, nic, interrupts, Bus([nic]))

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        return self.interrupts.vcpus

    @property
    def driver(self) -> VirtioNetDriver:
        """Made anew each time: a driver has no state of its own."""
        return VirtioNetDriver(self, BASE)

    def hear(self, *frames: bytes) -> None:
        """Frames from the network, and a poll for the NIC to take them in."""
        self.nic.poll()
        for frame in frames:
            for plug in self.hub.plugs:
                plug.hear(frame)
        self.nic.poll()

    def __del__(self) -> None:
        self.memory.close()


def probed(*, birth: Birth = NEWEST, **probe: Any) -> Rig:
    """A rig whose guest has set its NIC up."""
    rig = Rig.make(birth=birth)
    rig.driver.probe(PATH, **probe)
    return rig


def moved(rig: Rig, *, birth: Birth = NEWEST) -> Rig:
    """A new machine that has taken over the RAM and the state of `rig`, which is paused for good."""
    rig.nic.quiesce()
    new = Rig.make(birth=birth, said=rig.said)
    new.memory.view[:] = rig.memory.view
    for old_vcpu, new_vcpu in zip(rig.vcpus, new.vcpus, strict=True):
        new_vcpu.import_(export(old_vcpu))
    new.nic.import_(export(rig.nic))
    return new


def export(device: Device) -> tuple[Payload, ...]:
    return device.export([schemas[0] for schemas in device.exports()])


def frame(sequence: int, *, to: bytes = MAC, source: bytes = NEIGHBOUR, length: int = 60) -> bytes:
    raw = SequencedFrame(destination=to, source=source, sequence=sequence, uptime_ns=sequence).encode()
    return raw.ljust(length, bytes([sequence % 255 + 1]))
