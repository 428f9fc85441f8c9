"""Makes the faults of a plan happen in a simulated world, and counts what passes, so that faults can be placed there.

Everything that passes has a key; a fault waits for the n-th time that its key passes.  So a run pays nothing for the
faults that it does not have, and the same counters say afterwards at which triggers a fault could have struck.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import attrs

from migrate.faults.plan import (
    Action,
    AtByte,
    AtMessage,
    AtTime,
    AtWrite,
    ClockJump,
    Cut,
    DiskFull,
    Duplicate,
    End,
    ExportFailure,
    Fault,
    FlipBit,
    Freeze,
    HalfOpen,
    ImportFailure,
    InPhase,
    InRound,
    Kill,
    Moment,
    OneWay,
    Plan,
    PowerLoss,
    Reset,
    Slice,
    Stall,
    SyncError,
    Throttle,
    Trigger,
    Truncate,
)
from migrate.protocol.messages import Message, RamBatch, Role
from migrate.simulation.hooks import Hooks
from migrate.simulation.network import Connection, SimulatedLink, Speed
from migrate.simulation.node import Life
from migrate.simulation.scheduler import NS_PER_S
from migrate.simulation.world import World
from sim_vmm.devices.errors import InjectedFailure

#: What passes: its kind, and what tells it from others of the kind; plain strings, which are hashed fast.
Key = tuple[str, ...]


def key_of(trigger: Trigger) -> tuple[Key, int]:
    """What has to pass for `trigger`, and how often."""
    match trigger:
        case AtMessage(message=message, side=side, number=number, moment=moment):
            return ("message", message, side.value, moment.value), number
        case InPhase(phase=phase, side=side, number=number):
            return ("phase", phase, side.value), number
        case AtWrite(side=side, number=number, moment=moment):
            return ("write", side.value, moment.value), number
        case InRound(round=number):
            return ("round",), number
        case AtByte(side=side, byte=byte):
            return ("byte", side.value), byte
        case AtTime():
            return ("time",), 0


def trigger_of(key: Key, number: int) -> Trigger:
    """The trigger that waits for the `number`-th passing of `key`."""
    match key:
        case ("message", message, side, moment):
            return AtMessage(message=message, side=Role(side), number=number, moment=Moment(moment))
        case ("phase", phase, side):
            return InPhase(phase=phase, side=Role(side), number=number)
        case ("write", side, moment):
            return AtWrite(side=Role(side), number=number, moment=Moment(moment))
        case ("round",):
            return InRound(round=number)
        case _:
            raise AssertionError(f"{key} does not pass by itself")


@attrs.define(eq=False)
class Injector(Hooks):
    """Once all is well again, nothing strikes any more.

    `fired` are the faults that have struck; `on_strike` is told of each when it does; `passed`, if it is a list, gets
    what passes after the last of them.
    """

    plan: Plan
    fired: list[Fault] = attrs.field(factory=list)
    on_strike: Callable[[Fault], None] | None = None
    passed: list[tuple[Key, int]] | None = None
    _counts: Counter[Key] = attrs.field(factory=Counter)
    _waiting: dict[Key, list[tuple[int, Fault]]] = attrs.field(factory=lambda: defaultdict(list))
    _bytes: Counter[str] = attrs.field(factory=Counter)
    _export_failures: int = 0
    _import_failures: int = 0
    _world: World | None = None

    def __attrs_post_init__(self) -> None:
        for fault in self.plan.faults:
            key, number = key_of(fault.when)
            self._waiting[key].append((number, fault))

    # What passes

    def begin(self, world: World) -> None:
        self._world = world
        for _, fault in self._waiting.get(("time",), ()):
            assert isinstance(fault.when, AtTime)
            after_ns = round(fault.when.seconds * NS_PER_S)
            world.scheduler.at(world.scheduler.now_ns + after_ns, self._later(world, fault))

    def sending(self, link: SimulatedLink, message: Message, data: bytes) -> bytes:
        side = link.side
        if isinstance(message, RamBatch) and message.round + 1 > self._counts[("round",)]:
            self._pass(("round",), link.life, link)
        for fault in self._due(("message", type(message).__name__, side, "before")):
            data = self._strike_data(fault, link, data, 0)
        if ("byte", side) in self._waiting:
            data = self._count_bytes(link, data)
        return data

    def sent(self, link: SimulatedLink, message: Message) -> None:
        self._pass(("message", type(message).__name__, link.side, "after"), link.life, link)

    def received(self, link: SimulatedLink, message: Message) -> None:
        self._pass(("message", type(message).__name__, link.peer_side, "received"), link.life, link)

    def entering(self, life: Life, side: Role, phase: str) -> None:
        self._pass(("phase", phase, side.value), life, None)

    def writing(self, life: Life) -> None:
        self._pass(("write", life.side.value, "before"), life, None)

    def written(self, life: Life) -> None:
        self._pass(("write", life.side.value, "after"), life, None)

    def exporting(self, life: Life) -> None:
        if self._export_failures > 0:
            self._export_failures -= 1
            raise InjectedFailure("com1", "export", 1, 1)

    def importing(self, life: Life) -> None:
        if self._import_failures > 0:
            self._import_failures -= 1
            raise InjectedFailure("com1", "import", 1, 1)

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
        before = self._bytes[link.side]
        self._bytes[link.side] += len(data)
        for at, fault in () if link.life.world.is_calm else self._waiting[("byte", link.side)]:
            if before < at <= before + len(data):
                data = self._strike_data(fault, link, data, at - before - 1)
        return data

    def _strike_data(self, fault: Fault, link: SimulatedLink, data: bytes, offset: int) -> bytes:
        """What becomes of `data`, in which the fault strikes at `offset`."""
        match fault.do:
            case FlipBit(bit=bit):
                self._note(fault)
                return flip(data, offset * 8 + bit)
            case Duplicate():
                self._note(fault)
                return data + data
            case Slice(bytes=size):
                self._note(fault)
                link.outgoing.piece_bytes = max(size, len(data) // 256)
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
        if self.on_strike is not None:
            self.on_strike(fault)
        if self.passed is not None:
            self.passed.clear()

    def _strike(self, world: World, fault: Fault, connection: Connection | None) -> None:
        self._note(fault)
        if connection is None and world.network.connections:
            connection = world.network.connections[-1]
        world.say("world", lambda: f"fault: {fault.do}")
        if not _strike_node(world, fault.do) and connection is not None:
            _strike_connection(world, fault.do, connection)
        match fault.do:
            case ExportFailure(times=times):
                self._export_failures = times
            case ImportFailure(times=times):
                self._import_failures = times


def _strike_connection(world: World, action: Action, connection: Connection) -> None:
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


def _strike_node(world: World, action: Action) -> bool:
    """Do what does not concern a connection; whether there was something to do."""
    scheduler = world.scheduler
    match action:
        case Cut(for_s=for_s):
            world.network.cut(round(for_s * NS_PER_S))
        case Kill(side=side, restart_s=restart_s) | PowerLoss(side=side, restart_s=restart_s):
            node = world.node(side)
            world.kill(node, power=isinstance(action, PowerLoss))
            if restart_s is not None:
                scheduler.at(scheduler.now_ns + round(restart_s * NS_PER_S), lambda: world.restart(node))
        case Freeze(side=side, for_s=for_s):
            name = world.node(side).name
            scheduler.freeze(name)
            scheduler.at(scheduler.now_ns + round(for_s * NS_PER_S), lambda: scheduler.thaw(name))
        case ClockJump(side=side, seconds=seconds):
            world.node(side).wall_offset_ns += round(seconds * NS_PER_S)
        case DiskFull(side=side, times=times):
            world.node(side).disk.full = times
        case SyncError(side=side, times=times):
            world.node(side).disk.failing_syncs = times
        case _:
            return False
    return True


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    bit %= len(data) * 8
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)
