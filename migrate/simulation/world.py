"""A world: two nodes, a network, and one machine that is to move from the one to the other.

    1.  The machine is born on the source, with a guest that writes memory.  The target comes for it.
    2.  Whatever is to go wrong goes wrong; what lives goes on by itself, as daemons do.
    3.  At `CALM_NS` everything is well again: the network carries, disks work, dead nodes are started.
    4.  When nobody has anything left to do, the audits conclude.

A run is a function of the hooks that it was given and of nothing else: no real clock, no thread, no chance.  With
`traced`, every line of what happened is kept; its hash is the same in any process.
"""

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self
from uuid import UUID

import attrs

from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding, Record
from migrate.engine.policy import PrecopyPolicy
from migrate.engine.ports import Ram
from migrate.engine.ram import MappedRam
from migrate.errors import MigrationError, TransportLost
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role
from migrate.releases import NEWEST, Release, builtin_releases
from migrate.simulation.audits import AT_REST, NO_BUG, ONCE_MORE, Audits, Violation
from migrate.simulation.daemons import SourceDaemon, TargetDaemon, daemon_of
from migrate.simulation.hooks import NO_FAULTS, Hooks
from migrate.simulation.link import SimulatedLink
from migrate.simulation.machines import Foundry, LightMachines, step
from migrate.simulation.network import Connection, Network, Speed, latencies_ns
from migrate.simulation.node import HostClocks, Life, Node
from migrate.simulation.remembering import ByIdentity
from migrate.simulation.scheduler import NS_PER_S, Scheduler
from migrate.simulation.storage import SharedStorage
from migrate.simulation.streams import StreamedLink
from sim_vmm.fence import Title
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec

VM_ID: Final = UUID(int=0x5EED)
CALM_NS: Final = 105 * NS_PER_S
LINK_BACK_NS: Final = CALM_NS + 60 * NS_PER_S
"""When the link carries again in a world with a fence.  One node has to run the machine by then: a source that was
frozen until all was well has to give up its target first (30 s), and then to wait before it asks the fence (10 s)."""
ROUND_NS: Final = 100 * NS_PER_S
"""On a multiple of this begins the one more migration, so that worlds which come to the same come to it then."""
STEPS_MAX: Final = 20_000
SOURCE, TARGET = "rack-3", "rack-7"
POLICY: Final = PrecopyPolicy(rounds_min=2)
"""So that there is one whose pages were dirtied while the first was sent."""
DEADLINES: Final = Deadlines()
SPEED: Final = Speed()


birth_on: Final = ByIdentity(lambda release: release.birth(VM_ID))
"""What the machine of the world shows its guest; always the same object for the same release."""


@attrs.frozen(kw_only=True)
class Result:
    """What came of one run."""

    owner: str
    published: tuple[str, ...]
    reasons: tuple[str, ...]
    violations: tuple[Violation, ...]
    trace: tuple[str, ...]
    trace_hash: str
    virtual_ns: int
    steps: int


