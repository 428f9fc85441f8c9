"""The rule book of ownership, row by row, and what holds for all of its rulings.

Every record meets every message, in tables to be read beside `migrate.engine.handoff`.  A row is

    record | generations | senders | ruling

and stands for each of its generations with each of its senders; `always` stands for all.  In a ruling, `n` is the
generation of the message and `S` its sender.  The records are of generation 5, made in session 1, and their peer is P:

    O(5)    owned 5
    C(5)    owned 3, as have R(5) and N(5)
    never   nothing is known

So generation 3 was owned by all of them, 4 only by O; 5 is the record's own, 6 a later one.  The highest number ever
used is 7, so 8 was never used here.  Senders are the peer P, another node X, and -, which does not say its name.

Rulings are written as `notation` writes them; the text of an alarm is for people, and is not compared.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as some

from migrate.engine.handoff import (
    NEVER_HAD,
    Act,
    Alarm,
    Claim,
    Granted,
    Holding,
    Record,
    Ruling,
    Say,
    Settled,
    Take,
    Write,
    abandoning_by_force,
    being_born,
    declining,
    granted,
    on_abandon,
    on_commit,
    on_declined,
    on_gone,
    on_owned,
    on_prepare,
    on_ready,
    on_released,
    on_title_lost,
    on_unknown,
    owning_by_force,
    reclaiming,
    rolling_back,
    standing_of,
    starting,
    writes,
)
from migrate.protocol.messages import Commit, Declined, Owned, Ready, Released, Standing
from sim_vmm.fence import Title

HIGHEST: Final = 7
GENERATIONS: Final = ("3", "4", "5", "6", "8")
SENDERS: Final = ("P", "X", "-")

RECORDS: Final = {
    "O(5)": Record(Holding.OWNER, 5, peer="P", owned=5, session=1),
    "C(5)": Record(Holding.COMMITTED, 5, peer="P", owned=3, session=1),
    "R(5)": Record(Holding.READY, 5, peer="P", owned=3, session=1),
    "N(5)": Record(Holding.NOT_OWNER, 5, peer="P", owned=3, session=1),
    "never": NEVER_HAD,
}

Asked = Callable[[Record, int, str], Ruling]

#: A message, the function that answers it, and the rows.  Session 2 is that of the register when an image comes in.
TABLES: Final[dict[str, tuple[Asked, str]]] = {
    "READY, of an earlier conversation": (
        lambda record, generation, sender: on_ready(record, generation, sender, preparing=None, highest=HIGHEST),
        """
        O(5)  | 3 4 5 6   | always | say Abandon(n)
        O(5)  | 8         | always | alarm; say Abandon(n)
        C(5)  | 3 4       | always | say Abandon(n)
        C(5)  | 5         | P -    | say Commit(n)
        C(5)  | 5         | X      | alarm; say Abandon(n)
        C(5)  | 6 8       | always | alarm; say Unknown(n)
        R(5)  | 3 4       | always | say Abandon(n)
        R(5)  | 5         | always | alarm; say Gone(n)
        R(5)  | 6 8       | always | alarm; say Unknown(n)
        N(5)  | 3 4       | always | say Abandon(n)
        N(5)  | 5         | always | alarm; say Gone(n)
        N(5)  | 6 8       | always | alarm; say Unknown(n)
        never | always    | always | say Unknown(n)
        """,
    ),
    "READY, of what is being prepared": (
        lambda record, generation, sender: on_ready(record, generation, sender, preparing=generation, highest=HIGHEST),
        """
        O(5)  | 3 4 5     | always | say Abandon(n)
        O(5)  | 6 8       | always | write C(n) peer S owned 5 session 1; say Commit(n)
        C(5)  | 3 4       | always | say Abandon(n)
        C(5)  | 5         | P -    | say Commit(n)
        C(5)  | 5         | X      | alarm; say Abandon(n)
        C(5)  | 6 8       | always | alarm; say Unknown(n)
        R(5)  | 3 4       | always | say Abandon(n)
        R(5)  | 5         | always | alarm; say Gone(n)
        R(5)  | 6 8       | always | alarm; say Unknown(n)
        N(5)  | 3 4       | always | say Abandon(n)
        N(5)  | 5         | always | alarm; say Gone(n)
        N(5)  | 6 8       | always | alarm; say Unknown(n)
        never | always    | always | say Unknown(n)
        """,
    ),
    "OWNED, and runs": (
        lambda record, generation, sender: on_owned(record, generation, sender),
        """
        O(5)  | 3 4 5     | always | alarm; say Gone(n)
        O(5)  | 6 8       | always | write N(n) peer S owned 5 session 1; stop; alarm; say Released(n)
        C(5)  | 3 4       | always | alarm; say Gone(n)
        C(5)  | 5         | P -    | write N(n) peer P owned 3 session 1; drop; say Released(n)
        C(5)  | 5         | X      | alarm; say Unknown(n)
        C(5)  | 6 8       | always | write N(n) peer S owned 3 session 1; drop; say Released(n)
        R(5)  | 3 4       | P -    | say Released(n)
        R(5)  | 3 4       | X      | alarm; say Gone(n)
        R(5)  | 5         | always | alarm; say Gone(n)
        R(5)  | 6 8       | always | write N(n) peer S owned 3 session 1; drop; say Released(n)
        N(5)  | 3 4 5     | always | say Released(n)
        N(5)  | 6 8       | always | write N(n) peer S owned 3 session 1; say Released(n)
        never | always    | always | say Unknown(n)
        """,
    ),
    "OWNED, and passed on": (
        lambda record, generation, sender: on_owned(record, generation, sender, runs=False),
        """
        O(5)  | 3 4 5     | always | say Released(n)
        O(5)  | 6 8       | always | write N(n) peer S owned 5 session 1; stop; alarm; say Released(n)
        C(5)  | 3 4       | always | say Released(n)
        C(5)  | 5         | P -    | write N(n) peer P owned 3 session 1; drop; say Released(n)
        C(5)  | 5         | X      | alarm; say Unknown(n)
        C(5)  | 6 8       | always | write N(n) peer S owned 3 session 1; drop; say Released(n)
        R(5)  | 3 4 5     | always | say Released(n)
        R(5)  | 6 8       | always | write N(n) peer S owned 3 session 1; drop; say Released(n)
        N(5)  | 3 4 5     | always | say Released(n)
        N(5)  | 6 8       | always | write N(n) peer S owned 3 session 1; say Released(n)
        never | always    | always | say Unknown(n)
        """,
    ),
    "DECLINED": (
        on_declined,
        """
        O(5)  | 3 4 6 8   | always | say Released(n)
        O(5)  | 5         | P -    | say Released(n)
        O(5)  | 5         | X      | alarm; say Unknown(n)
        C(5)  | 3 4 6 8   | always | say Released(n)
        C(5)  | 5         | P -    | take refused; write O(n) peer P owned 5 session 1; run; say Released(n)
        C(5)  | 5         | X      | alarm; say Unknown(n)
        R(5)  | 3 4 6 8   | always | say Released(n)
        R(5)  | 5         | P -    | say Released(n)
        R(5)  | 5         | X      | alarm; say Unknown(n)
        N(5)  | 3 4 6 8   | always | say Released(n)
        N(5)  | 5         | P -    | alarm; say Gone(n)
        N(5)  | 5         | X      | alarm; say Unknown(n)
        never | always    | always | say Unknown(n)
        """,
    ),
    "PREPARE": (
        lambda record, generation, sender: on_prepare(record, generation, sender, 2),
        """
        O(5)  | always    | always | alarm
        C(5)  | 3 4 5     | always | alarm
        C(5)  | 6 8       | always | write R(n) peer S owned 3 session 2; say Ready(n)
        R(5)  | 3 4 5     | always | alarm
        R(5)  | 6 8       | always | write R(n) peer S owned 3 session 2; say Ready(n)
        N(5)  | 3 4 5     | always | alarm
        N(5)  | 6 8       | always | write R(n) peer S owned 3 session 2; say Ready(n)
        never | always    | always | write R(n) peer S owned 0 session 2; say Ready(n)
        """,
    ),
    "COMMIT": (
        on_commit,
        """
        O(5)  | 3 4 5     | always | say Owned(n)
        O(5)  | 6 8       | always | say Unknown(n)
        C(5)  | 3         | always | say Owned(n)
        C(5)  | 4 5 6 8   | always | say Unknown(n)
        R(5)  | 3         | always | say Owned(n)
        R(5)  | 4 6 8     | always | say Unknown(n)
        R(5)  | 5 | P - | take take over; write O(n) peer P owned 5 session 1, owe Owned(n); run; say Owned(n)
        R(5)  | 5         | X      | alarm; say Unknown(n)
        N(5)  | 3         | always | say Owned(n)
        N(5)  | 4 5       | always | say Declined(n)
        N(5)  | 6 8       | always | say Unknown(n)
        never | always    | always | say Unknown(n)
        """,
    ),
    "ABANDON": (
        on_abandon,
        """
        O(5)  | always    | always | nothing
        C(5)  | always    | always | nothing
        R(5)  | 3 4 6 8   | always | nothing
        R(5)  | 5         | P -    | write N(n) peer P owned 3 session 1; drop
        R(5)  | 5         | X      | alarm
        N(5)  | always    | always | nothing
        never | always    | always | nothing
        """,
    ),
    "GONE": (
        on_gone,
        """
        O(5)  | 3 4 6 8   | always | alarm
        O(5)  | 5         | P -    | write N(n) peer P owned 5 session 1; stop; alarm
        O(5)  | 5         | X      | alarm
        C(5)  | always    | always | alarm
        R(5)  | always    | always | alarm
        N(5)  | always    | always | alarm
        never | always    | always | alarm
        """,
    ),
    "RELEASED": (
        on_released,
        """
        O(5)  | always    | always | nothing is owed to S for n
        C(5)  | always    | always | nothing is owed to S for n
        R(5)  | always    | always | nothing is owed to S for n
        N(5)  | always    | always | nothing is owed to S for n
        never | always    | always | nothing is owed to S for n
        """,
    ),
    "UNKNOWN": (
        on_unknown,
        """
        O(5)  | always    | always | nothing
        C(5)  | always    | always | nothing
        R(5)  | always    | always | nothing
        N(5)  | always    | always | nothing
        never | always    | always | nothing
        """,
    ),
}


def notation(ruling: Ruling) -> str:
    return "; ".join(map(_effect, ruling)) or "nothing"


def _effect(effect: object) -> str:
    match effect:
        case Write(record, owes):
            facts = f"peer {record.peer or '-'} owned {record.owned} session {record.session}"
            return f"write {record} {facts}" + (f", owe {_message(owes)}" if owes is not None else "")
        case Say(message):
            return f"say {_message(message)}"
        case Take(claim):
            return f"take {claim}"
        case Alarm():
            return "alarm"
        case Act() as act:
            return str(act)
        case Settled(generation, peer):
            return f"nothing is owed to {peer or '-'} for {generation}"
        case _:
            raise AssertionError(effect)


def _message(message: object) -> str:
    return f"{type(message).__name__}({getattr(message, 'generation', '')})"


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Message, record, generation, sender, ruling: one for each case of a row."""
    for message, (_, table) in TABLES.items():
        for line in table.strip().splitlines():
            record, generations, senders, ruling = (cell.strip() for cell in line.split("|"))
            for generation in GENERATIONS if generations == "always" else generations.split():
                for sender in SENDERS if senders == "always" else senders.split():
                    written = ruling.replace("(n)", f"({generation})").replace("for n", f"for {generation}")
                    yield (
                        message,
                        record,
                        generation,
                        sender,
                        written.replace("peer S", f"peer {sender}").replace("to S", f"to {sender}"),
                    )


