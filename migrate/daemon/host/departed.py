"""A machine that is not here any more, or never was: what its record says to a target that comes back about it."""

from typing import TYPE_CHECKING
from uuid import UUID

import attrs

from migrate.daemon.door import tell_turned_away
from migrate.daemon.link import SocketLink
from migrate.daemon.node import Node, known_machine
from migrate.daemon.waiting_room import Caller
from migrate.engine.handoff import Ruling, on_declined, on_owned, on_ready
from migrate.engine.ownership import Ownership
from migrate.engine.ports import Journal
from migrate.engine.source import tell_failure
from migrate.errors import MigrationError, RemoteProtocolError
from migrate.protocol.messages import Inquire, Standing

if TYPE_CHECKING:
    from migrate.daemon.host.host import Host


@attrs.frozen
class Departed:
    """See `migrate.daemon.door`.  Whatever is answered, nothing is started from here."""

    host: "Host"
    vm_id: UUID

    async def receive(self, link: SocketLink, caller: Caller) -> None:
        """Answer by the record, if there is one."""
        asked = await link.receive()
        assert isinstance(asked, Inquire), "or nobody would have been led here"
        caller.let_in()
        host = self.host
        state = None if host.places is None else await host.places.open_departed(self.vm_id)
        try:
            if state is not None:
                node = Node(
                    name=host.name,
                    release=host.settings.release,
                    hypervisor=host.new_hypervisor(host.events),
                    events=host.events,
                    state=state,
                )
                kept = state.machine(self.vm_id)
                if kept is not None and kept.machine is not None and asked.source == host.name:
                    ownership, journal = node.memory_of(kept)
                    await ownership.carry_out(_answer(asked, ownership, journal), link)
                    host.events.tell("told", machine=known_machine(kept).name, vm_id=str(self.vm_id))
                    return
            stranger = RemoteProtocolError("the target asks about a machine that was never here, or of another node")
            tell_turned_away(host.events, caller, str(stranger))
            await tell_failure(link, "handoff", stranger)
        except MigrationError as error:
            tell_turned_away(host.events, caller, str(error))
        finally:
            if state is not None:
                state.close()
                host.places.depart(self.vm_id)  # type: ignore[union-attr]  # it was opened there


def _answer(asked: Inquire, ownership: Ownership, journal: Journal) -> Ruling:
    record = ownership.record
    match asked.standing:
        case Standing.HOLDS:
            return on_ready(record, asked.generation, asked.node, preparing=None, highest=journal.highest)
        case Standing.OWNS:
            return on_owned(record, asked.generation, asked.node)
        case Standing.PASSED_ON:
            return on_owned(record, asked.generation, asked.node, runs=False)
        case Standing.DECLINED:
            return on_declined(record, asked.generation, asked.node)
