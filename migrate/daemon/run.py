"""The two daemons as processes: signals, events, the end.

Ctrl-C ends the attempt that is in progress and leaves the machine where it is; with none in progress, or a second time,
it ends the daemon.  Once ownership has moved an attempt can only be completed.  SIGTERM ends the daemon at once and in
order.  A daemon started with `attached` ends when its standard input does, so that it never outlives its parent.
"""

import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import attrs
import trio

from migrate.daemon.access import Access
from migrate.daemon.address import Address, BadInput
from migrate.daemon.artefacts import write_artefacts
from migrate.daemon.events import EventLog
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.failpoints import Failpoints
from migrate.daemon.guest_facts import guest_facts
from migrate.daemon.guests import MEMORY_MB_MAX, GuestRunner, TrioHypervisor
from migrate.daemon.images import Image
from migrate.daemon.invitation import IdUsed, Invitation, UsedIds
from migrate.daemon.node import LISTENS_AT, SOURCE_AT, AnyJournal, ImageLost, Node, known_machine, new_attempt
from migrate.daemon.outcome import AttemptOutcome, Cancelling, Outcome
from migrate.daemon.source import RECLAIM_AFTER_S, SourceDaemon
from migrate.daemon.state import MachineState as Kept
from migrate.daemon.state import StateDirectory, StateError
from migrate.daemon.target import TELL_FOR_S, TargetDaemon
from migrate.daemon.warming import warm_up
from migrate.engine.handoff import Claim, Holding, Record
from migrate.engine.ownership import StorageTaken
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.errors import JournalFailed, MachineCreationFailed, StorageUnreachable
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role
from sim_vmm.fence import FencedOff, FenceError
from sim_vmm.guest import GuestProgram
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec

_INTERRUPT_MESSAGES: Final = {
    Cancelling.CANCELLED: "cancelling the migration; Ctrl-C again ends the daemon",
    Cancelling.TOO_LATE: "the machine is changing hands, which must be completed; Ctrl-C again ends the daemon anyway",
    Cancelling.NOTHING_TO_CANCEL: "ending",
}


@attrs.define
class Process:
    """What both daemons have in common: events, signals, and one way to end."""

    events: EventLog
    attached: bool
    exit_code: ExitCode | None = None
    _bad_input: BadInput | None = None
    _terminated: bool = False
    _done: trio.Event = attrs.field(factory=trio.Event)

    def end(self, code: ExitCode) -> None:
        """Finish with `code`, unless the end has begun already."""
        if self.exit_code is None:
            self.exit_code = code
            self._done.set()

    async def run(
        self, main: Callable[[trio.Nursery], Awaitable[None]], cancel_attempt: Callable[[], Cancelling]
    ) -> ExitCode:
        """Run `main` until it or somebody else calls `end`.

        Raises:
            BadInput: `main` did, in no group.
        """

        async def run_main() -> None:
            try:
                await main(nursery)
            except BadInput as error:
                self._bad_input = error
                self._done.set()

        signal.signal(signal.SIGTERM, self._note_termination)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_signals, cancel_attempt)
            if self.attached:
                nursery.start_soon(self._heed_parent)
            nursery.start_soon(run_main)
            await self._done.wait()
            nursery.cancel_scope.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a handler of ours would not last until the process is gone
        if self._bad_input is not None:
            raise self._bad_input
        assert self.exit_code is not None, "the end has begun"
        return self.exit_code

    def _note_termination(self, *_: object) -> None:
        """What SIGTERM does before `_heed_signals` listens, and after: who is ending already ends in its own way."""
        self._terminated = True

    async def _heed_signals(self, cancel_attempt: Callable[[], Cancelling]) -> None:
        too_late_before = False
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            if self._terminated:
                self.end(ExitCode.DONE)
            async for number in signals:
                if number == signal.SIGTERM:
                    self.end(ExitCode.DONE)
                    continue
                came_of_it = cancel_attempt()
                if came_of_it is Cancelling.NOTHING_TO_CANCEL or too_late_before:
                    self.end(ExitCode.INTERRUPTED)
                too_late_before = came_of_it is Cancelling.TOO_LATE
                self.events.tell("interrupt", message=_INTERRUPT_MESSAGES[came_of_it])

    async def _heed_parent(self) -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            async for _ in stdin:
                pass
        self.end(ExitCode.DONE)


