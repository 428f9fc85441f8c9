"""Tries plans: all single faults, all pairs, or random ones; and makes a plan that violates an audit smaller.

Where a fault can strike is found by running: everything that passes in an undisturbed migration is a place for a single
fault, and everything that passes after a fault has struck is a place for the second of a pair.  So a pair whose second
fault could not strike is never run, and places that only come up after a failure, such as a retry or the settling, are
found all the same.

A run is a function of its plan, so a campaign is the list of its plans in a fixed order; what has been done of it is a
number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from random import Random
from typing import Final, Protocol

import attrs

from migrate.engine.ram import MappedRam
from migrate.faults.injection import Injector, Key, trigger_of
from migrate.faults.lies import ways
from migrate.faults.plan import (
    MESSAGE_NAMES,
    ON_STREAMS,
    OPENS_A_STREAM,
    PHASES,
    SENDERS,
    UNTRUTHS_OF,
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
    Duplicate,
    End,
    ExportFailure,
    Fault,
    FlipBit,
    Freeze,
    HalfOpen,
    Hang,
    ImportFailure,
    InPhase,
    Jitter,
    Kill,
    Lie,
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
)
from migrate.protocol.messages import Role
from migrate.simulation.audits import Violation
from migrate.simulation.hooks import Hooks
from migrate.simulation.machines import Foundry, LightMachines
from migrate.simulation.network import ORDERS
from migrate.simulation.storage import SharedStorage
from migrate.simulation.world import World
from sim_vmm.spec import Spec

NODE_ACTIONS: Final[tuple[Action, ...]] = tuple(
    action
    for side in Role
    for action in (
        Kill(side=side),
        Kill(side=side, restart_s=None),
        PowerLoss(side=side),
        Freeze(side=side),
        Hang(side=side),
    )
)
LINK_ACTIONS: Final[tuple[Action, ...]] = (
    Cut(),
    Cut(for_s=1000.0),
    End(),
    Reset(),
    HalfOpen(),
    OneWay(side=Role.SOURCE),
    OneWay(side=Role.TARGET),
    Stall(side=Role.SOURCE),
    Stall(side=Role.TARGET),
    Throttle(),
    *(Delay(side=side) for side in Role),
    *(Jitter(side=side) for side in Role),
)
DATA: Final[tuple[Action, ...]] = (
    *(FlipBit(bit=bit) for bit in (0, 70, 420, -60, -1)),
    Truncate(),
    Slice(),
    Duplicate(),
)
STATE_ACTIONS: Final[tuple[Action, ...]] = (
    ExportFailure(),
    ExportFailure(times=9),
    ImportFailure(),
    ImportFailure(times=9),
    ClockJump(side=Role.SOURCE),
    ClockJump(side=Role.TARGET, seconds=-3600.0),
)
DISK_ACTIONS: Final[tuple[Action, ...]] = tuple(
    action
    for side in Role
    for action in (
        DiskFull(side=side),
        DiskFull(side=side, times=99),
        SyncError(side=side),
        SyncError(side=side, times=3),
    )
)

STORAGE_ACTIONS: Final[tuple[Action, ...]] = tuple(
    StorageOutage(side=side, for_s=for_s) for side in Role for for_s in (30.0, 1000.0)
)

PAIR_ACTIONS: Final[tuple[Action, ...]] = (
    Kill(side=Role.SOURCE),
    Kill(side=Role.TARGET),
    PowerLoss(side=Role.SOURCE),
    PowerLoss(side=Role.TARGET),
    Reset(),
    End(),
)
"""For pairs: what ends a process or a connection.  The rest of the actions are variations, and pairs multiply."""
PAIR_DISK_ACTIONS: Final[tuple[Action, ...]] = (
    *(Kill(side=side) for side in Role),
    *(PowerLoss(side=side) for side in Role),
    *(DiskFull(side=side) for side in Role),
    *(SyncError(side=side, times=3) for side in Role),
    Reset(),
)


SMALL_BATCHES: Final = MappedRam(batch_pages=3)
ABOUT_STREAMS: Final = ("Accept", "Attach", "Failure", "Paused", "RamPages", "RoundEnd", "RoundStored", "Streams")
"""What random plans for several connections strike more often than the rest."""
NO_LIE_BELIEVED: Final = "no lie believed"


@attrs.frozen(kw_only=True)
class Tried:
    """What came of one plan."""

    plan: Plan
    owner: str
    published: tuple[str, ...]
    fired: int
    violations: tuple[Violation, ...]
    passed: tuple[tuple[Key, int], ...] = ()
    said_before: Mapping[tuple[Key, int], bytes] = attrs.field(factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def came(self) -> tuple[object, ...]:
        """All that came of it, but for what was noted on the way."""
        return self.owner, self.published, self.reasons, self.fired, self.violations

    @property
    def outcome(self) -> str:
        """For the counts: who has the machine, and what the target's last word was."""
        last = next((word for word in reversed(self.published) if word.startswith("target")), "target: nothing")
        return f"{self.owner} has it; {last}"


