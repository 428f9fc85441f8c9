"""What devices find around them (guest RAM, interrupts, storage, network), and how the guest reaches them (a bus).

A device is attached to one `Platform` when its machine is made.  Nothing of a platform travels in a device's payload:
pending interrupts are state of the vCPU that has not taken them (`sim_vmm.devices.vcpu`).
"""

from collections.abc import Iterable
from typing import Protocol

import attrs

from sim_vmm.memory import GuestMemory


class Interrupts(Protocol):
    """The way of an interrupt from a device to the guest."""

    def message(self, address: int, data: int) -> None:
        """An MSI-X message: the vector is in the low eight bits of `data`."""

    def set_line(self, device: str, asserted: bool) -> None:
        """The level of the interrupt pin of `device`."""


class BlockBackend(Protocol):
    """A disk behind a device.  Offsets and lengths in bytes; whole blocks only, the device sees to that."""

    readonly: bool
    block_size: int

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None:
        """On return the data is with the storage, though not necessarily on its medium before a `flush`."""

    def flush(self) -> None: ...


class Wire(Protocol):
    """The network that a NIC is plugged into."""

    def send(self, frame: bytes) -> None: ...

    def receive(self) -> Iterable[bytes]:
        """The frames that have come in since the last call, in order; never blocks."""


class Wires(Protocol):
    """Where the wires of a machine's NICs come from.  The machine closes it with itself."""

    def plug(self, key: str, mac: bytes) -> Wire:
        """The wire of the NIC of component `key`, whose address has 6 bytes."""

    def flush(self) -> bool:
        """What the NICs have sent, and waits for a busy network, leaves if it can; whether nothing waits any more."""

    def close(self) -> None:
        """All of them are off the network."""


@attrs.frozen
class Platform:
    """Where a device lives."""

    memory: GuestMemory
    interrupts: Interrupts