@attrs.frozen(kw_only=True)
class Places:
    """Where a daemon keeps things: `wire` is a network, `storage` the directory of the disks, `state` what survives it.

    Guest RAM that survives it is in a directory below `ram`, if that is given.

    Into `artefacts` goes what is left of the machine at the end.  Without `fenced` the storage has no fence, for tests
    of what must hold without.  No machine has more guest RAM than `memory_mb_max`.
    """

    wire: Path | None = None
    storage: Path | None = None
    fenced: bool = True
    state: Path | None = None
    ram: Path | None = None
    artefacts: Path | None = None
    memory_mb_max: int = MEMORY_MB_MAX


@attrs.frozen(kw_only=True)
class Birthplace:
    """A machine to be born: its spec, what it is called, and what its guest does.

    With `take_storage` its disks are taken from whoever the register in the storage names.
    """

    spec: Spec
    name: str
    program: GuestProgram
    take_storage: bool = False


@attrs.frozen(kw_only=True)
class SourceOptions:
    """`birth` is the machine to make, unless there is one in the state directory; `listen` as remembered if None.

    `migration` is the id of the one migration that the machine is here for, if it was given one.
    """

    birth: Birthplace | None
    listen: Address | None
    settings: SourceSettings
    migration: UUID | None = attrs.field(default=None, repr=False)
    places: Places = attrs.field(factory=Places)
    reclaim_after_s: float = RECLAIM_AFTER_S
    attached: bool = False
    audited: bool = False
    die_at: str | None = None
    halt_at: str | None = None
    failpoints: Path | None = None
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    access: Access = attrs.field(factory=Access)


@attrs.frozen(kw_only=True)
class TargetOptions:
    """`source` as remembered if None.  `listen`: be a source in turn, once the machine is here, of `onward`.

    `pace` is how long a second of all pauses is; `deadlines` are given as they are.
    """

    source: Address | None
    settings: TargetSettings
    places: Places = attrs.field(factory=Places)
    retries: int = 0
    streams: int = 1
    listen: Address | None = None
    as_source: SourceSettings | None = None
    onward: UUID | None = attrs.field(default=None, repr=False)
    reclaim_after_s: float = RECLAIM_AFTER_S
    attached: bool = False
    audited: bool = False
    die_at: str | None = None
    halt_at: str | None = None
    failpoints: Path | None = None
    pace: float = 1.0
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    access: Access = attrs.field(factory=Access)


RUNS: Final = "is running; ready to be migrated away"
ID_USED: Final = "the migration id was used before: every target is refused until this is started with a new one"
NO_FENCE: Final = (
    "no --storage, so no fence: if the link is lost in the handoff, this node waits until the target comes back"
)
#: How long a node that comes for a machine first tells what it owes for others.
PAY_FIRST_FOR_S: Final = 10.0
DEFAULT_LISTEN: Final = Address(host="127.0.0.1", port=4600)


