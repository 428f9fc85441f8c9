"""Who may say what when: whole conversations written out, and everything else refused."""

from itertools import product

import pytest

from migrate.protocol.conversation import NEXT, Conversation, OutOfTurn, Phase
from migrate.protocol.messages import (
    Abandon,
    Accept,
    Attach,
    Commit,
    Declined,
    DevicesEnd,
    DeviceState,
    Failure,
    Gone,
    Hello,
    HelloFor,
    Inquire,
    Message,
    Owned,
    Paused,
    Preamble,
    Prepare,
    RamBatch,
    RamPages,
    Ready,
    Refuse,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    Settle,
    Streams,
    TimeOfDay,
    Transcript,
    Unknown,
    Welcome,
)
from tests.specimens import SPECIMENS

SOURCE, TARGET = Role.SOURCE, Role.TARGET
Step = tuple[Role, type[Message], Phase]

TO_VERDICT: list[Step] = [
    (TARGET, Hello, Phase.WELCOME),
    (SOURCE, Welcome, Phase.PREAMBLE),
    (SOURCE, Preamble, Phase.VERDICT),
]
TO_PROMISE: list[Step] = [
    *TO_VERDICT,
    (TARGET, Streams, Phase.VERDICT),
    (TARGET, Accept, Phase.RAM),
    (SOURCE, RamPages, Phase.RAM),
    (SOURCE, RamBatch, Phase.RAM),
    (SOURCE, RoundEnd, Phase.RECEIPT),
    (TARGET, RoundStored, Phase.RAM),
    (SOURCE, RoundEnd, Phase.RECEIPT),
    (TARGET, RoundStored, Phase.RAM),
    (SOURCE, Paused, Phase.LAST_RAM),
    (SOURCE, RamPages, Phase.LAST_RAM),
    (SOURCE, RamBatch, Phase.LAST_RAM),
    (SOURCE, RoundEnd, Phase.TIME),
    (SOURCE, TimeOfDay, Phase.DEVICES),
    (SOURCE, DeviceState, Phase.DEVICES),
    (SOURCE, DeviceState, Phase.DEVICES),
    (SOURCE, DevicesEnd, Phase.SERVER_STATE),
    (SOURCE, ServerState, Phase.PREPARE),
    (SOURCE, Transcript, Phase.PREPARE),
    (SOURCE, Prepare, Phase.READY),
    (TARGET, Ready, Phase.COMMIT),
    (SOURCE, Commit, Phase.OWNED),
]
OWNED: list[Step] = [(TARGET, Owned, Phase.RELEASE), (SOURCE, Released, Phase.ENDED)]
DECLINED: list[Step] = [(TARGET, Declined, Phase.RELEASE), (SOURCE, Released, Phase.ENDED)]
TO_SETTLE: list[Step] = [(TARGET, Settle, Phase.SETTLE)]
TO_INQUIRE: list[Step] = [(TARGET, Inquire, Phase.SETTLE)]

