"""Hosts in one process, over real TCP, as tests drive them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import attrs
import trio

from migrate.daemon.address import Address
from migrate.daemon.events import Event, EventLog
from migrate.daemon.host.host import Host, HostSettings
from migrate.daemon.host.hosted import Hosted
from migrate.daemon.host.offers import Conclusion, Migration, Stage
from migrate.daemon.host.places import HostPlaces
from migrate.daemon.run import Birthplace, Places
from migrate.engine.source import SourceSettings
from sim_vmm.guest import GuestProgram, StampGuest
from sim_vmm.spec import Spec
from tests.daemons import LOOPBACK, PATIENT, RELEASES, SWITCH_OVER_ANYWAY, port_of, until
from tests.machines import EVERY_DEVICE, make_spec

SPEC: Final = make_spec(EVERY_DEVICE)
"""4 MiB of RAM."""
SLOW: Final = 1.0
"""Byte a second: nothing that has begun is over before a test wants it to be."""


@attrs.frozen
class HostUnderTest:
    host: Host
    told: list[Event]

    @property
    def address(self) -> Address:
        return Address.parse(self.host.address)

    @property
    def names(self) -> list[str]:
        """Of the machines that run here."""
        return sorted(hosted.name for hosted in self.host.machines.values() if hosted.runs)

    async def boot(self, *names: str, spec: Spec = SPEC, program: GuestProgram | None = None) -> list[Hosted]:
        program = program or StampGuest()
        return [await self.host.boot(Birthplace(spec=spec, name=name, program=program)) for name in names]

    def all(self, name: str, **facts: Any) -> list[Event]:
        """Events of a name, with these facts."""
        return [event for event in self.told if event["event"] == name and facts.items() <= event.items()]


@asynccontextmanager
async def hosting(directory: Path | None = None, **settings: Any) -> AsyncIterator[HostUnderTest]:
    """A host, with a state directory if one is given; it ends as a process would, with whatever is in progress."""
    as_source = SourceSettings(node="", machine_name="", release=RELEASES["r6"], policy=SWITCH_OVER_ANYWAY)
    given = {"release": RELEASES["r6"], "as_source": as_source, "deadlines": PATIENT, "audited": True, **settings}
    given.setdefault("places", Places(state=directory))
    places = None if directory is None else HostPlaces.open(directory)
    told: list[Event] = []
    async with trio.open_nursery() as living:
        host = Host(HostSettings(**given), EventLog("host", [told.append]), living, places)
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        host.address = f"{LOOPBACK}:{port_of(listeners)}"
        host.revive()
        living.start_soon(trio.serve_listeners, host.door().answer, listeners)
        yield HostUnderTest(host, told)
        living.cancel_scope.cancel()
    await host.close()
    if places is not None:
        places.own.close()


async def begin(source: HostUnderTest, target: HostUnderTest, machine: str, retries: int = 0) -> Migration:
    """Offer and take; returns what the target knows of it."""
    migration = uuid4()
    offered = await source.host.offer(machine, migration, retries)
    assert offered.stage is Stage.READY, offered.conclusion
    return target.host.take(source.address, migration, retries)


async def over(migration: Migration) -> Conclusion:
    with trio.fail_after(30):
        await migration.over.wait()
    assert migration.conclusion is not None
    return migration.conclusion


async def send(source: HostUnderTest, target: HostUnderTest, *machines: str) -> list[Conclusion]:
    """All at once; what came of each."""
    found: dict[str, Conclusion] = {}

    async def one(machine: str) -> None:
        found[machine] = await over(await begin(source, target, machine))

    async with trio.open_nursery() as nursery:
        for machine in machines:
            nursery.start_soon(one, machine)
    return [found[machine] for machine in machines]


async def in_ram(host: HostUnderTest, count: int = 1) -> None:
    """Return when so many migrations have come to copying RAM."""
    await until(lambda: len({event["hosted"] for event in host.all("phase", phase="ram")}) >= count)


def id_of(migration: Migration) -> UUID:
    return migration.migration