@pytest.mark.parametrize("message", TABLES)
def test_every_record_answers_every_message_as_the_table_says(message: str) -> None:
    asked, _ = TABLES[message]
    for name, record, generation, sender, ruling in rows():
        if name == message:
            said = asked(RECORDS[record], int(generation), sender.replace("-", ""))
            assert notation(said) == ruling, f"{message} {generation} from {sender} to {record}"


def test_the_table_has_every_case_once() -> None:
    cases = [row[:4] for row in rows()]
    assert sorted(cases) == sorted(product(TABLES, RECORDS, GENERATIONS, SENDERS))


# How a node stands to a generation that it was given

HOLDS, OWNS, PASSED_ON, DECLINED = Standing.HOLDS, Standing.OWNS, Standing.PASSED_ON, Standing.DECLINED

STANDINGS: Final = {  #  3          4          5         6         8
    "O(5)": (PASSED_ON, PASSED_ON, OWNS, DECLINED, DECLINED),
    "C(5)": (PASSED_ON, DECLINED, DECLINED, DECLINED, DECLINED),
    "R(5)": (PASSED_ON, DECLINED, HOLDS, DECLINED, DECLINED),
    "N(5)": (PASSED_ON, DECLINED, DECLINED, DECLINED, DECLINED),
    "never": (DECLINED, DECLINED, DECLINED, DECLINED, DECLINED),
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_node_says_how_it_stands_to_a_generation(record: str) -> None:
    said = tuple(standing_of(RECORDS[record], int(generation)) for generation in GENERATIONS)
    assert said == STANDINGS[record]


# Alone


def ruling_of(decide: Callable[..., Ruling], *arguments: object) -> str:
    """What is decided, or "never" where that must not even be asked."""
    try:
        return notation(decide(*arguments))
    except AssertionError:
        return "never"


#: What a node does without an answer: from O(5), C(5), R(5), N(5), and if it never had the machine.
ALONE: Final[list[tuple[Callable[..., Ruling], tuple[object, ...], tuple[str, str, str, str, str]]]] = [
    (rolling_back, (), ("take resume; run", "never", "never", "never", "never")),
    (
        starting,
        (),
        ("take cold start; write O(5) peer P owned 5 session 1; run", "never", "never", "never", "never"),
    ),
    (
        declining,
        (),
        (
            "never",
            "never",
            "write N(5) peer P owned 3 session 1, owe Declined(5); drop; say Declined(5)",
            "never",
            "never",
        ),
    ),
    (
        reclaiming,
        (8,),
        ("never", "take reclaim; write O(8) peer P owned 8 session 1; run", "never", "never", "never"),
    ),
    (
        owning_by_force,
        (8,),
        (
            "take force; write O(8) peer P owned 8 session 1",
            "take force; write O(8) peer P owned 8 session 1",
            "take force; write O(8) peer P owned 8 session 1",
            "take force; write O(8) peer P owned 8 session 1",
            "take force; write O(8) peer - owned 8 session 0",
        ),
    ),
    (
        abandoning_by_force,
        (),
        (
            "write N(5) peer P owned 5 session 1; stop",
            "write N(5) peer P owned 3 session 1; drop",
            "write N(5) peer P owned 3 session 1, owe Declined(5); drop; say Declined(5)",
            "write N(5) peer P owned 3 session 1; drop",
            "write N(0) peer - owned 0 session 0; drop",
        ),
    ),
]


@pytest.mark.parametrize(("decide", "more", "expected"), ALONE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_a_node_does_without_an_answer(
    decide: Callable[..., Ruling], more: tuple[object, ...], expected: tuple[str, ...]
) -> None:
    assert tuple(ruling_of(decide, record, *more) for record in RECORDS.values()) == expected


def test_a_machine_is_born_with_its_register_taken_first() -> None:
    assert notation(being_born(1, Claim.BIRTH)) == "take birth; write O(1) peer - owned 1 session 0; run"
    assert notation(being_born(1, Claim.FORCE)) == "take force; write O(1) peer - owned 1 session 0; run"


@pytest.mark.parametrize(("generation", "ruling"), [(4, "never"), (5, "never")])
def test_force_needs_a_new_generation(generation: int, ruling: str) -> None:
    assert ruling_of(owning_by_force, RECORDS["N(5)"], generation) == ruling


# The register in the storage

MACHINE: Final = UUID(int=1)
ANOTHER_MACHINE: Final = UUID(int=2)


def title(owner: str, session: int, generation: int = 5, machine: UUID = MACHINE) -> Title:
    return Title(session=session, generation=generation, machine=machine, owner=owner)


#: What the register holds when node M asks, whose record is of generation 5, peer P, session 4; and what it is given on
#: each ground: nothing (-), the disks alone, or the disks and with them the right to resume its image.
GRANTS: Final[dict[str, tuple[Title | None, str]]] = {
    #                                                                birth cold  resume take- refused reclaim force
    #                                                                      start        over
    "nothing": (None, "                                              disks -     -     -     -     -     disks"),
    "nobody, same session": (title("", 4), "                         disks disks image image image image disks"),
    "nobody, another session": (title("", 6), "                      disks disks -     -     disks -     disks"),
    "nobody, later": (title("", 6, 7), "                             disks -     -     -     -     -     disks"),
    "mine, same session": (title("M", 4), "                          disks disks image image image image disks"),
    "mine, another session": (title("M", 6), "                       disks disks -     disks disks disks disks"),
    "the peer's, same session": (title("P", 4), "                    -     -     image image image image disks"),
    "the peer's, another session": (title("P", 6), "                 -     -     -     -     disks -     disks"),
    "the peer's, later": (title("P", 6, 7), "                        -     -     -     -     -     -     disks"),
    "another's, same session": (title("X", 4), "                     -     -     image image image image disks"),
    "another's, another session": (title("X", 6), "                  -     -     -     -     -     -     disks"),
    "another machine's, same number": (
        title("X", 4, machine=ANOTHER_MACHINE),
        "                                                            -     -     -     -     -     -     disks",
    ),
    "another machine's, the peer's": (
        title("P", 6, machine=ANOTHER_MACHINE),
        "                                                            -     -     -     -     -     -     disks",
    ),
    "another machine's, mine": (
        title("M", 6, machine=ANOTHER_MACHINE),
        "                                                            disks -     -     -     -     -     disks",
    ),
    "another machine's, mine, same number": (
        title("M", 4, machine=ANOTHER_MACHINE),
        "                                                            disks -     -     -     -     -     disks",
    ),
    "another machine's, ended, same number": (
        title("", 4, machine=ANOTHER_MACHINE),
        "                                                            disks -     image image image image disks",
    ),
    "another machine's, ended": (
        title("", 6, machine=ANOTHER_MACHINE),
        "                                                            disks -     -     -     -     -     disks",
    ),
}
CLAIMS: Final = (
    Claim.BIRTH,
    Claim.COLD_START,
    Claim.RESUME,
    Claim.TAKE_OVER,
    Claim.REFUSED,
    Claim.RECLAIM,
    Claim.FORCE,
)


def grants(found: Title | None, record: Record) -> list[str]:
    words = {None: "-", False: "disks", True: "image"}
    given = (granted(claim, found, record, node="M", machine=MACHINE, generation=9) for claim in CLAIMS)
    return [words[None if grant is None else grant.image_is_good] for grant in given]


@pytest.mark.parametrize("situation", GRANTS)
def test_the_register_is_given_on_these_grounds(situation: str) -> None:
    found, expected = GRANTS[situation]
    record = attrs.evolve(RECORDS["C(5)"], session=4)
    assert grants(found, record) == expected.split()


def test_every_ground_is_in_the_table() -> None:
    assert sorted(CLAIMS) == sorted(Claim)
    assert {len(expected.split()) for _, expected in GRANTS.values()} == {len(CLAIMS)}


def test_a_record_without_a_session_goes_with_a_register_that_was_never_taken() -> None:
    record = attrs.evolve(RECORDS["C(5)"], session=0)
    assert grants(None, record) == ["disks", "disks", "image", "image", "image", "image", "disks"]


def test_whoever_takes_the_register_gets_a_session_that_nobody_had() -> None:
    record = attrs.evolve(RECORDS["C(5)"], session=4)
    first = granted(Claim.BIRTH, None, record, node="M", machine=MACHINE, generation=9)
    next_ = granted(Claim.RECLAIM, title("M", 6), record, node="M", machine=MACHINE, generation=9)
    assert first == Granted(title("M", 1, 9), image_is_good=False)
    assert next_ == Granted(title("M", 7, 9), image_is_good=False)


#: The register that stopped a ruling, or fenced the machine off; and what is done about it from O(5), C(5), R(5).
IS_OVER: Final = (
    "write N(5) peer P owned 5 session 1; stop; alarm",
    "write N(5) peer P owned 3 session 1; drop",
    "write N(5) peer P owned 3 session 1, owe Declined(5); drop; say Declined(5)",
)
TITLES_LOST: Final[list[tuple[Title | None, tuple[str, str, str]]]] = [
    (None, ("alarm", "alarm", "alarm")),
    (title("P", 6, machine=ANOTHER_MACHINE), ("alarm", "alarm", "alarm")),
    (title("", 6, machine=ANOTHER_MACHINE), ("alarm", "alarm", "alarm")),
    (title("X", 6, 4), IS_OVER),
    (title("X", 6), IS_OVER),
    (title("", 6), IS_OVER),
    (title("P", 6), (IS_OVER[0], "nothing", IS_OVER[2])),
    (title("P", 6, 7), (IS_OVER[0], "write N(7) peer P owned 3 session 1; drop", IS_OVER[2])),
    (title("X", 6, 7), (IS_OVER[0], "write N(7) peer P owned 3 session 1; drop", IS_OVER[2])),
]


@pytest.mark.parametrize(("found", "expected"), TITLES_LOST, ids=str)
def test_a_register_that_is_taken_ends_what_is_here(found: Title | None, expected: tuple[str, str, str]) -> None:
    said = [notation(on_title_lost(RECORDS[record], found, MACHINE)) for record in ("O(5)", "C(5)", "R(5)")]
    assert tuple(said) == expected


@pytest.mark.parametrize("found", [title("X", 6), title("P", 6), title("", 6)], ids=str)
def test_a_register_that_is_taken_is_nothing_to_whoever_has_no_machine(found: Title) -> None:
    for record in (RECORDS["N(5)"], NEVER_HAD):
        assert on_title_lost(record, found, MACHINE) == ()


# Laws


def _record(holding: Holding, generation: int, peer: str, owned: int) -> Record:
    """One that can come about: only `O(n)` has owned n, and what was given away or is held was not."""
    owned = generation if holding is Holding.OWNER else min(owned, generation - (holding is not Holding.NOT_OWNER))
    return Record(holding, generation, peer=peer, owned=owned, session=1)


numbers = some.integers(1, 6)
nodes = some.sampled_from(["P", "X", ""])
records = some.one_of(
    some.just(NEVER_HAD), some.builds(_record, some.sampled_from(Holding), numbers, nodes, some.integers(0, 6))
)
registers = some.one_of(
    some.none(), some.builds(title, nodes, some.integers(1, 4), numbers, some.sampled_from([MACHINE, ANOTHER_MACHINE]))
)


@some.composite
def rulings(draw: some.DrawFn) -> tuple[Record, Ruling]:
    """Any ruling there can be, and the record from which it was made; new generations are new."""
    record, generation, node = draw(records), draw(numbers), draw(nodes)
    new = record.generation + draw(numbers)
    highest = record.generation + draw(some.integers(0, 3))
    preparing = draw(some.sampled_from([None, generation, new]))
    found = draw(registers)
    possible: list[Callable[[], Ruling]] = [
        lambda: on_ready(record, generation, node, preparing=preparing, highest=highest),
        lambda: on_owned(record, generation, node),
        lambda: on_owned(record, generation, node, runs=False),
        lambda: on_declined(record, generation, node),
        lambda: on_prepare(record, generation, node, 2),
        lambda: on_commit(record, generation, node),
        lambda: on_abandon(record, generation, node),
        lambda: on_gone(record, generation, node),
        lambda: on_released(record, generation, node),
        lambda: on_unknown(record, generation, node),
        lambda: on_title_lost(record, found, MACHINE),
        lambda: owning_by_force(record, new),
        lambda: abandoning_by_force(record),
    ]
    match record.holding:
        case Holding.OWNER:
            possible += [lambda: rolling_back(record), lambda: starting(record)]
        case Holding.COMMITTED:
            possible += [lambda: reclaiming(record, new)]
        case Holding.READY:
            possible += [lambda: declining(record)]
        case Holding.NOT_OWNER:
            pass
    return record, draw(some.sampled_from(possible))()


@given(rulings())
def test_a_floor_never_sinks_and_no_generation_is_used_again(case: tuple[Record, Ruling]) -> None:
    before, ruling = case
    after = writes(ruling) or before
    assert after.generation >= before.generation
    assert after.owned >= before.owned
    if after != before and after.holding in (Holding.COMMITTED, Holding.READY):
        assert after.generation > before.generation
    if after != before and after.holding is Holding.OWNER and before.holding in (Holding.OWNER, Holding.NOT_OWNER):
        assert after.generation > before.generation


@given(rulings())
def test_a_record_is_written_once_and_before_anything_is_said_or_runs(case: tuple[Record, Ruling]) -> None:
    _, ruling = case
    written = [at for at, effect in enumerate(ruling) if isinstance(effect, Write)]
    assert len(written) <= 1
    for at, effect in enumerate(ruling):
        if isinstance(effect, Say) or effect in (Act.RUN, Act.DROP, Act.STOP):
            assert all(at > other for other in written)


@given(rulings())
def test_the_register_is_taken_before_ownership_is_written_and_before_the_machine_runs(
    case: tuple[Record, Ruling],
) -> None:
    _, ruling = case
    for at, effect in enumerate(ruling):
        owns = isinstance(effect, Write) and effect.record.holding is Holding.OWNER
        if owns or effect is Act.RUN:
            assert isinstance(ruling[0], Take)
            assert at > 0


@given(rulings())
def test_only_an_owner_runs_and_only_whoever_is_none_any_more_drops_or_stops(case: tuple[Record, Ruling]) -> None:
    before, ruling = case
    after = writes(ruling) or before
    if Act.RUN in ruling:
        assert after.holding is Holding.OWNER
    if Act.DROP in ruling or Act.STOP in ruling:
        assert after.holding is Holding.NOT_OWNER
    if Act.STOP in ruling:
        assert before.holding is Holding.OWNER


@given(rulings())
def test_nothing_is_said_that_the_record_does_not_say(case: tuple[Record, Ruling]) -> None:
    before, ruling = case
    after = writes(ruling) or before
    for effect in ruling:
        match effect:
            case Say(Commit(generation=generation)):
                assert (after.holding, after.generation) == (Holding.COMMITTED, generation)
            case Say(Ready(generation=generation)):
                assert (after.holding, after.generation) == (Holding.READY, generation)
            case Say(Owned(generation=generation)):
                assert after.owned >= generation
            case Say(Declined(generation=generation)):
                assert after.holding is Holding.NOT_OWNER
                assert after.owned < generation <= after.generation
            case Say(Released(generation=generation)):  # noted: what it was told is not asked for again
                assert (after.holding, after.generation) != (Holding.COMMITTED, generation)


@given(rulings())
def test_what_is_owed_is_what_the_record_says(case: tuple[Record, Ruling]) -> None:
    _, ruling = case
    for effect in ruling:
        if isinstance(effect, Write) and effect.owes is not None:
            is_owned = effect.record.holding is Holding.OWNER
            assert isinstance(effect.owes, Owned if is_owned else Declined)
            assert effect.owes.generation == effect.record.generation


@given(records, some.integers(1, 8), nodes)
def test_two_nodes_are_never_told_that_they_own_the_same_generation(record: Record, generation: int, node: str) -> None:
    """A source commits to one target only, however often it is asked and whoever asks."""
    asked = on_ready(record, generation, node, preparing=None, highest=8)
    if Say(Commit(generation=generation)) in asked:
        assert record.peer in ("", node) or node == ""


@given(registers, records, some.sampled_from(Claim))
def test_an_image_is_resumed_in_the_session_in_which_it_was_made(
    found: Title | None, record: Record, claim: Claim
) -> None:
    grant = granted(claim, found, record, node="M", machine=MACHINE, generation=9)
    if grant is not None:
        session = 0 if found is None else found.session
        assert grant.title.session == session + 1
        assert not grant.image_is_good or session == record.session


@pytest.mark.parametrize(
    ("record", "text"), [(Record(Holding.OWNER, 1), "O(1)"), (Record(Holding.NOT_OWNER, 17), "N(17)")]
)
def test_a_record_is_written_as_in_the_design(record: Record, text: str) -> None:
    assert str(record) == text
