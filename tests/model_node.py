"""What one node of the model is, and what it does with a ruling, effect by effect.

The model's stand-in for the executor (`migrate.engine.ownership`) and for a daemon's process: see
`tests.handoff_model` for the world around it, and `tests/test_model_is_the_engine.py` for the proof that an effect is
the same here and there.

An image is *fresh* until the machine runs anywhere, by resume or from its disks, and *stale* ever after: `aged_node`
and `aged_talk` make it so.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple
from uuid import UUID

import attrs

from migrate.engine import handoff
from migrate.engine.handoff import (
    NEVER_HAD,
    Act,
    Alarm,
    Claim,
    Effect,
    Granted,
    Holding,
    Record,
    Ruling,
    Say,
    Settled,
    Take,
    Write,
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

TWO_RUNNERS: Final = "two nodes run the machine"
STALE_IMAGE: Final = "an image is resumed after the machine ran elsewhere"
FLOOR_SANK: Final = "a floor sank"
NUMBER_REUSED: Final = "a generation is used twice"

LAWS: Final = (FLOOR_SANK, NUMBER_REUSED)
"""What is forbidden because of what would come of it: `keeps_laws` is false where that is to be seen."""

NAMES: Final = ("A", "B", "C")
MACHINE: Final = UUID(int=7)


@attrs.frozen(kw_only=True)
class Rules:
    """The rule book, and two things that are not in it: the next number, and what silence means to a source."""

    on_ready: Callable[..., Ruling] = handoff.on_ready
    on_owned: Callable[..., Ruling] = handoff.on_owned
    on_declined: Callable[..., Ruling] = handoff.on_declined
    standing_of: Callable[[Record, int], Standing] = handoff.standing_of
    on_prepare: Callable[..., Ruling] = handoff.on_prepare
    on_commit: Callable[[Record, int, str], Ruling] = handoff.on_commit
    declining: Callable[[Record], Ruling] = handoff.declining
    on_abandon: Callable[[Record, int, str], Ruling] = handoff.on_abandon
    on_gone: Callable[[Record, int, str], Ruling] = handoff.on_gone
    on_released: Callable[[Record, int, str], Ruling] = handoff.on_released
    on_unknown: Callable[[Record, int, str], Ruling] = handoff.on_unknown
    rolling_back: Callable[[Record], Ruling] = handoff.rolling_back
    starting: Callable[[Record], Ruling] = handoff.starting
    reclaiming: Callable[[Record, int], Ruling] = handoff.reclaiming
    on_title_lost: Callable[..., Ruling] = handoff.on_title_lost
    granted: Callable[..., Granted | None] = handoff.granted
    next_number: Callable[[Record, int], int] = lambda record, highest: highest + 1
    on_silence: Callable[[Record], Ruling] = lambda record: ()


THE_RULES: Final = Rules()


class Image(IntEnum):
    NONE = 0
    FRESH = 1
    STALE = 2


class Copy(NamedTuple):
    """Of a journal."""

    record: Record
    highest: int
    debts: tuple[tuple[int, str], ...]
    image: Image


class Node(NamedTuple):
    is_up: bool = True
    record: Record = NEVER_HAD
    highest: int = 0
    used: int = 0
    """The highest generation that was prepared or written here; one that was spent on a vain reclaim was not used."""
    debts: tuple[tuple[int, str], ...] = ()
    image: Image = Image.NONE
    runs: bool = False
    session: int = 0
    image_is_good: bool = True
    serves: bool = False
    """Is the source of a conversation."""
    todo: Ruling = ()
    slot: int = -1
    """Of the conversation that `todo` belongs to; -1 if to none."""
    copy: Copy | None = None


@attrs.frozen
class Asks:
    """A target that comes back."""

    generation: int
    standing: Standing


Message = Prepare | Ready | Commit | Owned | Declined | Released | Gone | Unknown | Abandon | Asks
LAST_WORDS: Final = (Released, Gone, Unknown, Abandon)


class Talk(NamedTuple):
    """A conversation, of which each end may be closed already.  `image` is what came with `Prepare`."""

    source: int
    target: int
    source_is_open: bool = True
    target_is_open: bool = True
    message: Message | None = None
    to_source: bool = False
    preparing: int = 0
    image: Image = Image.NONE


def settle(talk: Talk) -> Talk | None:
    """What is left of a conversation: nothing arrives at a closed end."""
    if talk.message is not None and not (talk.source_is_open if talk.to_source else talk.target_is_open):
        talk = talk._replace(message=None)
    return talk if talk.source_is_open or talk.target_is_open else None


class Done(NamedTuple):
    """What has become of a node that did an effect, of its conversation and of the register."""

    label: str
    node: Node
    talk: Talk | None
    register: Title | None
    broken: str = ""
    runs: bool = False


@attrs.frozen
class Executor:
    """Does effects, for nodes of a world with or without a fence."""

    rules: Rules
    has_fence: bool

    def perform(self, at: int, node: Node, talk: Talk | None, register: Title | None) -> Done:
        """The next effect of the ruling that `node` is at, with the drops and alarms that follow it."""
        done = self.perform_one(at, node, talk, register)
        while done.node.todo and (done.node.todo[0] is Act.DROP or isinstance(done.node.todo[0], Alarm)):
            more = self.perform_one(at, done.node, done.talk, done.register)
            done = more._replace(
                label=f"{done.label}, {more.label}", broken=done.broken or more.broken, runs=done.runs or more.runs
            )
        return done if done.node.todo else done._replace(node=done.node._replace(slot=-1))

    def perform_one(self, at: int, node: Node, talk: Talk | None, register: Title | None) -> Done:
        effect, rest = node.todo[0], node.todo[1:]
        node = node._replace(todo=rest)
        name = NAMES[at]
        match effect:
            case Write():
                return self.write(name, effect, node, talk, register)
            case Say(message):
                node, talk = said(at, node, talk, message)
                return Done(f"{name} says {brief(message)}", node, talk, register)
            case Take(claim):
                return self.take(name, claim, node, talk, register)
            case Act.RUN:
                resumes = node.image is not Image.NONE and node.image_is_good
                broken = STALE_IMAGE if resumes and node.image is Image.STALE else ""
                after = node._replace(runs=True, image=Image.NONE)
                return Done(f"{name} {'resumes' if resumes else 'cold-starts'}", after, talk, register, broken, True)
            case Act.DROP:
                return Done("drops the image", node._replace(image=Image.NONE), talk, register)
            case Act.STOP:
                return Done(f"{name} stops", node._replace(runs=False), talk, register)
            case Alarm():
                return Done("alarm", node, talk, register)
            case Settled(generation, peer):
                debts = tuple(debt for debt in node.debts if debt != (generation, peer))
                return Done(f"{name} owes {peer} nothing for {generation}", node._replace(debts=debts), talk, register)

    def write(self, name: str, effect: Write, node: Node, talk: Talk | None, register: Title | None) -> Done:
        record, before = effect.record, node.record
        if self.has_fence and record.holding in (Holding.OWNER, Holding.COMMITTED):
            record = attrs.evolve(record, session=node.session)
        sinks = record.generation < before.generation or record.owned < before.owned
        debts = set(node.debts) | ({(record.generation, record.peer)} if effect.owes is not None else set())
        image = node.image
        if record.holding is Holding.READY:
            image = Image.NONE if talk is None else talk.image
        after = node._replace(
            record=record,
            highest=max(node.highest, record.generation),
            used=max(node.used, record.generation),
            debts=tuple(sorted(debts)),
            image=image,
        )
        return Done(f"{name} writes {record}", after, talk, register, FLOOR_SANK if sinks else "")

    def take(self, name: str, claim: Claim, node: Node, talk: Talk | None, register: Title | None) -> Done:
        if not self.has_fence:
            return Done(f"{name} goes on", node, talk, register)
        generation = (handoff.writes(node.todo) or node.record).generation
        asking = node.record
        if claim is Claim.RESUME:
            asking = attrs.evolve(asking, session=node.session)
        grant = self.rules.granted(claim, register, asking, node=name, machine=MACHINE, generation=generation)
        if grant is None:
            instead = self.rules.on_title_lost(node.record, register, MACHINE)
            after = node._replace(todo=instead, runs=False)
            return Done(f"{name} finds the register taken ({claim})", after, talk, register)
        after = node._replace(session=grant.title.session, image_is_good=grant.image_is_good)
        return Done(f"{name} takes session {grant.title.session} ({claim})", after, talk, grant.title)


def said(at: int, node: Node, talk: Talk | None, message: Message) -> tuple[Node, Talk | None]:
    """Put a message on its way, if somebody is there to hear it; a last word ends what the speaker has to say."""
    if talk is None:
        return node, None
    is_source = talk.source == at
    if talk.source_is_open if is_source else talk.target_is_open:
        talk = talk._replace(message=message, to_source=not is_source)
        if isinstance(message, LAST_WORDS):
            if is_source:
                return node._replace(serves=False), settle(talk._replace(source_is_open=False))
            talk = talk._replace(target_is_open=False)
    return node, settle(talk)


def aged_node(node: Node) -> Node:
    copy = node.copy
    if copy is not None and copy.image is Image.FRESH:
        copy = copy._replace(image=Image.STALE)
    return node._replace(image=Image.STALE if node.image is Image.FRESH else node.image, copy=copy)


def aged_talk(talk: Talk | None) -> Talk | None:
    if talk is None or talk.image is not Image.FRESH:
        return talk
    return talk._replace(image=Image.STALE)


def brief(message: object) -> str:
    match message:
        case Asks(generation, standing):
            return f"that it {standing} {generation}"
        case _:
            return f"{type(message).__name__}({getattr(message, 'generation', '')})"


def half_done(node: Node) -> str:
    return "" if not node.todo else f", before it {in_words(node.todo[0])}"


def in_words(effect: Effect) -> str:
    match effect:
        case Write(record):
            return f"writes {record}"
        case Say(message):
            return f"says {brief(message)}"
        case Take(claim):
            return f"takes the register ({claim})"
        case Act.RUN:
            return "runs"
        case Act.STOP:
            return "stops"
        case _:
            return "goes on"
