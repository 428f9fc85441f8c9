"""The model's nodes do a ruling as the engine does it (`migrate.engine.ownership`).

What the model check says of the rule book is worth as much as the model's own idea of what an effect does.  So every
ruling is carried out twice, by a node of the model and by the engine with ports that only note what they are asked for,
and the two must have done the same to the journal, the register and the machine, in the same order.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import product
from typing import Any, Final

import attrs
import pytest

from migrate.engine.handoff import (
    Act,
    Claim,
    Holding,
    Record,
    Ruling,
    Say,
    Settled,
    Take,
    Write,
    being_born,
    declining,
    on_abandon,
    on_commit,
    on_declined,
    on_gone,
    on_owned,
    on_prepare,
    on_ready,
    on_released,
    owning_by_force,
    reclaiming,
    rolling_back,
    starting,
)
from migrate.engine.ownership import Hands, Ownership, StorageTaken
from migrate.protocol.messages import Message
from sim_vmm.fence import Title
from tests.model_node import MACHINE, THE_RULES, Executor, Image, Node, Talk

HERE: Final = "A"
HELD_SESSION: Final = 3
"""Of the register that this node ran under, if the register still says so."""

RECORDS: Final = [
    Record(Holding.OWNER, 5, peer="B", session=HELD_SESSION),
    Record(Holding.COMMITTED, 5, peer="B", owned=4, session=HELD_SESSION),
    Record(Holding.READY, 5, peer="B", owned=3, session=HELD_SESSION),
    Record(Holding.NOT_OWNER, 5, peer="B", owned=4, session=HELD_SESSION),
]

REGISTERS: Final = [
    Title(session=3, generation=4, machine=MACHINE, owner="A"),
    Title(session=4, generation=5, machine=MACHINE, owner="A"),
    Title(session=3, generation=4, machine=MACHINE, owner="B"),
    Title(session=4, generation=5, machine=MACHINE, owner="B"),
    Title(session=6, generation=7, machine=MACHINE, owner="C"),
]

DECISIONS: Final[dict[str, Callable[[Record], Ruling]]] = {
    "ready": lambda record: on_ready(record, 6, "B", preparing=6, highest=6),
    "ready again": lambda record: on_ready(record, 5, "B", preparing=None, highest=6),
    "owned": lambda record: on_owned(record, 5, "B"),
    "owned later": lambda record: on_owned(record, 6, "B"),
    "declined": lambda record: on_declined(record, 5, "B"),
    "prepare": lambda record: on_prepare(record, 6, "B", 4),
    "commit": lambda record: on_commit(record, 5, "B"),
    "abandon": lambda record: on_abandon(record, 5, "B"),
    "gone": lambda record: on_gone(record, 5, "B"),
    "released": lambda record: on_released(record, 5, "B"),
    "rolling back": rolling_back,
    "starting": starting,
    "reclaiming": lambda record: reclaiming(record, 6),
    "declining": declining,
    "born by force": lambda record: being_born(6, Claim.FORCE),
    "owning by force": lambda record: owning_by_force(record, 6),
}


@attrs.define
class Notes:
    """All of the engine's ports; `done` is what it asked of them that changes something."""

    record: Record
    register: Title | None
    session: int = HELD_SESSION
    highest: int = 6
    keeps_images: bool = True
    transcript: int = 0
    done: list[str] = attrs.field(factory=list)

    async def new_generation(self) -> int:
        raise AssertionError("no ruling spends a number")

    async def expect(self, machine: object) -> None:
        raise AssertionError("no ruling expects a machine")

    async def write(self, record: Record, *, image: bytes | None = None, owes_answer: bool = False) -> None:
        self.record = record
        self.done.append(f"write {record} {record.peer} {record.owned} {record.session}, owes {owes_answer}")

    async def settle_debt(self, generation: int, peer: str) -> None:
        self.done.append(f"settle {generation} {peer}")

    async def read(self) -> Title | None:
        return self.register

    async def take(self, expected: Title | None, title: Title) -> None:
        assert expected == self.register
        self.register, self.session = title, title.session
        self.done.append(f"take {title}")

    async def run(self, image_is_good: bool) -> None:
        self.done.append(f"run, resumed {image_is_good}")

    async def drop(self) -> None:
        self.done.append("drop")

    async def stop(self) -> None:
        self.done.append("stop")

    async def send(self, message: Message) -> None:
        self.done.append(f"say {message}")

    def tell(self, event: str, **facts: Any) -> None:
        assert event == "alarm"

    async def receive(self) -> Message:
        raise AssertionError("no ruling waits for an answer")

    async def ready_for_ram(self) -> None:
        raise AssertionError("no ruling sends RAM")

    async def send_ram(self, *_: object) -> None:
        raise AssertionError("no ruling sends RAM")

    async def receive_ram(self, *_: object) -> None:
        raise AssertionError("no ruling receives RAM")

    def forbid_cancelling(self) -> None:
        raise AssertionError("no ruling forbids anything")


def finished(work: Coroutine[Any, Any, None]) -> None:
    """Nothing in `Notes` waits, so one step is all."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


def by_the_engine(record: Record, register: Title | None, ruling: Ruling, *, has_fence: bool) -> list[str]:
    notes = Notes(record, register)
    hands = Hands(run=notes.run, drop=notes.drop, stop=notes.stop)
    fence = notes if has_fence else None
    owner = Ownership(node=HERE, machine=MACHINE, journal=notes, fence=fence, observer=notes, hands=hands)
    with suppress(StorageTaken):  # then what the rule book has for that was done instead
        finished(owner.carry_out(ruling, notes))
    return notes.done


def by_the_model(record: Record, register: Title | None, ruling: Ruling, *, has_fence: bool) -> list[str]:
    executor = Executor(THE_RULES, has_fence)
    node = Node(record=record, image=Image.FRESH, session=HELD_SESSION, todo=ruling, debts=((5, "B"),))
    talk: Talk | None = Talk(0, 1, image=Image.FRESH)
    done: list[str] = []
    while node.todo:
        effect, registered = node.todo[0], register
        step = executor.perform_one(0, node, talk, register)
        node, talk, register = step.node, step.talk, step.register
        match effect:
            case Write(_, owes):
                now = node.record
                assert owes is None or (now.generation, now.peer) in node.debts
                done.append(f"write {now} {now.peer} {now.owned} {now.session}, owes {owes is not None}")
            case Take() if register is not registered:
                done.append(f"take {register}")
            case Say(message):
                assert talk is None or talk.message == message
                done.append(f"say {message}")
            case Settled(generation, peer):
                assert (generation, peer) not in node.debts
                done.append(f"settle {generation} {peer}")
            case Act.RUN:
                done.append(f"run, resumed {'resumes' in step.label}")
            case Act.DROP | Act.STOP:
                done.append(str(effect))
    return done


@pytest.mark.parametrize("has_fence", [True, False])
@pytest.mark.parametrize("decision", DECISIONS)
def test_the_model_does_a_ruling_as_the_engine_does(decision: str, has_fence: bool) -> None:
    for record, register in product(RECORDS, REGISTERS):
        try:
            ruling = DECISIONS[decision](record)
        except AssertionError:
            continue  # that must not even be asked
        engine = by_the_engine(record, register, ruling, has_fence=has_fence)
        model = by_the_model(record, register, ruling, has_fence=has_fence)
        assert model == engine, f"{decision}: {record} with {register}"
