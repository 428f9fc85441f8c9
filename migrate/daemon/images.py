"""What a machine was at one instant, as facts that can be compared across processes.

The source makes one of the machine that it gave away, the target of the machine that it is about to run.  RAM is
frozen by a copy-on-write snapshot and digested later, piece by piece, so that the guest waits for none of it.
"""

import hashlib
from typing import Any

import attrs
import trio

from migrate import cbor
from migrate.payloads import encode_payload
from migrate.specs.digest import spec_digest
from sim_vmm.clock import TimeData
from sim_vmm.console import ConsoleState
from sim_vmm.machine import DeviceState, Machine
from sim_vmm.snapshot import Snapshot


@attrs.frozen
class Image:
    """Facts of a machine at the instant of `Image.of`; `facts` digests them."""

    machine: Machine
    snapshot: Snapshot
    devices: tuple[DeviceState, ...]
    console: ConsoleState
    clock: TimeData

    @classmethod
    def of(cls, machine: Machine) -> "Image":
        """Freeze `machine` as it is."""
        return cls(
            machine, machine.memory.snapshot(), machine.preflight(), machine.console.export(), machine.clock.export()
        )

    async def facts(self) -> dict[str, Any]:
        """Digests of everything, as JSON; releases the snapshot."""
        steps = self.snapshot.digest_steps()
        try:
            while True:
                try:
                    next(steps)
                except StopIteration as finished:
                    ram_digest = finished.value
                    break
                await trio.lowlevel.checkpoint()
        finally:
            self.snapshot.close()
        return {
            "spec": spec_digest(self.machine.spec).hex(),
            "ram": ram_digest,
            "ram_bytes": self.machine.memory.page_count * 4096,
            "devices": {
                state.key: _digest([[str(payload.SCHEMA), encode_payload(payload)] for payload in state.payloads])
                for state in self.devices
            },
            "console": {"total_bytes": self.console.total_bytes, "digest": _digest(attrs.asdict(self.console))},
            "clock": attrs.asdict(self.clock),
        }


def _digest(plain: Any) -> str:
    return hashlib.sha256(cbor.encode(plain)).hexdigest()
