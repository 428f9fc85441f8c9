"""Settle what a dead daemon left in doubt, without running a machine.

Whoever asks or answers here goes by the rule book as the daemons do, with one restriction: an image is never started,
and never used up.  Where the outcome is that this node should run the machine, that is said, and the daemon does it,
with the image as it was left.  So `resolve` may be run at any time.

- A target that holds an image asks its source.  "Kept there" is noted, and the image dropped; "given to you" is only
  reported.
- What is owed to a source is told to it.
- A source that gave the machine away listens where it did before, for as long as it is told to: a target that owns the
  machine releases it; one that holds the image, or has declined it, is reported.  With the storage at hand the fence
  may know, too.
- A person may declare the other node dead (`force`): what follows is written, and the other node stops if it ever
  comes back.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

import attrs
import trio

from migrate.daemon.access import Access
from migrate.daemon.address import Address, BadInput
from migrate.daemon.events import EventLog
from migrate.daemon.fence import TrioFence
from migrate.daemon.guests import TrioHypervisor
from migrate.daemon.link import SocketLink
from migrate.daemon.node import LISTENS_AT, SOURCE_AT, Node, NodeJournal, known_machine
from migrate.daemon.situation import Situation, situation_of
from migrate.daemon.state import Debt, MachineState, StateDirectory, StateError
from migrate.daemon.waiting_room import WaitingRoom
from migrate.engine.handoff import (
    Holding,
    Ruling,
    abandoning_by_force,
    on_owned,
    on_title_lost,
    owning_by_force,
    standing_of,
    writes,
)
from migrate.engine.ownership import Hands, Ownership
from migrate.engine.target import answered, inquire, tell_answer
from migrate.errors import MigrationError
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Abandon, Commit, Failure, Gone, Inquire, Role, Standing, Unknown
from migrate.releases import Release
from sim_vmm.fence import Fence


class Force(StrEnum):
    OWN = "own"
    ABANDON = "abandon"


@attrs.frozen(kw_only=True)
class ResolveOptions:
    """`wait_s` is how long a source waits for its target; `generation` is what a person typed with `force`."""

    state: Path
    release: Release
    storage: Path | None = None
    source: Address | None = None
    wait_s: float = 10.0
    force: Force | None = None
    generation: int = 0
    accept_journal: bool = False
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    access: Access = attrs.field(factory=Access)


@attrs.frozen(kw_only=True)
class Resolution:
    """What was found out about one machine, in words, and how things stand afterwards."""

    name: str
    before: str
    after: str
    found: tuple[str, ...]
    situation: Situation

    @property
    def is_settled(self) -> bool:
        return self.situation.is_settled


async def resolve(options: ResolveOptions, events: EventLog) -> list[Resolution]:
    """Try to settle every machine of the directory.

    Raises:
        BadInput: the directory cannot be used, or `generation` is not the one in doubt.
    """
    try:
        state = StateDirectory.open(options.state, accept_journal=options.accept_journal)
    except StateError as error:
        raise BadInput(str(error)) from error
    try:
        chosen = asked_about(options, state)
        async with trio.open_nursery() as nursery:  # no machine runs in it
            hypervisor = TrioHypervisor(nursery)
        node = Node(name=state.node, release=options.release, hypervisor=hypervisor, events=events, state=state)
        return [await _Resolver(options, node, state, kept).resolution() for kept in chosen]
    finally:
        state.close()


def asked_about(options: ResolveOptions, state: StateDirectory) -> tuple[MachineState, ...]:
    """All machines; of force, the one that is here, or else was.  Raises BadInput if that is not one."""
    machines = state.machines()
    if options.force is None:
        return machines
    chosen = tuple(kept for kept in machines if kept.record.holding is not Holding.NOT_OWNER) or machines
    if len(chosen) != 1:
        names = ", ".join(known_machine(kept).name for kept in chosen) or "no machine"
        raise BadInput(f"{options.state} holds {names}: --force-{options.force} needs exactly one")
    return chosen


@attrs.define
class _Resolver:
    """One machine."""

    options: ResolveOptions
    node: Node
    state: StateDirectory
    kept: MachineState
    found: list[str] = attrs.field(factory=list)
    ownership: Ownership = attrs.field(init=False)
    journal: NodeJournal = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.journal = self.node.journal_of(self.kept)
        fence = None
        if self.options.storage is not None:
            if not self.options.storage.is_dir():
                raise BadInput(f"--storage {self.options.storage}: there is no such directory")
            register = Fence(self.options.storage)
            fence = TrioFence(lambda: register, lambda _: None)
        self.ownership = Ownership(
            node=self.node.name,
            machine=self.kept.vm_id,
            journal=self.journal,
            fence=fence,
            observer=self.node.events,
            hands=Hands(run=_never),
        )

    async def resolution(self) -> Resolution:
        before = self.journal.record
        if self.options.force is not None:
            await self._force(self.options.force)
        else:
            await self._ask()
        self.found += self.ownership.alarms
        kept = self.state.machine(self.kept.vm_id)
        assert kept is not None, "a machine is never forgotten"
        return Resolution(
            name=known_machine(self.kept).name,
            before=str(before),
            after=str(self.journal.record),
            found=tuple(self.found),
            situation=situation_of(self.state, kept),
        )

    async def _force(self, force: Force) -> None:
        record, typed = self.journal.record, self.options.generation
        if typed != record.generation:
            raise BadInput(
                f"--force-{force} {typed}: the record of {known_machine(self.kept).name!r} is {record}; type the "
                f"generation that you mean, {record.generation}, when you are sure"
            )
        if force is Force.ABANDON:
            await self.ownership.carry_out(abandoning_by_force(record))
            self.found.append(f"generation {record.generation} is abandoned here: {self.journal.record} is written")
            return
        generation = await self.journal.new_generation()
        await self.ownership.carry_out(owning_by_force(record, generation))
        fence = "" if self.ownership.fence is None else ", and the storage's register is taken"
        self.found.append(
            f"this node owns the machine, in generation {generation}: {self.journal.record} is written{fence}; whoever "
            "held it before stops when it hears of it"
        )

    async def _ask(self) -> None:
        match self.journal.record.holding:
            case Holding.READY:
                await self._ask_source()
            case Holding.COMMITTED:
                await self._ask_fence()
                if self.journal.record.holding is Holding.COMMITTED:
                    await self._await_target()
            case _:
                pass
        for debt in self.journal.debts:
            await self._pay(debt)

    async def _pay(self, debt: Debt) -> None:
        async def tell(link: SocketLink) -> None:
            await tell_answer(link, self.ownership, self.journal.name, debt.generation, debt.peer)

        heard = f"{debt.peer} at {debt.address} has heard what became of generation {debt.generation}"
        await self._connected(Address.parse(debt.address), tell, heard)

    async def _ask_source(self) -> None:
        record = self.journal.record
        text = self.state.fact(SOURCE_AT)
        address = self.options.source or (None if text is None else Address.parse(text))
        if address is None:
            self.found.append("where its source is, is not known; give --source HOST:PORT")
            return

        async def ask(link: SocketLink) -> None:
            machine = self.kept.vm_id
            answer = await inquire(
                link, self.node.name, machine, self.journal.name, record, standing_of(record, record.generation)
            )
            if isinstance(answer, Commit):
                self.found.append(
                    f"the source has given generation {record.generation} to this node: start it with migrate target "
                    f"--state-dir {self.options.state}, and it goes on from its image"
                )
                await link.send(_not_now())
                return
            await self.ownership.carry_out(answered(record, answer, record.generation, record.peer))
            self.found.append(_in_words(answer, record.generation))

        await self._connected(address, ask, None)

    async def _connected(
        self, address: Address, converse: Callable[[SocketLink], Awaitable[None]], heard: str | None
    ) -> None:
        try:
            transport = await self.options.access.connect(address, self.options.deadlines)
            async with SocketLink(Role.TARGET, transport, self.options.deadlines) as link:
                await converse(link)
        except MigrationError as error:
            self.found.append(str(error))
        else:
            if heard is not None:
                self.found.append(heard)

    async def _ask_fence(self) -> None:
        """Only whether the target has the disks: taking them back is the daemon's, which can run the machine."""
        fence, record = self.ownership.fence, self.journal.record
        if fence is None:
            return
        try:
            title = await fence.read()
        except MigrationError as error:
            self.found.append(str(error))
            return
        if title is None or title.session == record.session:
            self.found.append(
                "the storage's register shows that nobody has started the machine since: start it with migrate source "
                f"--state-dir {self.options.state} --storage {self.options.storage}, and it takes the machine back"
            )
            return
        ruling = on_title_lost(record, title, self.kept.vm_id)
        await self.ownership.carry_out(ruling)
        self.found.append(f"the storage's register is held in {title}")

    async def _await_target(self) -> None:
        text = self.state.fact(LISTENS_AT)
        if text is None:
            self.found.append("where this node listened is not known, so no target can find it")
            return
        address = Address.parse(text)
        self.options.access.check(address)
        try:
            listeners = await trio.open_tcp_listeners(address.port, host=address.host)
        except OSError as error:
            self.found.append(f"cannot listen on {address}: {error.strerror or error}")
            return
        waiting_room = WaitingRoom()
        with trio.move_on_after(self.options.wait_s):
            async with trio.open_nursery() as nursery:

                async def answer(stream: trio.SocketStream) -> None:
                    with waiting_room.caller(stream):
                        settled = await self._hear(stream)
                    if settled:
                        nursery.cancel_scope.cancel()

                await trio.serve_listeners(answer, listeners)
        for listener in listeners:
            await listener.aclose()
        if not self.found or self.journal.record.holding is Holding.COMMITTED:
            self.found.append(f"listened on {address} for up to {self.options.wait_s:g} s")

    async def _hear(self, stream: trio.SocketStream) -> bool:
        """Whether the target has come, and said how things are."""
        record = self.journal.record
        try:
            transport = await self.options.access.admit(stream, self.options.deadlines)
            async with SocketLink(Role.SOURCE, transport, self.options.deadlines) as link:
                first = await link.receive()
                is_ours = (
                    isinstance(first, Inquire)
                    and first.machine == self.kept.vm_id.bytes
                    and first.source == self.node.name
                    and first.generation == record.generation
                )
                if not is_ours:
                    await link.send(_not_now())
                    return False
                assert isinstance(first, Inquire)
                return await self._told(link, first)
        except MigrationError as error:
            self.found.append(str(error))
            return False

    async def _told(self, link: SocketLink, asked: Inquire) -> bool:
        record = self.journal.record
        match asked.standing:
            case Standing.OWNS | Standing.PASSED_ON:
                await self._rule(
                    on_owned(record, asked.generation, asked.node, runs=asked.standing is Standing.OWNS), link
                )
                self.found.append(f"{asked.node} owns generation {asked.generation}")
            case Standing.HOLDS:
                self.found.append(
                    f"{asked.node} holds the image of generation {asked.generation} and waits for this node's word: "
                    f"start migrate source --state-dir {self.options.state}, which gives it"
                )
                await link.send(_not_now())
            case Standing.DECLINED:
                self.found.append(
                    f"{asked.node} will never run generation {asked.generation}: start migrate source --state-dir "
                    f"{self.options.state}, and the machine goes on here from its image"
                )
                await link.send(_not_now())
        return True

    async def _rule(self, ruling: Ruling, link: SocketLink) -> None:
        assert writes(ruling) is None or not any(effect == "run" for effect in ruling), "nothing is run from here"
        await self.ownership.carry_out(ruling, link)


def _not_now() -> Failure:
    return Failure(phase="handoff", error="NotNow", message="somebody only looks here; ask again")


def _in_words(answer: object, generation: int) -> str:
    match answer:
        case Abandon():
            return f"the source has kept the machine: generation {generation} is dead, and its image is dropped"
        case Gone():
            return f"the source says that generation {generation} is over; the image must not be run"
        case Unknown():
            return f"the source knows nothing of generation {generation}"
        case _:
            return f"the source answers {answer}"


async def _never(_: bool) -> None:
    raise AssertionError("nothing is run while an operator looks")
