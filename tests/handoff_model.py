"""Nodes that migrate one machine among them by the rule book, where whatever can go wrong does.

The functions of `migrate.engine.handoff` are called as they are (`Rules` names them, so that a test can put a mistaken
one in).  Here is what stands around them in the engine, as small as it can be:

- A node does the effects of a ruling one by one, and can die between any two.  Its record, its debts, the numbers that
  it spent, and the image of a `C` or an `R` are durable; that it runs, or prepares, or has a ruling half done is not.
- Two nodes have one conversation at a time, with one message in flight.  It can be cut, which loses the message.  Each
  end can also give up on its own, or die, and what it had said still arrives.
- A source gives up an attempt whenever it likes before `C`; a target declines whenever it likes while it holds `R`.
- A target asks again, and tells what it owes; a source that gave the machine away may say so again.
- With a fence every start and resume takes the register, and a source may take back what it gave away.  One that ends
  an attempt while the storage cannot be reached goes on in the session that it was paused in.

An image is *fresh* until the machine runs anywhere, by resume or from its disks, and *stale* ever after.

Merged into one move, since no death in between could be told from one before or after: the receipt of a message with
the first effect of its ruling; an effect with the drop of an image or an alarm that follows it; a spent number with the
pause.

What may not happen: see `TWO_RUNNERS` and those below it.  All is well when one node runs the machine, no other holds
anything of it, and nothing is left to say.

A journal may also be lost (`forgets`), or replaced by a copy of itself (`saves`, `restores`).  The rules promise that
nothing unsafe comes of a lost one, and with a fence of an older one; nobody promises that the machine survives either.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

import attrs

from migrate.engine import handoff
from migrate.engine.handoff import (
    Holding,
    Record,
    Ruling,
    Say,
    taken_already,
)
from migrate.protocol.messages import (
    Abandon,
    Commit,
    Declined,
    Gone,
    Owned,
    Prepare,
    Ready,
    Released,
    Standing,
    Unknown,
)
from sim_vmm.fence import Title
from tests.model_check import Interned, Move, State
from tests.model_node import (
    LAWS,
    MACHINE,
    NAMES,
    NUMBER_REUSED,
    THE_RULES,
    TWO_RUNNERS,
    Asks,
    Copy,
    Done,
    Executor,
    Image,
    Node,
    Rules,
    Talk,
    aged_node,
    aged_talk,
    brief,
    half_done,
    settle,
)


@attrs.frozen(kw_only=True)
class Bounds:
    """How often what may happen.  `losses` are cuts, and ends that give up on their own; `outages` the storage's."""

    migrations: int = 2
    crashes: int = 0
    losses: int = 0
    reclaims: int = 0
    outages: int = 0
    forgets: int = 0
    saves: int = 0
    restores: int = 0


class Budget(IntEnum):
    """Where a bound stands in the number that counts them all."""

    FREE = -1
    MIGRATIONS = 0
    CRASHES = 4
    LOSSES = 8
    RECLAIMS = 12
    FORGETS = 16
    SAVES = 20
    RESTORES = 24
    OUTAGES = 28


NO_TALK: Final = 0
"""The number of None among the talks."""


class Step(NamedTuple):
    """A move of a node or of two, as long as the others do not matter."""

    label: str
    changes: tuple[tuple[int, int], ...]
    """Positions in the state, and the numbers that stand there afterwards."""
    costs: Budget = Budget.FREE
    is_fair: bool = True
    broken: str = ""
    runner: int = -1
    spends: int = 0


