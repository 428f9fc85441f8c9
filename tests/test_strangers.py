"""Whoever else comes to the migration port while a real migration goes on; `pytest -s` shows the table.

Source and target are processes, as a person starts them, with shorter limits.  The real migration is in the middle of
its RAM, held there, for as long as strangers come; then it is let go, and completes.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from migrate.daemon.address import Address
from migrate.daemon.invitation import USED, UsedIds
from migrate.daemon.pair import DaemonProcess, daemon
from migrate.daemon.state import StateDirectory
from migrate.daemon.waiting_room import SEATS
from tests.certificates import Holders
from tests.commands import EXAMPLE
from tests.daemons import LOOPBACK, port_of, until
from tests.strangers import AT_ONCE, HEAD, ID, TO_PLAIN, TO_TLS, USED_ID, Encounter, Gate, Stranger, crowd

HANDSHAKE_S: Final = 2.0
OPENING_S: Final = 2.0
FAREWELL_S: Final = 1.0
LIMITS: Final = f"handshake_s={HANDSHAKE_S},opening_s={OPENING_S},farewell_s={FAREWELL_S},frame_s=300"
PATIENT_LIMITS: Final = "handshake_s=60,opening_s=60,frame_s=300"
HOST_S: Final = 5.0
"""What a busy host may add: with it, the limits are still shorter than those that nobody has shortened."""
PATIENCE_S: Final = 30.0
FILES_MORE: Final = 24
"""Open files that may come and go beside a full waiting room."""
HELD_AFTER: Final = 1 << 20


def ignore(_: object) -> None:
    """Everything is read afterwards."""


@attrs.define
class Port:
    """A source's, while its migration is held."""

    source: DaemonProcess
    target: DaemonProcess
    gate: Gate
    number: int
    encounters: list[Encounter] = attrs.field(factory=list)

    @property
    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.source.process.pid}/fd").iterdir())

    def told_of(self, address: str) -> dict[str, Any] | None:
        return next((event for event in self.source.all("turned away") if event["peer"] == address), None)

    async def meet(self, stranger: Stranger, holders: Holders, bound_s: float) -> None:
        start = trio.current_time()
        async with await trio.open_tcp_stream(LOOPBACK, self.number) as stream:
            host, port = stream.socket.getsockname()
            address = str(Address(host=host, port=port))
            with trio.fail_after(bound_s + PATIENCE_S):
                heard = await stranger.act(stream, holders)
                await until(lambda: self.told_of(address), within_s=PATIENCE_S)
            seconds = trio.current_time() - start
        told = self.told_of(address)
        assert told is not None
        assert stranger.told in told["error"], (stranger.name, told)
        assert stranger.heard in heard, (stranger.name, heard)
        self.encounters.append(
            Encounter(stranger=stranger.name, outcome=told["error"], seconds=seconds, bound_s=bound_s)
        )

    async def meet_crowd(self, bound_s: float) -> None:
        before, start = self.open_files, trio.current_time()
        told = len(self.source.all("turned away"))
        streams = await crowd(self.number, AT_ONCE)
        await until(lambda: len(self.source.all("turned away")) >= told + AT_ONCE - SEATS, within_s=PATIENCE_S)
        assert self.open_files <= before + SEATS + FILES_MORE
        with trio.fail_after(bound_s + PATIENCE_S):
            for stream in streams:
                async with stream:
                    while await stream.receive_some():
                        pass
        seconds = trio.current_time() - start
        await until(lambda: self.open_files <= before, within_s=PATIENCE_S)
        await until(lambda: len(self.source.all("turned away")) >= told + AT_ONCE, within_s=PATIENCE_S)
        errors = [event["error"] for event in self.source.all("turned away")[told:]]
        crowded = sum("crowded out" in error for error in errors)
        assert len(errors) == AT_ONCE
        assert AT_ONCE - SEATS <= crowded < AT_ONCE
        outcome = f"{crowded} crowded out by those after them; the time of {AT_ONCE - crowded} was up"
        self.encounters.append(
            Encounter(stranger=f"{AT_ONCE} connections at once", outcome=outcome, seconds=seconds, bound_s=bound_s)
        )

    async def complete(self) -> None:
        """The real migration was not disturbed."""
        assert self.source.all("attempt ended") == [] == self.target.all("attempt ended")
        self.gate.opened.set()
        for side in (self.target, self.source):
            ended = await side.until("attempt ended")
            assert ended is not None, side.complaints
            assert ended["outcome"] == "migrated", ended
        assert len(self.source.all("attempt")) == 1, "no stranger came as far as an attempt"
        assert await self.target.until("running") is not None


@asynccontextmanager
async def held_migration(source: Sequence[str], target: Sequence[str]) -> AsyncIterator[Port]:
    machine = (EXAMPLE, "--memory-mb", "64", "--on-stall", "force", "--listen", f"{LOOPBACK}:0", "--limits", LIMITS)
    async with daemon("source", (*machine, *source), ignore) as first:
        listening = await first.until("listening")
        assert listening is not None, first.complaints
        gate = Gate(Address.parse(listening["address"]).port, HELD_AFTER)
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
            nursery.start_soon(trio.serve_listeners, gate.carry, listeners)
            way = (f"{LOOPBACK}:{port_of(listeners)}", "--limits", PATIENT_LIMITS, *target)
            async with daemon("target", way, ignore) as second:
                await until(lambda: any(event["phase"] == "ram" for event in first.all("phase")), within_s=60)
                yield Port(first, second, gate, gate.port)
            nursery.cancel_scope.cancel()


def in_order(encounters: Sequence[Encounter], strangers: Sequence[Stranger]) -> list[Encounter]:
    """As the strangers are listed, and the crowd at the end."""
    order = [stranger.name for stranger in strangers]
    return sorted(encounters, key=lambda one: order.index(one.stranger) if one.stranger in order else len(order))


async def test_strangers_are_refused_or_timed_out_within_their_bounds_while_a_migration_completes(
    holders: Holders, tmp_path: Path
) -> None:
    state = StateDirectory.open(tmp_path / "state")
    await UsedIds(state).note(USED_ID, USED)  # of a migration long ago
    state.close()
    invited = ("--migration-id", str(ID))
    of_source = (*holders.source.arguments("target"), *invited, "--state-dir", str(tmp_path / "state"))
    rows: list[Encounter] = []
    async with held_migration(of_source, (*holders.target.arguments("source"), *invited)) as port:
        async with trio.open_nursery() as nursery:
            for stranger in TO_TLS:
                nursery.start_soon(port.meet, stranger, holders, HANDSHAKE_S + OPENING_S + FAREWELL_S)
        await port.meet_crowd(HANDSHAKE_S + FAREWELL_S)
        await port.complete()
        rows += in_order(port.encounters, TO_TLS)
    async with held_migration((), ()) as port:
        async with trio.open_nursery() as nursery:
            for stranger in TO_PLAIN:
                nursery.start_soon(port.meet, stranger, holders, OPENING_S + FAREWELL_S)
        await port.meet_crowd(OPENING_S + FAREWELL_S)
        await port.complete()
        rows += in_order(port.encounters, TO_PLAIN)
    print("", HEAD, *(encounter.row for encounter in rows), sep="\n")
    assert len(rows) == len(TO_TLS) + len(TO_PLAIN) + 2
    for encounter in rows:
        assert encounter.seconds <= encounter.bound_s + HOST_S, encounter
