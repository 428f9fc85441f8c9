"""Who may run the machine: the rule book of ownership.  Pure: no I/O, and nothing else decides.

Each node keeps one durable record for a machine, and answers from it alone:

    O(n)   owns generation n, and runs it
    C(n)   source: gave generation n away; must not run; keeps the paused machine
    R(n)   target: holds the complete image of generation n; must not run
    N(n)   not the owner; every generation up to n is dead here for ever

Ownership moves in one step.  The source writes `C(n)`, which gives generation n away, and only then says Commit(n); the
target writes `O(n)` and only then runs.  Before `C(n)` only the source may run; after it, only the target's choice
counts: `O(n)`, or `N(n)` and Declined.  So a source that is told nothing stays paused, and one that is told "I do not
know" does too.

A ruling is a row of effects that are carried out in this very order (`migrate.engine.ownership`), so that what must be
durable before something is said, or before the machine runs, stands before it here, in sight.

Generations strictly increase and are never reused.  A record also knows the highest generation that its node ever
*owned*: a node that passed the machine on holds `N(m)`, and must not tell the giver of an earlier generation that it
declined it.  (Without that, a chain of three nodes forks: the first still holds `C(n)`, the second owned n and passed
n+1 on to the third; `N(n+1)` alone would read as a refusal of n.)

What a target must still tell its source is a debt: it is written with the record, survives restarts, and is told over
and over until it is acknowledged.  A debt outlives the record: the machine may move on meanwhile.

Messages between two nodes carry the machine, the generation and both nodes.  A node that is "" is unknown, as in the
first form of the settling conversation, and is taken at its word.

Where the machine's disks are on shared storage, the register there is a second line of defence, for journals that were
lost or went backwards: see `granted`.
"""

from enum import StrEnum
from typing import Final
from uuid import UUID

import attrs

from migrate.protocol.messages import Abandon, Commit, Declined, Gone, Owned, Ready, Released, Standing, Unknown
from sim_vmm.fence import Title


class Holding(StrEnum):
    """What a node has of the machine."""

    OWNER = "O"
    """Owns generation n: runs it."""
    COMMITTED = "C"
    """Source: gave generation n away; must not run; keeps the paused machine."""
    READY = "R"
    """Target: holds the complete image of generation n; must not run."""
    NOT_OWNER = "N"
    """Not the owner; every generation up to n is dead here for ever."""


def _owned_by_default(record: "Record") -> int:
    return record.generation if record.holding is Holding.OWNER else 0


@attrs.frozen
class Record:
    """One node's record for one machine.

    `peer` is the other node of the last handoff: of `C(n)` the target, of `R(n)` the source; "" if there was none.
    `owned` is the highest generation that this node ever owned.  `session` is the one of the storage's register that
    the machine ran in, or that the image was made in; 0 without a fence.
    """

    holding: Holding
    generation: int
    peer: str = ""
    owned: int = attrs.field(default=attrs.Factory(_owned_by_default, takes_self=True))
    session: int = 0

    def __str__(self) -> str:
        return f"{self.holding}({self.generation})"


NEVER_HAD: Final = Record(Holding.NOT_OWNER, 0)
"""A node that knows nothing of the machine: no evidence of anything."""


# What may be done about it


class Claim(StrEnum):
    """On what ground a node takes the register of the storage: see `granted`."""

    BIRTH = "birth"
    COLD_START = "cold start"
    RESUME = "resume"
    TAKE_OVER = "take over"
    REFUSED = "refused"
    RECLAIM = "reclaim"
    FORCE = "force"


@attrs.frozen
class Write:
    """The record must be durable before the next effect; with it, what the peer must be told until it has heard."""

    record: Record
    owes: Owned | Declined | None = None


@attrs.frozen
class Say:
    message: Ready | Commit | Abandon | Owned | Declined | Released | Gone | Unknown


@attrs.frozen
class Take:
    """Take the storage's register, if the machine has one; nothing that follows happens if it is somebody else's."""

    claim: Claim


@attrs.frozen
class Alarm:
    """The journals contradict each other: a person must look."""

    text: str


class Act(StrEnum):
    RUN = "run"
    """Let the machine run here: from the image, or from its disks where `granted` says that the image is used."""
    DROP = "drop"
    """The image or the paused machine is of no more use here."""
    STOP = "stop"
    """The machine that runs here is stopped for good: it has been running elsewhere since."""


@attrs.frozen
class Settled:
    """The peer has noted what it was told of `generation`: nothing is owed to it for that any more."""

    generation: int
    peer: str


Effect = Write | Say | Take | Alarm | Act | Settled
Ruling = tuple[Effect, ...]

NOTHING: Final[Ruling] = ()