@attrs.define(kw_only=True, eq=False)
class World:
    """See the module.  `spec` is the machine's; `retries` how often the target tries again by itself.

    With more than one of `streams`, RAM travels over so many connections, which deliver in an order that follows from
    the seed of the hooks.

    With a `storage` there is a fence.  `bandwidth` is the cap that the source keeps to, in bytes a second; `ram` is
    how the machine's RAM travels; `program` is what its guest does between any two things that its process does.

    With `once_more`, whoever runs the machine when all is quiet gives it to the other node, undisturbed: if anything of
    it was forgotten, it shows.
    """

    spec: Spec
    hooks: Hooks = NO_FAULTS
    foundry: Foundry = attrs.field(factory=LightMachines)
    retries: int = 2
    traced: bool = False
    storage: SharedStorage | None = None
    deadlines: Deadlines = DEADLINES
    policy: PrecopyPolicy = POLICY
    bandwidth: float | None = None
    ram: Ram = attrs.field(factory=MappedRam)
    program: Callable[[Machine], None] = step
    release: Release = attrs.field(factory=lambda: builtin_releases()[NEWEST])
    streams: int = 1
    speed: Speed = SPEED
    scheduler: Scheduler = attrs.field(factory=lambda: Scheduler(now_ns=5 * NS_PER_S))
    once_more: bool = False
    audits: Audits = attrs.field(init=False)
    machines: list[Machine] = attrs.field(factory=list)
    trace: list[str] = attrs.field(factory=list)
    network: Network = attrs.field(init=False)
    latencies_ns: tuple[int, ...] = attrs.field(init=False)
    source: Node = attrs.field(init=False)
    target: Node = attrs.field(init=False)
    is_calm: bool = False
    is_concluded: bool = False
    _listening: SourceDaemon | None = None
    _ends: dict[str, list[SimulatedLink]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.audits = Audits(self.time, keeps_ledger=self.program is step)
        self.network = Network(self.scheduler, self.speed)
        self.latencies_ns = latencies_ns(self.streams, self.speed.latency_ns, self.hooks.seed)
        self.source = Node(SOURCE, Role.SOURCE, self)
        self.target = Node(TARGET, Role.TARGET, self, clock_offset_ns=72 * NS_PER_S)

    def take_step(self, machine: Machine) -> None:
        """The guest executes."""
        self.program(machine)
        self.audits.steps += 1

    def time(self) -> tuple[int, int]:
        """Its clock, and by how much the wall clocks of the nodes have ever been apart; ns."""
        offsets = self.source.wall_offsets_ns | self.target.wall_offsets_ns
        return self.scheduler.now_ns, max(offsets) - min(offsets)

    def node(self, role: Role) -> Node:
        return self.source if role is Role.SOURCE else self.target

    def host_clock(self, node: Node) -> HostClocks:
        return HostClocks(node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in (self.source, self.target):  # a run that was left before its end has tasks that wait
            if node.life is not None:
                node.life.alive = False
            self.scheduler.kill(node.name)
        for machine in self.machines:
            machine.close()

    def run(self) -> Result:
        self._bear()
        self.hooks.begin(self)
        self.start(self.source)
        self.start(self.target)
        self.scheduler.at(CALM_NS, self.calm)
        self._run_until_quiet()
        owners = [node for node in (self.source, self.target) if node.disk.content.record.holding is Holding.OWNER]
        published, reasons = tuple(self.audits.published), tuple(self.audits.reasons)
        self.is_concluded = True
        if self.once_more and self.audits.runner is not None and not self.audits.violations:
            self._move_once_more()
        return Result(
            owner=owners[0].role.value if len(owners) == 1 else "nobody",
            published=published,
            reasons=reasons,
            violations=tuple(self.audits.violations),
            trace=tuple(self.trace),
            trace_hash=hashlib.sha256("\n".join(self.trace).encode()).hexdigest(),
            virtual_ns=self.scheduler.now_ns,
            steps=self.scheduler.steps,
        )

    def _run_until_quiet(self) -> None:
        if not self.scheduler.run(self.scheduler.steps + STEPS_MAX):
            self.audits.violate(AT_REST, f"after {STEPS_MAX} steps there is still something to do")
        for owner in self.scheduler.unfinished():
            self.audits.violate(AT_REST, f"a task of {owner} still waits, for nothing that would come")
        for name, ends in self._ends.items():
            for end in ends:
                if not end.is_closed:
                    stream = f", stream {end.connection.stream}" if end.connection.stream else ""
                    self.audits.violate(AT_REST, f"{name} has not closed connection {end.connection.number}{stream}")
        self.audits.conclude((self.source, self.target))

    def _move_once_more(self) -> None:
        giver, taker = (self.source, self.target)[:: 1 if self.audits.runner == SOURCE else -1]
        self._wait_long()
        self.say("world", lambda: f"once more, from {giver.name} to {taker.name}")
        if giver is self.target and giver.life is not None:
            self.listen(SourceDaemon(giver.life))
        self.kill(taker)
        life = taker.begin()
        self.spawn(life, TargetDaemon(life).begin)
        self._run_until_quiet()
        if self.audits.runner != taker.name:
            self.audits.violate(ONCE_MORE, f"one more migration has not brought the machine to {taker.name}")

    def _wait_long(self) -> None:
        """Nobody has anything left to do, so time passes up to a round number of it."""
        self.scheduler.now_ns = -(-self.scheduler.now_ns // ROUND_NS) * ROUND_NS
        self._at_rest()

    def _bear(self) -> None:
        """The machine is born on the source, which owns it."""
        life = self.source.begin()
        birth = birth_on(self.release)
        life.have(life.make(self.spec, birth))
        content = self.source.disk.content
        record = Record(Holding.OWNER, 1, session=0 if self.storage is None else 1)
        if self.storage is not None and life.fence is not None:
            title = Title(session=1, generation=1, machine=VM_ID, owner=SOURCE)
            self.storage.title = life.fence.held = title
        self.source.disk.content = attrs.evolve(content, record=record, highest=1, spec=self.spec, birth=birth)
        assert life.guest is not None
        coroutine = life.guest.start_over()
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("a birth waits for nobody")

    # What can be done to it

    def start(self, node: Node) -> None:
        """A process of this node begins, or goes on with what was done to it already."""
        life = node.life or node.begin()
        if self.traced:
            self.say(node.name, lambda: "starts")
            self.hooks.begins(node)
        self.spawn(life, daemon_of(life).begin)

    def kill(self, node: Node, *, power: bool = False) -> None:
        """The process dies, or its host."""
        if node.life is None:
            if power:
                node.disk.lose_power()
            return
        if self.traced:
            self.say(node.name, lambda: "loses power" if power else "is killed")
            self.hooks.dies(node, power=power)
        if self._listening is not None and self._listening.life is node.life:
            self._listening = None
        node.end(power=power)
        self.scheduler.thaw(node.name)
        self.scheduler.kill(node.name)
        for link in self._ends.pop(node.name, ()):
            if power:
                link.connection.sever()
            else:
                link.connection.end()

    def restart(self, node: Node) -> None:
        if node.life is None:
            self.start(node)

    def calm(self) -> None:
        """Everything is well again."""
        self.is_calm = True
        if self.traced:
            self.say("world", lambda: "calm")
            self.hooks.calms()
        if self.storage is None:
            self.network.heal()
        else:
            self.storage.unreachable.clear()
            self.network.cut(LINK_BACK_NS - CALM_NS)
            self.scheduler.at(LINK_BACK_NS, self.link_back)
        busy = set(self.scheduler.unfinished())
        for node in (self.source, self.target):
            node.disk.full = node.disk.failing_syncs = 0
            self.scheduler.thaw(node.name)
            self.restart(node)
            if (
                node.life is not None
                and node.disk.content.record.holding is Holding.NOT_OWNER
                and node.name not in busy
            ):
                node.life.let_go()
        self._at_rest()

    def _at_rest(self) -> None:
        """An attempt is about to begin, or all is well again: the guest has gone on meanwhile, up to a round number."""
        for node in (self.source, self.target):
            if node.life is not None and node.life.guest is not None and not self.scheduler.is_frozen(node.name):
                node.life.guest.catch_up()
        self.hooks.at_rest(self)

    def link_back(self) -> None:
        """The link has been down for long, and nothing else was wrong: the fence must have settled who runs."""
        self.audits.expect_a_runner()
        self.say("world", lambda: "the link is back")
        self.network.heal()

    # What daemons ask for

    def spawn(self, life: Life, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.scheduler.spawn(life.node.name, self._guarded(life, main))

    async def _guarded(self, life: Life, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A process that ends by an error is dead, and is started again when all is well."""
        try:
            await main()
        except MigrationError as error:
            why = str(error)
            self.say(life.node.name, lambda: f"ends: {why}")
            self.kill(life.node)
        except Exception as error:
            self.audits.violate(NO_BUG, f"{life.node.name}: {type(error).__name__}: {error}")

    def listen(self, daemon: SourceDaemon) -> None:
        self._listening = daemon

    def stop_listening(self, daemon: SourceDaemon) -> None:
        if self._listening is daemon:
            self._listening = None

    async def connect(self, life: Life) -> SimulatedLink:
        """Raises TransportLost: nobody can be reached there."""
        connection = self.network.connect(self.latencies_ns[0] if self.streams > 1 else None)
        self.scheduler.at(self.scheduler.now_ns + self.speed.latency_ns, self._at_rest)
        await self.scheduler.sleep(2 * self.speed.latency_ns)
        return self._reach(life, connection)

    async def connect_beside(self, link: StreamedLink, stream: int) -> SimulatedLink:
        """The target's end of a stream of the conversation on `link`.  Raises TransportLost: nobody can be reached."""
        latency_ns = self.latencies_ns[stream]
        connection = self.network.connect_beside(link.connection, stream, latency_ns)
        await self.scheduler.sleep(2 * latency_ns)
        return self._reach(link.life, connection)

    def _reach(self, life: Life, connection: Connection) -> SimulatedLink:
        """Lead a connection to whoever listens; returns its other end."""
        daemon = self._listening
        if daemon is None:
            raise TransportLost("cannot reach the source: connection refused")
        ends = [self._end(daemon.life, Role.SOURCE, connection), self._end(life, Role.TARGET, connection)]
        for end in ends:
            self._ends.setdefault(end.life.node.name, []).append(end)
        self.spawn(daemon.life, lambda: daemon.answer(ends[0]))
        return ends[1]

    def _end(self, life: Life, role: Role, connection: Connection) -> SimulatedLink:
        of_link = (life, role, connection, self.deadlines, self.hooks, self.scheduler)
        if self.streams == 1 or connection.stream:
            return SimulatedLink(*of_link)
        dial = self.connect_beside if role is Role.TARGET else None
        return StreamedLink(*of_link, dial=dial, wanted=self.streams)

    def note_outcome(self, life: Life, attempt: Attempt, error: MigrationError | None) -> None:
        if life.alive:
            self.say(life.node.name, lambda: f"published: {'migrated' if error is None else error}")
            self.audits.note_outcome(life, attempt, error)

    def say(self, node: str, line: Callable[[], str]) -> None:
        if self.traced:
            self.trace.append(f"{self.scheduler.now_ns} {node} {line()}")
