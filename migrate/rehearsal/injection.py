"""Makes the faults of a plan happen to real daemons, and counts what passes.

A plan means the same as in the simulation (`migrate/faults/injection.py`).  What it does to messages, bytes and
connections happens in the proxy between the daemons, exactly before a message goes on or after; what it does to a
daemon happens while that waits at a failpoint, or while the proxy holds a message of it back.  A few things no
supervisor can do to a host that is alive, and a plan that asks for them is refused rather than done by halves.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from random import Random
from typing import Any, Final

import attrs

from migrate.daemon.lives import Side, side_of
from migrate.daemon.proxy import Connection, Passing
from migrate.daemon.state import DiskTrouble
from migrate.daemon.supervisor import Supervisor
from migrate.faults.data import Said, altered, piece_bytes, stand_in
from migrate.faults.injection import Key, key_of
from migrate.faults.plan import (
    ACTIONS,
    DATA_ACTIONS,
    MESSAGE_ACTIONS,
    AtByte,
    AtTime,
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
    Jitter,
    Kill,
    OneWay,
    Plan,
    PlanError,
    PowerLoss,
    Replay,
    Reset,
    Slice,
    Stall,
    StorageOutage,
    SyncError,
    Throttle,
    Truncate,
    name_of,
)
from migrate.faults.words import fault_words
from migrate.protocol.frames import PREFACE
from migrate.protocol.messages import RamContent, Role
from migrate.simulation.network import way_of

NS_PER_S: Final = 1_000_000_000
CHANGES: Final = ("write ", "new generation", "settle debt")
"""The changes of a journal that a failing disk is counted by.  Others (history, facts) fail as well, at no cost."""


def require_possible(plan: Plan) -> None:
    """Raises PlanError for what cannot be done to real daemons."""
    for number, fault in enumerate(plan.faults, 1):
        if isinstance(fault.do, PowerLoss):
            raise PlanError(
                f"fault {number}: power-loss cannot be done to a real host: its caches outlive its processes; say kill"
            )
        if isinstance(fault.do, StorageOutage):
            raise PlanError(
                f"fault {number}: storage-outage cannot be done to a directory that two daemons of one host have; try "
                "it in simulation, with --fence"
            )


@attrs.define(eq=False)
class RealInjector:
    """See `migrate.daemon.supervisor.Faults`.  `fired` are the faults that have struck, and `on_strike` is told.

    Raises:
        PlanError: what cannot be done to real daemons.
    """

    plan: Plan
    on_strike: Callable[[Fault], None] | None = None
    fired: list[Fault] = attrs.field(factory=list)
    _supervisor: Supervisor | None = None
    _counts: Counter[Key] = attrs.field(factory=Counter)
    _waiting: dict[Key, list[tuple[int, Fault]]] = attrs.field(factory=lambda: defaultdict(list))
    _bytes: dict[tuple[Role, int], list[tuple[int, Fault]]] = attrs.field(factory=lambda: defaultdict(list))
    _said: dict[Key, list[Said]] = attrs.field(factory=dict)
    _troubles: dict[Side, Counter[DiskTrouble]] = attrs.field(
        factory=lambda: {"source": Counter(), "target": Counter()}
    )
    _failures: Counter[str] = attrs.field(factory=Counter)
    _wall_offset_ns: Counter[Side] = attrs.field(factory=Counter)
    _hung: set[Side] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        require_possible(self.plan)
        for fault in self.plan.faults:
            key, number = key_of(fault.when)
            if isinstance(fault.when, AtByte):
                self._bytes[fault.when.side, fault.when.stream].append((number, fault))
            else:
                self._waiting[key].append((number, fault))
            if isinstance(fault.do, Replay):
                self._said[key] = []
        for waiting in self._bytes.values():
            waiting.sort(key=lambda one: one[0])

    def begin(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        for _, fault in self._waiting.get(("time",), ()):
            assert isinstance(fault.when, AtTime)
            supervisor.after(fault.when.seconds, self._later(fault))

    # What passes on the line

    async def before(self, passing: Passing) -> None:
        message = passing.message
        if isinstance(message, RamContent) and message.round + 1 > self._counts[("round",)]:
            await self._pass(("round",), None if passing.stream else passing)
        key = ("message", passing.kind, passing.side.value, "before", *way_of(passing.stream))
        due = self._due(key)
        is_recorded = key in self._said
        if isinstance(message, RamContent) and (is_recorded or any(_needs_data(fault) for fault in due)):
            await passing.gather()
        said = passing.data
        for fault in due:
            await self._strike_message(fault, passing, key)
        if is_recorded:
            self._said[key].append((passing.connection.number, said.removeprefix(PREFACE)))

    async def after(self, passing: Passing) -> None:
        await self._pass(("message", passing.kind, passing.side.value, "after", *way_of(passing.stream)), passing)

    def byte_awaited(self, side: Role, stream: int) -> int | None:
        waiting = self._bytes.get((side, stream))
        return waiting[0][0] if waiting and self._may_strike else None

    async def at_byte(self, passing: Passing) -> None:
        _, fault = self._bytes[passing.side, passing.stream].pop(0)
        await self._strike_data(fault, passing)

    # What daemons ask

    async def asked(self, side: Side, at: str, name: str) -> dict[str, Any]:
        moment, _, what = name.partition(" ")
        match at:
            case "phase":
                await self._pass(("phase", name, side))
            case "received":
                message, *way = name.split()
                await self._pass(("message", message, Role(side).peer.value, "received", *way))
            case "point" if what.startswith("write "):
                await self._pass(("write", side, moment))
            case "point" if what == "take":
                await self._pass(("take", side, moment))
        answer: dict[str, Any] = {}
        if side in self._wall_offset_ns:
            answer["wall_offset_ns"] = self._wall_offset_ns[side]
        if at == "point" and moment == "before":
            answer |= self._trouble(side, what)
        if at in ("export", "import") and self._failures[at] > 0 and self._may_strike:
            self._failures[at] -= 1
            answer["fail"] = True
        return answer

    def _trouble(self, side: Side, what: str) -> dict[str, Any]:
        """What becomes of a change of the journal that is about to be made; of a change of the fence, nothing."""
        troubles = self._troubles[side]
        for trouble in DiskTrouble:
            if troubles[trouble] > 0 and self._may_strike and not what.startswith("take"):
                if what.startswith(CHANGES):
                    troubles[trouble] -= 1
                return {"trouble": trouble.value}
        return {}

    # When something strikes

    @property
    def _may_strike(self) -> bool:
        return self._supervisor is not None and not self._supervisor.is_calm

    def _due(self, key: Key) -> list[Fault]:
        if not self._may_strike:
            return []
        self._counts[key] += 1
        return [fault for at, fault in self._waiting.get(key, ()) if at == self._counts[key]]

    async def _pass(self, key: Key, passing: Passing | None = None) -> None:
        for fault in self._due(key):
            await self._strike(fault, None if passing is None else passing.connection)

    def _later(self, fault: Fault) -> Callable[[], Any]:
        return lambda: self._strike(fault, None)

    async def _strike_message(self, fault: Fault, passing: Passing, key: Key) -> None:
        """What becomes of a whole message that is about to go on."""
        message = passing.message
        assert message is not None, "it has been told as one"
        if not isinstance(fault.do, MESSAGE_ACTIONS):
            await self._strike_data(fault, passing)
            return
        number = passing.connection.number
        other = stand_in(fault.do, passing.side, message, passing.data, self._said.get(key, ()), number)
        if other is not None:
            self._note(fault)
            passing.data = other

    async def _strike_data(self, fault: Fault, passing: Passing) -> None:
        """What becomes of data, in which the fault strikes at `passing.offset`."""
        other = altered(fault.do, passing.data, passing.offset)
        if other is not None:
            self._note(fault)
            passing.data = other
            return
        match fault.do:
            case Slice(bytes=size):
                self._note(fault)
                passing.direction.slice_next(piece_bytes(size, passing.data))
            case Truncate(bytes=size):
                self._note(fault)
                await passing.direction.deliver(passing.data[: passing.offset + size])
                await passing.connection.finish()
            case _:
                await passing.go_on_to_offset()
                await self._strike(fault, passing.connection)
                if isinstance(fault.do, Kill) and fault.do.side == passing.side:
                    passing.direction.discard()  # it had not said this yet

    def _note(self, fault: Fault) -> None:
        assert self._supervisor is not None, "the play has begun"
        self.fired.append(fault)
        if self.on_strike is not None:
            self.on_strike(fault)
        self._supervisor.tell(f"fault: {fault_words(fault)}")

    async def _strike(self, fault: Fault, connection: Connection | None) -> None:
        assert self._supervisor is not None, "the play has begun"
        self._note(fault)
        if connection is None:
            connection = self._supervisor.proxy.newest
        if not await self._strike_node(self._supervisor, fault) and connection is not None:
            await self._strike_connection(fault, connection, self._supervisor.daemons.pace)

    async def _strike_node(self, supervisor: Supervisor, fault: Fault) -> bool:
        """Do what does not concern a connection; whether there was something to do."""
        match fault.do:
            case Cut(for_s=for_s):
                supervisor.proxy.cut(for_s * supervisor.daemons.pace)
                supervisor.after(for_s, _nothing)
            case Kill(side=role, restart_s=restart_s):
                side = side_of(role)
                self._hung.discard(side)
                await supervisor.kill(side)
                if restart_s is not None:
                    supervisor.after(restart_s, lambda: supervisor.restart(side))
            case Freeze(side=role, for_s=for_s):
                side = side_of(role)
                supervisor.halt(side)
                supervisor.after(for_s, lambda: self._thaw(supervisor, side))
            case Hang(side=role):
                self._hung.add(side_of(role))
                supervisor.halt(side_of(role))
            case ClockJump(side=role, seconds=seconds):
                self._wall_offset_ns[side_of(role)] += round(seconds * NS_PER_S)
            case DiskFull(side=role, times=times):
                self._troubles[side_of(role)][DiskTrouble.FULL] = times
            case SyncError(side=role, times=times):
                self._troubles[side_of(role)][DiskTrouble.SYNC] = times
            case ExportFailure(times=times):
                self._failures["export"] = times
            case ImportFailure(times=times):
                self._failures["import"] = times
            case _:
                return False
        return True

    async def _thaw(self, supervisor: Supervisor, side: Side) -> None:
        if side not in self._hung:
            await supervisor.go_on(side)

    async def _strike_connection(self, fault: Fault, connection: Connection, pace: float) -> None:
        match fault.do:
            case End():
                await connection.finish()
            case Reset():
                connection.reset()
            case HalfOpen():
                connection.sever()
            case OneWay(side=side):
                connection.directions[side].sever()
            case Stall(side=side, for_s=for_s):
                connection.directions[side].hold(for_s * pace)
            case Throttle(bytes_per_s=rate):
                connection.throttle(rate / pace)
            case Delay(side=side, seconds=seconds):
                connection.directions[side].delay(lambda: seconds * pace)
            case Jitter(side=side, seconds=seconds, seed=seed):
                random = Random(seed)
                connection.directions[side].delay(lambda: random.uniform(0, seconds * pace))
            case _:
                raise AssertionError(f"{name_of(fault.do, ACTIONS)} strikes nothing")


def _needs_data(fault: Fault) -> bool:
    return isinstance(fault.do, (*DATA_ACTIONS, *MESSAGE_ACTIONS))


async def _nothing() -> None:
    """When a cut is over, the proxy knows by itself."""