@attrs.define
class Run:
    """One daemon from its start to its end: what both have in common.

    `runner` has the machine that is here, to be stopped at the end.
    """

    options: SourceOptions | TargetOptions
    events: EventLog
    process: Process = attrs.field(init=False)
    runner: GuestRunner | None = None
    target: TargetDaemon | None = None
    source: SourceDaemon | None = None
    failpoints: Failpoints | None = None
    used_ids: UsedIds = attrs.field(factory=UsedIds)
    _node: Node | None = None

    def __attrs_post_init__(self) -> None:
        self.process = Process(self.events, self.options.attached)
        if self.options.die_at is not None:
            self.events.listeners.append(signaller_at(self.options.die_at, signal.SIGKILL))
        if self.options.halt_at is not None:
            self.events.listeners.append(signaller_at(self.options.halt_at, signal.SIGSTOP))
        if self.options.failpoints is not None:
            self.failpoints = Failpoints(self.options.failpoints)
            self.events.listeners.append(self.failpoints.heed)
            self.events.tells_messages = True

    @property
    def node(self) -> Node:
        assert self._node is not None, "it has been opened"
        return self._node

    def open_node(self, nursery: trio.Nursery) -> Node:
        """The node of this process, with what it remembers.

        Raises:
            BadInput: the state directory cannot be used.
        """
        places, settings, failpoints = self.options.places, self.options.settings, self.failpoints
        hypervisor = TrioHypervisor(
            nursery,
            audited=self.options.audited,
            wire=places.wire,
            storage=places.storage,
            fenced=places.fenced,
            memory_mb_max=places.memory_mb_max,
            on_running=lambda runs: self.events.tell("guest runs" if runs else "guest rests"),
            on_boot=lambda: self.events.tell("guest boots"),
            on_point=self.visit,
        )
        if failpoints is not None:
            try:
                failpoints.connect(self.events.side)
            except OSError as error:
                raise BadInput(f"{failpoints.path}: nobody answers there: {error.strerror}") from error
            hypervisor.host_clock, hypervisor.on_made = failpoints.clock, failpoints.watch
        node = Node(name=settings.node, release=settings.release, hypervisor=hypervisor, events=self.events)
        if places.state is not None:
            try:
                state = StateDirectory.open(places.state, ram=places.ram)
            except StateError as error:
                raise BadInput(str(error)) from error
            node.use(state)
            if failpoints is not None:
                failpoints.on_trouble = state.meet
            self.used_ids.state = state
        self._node = node
        return node

    async def to_its_end(self, main: Callable[[trio.Nursery], Awaitable[None]]) -> tuple[ExitCode, dict[str, Any]]:
        """Run `main`, stop what is here, and report.

        Raises:
            BadInput: `main` did.
            StateError: whether a record was written cannot be told; what was here has been stopped.
        """
        code, unsure = ExitCode.NOT_DONE, None
        warm_up()
        gc.collect()
        gc.freeze()  # a look at all that was imported takes 20 ms, and would be taken in a blackout as well
        try:
            try:
                code = await self.process.run(main, self.cancel_attempt)
            except* StateError as group:  # nobody knows what the journal holds: whoever goes on may run a second one
                unsure = leaf_of(group)
            report = await finish(self, self.options.places.artefacts)
            if unsure is not None:
                raise unsure
            return code, report
        finally:
            if self._node is not None:
                self._node.close()
            if self.failpoints is not None:
                self.failpoints.close()

    def visit(self, point: str) -> None:
        """A process may die, or halt, at every point; tests see to that."""
        self.events.tell("point", name=point)

    def cancel_attempt(self) -> Cancelling:
        daemon = self.source or self.target
        return Cancelling.NOTHING_TO_CANCEL if daemon is None else daemon.cancel_attempt()

    @property
    def attempts(self) -> list[AttemptOutcome]:
        return [*(self.target.attempts if self.target else ()), *(self.source.attempts if self.source else ())]

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        journal: AnyJournal,
        settings: SourceSettings,
        migration: UUID | None,
    ) -> None:
        """Be the source of the machine that is here, until it is handed over or must not run here any more."""
        assert self.runner is not None, "a machine is here"
        invitation = Invitation(migration, self.used_ids)
        if invitation.is_used:
            self.events.tell("id used", message=ID_USED)
        daemon = self.source = SourceDaemon(
            self.runner,
            journal,
            settings,
            self.events,
            node=self.node,
            deadlines=self.options.deadlines,
            access=self.options.access,
            invitation=invitation,
            reclaim_after_s=self.options.reclaim_after_s,
        )
        host, port = listeners[0].socket.getsockname()[:2]
        address = str(Address(host=host, port=port))
        await self.node.remember(LISTENS_AT, address)
        state = "is paused; waits for its target" if journal.record.holding is Holding.COMMITTED else RUNS
        self.events.tell("listening", address=address, machine=settings.machine_name, node=self.node.name, state=state)
        if self.node.hypervisor.fence is None:
            self.events.tell("no fence", message=NO_FENCE)
        await daemon.serve(listeners)
        self.runner = daemon.runner
        if self.options.audited and not daemon.lost:
            self.events.tell("image", image=await Image.of(daemon.runner.machine).facts())
        self.process.end(ExitCode.NOT_DONE if daemon.lost else ExitCode.DONE)

    async def heed_fence(self, runner: GuestRunner, journal: AnyJournal) -> None:
        """For a machine that nobody serves: it is over here when its disks are another's."""
        await runner.fenced_off.wait()
        refusal = runner.refusal
        self.events.tell("fenced off", message=str(refusal))
        await self.node.ownership(runner, journal).lose(refusal.found if isinstance(refusal, FencedOff) else None)
        self.process.end(ExitCode.NOT_DONE)