CONVERSATIONS: dict[str, list[Step]] = {
    "a further connection": [
        (TARGET, Attach, Phase.STREAM),
        (SOURCE, RamPages, Phase.STREAM),
        (SOURCE, RamBatch, Phase.STREAM),
        (SOURCE, RoundEnd, Phase.STREAM),
    ],
    "a migration": [*TO_PROMISE, *OWNED],
    "a target that declines": [*TO_PROMISE, *DECLINED],
    "one that both sides know by an id": [(TARGET, HelloFor, Phase.WELCOME), *TO_PROMISE[1:], *OWNED],
    "a source that refuses": [(TARGET, Hello, Phase.WELCOME), (SOURCE, Refuse, Phase.ENDED)],
    "a target that refuses": [*TO_VERDICT, (TARGET, Refuse, Phase.ENDED)],
    "a settled image": [*TO_SETTLE, (SOURCE, Commit, Phase.OWNED), *OWNED],
    "a settled image, declined": [*TO_SETTLE, (SOURCE, Commit, Phase.OWNED), *DECLINED],
    "an abandoned image": [*TO_SETTLE, (SOURCE, Abandon, Phase.ENDED)],
    "a settled ownership": [*TO_SETTLE, (SOURCE, Released, Phase.ENDED)],
    "a generation that is over": [*TO_INQUIRE, (SOURCE, Gone, Phase.ENDED)],
    "a machine that nobody knows": [*TO_INQUIRE, (SOURCE, Unknown, Phase.ENDED)],
    "a commitment without evidence": [*TO_PROMISE, (TARGET, Unknown, Phase.ENDED)],
    "an owner whose generation is over": [*TO_PROMISE, OWNED[0], (SOURCE, Gone, Phase.ENDED)],
    "an owner of whom nothing is known": [*TO_PROMISE, OWNED[0], (SOURCE, Unknown, Phase.ENDED)],
}

ILLEGAL = sorted(set(product(Phase, Role, SPECIMENS)) - set(NEXT), key=str)
ILLEGAL = [move for move in ILLEGAL if move[2] is not Failure or move[0] is Phase.ENDED]


@pytest.mark.parametrize("steps", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_whole_conversation_is_legal_step_by_step(steps: list[Step]) -> None:
    conversation = Conversation()
    for sender, kind, phase in steps:
        conversation.advance(sender, SPECIMENS[kind])
        assert conversation.phase is phase
    assert conversation.phase in (Phase.ENDED, Phase.STREAM)  # a further connection ends with its conversation


def test_the_conversations_above_take_every_move_of_the_table() -> None:
    taken = set()
    for steps in CONVERSATIONS.values():
        phase = Phase.HELLO
        for sender, kind, then in steps:
            taken.add(((phase, sender, kind), then))
            phase = then
    assert taken == set(NEXT.items())


@pytest.mark.parametrize(("phase", "sender", "kind"), ILLEGAL, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_move_outside_the_table_is_refused(phase: Phase, sender: Role, kind: type[Message]) -> None:
    conversation = Conversation(phase)
    with pytest.raises(OutOfTurn) as caught:
        conversation.advance(sender, SPECIMENS[kind])
    assert conversation.phase is phase
    assert (caught.value.phase, caught.value.sender, caught.value.kind) == (phase, sender, kind)


def test_a_refused_move_says_what_would_have_been_allowed() -> None:
    with pytest.raises(OutOfTurn) as caught:
        Conversation(Phase.VERDICT).advance(SOURCE, SPECIMENS[RamBatch])
    assert str(caught.value) == (
        "RamBatch from the source in phase 'verdict', where only target Streams, target Accept, target Refuse"
    )


def test_nothing_is_said_after_the_end() -> None:
    with pytest.raises(OutOfTurn, match="Hello from the target in phase 'ended', where only nothing"):
        Conversation(Phase.ENDED).advance(TARGET, SPECIMENS[Hello])


@pytest.mark.parametrize(("phase", "sender"), list(product(list(Phase)[:-1], Role)))
def test_either_side_may_fail_at_any_moment_before_the_end(phase: Phase, sender: Role) -> None:
    conversation = Conversation(phase)
    conversation.advance(sender, SPECIMENS[Failure])
    assert conversation.phase is Phase.ENDED


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_but_the_end_has_exactly_one_speaker(phase: Phase) -> None:
    speakers = {sender for at, sender, _ in NEXT if at is phase}
    assert len(speakers) == (0 if phase is Phase.ENDED else 1)


def test_nobody_but_the_source_may_give_the_machine_away() -> None:
    assert {sender for _, sender, kind in NEXT if kind in (Commit, Abandon, Released, Prepare)} == {SOURCE}
    assert {sender for _, sender, kind in NEXT if kind in (Ready, Owned, Declined, Settle, Inquire)} == {TARGET}