def writes(ruling: Ruling) -> Record | None:
    """The record that the ruling writes; None if it leaves the old one."""
    return next((effect.record for effect in ruling if isinstance(effect, Write)), None)


def _same(node: str, other: str) -> bool:
    return not node or not other or node == other


def _not_owner(record: Record, generation: int, peer: str) -> Record:
    """`N(n)`: a floor never sinks; who does not say its name does not wipe out one that is known."""
    floor = max(generation, record.generation)
    peer = peer or (record.peer if generation == record.generation else "")
    return Record(Holding.NOT_OWNER, floor, peer=peer, owned=record.owned, session=record.session)


# The source: what it answers


def on_ready(record: Record, generation: int, sender: str, *, preparing: int | None, highest: int) -> Ruling:
    """`sender` holds the complete image of `generation` and will not run it unasked.

    `preparing` is the generation that this very conversation prepared, None when an earlier one is settled.  `highest`
    is the highest generation that was ever used here.
    """
    holding, here = record.holding, record.generation
    if holding is Holding.OWNER:
        if preparing == generation > here:
            given = attrs.evolve(record, holding=Holding.COMMITTED, generation=generation, peer=sender)
            return Write(given), Say(Commit(generation=generation))
        if generation > highest:
            return (
                Alarm(
                    f"{_who(sender)} holds an image of generation {generation}, and here no generation above {highest} "
                    "was ever used: the journal here went backwards"
                ),
                Say(Abandon(generation=generation)),
            )
        return (Say(Abandon(generation=generation)),)
    if holding is Holding.COMMITTED and generation == here:
        if _same(record.peer, sender):
            return (Say(Commit(generation=generation)),)
        return (
            Alarm(f"generation {generation} was given to {_who(record.peer)}, and {_who(sender)} holds it too"),
            Say(Abandon(generation=generation)),
        )
    if generation == here:  # N(n): it has told us before that it owns this; R(n): we hold the only image
        return (
            Alarm(
                f"{_who(sender)} holds an image of generation {generation}, which is over ({record} here): its journal "
                "went backwards"
            ),
            Say(Gone(generation=generation)),
        )
    if generation < here:
        return (Say(Abandon(generation=generation)),)
    if record == NEVER_HAD:
        return (Say(Unknown(generation=generation)),)
    return (
        Alarm(
            f"{_who(sender)} holds an image of generation {generation}, and the record here is {record}: the journal "
            "here went backwards"
        ),
        Say(Unknown(generation=generation)),
    )


def on_owned(record: Record, generation: int, sender: str, *, runs: bool = True) -> Ruling:
    """`sender` owns `generation`; without `runs`, it did, and has passed the machine on since."""
    holding, here = record.holding, record.generation
    released = Say(Released(generation=generation))
    if record == NEVER_HAD:
        return (Say(Unknown(generation=generation)),)
    if holding is Holding.COMMITTED and generation == here:
        if not _same(record.peer, sender):
            return (
                Alarm(f"generation {generation} was given to {_who(record.peer)}, and {_who(sender)} says it owns it"),
                Say(Unknown(generation=generation)),
            )
        return Write(_not_owner(record, generation, sender)), Act.DROP, released
    if generation > here:  # whatever is here is older
        over = Write(_not_owner(record, generation, sender))
        match holding:
            case Holding.OWNER:
                seen = f"{_who(sender)} owns generation {generation}, and {record} ran here: the journal here went back"
                return over, Act.STOP, Alarm(seen), released
            case Holding.NOT_OWNER:
                return over, released
            case _:
                return over, Act.DROP, released
    is_giver_of_ours = holding is Holding.READY and generation < here and _same(record.peer, sender)
    if holding is Holding.NOT_OWNER or not runs or is_giver_of_ours:  # an owner may prepare what it has not given away
        return (released,)
    return (
        Alarm(
            f"{_who(sender)} says that it owns generation {generation}, which is over ({record} here): its journal "
            "went backwards, or it was declared dead"
        ),
        Say(Gone(generation=generation)),
    )


def on_declined(record: Record, generation: int, sender: str) -> Ruling:
    """`sender` will never run `generation`."""
    released = Say(Released(generation=generation))
    if record == NEVER_HAD:
        return (Say(Unknown(generation=generation)),)
    if record.generation == generation and not _same(record.peer, sender):
        seen = f"{_who(sender)} declines generation {generation}, which {_who(record.peer)} was given"
        return Alarm(seen), Say(Unknown(generation=generation))
    if record.holding is Holding.COMMITTED and record.generation == generation:
        back = attrs.evolve(record, holding=Holding.OWNER, owned=generation)
        return Take(Claim.REFUSED), Write(back), Act.RUN, released
    if record.holding is Holding.NOT_OWNER and record.generation == generation:
        seen = f"{_who(sender)} declines generation {generation}, which it has owned: its journal went backwards"
        return Alarm(seen), Say(Gone(generation=generation))
    return (released,)