async def run_source_daemon(options: SourceOptions, events: EventLog) -> tuple[ExitCode, dict[str, Any]]:
    """Boot the machine, or find it in the state directory, serve it until it is handed over or somebody ends it.

    Raises:
        BadInput: the machine cannot be made, or the address cannot be listened on.
    """
    run = Run(options, events)

    async def main(nursery: trio.Nursery) -> None:
        node = run.open_node(nursery)
        listeners = await listen(remembered(options.listen, node, LISTENS_AT) or DEFAULT_LISTEN, options.access)
        with refusing_bad_input():
            if node.found() is None:  # a machine that is here runs, whoever may have it
                Invitation(options.migration, run.used_ids).require_unused()
            run.runner, journal, name = await source_machine(options, node)
        settings = attrs.evolve(options.settings, node=node.name, machine_name=name)
        await run.serve(listeners, journal, settings, options.migration)

    code, report = await run.to_its_end(main)
    in_doubt = run.attempts and run.attempts[-1].outcome is Outcome.IN_DOUBT
    return (ExitCode.NOT_DONE if code is ExitCode.DONE and in_doubt else code), report


async def source_machine(options: SourceOptions, node: Node) -> tuple[GuestRunner, AnyJournal, str]:
    """The machine that a source serves: it runs, or waits for a target to settle."""
    kept = node.found()
    birth = options.birth
    if kept is None:
        if birth is None:
            raise BadInput(nothing_here(options.places.state, "give the SPEC of a machine that is to be born here"))
        claim = Claim.FORCE if birth.take_storage else Claim.BIRTH
        runner, journal = await node.bear(
            birth.spec, birth.name, birth.program, options.settings.release.birth(uuid4()), claim
        )
        return runner, journal, birth.name
    name = known_machine(kept).name
    if birth is not None and birth.name != name:
        raise BadInput(
            f"{options.places.state} holds machine {name!r}, not {birth.name!r}: leave the SPEC out to go on with it, "
            "or give another --state-dir"
        )
    match kept.record.holding:
        case Holding.OWNER:
            runner, journal = await node.start_again(kept)
        case Holding.COMMITTED:
            runner, journal, lost = await node.hold_again(kept, new_attempt(Role.SOURCE))
            node.events.tell("in doubt", message=in_doubt(kept.record, lost))
        case _:
            raise BadInput(
                f"{options.places.state} holds the image of {name!r}, of which its source has to say what becomes: "
                f"start it with migrate target --state-dir {options.places.state}"
            )
    return runner, journal, name