@attrs.frozen(kw_only=True)
class Experiment:
    """The migration that is disturbed; with `fenced`, of a machine whose disks are on shared storage with a fence.

    With more than one of `streams`, RAM goes over so many connections, in so small batches that each carries some of
    every round; `seed` is that of plans that are not drawn, and decides in which order they deliver.
    """

    spec: Spec
    foundry: Foundry = attrs.field(factory=LightMachines)
    fenced: bool = False
    streams: int = 1
    seed: int = 0

    def world(self, hooks: Hooks, *, once_more: bool = False, traced: bool = False) -> World:
        return World(
            spec=self.spec,
            foundry=self.foundry,
            hooks=hooks,
            storage=SharedStorage() if self.fenced else None,
            streams=self.streams,
            ram=MappedRam() if self.streams == 1 else SMALL_BATCHES,
            once_more=once_more,
            traced=traced,
        )

    def run(self, plan: Plan, *, noting: bool = False) -> Tried:
        """With `noting`, also what passed after the last fault."""
        injector = Injector(plan, passed=[] if noting else None)
        with self.world(injector, once_more=True) as world:
            result = world.run()
        return tried_of(plan, injector, result, result.violations)

    def undisturbed(self, seed: int) -> Plan:
        """In which nothing goes wrong; one for all seeds that give the same order of delivery."""
        return Plan(faults=(), seed=seed % ORDERS if self.streams > 1 else 0)

    def trace(self, plan: Plan) -> tuple[str, ...]:
        with self.world(Injector(plan), once_more=True, traced=True) as world:
            return world.run().trace


class Came(Protocol):
    """What came of a run, whole or foreseen."""

    @property
    def owner(self) -> str: ...
    @property
    def published(self) -> tuple[str, ...]: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...


def tried_of(plan: Plan, injector: Injector, came: Came, violations: tuple[Violation, ...] = ()) -> Tried:
    """What came of a plan whose faults `injector` made happen."""
    return Tried(
        plan=plan,
        owner=came.owner,
        published=came.published,
        fired=len(injector.fired),
        violations=(*violations, *_believed(injector.fired, came.published)),
        passed=tuple(injector.passed or ()),
        said_before=dict(injector.said_before),
        reasons=came.reasons,
    )


def _believed(fired: list[Fault], published: tuple[str, ...]) -> Iterator[Violation]:
    """Of a lie that was the one fault somebody must complain; who does not hear the last word asks again instead."""
    match fired:
        case [Fault(when=AtMessage(message=message), do=Lie(what=what))] if message != "Released":
            if all(word.endswith("migrated") for word in published):
                yield Violation(NO_LIE_BELIEVED, f"nobody complains of {what} in the place of {message}")


# Which plans there are


def faults_at(key: Key, number: int) -> Iterator[Fault]:
    """Every single fault that can strike where this passes."""
    trigger = trigger_of(key, number)
    for action in _actions_at(trigger):
        yield Fault(when=trigger, do=action)


def _actions_at(trigger: Trigger) -> Iterable[Action]:
    match trigger:
        case AtMessage(moment=Moment.BEFORE):
            return chain(LINK_ACTIONS, NODE_ACTIONS, DATA, _lies_at(trigger))
        case AtMessage():
            return chain(LINK_ACTIONS, NODE_ACTIONS)
        case AtWrite(moment=Moment.BEFORE):
            return chain(NODE_ACTIONS, DISK_ACTIONS, (Cut(), Reset()))
        case AtWrite():
            return chain(NODE_ACTIONS, (Cut(), Reset()))
        case AtTake():
            return chain(NODE_ACTIONS, DISK_ACTIONS, STORAGE_ACTIONS, (Cut(), Cut(for_s=1000.0), Reset()))
        case InPhase():
            return chain(NODE_ACTIONS, DISK_ACTIONS, STATE_ACTIONS)
        case _:
            return ()


def _lies_at(trigger: AtMessage) -> Iterator[Action]:
    for what, names in UNTRUTHS_OF.items():
        if trigger.message in names:
            for way in range(ways(what, trigger.message, trigger.side)):
                yield Lie(what=what, way=way)


@cache
def pair_faults_at(key: Key, number: int) -> tuple[Fault, ...]:
    """The faults that pairs are made of: at what is said, received and written."""
    trigger = trigger_of(key, number)
    match trigger:
        case AtWrite(moment=Moment.BEFORE):
            actions = PAIR_DISK_ACTIONS
        case AtMessage(moment=Moment.BEFORE | Moment.RECEIVED) | AtWrite():
            actions = PAIR_ACTIONS
        case AtTake():
            actions = (*PAIR_DISK_ACTIONS, *STORAGE_ACTIONS[::2])
        case _:
            actions = ()
    return tuple(Fault(when=trigger, do=action) for action in actions)


def single_plans(experiment: Experiment) -> Iterator[Plan]:
    passed = experiment.run(experiment.undisturbed(experiment.seed), noting=True).passed
    for key, number in passed:
        for fault in faults_at(key, number):
            yield Plan(faults=(fault,), seed=experiment.seed)