class Nodes:
    """A world (`tests.model_check`) of 2 or 3 nodes; the machine is born at A."""

    def __init__(
        self,
        count: int,
        bounds: Bounds,
        *,
        has_fence: bool = False,
        rules: Rules = THE_RULES,
        keeps_laws: bool = True,
        link_heals: bool = True,
    ) -> None:
        """Without `link_heals` nobody may hope for another conversation, and only for one node that runs."""
        self.count, self.bounds, self.has_fence, self.rules = count, bounds, has_fence, rules
        self.keeps_laws, self.link_heals = keeps_laws, link_heals
        self.executor = Executor(rules, has_fence)
        self.is_tampered = bounds.restores > 0 or bounds.forgets > 0
        self.pairs = [(one, other) for one in range(count) for other in range(one + 1, count)]
        self.first_talk = count
        self.register_at = count + len(self.pairs)
        self.budget_at = self.register_at + 1
        self.nodes: Interned[Node] = Interned()
        self.talks: Interned[Talk | None] = Interned()
        self.registers: Interned[Title | None] = Interned()
        assert self.talks.number(None) == NO_TALK
        self._alone: dict[tuple[int, int, int], list[Step]] = {}
        self._together: dict[tuple[int, int, int, int, int], list[Step]] = {}
        self._aged: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._crashed: dict[tuple[int, int], int] = {}

    # The search asks

    def initial(self) -> State:
        register = Title(session=1, generation=1, machine=MACHINE, owner="A") if self.has_fence else None
        session = int(self.has_fence)
        owner = Node(record=Record(Holding.OWNER, 1, session=session), highest=1, used=1, runs=True, session=session)
        nodes = [self.nodes.number(owner), *[self.nodes.number(Node())] * (self.count - 1)]
        budget = sum(getattr(self.bounds, kind.name.lower()) << kind for kind in Budget if kind >= 0)
        return (*nodes, *[NO_TALK] * len(self.pairs), self.registers.number(register), budget)

    def is_well(self, state: State) -> bool:
        if not self.link_heals:
            return sum(self.nodes.values[number].runs for number in state[: self.count]) == 1
        if any(state[self.first_talk : self.register_at]):
            return False
        nodes = [self.nodes.values[number] for number in state[: self.count]]
        if any(not node.is_up or node.todo or node.debts for node in nodes):
            return False
        holdings = sorted(node.record.holding for node in nodes)
        return holdings == [*[Holding.NOT_OWNER] * (self.count - 1), Holding.OWNER] and [
            node.record.holding for node in nodes if node.runs
        ] == [Holding.OWNER]

    def may_hope(self, state: State) -> bool:
        return self.link_heals or state[self.budget_at] >> Budget.RECLAIMS & 15 > 0

    def moves(self, state: State) -> Iterator[Move]:
        register, budget = state[self.register_at], state[self.budget_at]
        for at in range(self.count):
            key = (at, state[at], register)
            steps = self._alone.get(key)
            if steps is None:
                steps = self._alone[key] = list(self.steps_alone(*key))
            for step in steps:
                if step.costs < 0 or budget >> step.costs & 15:
                    yield self.apply(state, step)
            if budget >> Budget.CRASHES & 15 and self.nodes.values[state[at]].is_up:
                yield self.crash(state, at)
        for slot, (one, other) in enumerate(self.pairs):
            both = (slot, state[self.first_talk + slot], state[one], state[other], register)
            steps = self._together.get(both)
            if steps is None:
                steps = self._together[both] = list(self.steps_together(*both))
            for step in steps:
                if step.costs < 0 or budget >> step.costs & 15:
                    yield self.apply(state, step)

    # A step in the whole world

    def apply(self, state: State, step: Step) -> Move:
        after = list(state)
        for position, number in step.changes:
            after[position] = number
        if step.costs >= 0:
            after[self.budget_at] -= 1 << step.costs
        broken = step.broken
        if broken in LAWS and not self.keeps_laws:
            broken = ""
        if step.spends and self.keeps_laws and not self.is_tampered:
            used = max(self.nodes.values[state[at]].used for at in range(self.count))
            broken = broken or (NUMBER_REUSED if step.spends <= used else "")
        if step.runner >= 0:
            broken = self.let_run(after, step.runner) or broken
        return Move(step.label, tuple(after), step.is_fair, broken)

    def let_run(self, after: list[int], runner: int) -> str:
        """Every image is stale from now on.  A machine that the fence shuts out counts only if nobody tampered."""
        register = self.registers.values[after[self.register_at]]
        if not self.is_effective(self.nodes.values[after[runner]], register):
            return ""
        others = (self.nodes.values[after[at]] for at in range(self.count) if at != runner)
        if any(other.runs and self.is_effective(other, register) for other in others):
            return TWO_RUNNERS
        nodes, talks = self._aged
        for at in range(self.count):
            number = nodes.get(after[at])
            if number is None:
                number = nodes[after[at]] = self.nodes.number(aged_node(self.nodes.values[after[at]]))
            after[at] = number
        for at in range(self.first_talk, self.register_at):
            number = talks.get(after[at])
            if number is None:
                number = talks[after[at]] = self.talks.number(aged_talk(self.talks.values[after[at]]))
            after[at] = number
        return ""

    def is_effective(self, node: Node, register: Title | None) -> bool:
        return not (self.has_fence and self.is_tampered) or (register is not None and node.session == register.session)

    def crash(self, state: State, at: int) -> Move:
        """What a node said before still arrives."""
        after = list(state)
        node = self.nodes.values[state[at]]
        keeps = node.record.holding in (Holding.COMMITTED, Holding.READY)
        left = Node(
            is_up=False,
            record=node.record,
            highest=node.highest,
            used=node.used,
            debts=node.debts,
            image=node.image if keeps else Image.NONE,
            copy=node.copy,
        )
        after[at] = self.nodes.number(left)
        for slot, pair in enumerate(self.pairs):
            position = self.first_talk + slot
            if at in pair and state[position] != NO_TALK:
                key = (at, state[position])
                number = self._crashed.get(key)
                if number is None:
                    talk = self.talks.values[state[position]]
                    assert talk is not None
                    open_still = talk._replace(source_is_open=False, preparing=0)
                    if talk.target == at:
                        open_still = talk._replace(target_is_open=False)
                    number = self._crashed[key] = self.talks.number(settle(open_still))
                after[position] = number
        after[self.budget_at] -= 1 << Budget.CRASHES
        return Move(f"{NAMES[at]} dies as {node.record}{half_done(node)}", tuple(after), is_fair=False)

    # What a node does by itself

    def steps_alone(self, at: int, number: int, register_number: int) -> Iterator[Step]:
        node, register = self.nodes.values[number], self.registers.values[register_number]
        name, record = NAMES[at], node.record
        if not node.is_up:
            todo = self.rules.starting(record) if record.holding is Holding.OWNER else self.silence(record)
            risen = node._replace(is_up=True, todo=todo)
            yield self.begun(at, f"{name} starts again as {record}", risen, register)
            lost = Node(is_up=False, used=node.used, copy=node.copy)
            yield Step(
                f"the journal of {name}, {record}, is lost",
                ((at, self.nodes.number(lost)),),
                Budget.FORGETS,
                is_fair=False,
            )
            if node.copy is not None:
                restored = node._replace(**node.copy._asdict(), copy=None)
                label = f"the journal of {name}, {record}, is replaced by an older one, {restored.record}"
                yield Step(label, ((at, self.nodes.number(restored)),), Budget.RESTORES, is_fair=False)
            return
        if node.todo:
            if node.slot < 0:
                yield self.step_of(at, self.executor.perform(at, node, None, register))
            return
        if record.holding is Holding.READY:
            if self.has_fence and taken_already(record, register, node=name, machine=MACHINE):
                todo = self.rules.on_commit(record, record.generation, record.peer)
                yield self.begun(at, f"{name} finds that it has taken {record}", node._replace(todo=todo), register)
            else:  # whoever has taken the register does not decline any more
                todo = self.rules.declining(record)
                step = self.begun(at, f"{name} declines {record}", node._replace(todo=todo), register)
                yield step._replace(is_fair=False)
        if self.has_fence and record.holding is Holding.COMMITTED and not node.serves:
            spent = self.rules.next_number(record, node.highest)
            claiming = node._replace(highest=spent, todo=self.rules.reclaiming(record, spent))
            step = self.begun(at, f"{name} reclaims {record}", claiming, register)
            is_taken = (self.register_at, register_number) not in step.changes
            yield step._replace(costs=Budget.RECLAIMS, is_fair=not self.link_heals, spends=spent if is_taken else 0)
        if self.has_fence and node.runs and register is not None and node.session != register.session:
            todo = self.rules.on_title_lost(record, register, MACHINE)
            yield self.begun(at, f"{name} is fenced off", node._replace(todo=todo, runs=False), register)
        if node.copy is None:
            keeps = record.holding in (Holding.COMMITTED, Holding.READY)
            copy = Copy(record, node.highest, node.debts, node.image if keeps else Image.NONE)
            label = f"the journal of {name}, {record}, is copied"
            yield Step(label, ((at, self.nodes.number(node._replace(copy=copy))),), Budget.SAVES, is_fair=False)

    def silence(self, record: Record) -> Ruling:
        return self.rules.on_silence(record) if record.holding is Holding.COMMITTED else ()

    def begun(self, at: int, label: str, node: Node, register: Title | None) -> Step:
        """A ruling outside of a conversation, up to its first effect."""
        node = node._replace(slot=-1)
        if not node.todo:
            return Step(label, ((at, self.nodes.number(node)),))
        done = self.executor.perform(at, node, None, register)
        return self.step_of(at, done._replace(label=f"{label}: {done.label}"))

    def step_of(self, at: int, done: Done) -> Step:
        changes = ((at, self.nodes.number(done.node)), (self.register_at, self.registers.number(done.register)))
        return Step(done.label, changes, broken=done.broken, runner=at if done.runs else -1)

    # What two nodes do

    def steps_together(self, slot: int, talk: int, one: int, other: int, register: int) -> Iterator[Step]:
        now = self.talks.values[talk]
        pair = _Pair(self, slot, self.nodes.values[one], self.nodes.values[other], self.registers.values[register])
        yield from pair.goes_on(now)
        if now is None:
            yield from (step._replace(is_fair=step.is_fair and self.link_heals) for step in pair.openings())
        else:
            yield from pair.of_talk(now)