def in_doubt(record: Record, lost: ImageLost | None) -> str:
    rest = "" if lost is None else f"; {lost}, so if it comes back it starts from its disks"
    return (
        f"the machine was given away in generation {record.generation} to {record.peer}, whose answer is not known; it "
        f"stays paused until that node asks{rest}"
    )


def nothing_here(state: Path | None, instead: str) -> str:
    where = "there is no --state-dir" if state is None else f"{state} holds no machine that could be started"
    return f"{where}: {instead}"


def remembered(given: Address | None, node: Node, fact: str) -> Address | None:
    """What was given, else what the node remembers."""
    text = None if given is not None or node.state is None else node.state.fact(fact)
    return given if text is None else Address.parse(text)


@contextmanager
def refusing_bad_input() -> Iterator[None]:
    """What a machine's start may object to is what a person asked for."""
    try:
        yield
    except MachineCreationFailed as error:
        raise BadInput(f"this machine cannot be made: {error}") from error
    except StorageTaken as error:
        raise BadInput(
            f"{error}; if nothing runs there any more, say --take-storage, or settle it with migrate resolve"
        ) from error
    except (IdUsed, JournalFailed, StorageUnreachable) as error:
        raise BadInput(str(error)) from error


def leaf_of(error: BaseException) -> BaseException:
    """The first error in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def signaller_at(point: str, number: signal.Signals) -> Callable[[dict[str, Any]], None]:
    """For tests: end or halt, without another instruction, when a point is passed, `NAME` or its `NAME#2`nd time."""
    name, _, count = point.partition("#")
    left = int(count or 1)

    def watch(event: dict[str, Any]) -> None:
        nonlocal left
        if event["event"] == "point" and event["name"] == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    return watch


async def run_target_daemon(options: TargetOptions, events: EventLog) -> tuple[ExitCode, dict[str, Any]]:
    """Migrate a machine in, or find it in the state directory, run it until somebody ends it or it is migrated away.

    Raises:
        BadInput: there is neither a source nor a machine, or an address cannot be listened on.
    """
    run = Run(options, events)

    async def main(nursery: trio.Nursery) -> None:
        await be_target(options, run, nursery)

    code, report = await run.to_its_end(main)
    return (ExitCode.INTERRUPTED if code is ExitCode.DONE and run.runner is None else code), report


async def be_target(options: TargetOptions, run: Run, nursery: trio.Nursery) -> None:
    node = run.open_node(nursery)
    source = remembered(options.source, node, SOURCE_AT)
    kept = node.found()
    if source is None and (kept is None or kept.record.holding is Holding.READY):
        raise BadInput(nothing_here(options.places.state, "give the HOST:PORT of a source"))
    if source is not None:
        options.access.check(source)
        await node.remember(SOURCE_AT, str(source))
    listeners = [] if options.listen is None else await listen(options.listen, options.access)
    settings = attrs.evolve(options.settings, node=node.name)
    target = run.target = TargetDaemon(
        source or DEFAULT_LISTEN,
        node,
        settings,
        run.events,
        retries=options.retries,
        streams=options.streams,
        deadlines=options.deadlines,
        access=options.access,
        pace=options.pace,
        used_ids=run.used_ids,
    )
    with refusing_bad_input():
        name, journal = await (come_in(target, node) if kept is None else go_on(target, node, kept))
    if node.hypervisor.runner is None or journal is None:
        run.process.end(ExitCode.INTERRUPTED if target.cancelled else ExitCode.NOT_DONE)
        return
    runner = run.runner = node.hypervisor.runner
    run.events.tell("running", machine=name)
    await tell_blackout(node.hypervisor, run.events)
    nursery.start_soon(target.tell, node.ownership(runner, journal), journal, name)
    if node.hypervisor.image is not None:
        run.events.tell("image", image=await node.hypervisor.image.facts())
    if options.as_source is not None:
        as_source = attrs.evolve(options.as_source, machine_name=name, node=node.name)
        await run.serve(listeners, journal, as_source, options.onward)
    else:
        await run.heed_fence(runner, journal)


async def come_in(target: TargetDaemon, node: Node) -> tuple[str, AnyJournal | None]:
    """A machine from the source; the hypervisor runs none afterwards if it did not come."""
    await pay(target, node, PAY_FIRST_FOR_S)
    arrived = await target.migrate_in()
    if arrived is None:
        await pay(target, node)
        return "", None
    return arrived.machine_name, target.journal


async def pay(target: TargetDaemon, node: Node, for_s: float = TELL_FOR_S) -> None:
    """Tell sources of machines that are not here what they must hear: they wait for it."""
    for kept in node.owing():
        ownership, journal = node.memory_of(kept)
        await target.tell(ownership, journal, known_machine(kept).name, for_s)


async def go_on(target: TargetDaemon, node: Node, kept: Kept) -> tuple[str, AnyJournal | None]:
    """A machine that was here when the process died."""
    name, state = known_machine(kept).name, None if node.state is None else node.state.path
    match kept.record.holding:
        case Holding.OWNER:
            node.hypervisor.runner, journal = await node.start_again(kept)
        case Holding.READY:
            runner, journal, lost = await node.hold_again(kept, new_attempt(Role.TARGET))
            if lost is not None:
                node.events.tell("image lost", message=str(lost))
            if await target.ask(runner, name, journal, lost) is None:
                await pay(target, node)
                return name, None
        case _:
            raise BadInput(
                f"{state} holds {name!r}, which this node gave away and whose target has not answered: start it with "
                f"migrate source --state-dir {state}"
            )
    return name, journal


async def tell_blackout(hypervisor: TrioHypervisor, events: EventLog) -> float | None:
    """How long the guest was away by its own clock, in ms: from its last step there to its first step here.

    None if it has no heartbeat, or does not come to that step.  By that clock and not by when anybody looks.
    """
    last, runner = hypervisor.arrived_with, hypervisor.runner
    if runner is None:
        return None
    while (first := runner.first_step) is None:
        if runner.machine.state is not MachineState.RUNNING:
            return None
        await trio.lowlevel.checkpoint()
    blackout_ms = None
    if last is not None and first.heartbeat is not None:
        blackout_ms = (first.heartbeat.uptime_ns - last.uptime_ns) / 1e6
    events.tell("guest resumed", blackout_ms=blackout_ms, first_ns=first.at_ns)
    return blackout_ms


async def listen(address: Address, access: Access) -> list[trio.SocketListener]:
    """Raises BadInput if nobody can listen there, or nobody may."""
    access.check(address)
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"cannot listen on {address}: {reason}; choose another port, or 0 for any") from error


async def finish(run: Run, artefacts: Path | None) -> dict[str, Any]:
    """Stop the machine if it is here, leave its artefacts, and say how everything ended."""
    runner, attempts = run.runner, run.attempts
    runs_here = runner is not None and runner.machine.state is MachineState.RUNNING
    report: dict[str, Any] = {
        "outcome": attempts[-1].outcome.value if attempts else "none",
        "runs_here": runs_here,
        "attempts": [attempt.as_json() for attempt in attempts],
        "guest": guest_facts(runner.program, runner.machine) if runner is not None else None,
    }
    if runner is not None:
        await runner.stop()
        if runs_here and artefacts is not None:
            try:
                write_artefacts(runner.machine, artefacts)
            except OSError as error:
                run.events.tell("no artefacts", error=str(error))
        release_disks(runner.machine, run.events)
        runner.machine.close()
    run.events.tell("ended", runs_here=runs_here, guest=report["guest"])
    return report


def release_disks(machine: Machine, events: EventLog) -> None:
    """Whoever wants the disks next need not be told that this machine has ended."""
    if machine.storage.fence is not None:
        try:
            machine.storage.fence.release()
        except (FenceError, OSError) as error:
            events.tell("disks not released", error=str(error))
