"""Makes the faults of a plan happen in a simulated world, and counts what passes, so that faults can be placed there.

Everything that passes has a key; a fault waits for the n-th time that its key passes.  So a run pays nothing for the
faults that it does not have, and the same counters say afterwards at which triggers a fault could have struck.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from random import Random
from typing import get_args

import attrs

from migrate.faults.data import Said, altered, piece_bytes, stand_in
from migrate.faults.plan import (
    ACTIONS,
    MESSAGE_ACTIONS,
    Action,
    AtByte,
    AtMessage,
    AtTake,
    AtTime,
    AtWrite,
    ClockJump,
    Cut,
    Delay,
    DiskFull,
    End,
    ExportFailure,
    Fault,
    Freeze,
    HalfOpen,
    Hang,
    ImportFailure,
    InPhase,
    InRound,
    Jitter,
    Kill,
    Moment,
    OneWay,
    Plan,
    PowerLoss,
    Replay,
    Reset,
    Slice,
    Stall,
    StorageOutage,
    SyncError,
    Throttle,
    Trigger,
    Truncate,
    name_of,
)
from migrate.protocol.frames import PREFACE
from migrate.protocol.messages import Message, RamContent, Role
from migrate.simulation.hooks import Hooks
from migrate.simulation.link import SimulatedLink
from migrate.simulation.network import Connection, Speed, way_of
from migrate.simulation.node import Life
from migrate.simulation.scheduler import NS_PER_S
from migrate.simulation.world import World
from sim_vmm.devices.errors import InjectedFailure

#: What passes: its kind, and what tells it from others of the kind; plain strings, which are hashed fast.
Key = tuple[str, ...]


def key_of(trigger: Trigger) -> tuple[Key, int]:
    """What has to pass for `trigger`, and how often."""
    match trigger:
        case AtMessage(message=message, side=side, number=number, moment=moment, stream=stream):
            return ("message", message, side.value, moment.value, *way_of(stream)), number
        case InPhase(phase=phase, side=side, number=number):
            return ("phase", phase, side.value), number
        case AtWrite(side=side, number=number, moment=moment):
            return ("write", side.value, moment.value), number
        case AtTake(side=side, number=number, moment=moment):
            return ("take", side.value, moment.value), number
        case InRound(round=number):
            return ("round",), number
        case AtByte(side=side, byte=byte, stream=stream):
            return ("byte", side.value, *way_of(stream)), byte
        case AtTime():
            return ("time",), 0


def trigger_of(key: Key, number: int) -> Trigger:
    """The trigger that waits for the `number`-th passing of `key`."""
    match key:
        case ("message", message, side, moment, *way):
            stream = int(way[0]) if way else 0
            return AtMessage(message=message, side=Role(side), number=number, moment=Moment(moment), stream=stream)
        case ("phase", phase, side):
            return InPhase(phase=phase, side=Role(side), number=number)
        case ("write", side, moment):
            return AtWrite(side=Role(side), number=number, moment=Moment(moment))
        case ("take", side, moment):
            return AtTake(side=Role(side), number=number, moment=Moment(moment))
        case ("round",):
            return InRound(round=number)
        case _:
            raise AssertionError(f"{key} does not pass by itself")


def _names_in(key: Key) -> set[str]:
    """Of the messages, or the phase, that have to be looked at for a fault that waits for `key`."""
    match key:
        case ("message" | "phase", name, *_):
            return {name}
        case ("round",):
            return {kind.__name__ for kind in get_args(RamContent)}
        case _:
            return set()


@attrs.define(eq=False)
class Injector(Hooks):
    """Once all is well again, nothing strikes any more.

    `fired` are the faults that have struck; `on_strike` is told of each when it does; `passed`, if it is a list, gets
    what passes after the last of them, and `said_before` what, of messages among that, had been said on an older
    connection last, so that it could be replayed.  `on_rest` is told whenever every task waits; with `counts_all`,
    everything that passes is counted, waited for or not.
    """

    plan: Plan
    fired: list[Fault] = attrs.field(factory=list)
    on_strike: Callable[[Fault], None] | None = None
    on_rest: Callable[[World], None] | None = None
    counts_all: bool = False
    passed: list[tuple[Key, int]] | None = None
    said_before: dict[tuple[Key, int], bytes] = attrs.field(factory=dict)
    _counts: Counter[Key] = attrs.field(factory=Counter)
    _waiting: dict[Key, list[tuple[int, Fault]]] = attrs.field(factory=lambda: defaultdict(list))
    _awaited: set[str] = attrs.field(factory=set)
    _sees_all: bool = False
    _failures: Counter[type[Action]] = attrs.field(factory=Counter)
    _world: World | None = None
    _hung: set[str] = attrs.field(factory=set)
    _records: bool = False
    _said: dict[Key, list[Said]] = attrs.field(factory=lambda: defaultdict(list))

    def __attrs_post_init__(self) -> None:
        for fault in self.plan.faults:
            key, number = key_of(fault.when)
            self._waiting[key].append((number, fault))
            self._awaited |= _names_in(key)
        self._records = self.passed is not None or any(isinstance(fault.do, Replay) for fault in self.plan.faults)
        self._sees_all = self._records or self.counts_all or any(key[0] == "byte" for key in self._waiting)

    # What passes

    @property
    def seed(self) -> int:
        return self.plan.seed

    def begin(self, world: World) -> None:
        self._world = world
        for _, fault in self._waiting.get(("time",), ()):
            assert isinstance(fault.when, AtTime)
            after_ns = round(fault.when.seconds * NS_PER_S)
            world.scheduler.at(world.scheduler.now_ns + after_ns, self._later(world, fault))

    def sending(self, link: SimulatedLink, message: Message, data: bytes) -> bytes:
        if not self._sees_all and message.__class__.__name__ not in self._awaited:
            return data
        side = link.side
        if isinstance(message, RamContent) and message.round + 1 > self._counts[("round",)]:
            self._pass(("round",), link.life, None if link.way else link)
        key = ("message", type(message).__name__, side, "before", *link.way)
        for fault in self._due(key):
            data = self._strike_message(fault, link, key, message, data)
        if self._records:
            self._record(key, link.connection.number, data)
        if self.counts_all or ("byte", side, *link.way) in self._waiting:
            data = self._count_bytes(link, data)
        return data

    def sent(self, link: SimulatedLink, message: Message) -> None:
        if self._sees_all or message.__class__.__name__ in self._awaited:
            self._pass(("message", type(message).__name__, link.side, "after", *link.way), link.life, link)

    def received(self, link: SimulatedLink, message: Message) -> None:
        if self._sees_all or message.__class__.__name__ in self._awaited:
            self._pass(("message", type(message).__name__, link.peer_side, "received", *link.way), link.life, link)

    def entering(self, life: Life, side: Role, phase: str) -> None:
        if self._sees_all or phase in self._awaited:
            self._pass(("phase", phase, life.side_name), life, None)

    def writing(self, life: Life) -> None:
        self._pass(("write", life.side_name, "before"), life, None)

    def written(self, life: Life) -> None:
        self._pass(("write", life.side_name, "after"), life, None)

    def taking(self, life: Life) -> None:
        self._pass(("take", life.side_name, "before"), life, None)

    def taken(self, life: Life) -> None:
        self._pass(("take", life.side_name, "after"), life, None)

    def exporting(self, life: Life) -> None:
        self._fail(life, ExportFailure, "export")

    def importing(self, life: Life) -> None:
        self._fail(life, ImportFailure, "import")

    def _fail(self, life: Life, kind: type[Action], direction: str) -> None:
        if self._failures[kind] > 0 and not life.world.is_calm:
            self._failures[kind] -= 1
            raise InjectedFailure("com1", direction, 1, 1)

    # What there is to say of it between two things that pass

    def at_rest(self, world: World) -> None:
        if self.on_rest is not None:
            self.on_rest(world)

    def residue(self) -> tuple[object, ...]:
        """What the faults that have struck still do, beside what they have made of the world."""
        assert self._world is not None, "the run has begun"
        if self._world.is_calm:
            return ()
        failures = {kind.__name__: times for kind, times in self._failures.items() if times}
        return sorted(failures.items()), sorted(self._hung)

    def counted(self) -> dict[Key, int]:
        """How often what has passed."""
        return dict(self._counts)

    def waits_for_a_time(self) -> bool:
        return any(fault not in self.fired for _, fault in self._waiting.get(("time",), ()))

    def could_strike(self, passing: Mapping[Key, int]) -> bool:
        """Whether a fault is still waited for by what is going to pass so often; one that waits for a time has a timer.

        Rounds are counted over all attempts, so how many there will be cannot be told from where a run is.
        """
        for key, waiting in self._waiting.items():
            passed = self._counts[key]
            until = 1 << 62 if key == ("round",) else passed + passing.get(key, 0)
            if any(passed < number <= until for number, _ in waiting):
                return True
        return False

    # When something strikes

    def _due(self, key: Key) -> list[Fault]:
        if self._world is None or self._world.is_calm:
            return []
        self._counts[key] += 1
        number = self._counts[key]
        if self.passed is not None:
            self.passed.append((key, number))
        if key not in self._waiting:
            return []
        return [fault for at, fault in self._waiting[key] if at == number]

    def _pass(self, key: Key, life: Life, link: SimulatedLink | None) -> None:
        for fault in self._due(key):
            self._strike(life.world, fault, None if link is None else link.connection)
            life.check()

    def _later(self, world: World, fault: Fault) -> Callable[[], None]:
        return lambda: None if world.is_calm else self._strike(world, fault, None)

    def _count_bytes(self, link: SimulatedLink, data: bytes) -> bytes:
        if link.life.world.is_calm:
            return data
        key = ("byte", link.side, *link.way)
        before = self._counts[key]
        self._counts[key] += len(data)
        for at, fault in self._waiting.get(key, ()):
            if before < at <= before + len(data):
                data = self._strike_data(fault, link, data, at - before - 1)
        return data

    def _record(self, key: Key, connection: int, data: bytes) -> None:
        """What has been said, by connection; the injection of a `Replay` looks there."""
        said = self._said[key]
        if said and said[0][0] < connection and self._world is not None and not self._world.is_calm:
            older = [earlier for number, earlier in said if number < connection]
            self.said_before[key, self._counts[key]] = older[-1]
        said.append((connection, data.removeprefix(PREFACE)))

    def _strike_message(self, fault: Fault, link: SimulatedLink, key: Key, message: Message, data: bytes) -> bytes:
        """What becomes of a whole message that is about to leave."""
        if not isinstance(fault.do, MESSAGE_ACTIONS):
            return self._strike_data(fault, link, data, 0)
        other = stand_in(fault.do, link.role, message, data, self._said[key], link.connection.number)
        if other is None:
            return data
        self._note(fault)
        return other

    def _strike_data(self, fault: Fault, link: SimulatedLink, data: bytes, offset: int) -> bytes:
        """What becomes of `data`, in which the fault strikes at `offset`."""
        other = altered(fault.do, data, offset)
        if other is not None:
            self._note(fault)
            return other
        match fault.do:
            case Slice(bytes=size):
                self._note(fault)
                link.outgoing.piece_bytes = piece_bytes(size, data)
            case Truncate(bytes=size):
                self._note(fault)
                link.outgoing.put(data[: offset + size])
                link.outgoing.end()
                link.incoming.end()
            case _:
                if offset:
                    link.outgoing.put(data[:offset])
                    data = data[offset:]
                self._strike(link.life.world, fault, link.connection)
                link.life.check()
        return data

    def _note(self, fault: Fault) -> None:
        self.fired.append(fault)
        if self._world is not None:
            self._world.say("world", lambda: f"fault: {fault.do}")
        if self.on_strike is not None:
            self.on_strike(fault)
        if self.passed is not None:
            self.passed.clear()
            self.said_before.clear()

    def _strike(self, world: World, fault: Fault, connection: Connection | None) -> None:
        self._note(fault)
        if connection is None:
            connection = world.network.newest
        if not self._strike_node(world, fault.do) and connection is not None:
            _strike_connection(fault.do, connection)

    def _strike_node(self, world: World, action: Action) -> bool:
        """Do what does not concern a connection; whether there was something to do."""
        scheduler = world.scheduler
        match action:
            case Cut(for_s=for_s):
                world.network.cut(round(for_s * NS_PER_S))
            case Kill(side=side, restart_s=restart_s) | PowerLoss(side=side, restart_s=restart_s):
                node = world.node(side)
                self._hung.discard(node.name)
                world.kill(node, power=isinstance(action, PowerLoss))
                if restart_s is not None:
                    scheduler.at(scheduler.tick_after(round(restart_s * NS_PER_S)), lambda: world.restart(node))
            case Freeze(side=side, for_s=for_s):
                name = world.node(side).name
                scheduler.freeze(name)
                scheduler.at(scheduler.tick_after(round(for_s * NS_PER_S)), lambda: self._thaw(world, name))
            case Hang(side=side):
                name = world.node(side).name
                self._hung.add(name)
                scheduler.freeze(name)
            case ClockJump(side=side, seconds=seconds):
                world.node(side).jump(round(seconds * NS_PER_S))
            case DiskFull(side=side, times=times):
                world.node(side).disk.full = times
            case SyncError(side=side, times=times):
                world.node(side).disk.failing_syncs = times
            case ExportFailure(times=times) | ImportFailure(times=times):
                self._failures[type(action)] = times
            case StorageOutage(side=side, for_s=for_s):
                if world.storage is not None:
                    out, name = world.storage.unreachable, world.node(side).name
                    out.add(name)
                    scheduler.at(scheduler.tick_after(round(for_s * NS_PER_S)), lambda: out.discard(name))
            case _:
                return False
        return True

    def _thaw(self, world: World, name: str) -> None:
        if name not in self._hung:
            world.scheduler.thaw(name)


def _strike_connection(action: Action, connection: Connection) -> None:
    match action:
        case End():
            connection.end()
        case Reset():
            connection.reset()
        case HalfOpen():
            connection.sever()
        case OneWay(side=side):
            connection.pipes[side].severed = True
        case Stall(side=side, for_s=for_s):
            connection.pipes[side].hold(round(for_s * NS_PER_S))
        case Throttle(bytes_per_s=rate):
            for pipe in connection.pipes.values():
                pipe.speed = Speed(latency_ns=pipe.speed.latency_ns, bandwidth=rate)
        case Delay(side=side, seconds=seconds):
            pipe = connection.pipes[side]
            pipe.speed = attrs.evolve(pipe.speed, latency_ns=pipe.speed.latency_ns + round(seconds * NS_PER_S))
        case Jitter(side=side, seconds=seconds, seed=seed):
            random, most_ns = Random(seed), round(seconds * NS_PER_S)
            connection.pipes[side].jitter_ns = lambda: random.randint(0, most_ns)
        case _:
            raise AssertionError(f"{name_of(action, ACTIONS)} strikes nothing")