class _Pair:
    """Two nodes, which are up to something together."""

    def __init__(self, world: Nodes, slot: int, one: Node, other: Node, register: Title | None) -> None:
        self.world, self.rules, self.slot, self.register = world, world.rules, slot, register
        self.ends = dict(zip(world.pairs[slot], (one, other), strict=True))

    def step(self, label: str, talk: Talk | None, nodes: dict[int, Node], **more: object) -> Step:
        world = self.world
        left = None if talk is None else settle(talk)
        changes = [(at, world.nodes.number(node)) for at, node in nodes.items()]
        changes.append((world.first_talk + self.slot, world.talks.number(left)))
        return Step(label, tuple(changes), **more)  # type: ignore[arg-type]

    def begin(self, label: str, at: int, node: Node, todo: Ruling, talk: Talk | None, **more: object) -> Step:
        """A ruling up to its first effect."""
        node = node._replace(todo=todo, slot=self.slot)
        if not todo:
            return self.step(label, talk, {at: node._replace(slot=-1)}, **more)
        done = self.world.executor.perform(at, node, talk, self.register)
        step = self.step(f"{label}: {done.label}", done.talk, {at: done.node}, **more)
        register = (self.world.register_at, self.world.registers.number(done.register))
        return step._replace(
            changes=(*step.changes, register), broken=done.broken, runner=at if done.runs else step.runner
        )

    def openings(self) -> Iterator[Step]:
        for source_at, target_at in (tuple(self.ends), tuple(reversed(self.ends))):
            source, target = self.ends[source_at], self.ends[target_at]
            if source.todo or target.todo or not source.is_up or not target.is_up or source.serves:
                continue
            talk = Talk(source_at, target_at)
            serving = source._replace(serves=True)
            s, t = NAMES[source_at], NAMES[target_at]
            if source.runs and source.record.holding is Holding.OWNER and target.record.holding is not Holding.OWNER:
                number = self.rules.next_number(source.record, source.highest)
                paused = serving._replace(runs=False, image=Image.FRESH, highest=number, used=number)
                prepare = talk._replace(message=Prepare(generation=number), preparing=number, image=Image.FRESH)
                yield self.step(
                    f"{s} pauses and says Prepare({number}) to {t}",
                    prepare,
                    {source_at: paused},
                    costs=Budget.MIGRATIONS,
                    is_fair=False,
                    spends=number,
                )
            record = source.record
            if record.holding is Holding.COMMITTED and record.peer == t:
                reminder = talk._replace(message=Commit(generation=record.generation))
                yield self.step(f"{s} says {brief(reminder.message)} to {t} again", reminder, {source_at: serving})
            for asks in self.questions(target, s):
                label = f"{t} tells {s} that it {asks.standing} {asks.generation}"
                yield self.step(label, talk._replace(message=asks, to_source=True), {source_at: serving})

    def questions(self, target: Node, source: str) -> Iterator[Asks]:
        record = target.record
        if record.holding is Holding.READY and record.peer == source:
            yield Asks(record.generation, Standing.HOLDS)
        for generation, peer in target.debts:
            if peer == source:
                yield Asks(generation, self.rules.standing_of(record, generation))

    def goes_on(self, talk: Talk | None) -> Iterator[Step]:
        """With rulings that were begun in this conversation, even if it has ended since."""
        for at, node in self.ends.items():
            if node.is_up and node.todo and node.slot == self.slot:
                done = self.world.executor.perform(at, node, talk, self.register)
                step = self.step(done.label, done.talk, {at: done.node})
                register = (self.world.register_at, self.world.registers.number(done.register))
                yield step._replace(
                    changes=(*step.changes, register), broken=done.broken, runner=at if done.runs else -1
                )

    def of_talk(self, talk: Talk) -> Iterator[Step]:
        yield from self.ends_closing(talk)
        if talk.message is not None:
            receiver = self.ends[talk.source if talk.to_source else talk.target]
            if receiver.is_up and not receiver.todo:
                yield from self.to_source(talk) if talk.to_source else self.to_target(talk)

    def ends_closing(self, talk: Talk) -> Iterator[Step]:
        """Cuts, ends that give up, and ends that notice that the other is gone."""
        source, target = self.ends[talk.source], self.ends[talk.target]
        s, t = NAMES[talk.source], NAMES[talk.target]
        if talk.source_is_open and talk.target_is_open:
            dead = talk._replace(message=None, target_is_open=False)
            yield self.step(f"the link of {s} and {t} is cut", dead, {}, costs=Budget.LOSSES, is_fair=False)
        if talk.source_is_open and not source.todo:
            closed = talk._replace(source_is_open=False, preparing=0)
            free = source._replace(serves=False)
            undone = self.undone(talk, source)
            if not talk.target_is_open:
                if not talk.to_source or talk.message is None:
                    yield self.begin(f"{s} sees the link fail", talk.source, free, undone, closed)
            else:
                yield self.begin(
                    f"{s} gives up on {t}", talk.source, free, undone, closed, costs=Budget.LOSSES, is_fair=False
                )
                if self.world.has_fence and talk.preparing and undone:
                    unasked = free._replace(image_is_good=True)
                    yield self.begin(
                        f"{s} gives up on {t} in an outage",
                        talk.source,
                        unasked,
                        undone[1:],
                        closed,
                        costs=Budget.OUTAGES,
                        is_fair=False,
                    )
                if talk.preparing:
                    aloud = (*undone, Say(Abandon(generation=talk.preparing)))
                    open_still = talk._replace(preparing=0)
                    yield self.begin(
                        f"{s} ends the attempt",
                        talk.source,
                        source,
                        aloud,
                        open_still,
                        costs=Budget.LOSSES,
                        is_fair=False,
                    )
        if talk.target_is_open and not target.todo:
            closed = talk._replace(target_is_open=False)
            if talk.source_is_open:
                yield self.step(f"{t} gives up on {s}", closed, {}, costs=Budget.LOSSES, is_fair=False)
            elif talk.message is None:
                yield self.step(f"{t} sees the link fail", closed, {})

    def undone(self, talk: Talk, source: Node) -> Ruling:
        if talk.preparing and source.record.holding is Holding.OWNER:
            return self.rules.rolling_back(source.record)
        return self.world.silence(source.record)

    def to_source(self, talk: Talk) -> Iterator[Step]:
        at, node, sender = talk.source, self.ends[talk.source], NAMES[talk.target]
        record, message, preparing = node.record, talk.message, talk.preparing or None
        talk = talk._replace(message=None, preparing=0)
        match message:
            case Ready(generation=generation):
                todo = self.rules.on_ready(record, generation, sender, preparing=preparing, highest=node.highest)
            case Asks(generation, standing):
                todo = self.answer(node, standing, generation, sender)
            case Owned(generation=generation):
                todo = self.rules.on_owned(record, generation, sender)
            case Declined(generation=generation):
                todo = self.rules.on_declined(record, generation, sender)
            case Unknown(generation=generation):
                todo = self.rules.on_unknown(record, generation, sender)
                talk, node = talk._replace(source_is_open=False), node._replace(serves=False)
            case _:
                raise AssertionError(f"no {message} comes to a source")
        yield self.begin(f"{NAMES[at]} hears {brief(message)}", at, node, todo, talk)

    def answer(self, node: Node, standing: Standing, generation: int, sender: str) -> Ruling:
        match standing:
            case Standing.HOLDS:
                return self.rules.on_ready(node.record, generation, sender, preparing=None, highest=node.highest)
            case Standing.OWNS:
                return self.rules.on_owned(node.record, generation, sender)
            case Standing.PASSED_ON:
                return self.rules.on_owned(node.record, generation, sender, runs=False)
            case Standing.DECLINED:
                return self.rules.on_declined(node.record, generation, sender)

    def to_target(self, talk: Talk) -> Iterator[Step]:
        at, node, sender = talk.target, self.ends[talk.target], NAMES[talk.source]
        record, message = node.record, talk.message
        talk = talk._replace(message=None)
        label = f"{NAMES[at]} hears {brief(message)}"
        over = talk._replace(target_is_open=False)
        match message:
            case Prepare(generation=generation):
                session = 0 if self.register is None else self.register.session
                todo = self.rules.on_prepare(record, generation, sender, session)
                if handoff.writes(todo) is None:
                    yield self.step(f"{label} and refuses it", over, {})
                else:
                    yield self.begin(label, at, node, todo, talk)
            case Commit(generation=generation):
                yield self.begin(label, at, node, self.rules.on_commit(record, generation, sender), talk)
                is_taken = taken_already(record, self.register, node=NAMES[at], machine=MACHINE)
                if record.holding is Holding.READY and record.generation == generation and not is_taken:
                    declined = self.begin(label, at, node, self.rules.declining(record), talk)
                    yield declined._replace(is_fair=False)
            case Released(generation=generation):
                yield self.begin(label, at, node, self.rules.on_released(record, generation, sender), over)
            case Abandon(generation=generation):
                yield self.begin(label, at, node, self.rules.on_abandon(record, generation, sender), over)
            case Gone(generation=generation):
                yield self.begin(label, at, node, self.rules.on_gone(record, generation, sender), over)
            case Unknown(generation=generation):
                yield self.begin(label, at, node, self.rules.on_unknown(record, generation, sender), over)
            case _:
                raise AssertionError(f"no {message} comes to a target")
