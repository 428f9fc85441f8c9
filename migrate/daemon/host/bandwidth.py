"""A cap for the guest RAM of all migrations of a host together, shared by turns.

Each migration sends a batch and then waits for its turn here, behind all that came before; with one batch of each in
the queue at most, that is a round robin.  A paused machine does not wait: what is left of it then is counted, and
others wait longer for it, but its guest does not.
"""

from contextlib import AbstractContextManager, nullcontext

import attrs
import trio

from migrate.daemon.link import SocketLink
from migrate.engine.ports import Clock, Link, Observer
from migrate.engine.ram import MappedRam, RamReceiver, RamSender, batch_pages_at
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine


@attrs.define(eq=False)
class SharedBandwidth:
    """`rate` in bytes a second, or None for no cap; it may be changed while others wait."""

    rate: float | None = None
    _turn: trio.StrictFIFOLock = attrs.field(init=False, factory=trio.StrictFIFOLock)
    _owed: float = attrs.field(init=False, default=0.0)  # bytes that were sent and have not had their time yet
    _as_of: float = attrs.field(init=False, default=0.0)
    _changed: trio.Event = attrs.field(init=False, factory=trio.Event)

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._turn.statistics().tasks_waiting

    def set_rate(self, rate: float | None) -> None:
        """From now on, for what has been sent already as well."""
        self._pass()
        self.rate = rate
        self._changed.set()
        self._changed = trio.Event()

    def count(self, size: int) -> None:
        """So many bytes have been sent by somebody who cannot wait."""
        self._pass()
        if self.rate is not None:
            self._owed += size

    async def spend(self, size: int) -> None:
        """Return when what was sent before, and these `size` bytes, have had their time."""
        async with self._turn:
            self.count(size)
            while self.rate is not None and self._owed > 0:
                changed = self._changed
                with trio.move_on_after(self._owed / self.rate):
                    await changed.wait()
                self._pass()

    def _pass(self) -> None:
        """What time has passed since takes off what is owed."""
        now = trio.current_time()
        self._owed = 0.0 if self.rate is None else max(0.0, self._owed - (now - self._as_of) * self.rate)
        if self._owed < 1e-3:  # of a byte: floating point never quite comes to none
            self._owed = 0.0
        self._as_of = now


@attrs.frozen
class SharedRam:
    """See `migrate.engine.ports.Ram`: mapped RAM whose sender keeps to `shared`."""

    shared: SharedBandwidth

    def outgoing(
        self,
        machine: Machine,
        link: Link,
        clock: Clock,
        observer: Observer,
        bandwidth: float | None,
        protocol_version: int,
    ) -> RamSender:
        return _SharingSender(
            machine.memory, link, clock, observer, bandwidth, protocol_version, machine=machine, shared=self.shared
        )

    def incoming(self, machine: Machine, link: Link) -> RamReceiver:
        return MappedRam().incoming(machine, link)


@attrs.define(kw_only=True)
class _SharingSender(RamSender):
    machine: Machine
    shared: SharedBandwidth
    _spent: int = 0

    @property
    def _batch_pages(self) -> int:
        """So small that the batches of all who share take no longer than one of a migration that is alone."""
        if self.shared.rate is None:
            return super()._batch_pages
        return batch_pages_at(self.shared.rate / (1 + self.shared.waiting))

    def _patiently(self) -> AbstractContextManager[None]:
        """Whoever waits can be cancelled, and waits no longer than the peer does for its next frame."""
        if isinstance(self.link, SocketLink):
            return self.link.patiently("waiting for a share of the bandwidth")
        return nullcontext()

    async def _keep_to_bandwidth(self, start_ns: int, sent: int) -> None:
        size = sent - self._spent if sent >= self._spent else sent  # each round counts from nothing
        self._spent = sent
        if self.machine.state is MachineState.PAUSED:
            self.shared.count(size)
            return
        with self._patiently():
            await self.shared.spend(size)
        await super()._keep_to_bandwidth(start_ns, sent)