def first_faults(experiment: Experiment) -> list[Fault]:
    """The first faults of all pairs."""
    passed = experiment.run(experiment.undisturbed(experiment.seed), noting=True).passed
    return [fault for key, number in passed for fault in pair_faults_at(key, number)]


def pairs_after(experiment: Experiment, first: Fault) -> Iterator[Plan]:
    """All pairs that begin with this fault."""
    for second in seconds_after(experiment.run(Plan(faults=(first,), seed=experiment.seed), noting=True)):
        yield Plan(faults=(first, second), seed=experiment.seed)


def seconds_after(tried: Tried) -> Iterator[Fault]:
    """The second faults of all pairs that begin with the one that was tried: they strike what passes after it."""
    for key, number in tried.passed:
        yield from pair_faults_at(key, number)
        if (key, number) in tried.said_before:
            yield Fault(when=trigger_of(key, number), do=Replay())


def random_plan(seed: int, streams: int = 1) -> Plan:
    """Up to five faults at places and of kinds that follow from `seed` alone; `streams` are how many connections."""
    random = Random(seed)
    faults: list[Fault] = []
    count = random.randint(1, 5)
    while len(faults) < count:
        trigger = _random_trigger(random, streams)
        actions = list(_actions_at(trigger)) or [
            *LINK_ACTIONS,
            *NODE_ACTIONS,
            *DISK_ACTIONS,
            *STATE_ACTIONS,
            *STORAGE_ACTIONS,
        ]
        if isinstance(trigger, AtByte):
            actions = [*LINK_ACTIONS, *DATA]
        if isinstance(trigger, AtMessage) and trigger.moment is Moment.BEFORE:
            lies = [action for action in actions if isinstance(action, Lie)]
            actions = [
                *(action for action in actions if not isinstance(action, Lie)),
                *random.sample(lies, 4),
                Replay(),
            ]
        action = random.choice(actions)
        if isinstance(action, FlipBit):
            action = FlipBit(bit=random.randrange(1 << 20))
        faults.append(Fault(when=trigger, do=action))
    return Plan(faults=tuple(faults), seed=seed)


def _random_trigger(random: Random, streams: int) -> Trigger:
    side = random.choice(list(Role))
    match random.randrange(5):
        case 0 | 1:
            message = random.choice(MESSAGE_NAMES if streams == 1 or random.random() < 0.5 else ABOUT_STREAMS)
            return AtMessage(
                message=message,
                side=Role(random.choice(SENDERS[message])),
                number=random.choice((1, 1, 1, 2, 3)),
                moment=random.choice(list(Moment)),
                stream=_random_stream(random, message, streams),
            )
        case 2:
            moment = random.choice((Moment.BEFORE, Moment.AFTER))
            kind = random.choice((AtWrite, AtWrite, AtTake))
            return kind(side=side, number=random.choice((1, 1, 2, 3)), moment=moment)
        case 3:
            if random.random() < 0.5:
                byte = random.randint(1, 160_000 if side is Role.SOURCE else 800)
                return AtByte(side=side, byte=byte, stream=0 if streams == 1 else random.randrange(streams))
            return InPhase(phase=random.choice(PHASES), side=side, number=random.choice((1, 1, 2)))
        case _:
            return AtTime(seconds=round(random.random() * random.choice((0.006, 0.006, 5.0)), 6))


def _random_stream(random: Random, message: str, streams: int) -> int:
    least = 1 if message == OPENS_A_STREAM else 0
    return random.randrange(least, streams) if streams > 1 and message in ON_STREAMS else least


# Making a plan smaller


def shrink(plan: Plan, violates: Callable[[Plan], bool]) -> Plan:
    """The smallest plan found that still violates: without a fault, or with a plainer one in its place."""
    shrunk = True
    while shrunk:
        shrunk = False
        for smaller in _smaller(plan):
            if violates(smaller):
                plan, shrunk = smaller, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    for index in range(len(plan.faults)):
        yield attrs.evolve(plan, faults=plan.faults[:index] + plan.faults[index + 1 :])
    for index, fault in enumerate(plan.faults):
        for plainer in _plainer(fault):
            yield attrs.evolve(plan, faults=(*plan.faults[:index], plainer, *plan.faults[index + 1 :]))


PLAINER: Final[tuple[type[Action], ...]] = (Reset, End, HalfOpen, Cut, Kill, PowerLoss, Freeze)
"""From the plainest on: what strikes is replaced by something that stands before it here, if that violates too."""


def _plainer(fault: Fault) -> Iterator[Fault]:
    kind = type(fault.do)
    rank = PLAINER.index(kind) if kind in PLAINER else len(PLAINER)
    if rank > 0:
        yield Fault(when=fault.when, do=Reset())
    if rank > PLAINER.index(Kill):
        yield from (Fault(when=fault.when, do=Kill(side=side)) for side in Role)
    if isinstance(fault.do, Kill | PowerLoss) and fault.do.restart_s is None:
        yield Fault(when=fault.when, do=attrs.evolve(fault.do, restart_s=1.0))