# The target: what it asks, and what it answers


def standing_of(record: Record, generation: int) -> Standing:
    """How this node stands to a generation that it was given, for whoever gave it."""
    match record.holding:
        case Holding.READY if record.generation == generation:
            return Standing.HOLDS
        case Holding.OWNER if record.generation == generation:
            return Standing.OWNS
        case _:
            return Standing.PASSED_ON if generation <= record.owned else Standing.DECLINED


def on_prepare(record: Record, generation: int, sender: str, session: int = 0) -> Ruling:
    """`sender` prepared `generation`, whose image is complete and durable here.

    An image or a commitment of an older generation is over thereby: only the owner prepares.  `session` is that of the
    storage's register as it is now.  Without a `Write` the image must be refused.
    """
    if record.holding is Holding.OWNER:
        return (Alarm(f"{_who(sender)} prepares generation {generation} of a machine that is owned here, {record}"),)
    if generation <= record.generation:
        return (Alarm(f"generation {generation} is not above {record}: the source's journal went backwards"),)
    ready = Record(Holding.READY, generation, peer=sender, owned=record.owned, session=session)
    return Write(ready), Say(Ready(generation=generation))


def on_commit(record: Record, generation: int, sender: str) -> Ruling:
    """`sender` gave `generation` away, to this node."""
    holding, here = record.holding, record.generation
    if holding is Holding.READY and generation == here:
        if not _same(record.peer, sender):
            seen = f"{_who(sender)} gives generation {generation} away, which came from {_who(record.peer)}"
            return Alarm(seen), Say(Unknown(generation=generation))
        owner = attrs.evolve(record, holding=Holding.OWNER, owned=generation)
        owned = Owned(generation=generation)
        return Take(Claim.TAKE_OVER), Write(owner, owes=owned), Act.RUN, Say(owned)
    if generation <= record.owned:
        return (Say(Owned(generation=generation)),)
    if holding is Holding.NOT_OWNER and generation <= here:
        return (Say(Declined(generation=generation)),)
    return (Say(Unknown(generation=generation)),)


def declining(record: Record) -> Ruling:
    """A target that holds an image may refuse it at any time, for good."""
    assert record.holding is Holding.READY, f"{record} is no image that could be declined"
    declined = Declined(generation=record.generation)
    over = _not_owner(record, record.generation, record.peer)
    return Write(over, owes=declined), Act.DROP, Say(declined)


def on_abandon(record: Record, generation: int, sender: str) -> Ruling:
    """`sender` kept the machine: the image of `generation` must never run."""
    if record.holding is not Holding.READY or record.generation != generation:
        return NOTHING
    if not _same(record.peer, sender):
        return (Alarm(f"{_who(sender)} abandons generation {generation}, which came from {_who(record.peer)}"),)
    return Write(_not_owner(record, generation, sender)), Act.DROP


def on_gone(record: Record, generation: int, sender: str) -> Ruling:
    """`sender` knows that `generation` is over, so that the record here went backwards or was declared dead.

    An image is kept, and must not run: whether it is the last of the machine only a person can know.
    """
    alarm = Alarm(f"{_who(sender)} says that generation {generation} is over, and {record} is here: a person must look")
    if record.holding is Holding.OWNER and record.generation == generation and _same(record.peer, sender):
        return Write(_not_owner(record, generation, record.peer)), Act.STOP, alarm
    return (alarm,)


def on_released(record: Record, generation: int, sender: str) -> Ruling:
    """The peer has noted what it was told of `generation`."""
    return (Settled(generation, sender),)


def on_unknown(record: Record, generation: int, sender: str) -> Ruling:
    """The peer has no evidence: nothing follows from that, least of all that the machine may run here."""
    return NOTHING


# Alone: without an answer


def rolling_back(record: Record) -> Ruling:
    """An attempt came to nothing before the machine was given away: it goes on here, in a session of its own."""
    assert record.holding is Holding.OWNER, "only the owner may let the machine run"
    return Take(Claim.RESUME), Act.RUN


def being_born(generation: int, claim: Claim = Claim.BIRTH) -> Ruling:
    """A new machine: nobody has owned it before.  `FORCE` takes its disks from whoever had them."""
    return Take(claim), Write(Record(Holding.OWNER, generation)), Act.RUN


def stillborn(record: Record) -> Ruling:
    """A new machine whose guest this host cannot boot: it has never run, and nobody will ask for it."""
    assert record.holding is Holding.OWNER, f"{record} was not born here"
    return (Write(_not_owner(record, record.generation, "")),)


def starting(record: Record) -> Ruling:
    """An owner whose process died: the machine starts from its disks, never from an image."""
    assert record.holding is Holding.OWNER, "only the owner may let the machine run"
    return Take(Claim.COLD_START), Write(record), Act.RUN


def reclaiming(record: Record, generation: int) -> Ruling:
    """A source takes back what it gave away, as the fence shows that nobody has started it; `generation` is new."""
    assert record.holding is Holding.COMMITTED, f"{record} was not given away"
    back = attrs.evolve(record, holding=Holding.OWNER, generation=generation, owned=generation)
    return Take(Claim.RECLAIM), Write(back), Act.RUN


def taken_already(record: Record, found: Title | None, *, node: str, machine: UUID) -> bool:
    """A holder of an image finds that it has taken the register: it had been told to, and died before it noted that.

    So it need not ask again; only, its image may have been used.
    """
    return (
        record.holding is Holding.READY
        and found is not None
        and (found.machine, found.owner, found.generation) == (machine, node, record.generation)
    )


def on_title_lost(record: Record, found: Title | None, machine: UUID) -> Ruling:
    """The storage's register is another's: this node's machine is over, and its image too.

    A register that names another machine, or has vanished, tells nothing of who owns this one: it only must not run.
    """
    if found is None or found.machine != machine:
        return (Alarm(f"the storage of {record} is not this machine's: it holds {found or 'nothing'}"),)
    match record.holding:
        case Holding.READY:
            return declining(record)
        case Holding.COMMITTED if found.generation == record.generation and found.owner == record.peer:
            return NOTHING  # it may have died before it noted that it owns this, and will ask for the commit again
        case Holding.COMMITTED:
            return Write(_not_owner(record, found.generation, record.peer)), Act.DROP
        case Holding.OWNER:
            alarm = Alarm(f"the storage is held in {found}, and {record} is here: the journal here went backwards")
            return Write(_not_owner(record, record.generation, record.peer)), Act.STOP, alarm
        case _:
            return NOTHING


def owning_by_force(record: Record, generation: int) -> Ruling:
    """A person declares every other node dead.  `generation` is new; the machine starts from its disks."""
    assert generation > record.generation, "a generation is never reused"
    mine = attrs.evolve(record, holding=Holding.OWNER, generation=generation, owned=generation)
    return Take(Claim.FORCE), Write(mine)


def abandoning_by_force(record: Record) -> Ruling:
    """A person declares that the machine is another's, or nobody's: it never runs here again in this generation."""
    match record.holding:
        case Holding.READY:  # whoever gave it is told, as of any refusal
            return declining(record)
        case Holding.OWNER:
            return Write(_not_owner(record, record.generation, record.peer)), Act.STOP
        case _:
            return Write(_not_owner(record, record.generation, record.peer)), Act.DROP


# The register in the storage


@attrs.frozen
class Granted:
    """The next title, and whether the image may be resumed; else the machine starts from its disks."""

    title: Title
    image_is_good: bool


def granted(
    claim: Claim, found: Title | None, record: Record, *, node: str, machine: UUID, generation: int
) -> Granted | None:
    """May `node` take the register, which holds `found`, on this ground?  None: it is another's.

    Every start and every resume takes a new session.  An image is good for the one session in which it was made: a
    node that finds the register naming it in any other session has started from that image before, or may have.
    "The higher generation wins" would not do: a stale image would always beat a source that resumed.
    """
    session = 0 if found is None else found.session
    title = Title(session=session + 1, generation=generation, machine=machine, owner=node)
    is_mine = found is not None and found.machine == machine and found.owner == node
    is_peers = found is not None and found.machine == machine and found.owner != "" and _same(found.owner, record.peer)
    is_free = found is None or not found.owner
    is_session = session == record.session and (is_free or (found is not None and found.machine == machine))
    is_later = found is not None and found.generation > record.generation
    ended_here = found is not None and found.machine == machine and is_free and not is_later
    match claim:
        case Claim.FORCE:
            may, image_is_good = True, False
        case Claim.BIRTH:
            may, image_is_good = found is None or found.owner in ("", node), False
        case Claim.COLD_START:
            may, image_is_good = is_mine or ended_here or (found is None and is_session), False
        case Claim.RESUME:
            may, image_is_good = is_session, True
        case Claim.TAKE_OVER | Claim.RECLAIM:
            may, image_is_good = is_session or is_mine, is_session
        case Claim.REFUSED:  # a target that has taken it says that it never ran: its journal may have gone backwards
            may, image_is_good = is_session or is_mine or ended_here or (is_peers and not is_later), is_session
    return Granted(title, image_is_good) if may else None


def _who(node: str) -> str:
    return f"node {node!r}" if node else "a node that does not say its name"
