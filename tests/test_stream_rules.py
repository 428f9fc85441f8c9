"""The rules of streams by themselves: whose turn it is, when a round is over, who may come, and what is noted."""

from collections import Counter
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.errors import RemoteProtocolError
from migrate.protocol.conversation import Conversation, Phase
from migrate.protocol.messages import STREAMS_MAX, Attach, Message, Paused, RamPages, Role, RoundEnd, Streams
from migrate.protocol.streams import StreamRules, attach_to, attaches

TOKEN, OTHER = bytes(range(16)), bytes(16)


@attrs.define(eq=False)
class End:
    """One end of a connection: what waits to be heard there, and whether a batch would go out."""

    number: int
    conversation: Conversation = attrs.field(factory=Conversation)
    waiting: list[Message] = attrs.field(factory=list)
    has_room: bool = True

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    @property
    def has_news(self) -> bool:
        return bool(self.waiting)


def rules_of(role: Role, streams: int, phase: Phase = Phase.RAM) -> StreamRules[End]:
    """Of a conversation in the middle of its RAM, over so many connections in all."""
    first = End(0, Conversation(phase))
    return StreamRules(first, role, first.conversation, others=[End(number) for number in range(1, streams)])


def batch(round_: int, number: int) -> RamPages:
    return RamPages(round=round_, pages=b"", zero=b"", checksum=number)


def ends_of(rules: StreamRules[End]) -> list[End]:
    return [rules.first, *rules.others]


# Rounds, as a source


@pytest.mark.parametrize(
    ("room", "carried"),
    [
        ("1111", "1230123"),
        ("1000", "0000"),
        ("1010", "2020"),
        ("0000", "1230"),  # nobody has any: the next one is waited for
        ("0111", "123123"),
    ],
)
def test_batches_go_by_turns_over_all_that_have_room(room: str, carried: str) -> None:
    rules = rules_of(Role.SOURCE, 4)
    for link, has_room in zip(ends_of(rules), room, strict=True):
        link.has_room = has_room == "1"
    assert "".join(str(rules.turn().number) for _ in carried) == carried


def test_without_streams_the_first_connection_carries_all() -> None:
    rules = rules_of(Role.SOURCE, 1)
    rules.first.has_room = False
    assert rules.turn() is rules.next_carrier is rules.carrier is rules.first
    assert not rules.carry


# Rounds, as a target


@given(st.data())
def test_in_any_order_all_batches_are_heard_and_a_round_ends_once(data: st.DataObject) -> None:
    """Each connection keeps its order, and between them any may come about, a round's end before another's batches."""
    streams, rounds = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    rules = rules_of(Role.TARGET, streams)
    said: Counter[int] = Counter()
    for round_ in range(rounds):
        batches = data.draw(st.integers(0, 6))
        for number in range(batches):
            link = data.draw(st.sampled_from(ends_of(rules)))
            link.waiting.append(batch(round_, number))
        said[round_] = batches
        for link in ends_of(rules):
            link.waiting.append(RoundEnd(round=round_, pages=batches, zero_pages=0))
    heard: Counter[int] = Counter()
    over = 0
    while (links := [link for link in rules.silent if link.has_news]) and over < rounds:
        link = data.draw(st.sampled_from(links))
        message = rules.heard(link, link.waiting.pop(0))
        if isinstance(message, RoundEnd):
            assert (message.round, heard[over]) == (over, said[over])
            over += 1
        elif message is not None:
            assert rules.carrier is link
            heard[over] += 1
    assert over == rounds
    assert heard == said


def test_the_first_one_that_has_something_to_say_is_heard() -> None:
    rules = rules_of(Role.TARGET, 3)
    assert rules.speaker() is None
    rules.others[1].waiting.append(batch(0, 0))
    assert rules.speaker() is rules.others[1]
    rules.first.waiting.append(batch(0, 1))
    assert rules.speaker() is rules.first
    assert rules.heard(rules.first, RoundEnd(round=0, pages=1, zero_pages=0)) is None
    assert rules.speaker() is rules.others[1], "on the first one the round is over"


@pytest.mark.parametrize("other", [{"round": 1}, {"pages": 8}, {"zero_pages": 1}])
def test_a_round_that_ends_in_two_ways_is_refused(other: dict[str, int]) -> None:
    rules = rules_of(Role.TARGET, 2)
    end = RoundEnd(round=0, pages=7, zero_pages=0)
    assert rules.heard(rules.others[0], end) is None
    with pytest.raises(RemoteProtocolError, match="a round ends in two ways"):
        rules.heard(rules.first, attrs.evolve(end, **other))


@pytest.mark.parametrize(
    ("role", "phase", "carry"),
    [
        (Role.TARGET, Phase.RAM, True),
        (Role.TARGET, Phase.LAST_RAM, True),
        (Role.TARGET, Phase.TIME, False),
        (Role.SOURCE, Phase.RAM, False),
    ],
)
def test_streams_are_heard_while_ram_may_come(role: Role, phase: Phase, carry: bool) -> None:
    assert rules_of(role, 2, phase).carry is carry


def test_the_last_round_is_heard_to_its_end_though_the_conversation_has_gone_on() -> None:
    rules = rules_of(Role.TARGET, 2, Phase.LAST_RAM)
    end = RoundEnd(round=0, pages=0, zero_pages=0)
    rules.conversation.advance(Role.SOURCE, end)
    assert rules.heard(rules.first, end) is None
    assert rules.carry
    assert rules.heard(rules.others[0], end) == end
    assert not rules.carry


def test_what_is_no_batch_and_no_end_is_for_the_engine() -> None:
    rules = rules_of(Role.TARGET, 2)
    assert rules.heard(rules.first, Paused()) == Paused()


def test_both_sides_note_the_same_of_every_stream() -> None:
    source, target = (rules_of(role, 3) for role in Role)
    for rules in (source, target):
        for link in rules.others:
            link.conversation.note(bytes([link.number]))
        before = rules.conversation.transcript
        rules.note_round()
        assert rules.conversation.transcript != before
    assert source.conversation.transcript == target.conversation.transcript
    for rules, said in ((source, b"one"), (target, b"another")):
        rules.others[1].conversation.note(said)
        rules.note_round()
    assert source.conversation.transcript != target.conversation.transcript


# Who may come


@pytest.mark.parametrize(
    ("wanted", "version", "count"), [(1, 2, None), (2, 1, None), (2, 2, 1), (STREAMS_MAX, 2, STREAMS_MAX - 1)]
)
def test_a_target_announces_as_many_as_it_wants_if_both_know_how(wanted: int, version: int, count: int | None) -> None:
    rules = attrs.evolve(rules_of(Role.TARGET, 1), wanted=wanted, version=version)
    announced = rules.announcement(TOKEN)
    assert (None if announced is None else announced.count) == count
    if announced is not None:
        assert [attach.number for attach in attaches(announced)] == list(range(1, announced.count + 1))


def come(rules: StreamRules[End], number: int, token: bytes = TOKEN) -> Callable[[], list[End]]:
    """A stream comes; the answer says which were adopted."""
    adopted: list[End] = []
    link = End(number)
    rules.attach(link, Attach(token=token, number=number), lambda: adopted.append(link))
    return lambda: adopted


def test_streams_are_taken_in_the_order_of_their_numbers_whenever_they_came() -> None:
    rules = rules_of(Role.SOURCE, 1)
    assert rules.all_have_come(), "none was announced"
    told = [come(rules, 2), come(rules, 1, OTHER)]
    rules.announce(Streams(token=TOKEN, count=3))
    told += [come(rules, 3)]
    assert not rules.all_have_come()
    told += [come(rules, 1)]
    assert rules.all_have_come()
    rules.adopt()
    assert [link.number for link in rules.others] == [1, 2, 3]
    assert [len(adopted()) for adopted in told] == [1, 0, 1, 1], "a stranger is adopted by nobody"
    assert len(rules.all_streams()) == 4, "and is closed with the others"


@pytest.mark.parametrize("count", [0, STREAMS_MAX + 1, 0xFFFF])
def test_more_than_anybody_may_have_are_refused(count: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{count} further connections announced; 1 to {STREAMS_MAX} may be"):
        rules_of(Role.SOURCE, 1).announce(Streams(token=TOKEN, count=count))


def test_who_was_not_announced_or_has_come_already_is_refused() -> None:
    rules = rules_of(Role.SOURCE, 1)
    come(rules, 1)
    rules.announce(Streams(token=TOKEN, count=2))
    with pytest.raises(RemoteProtocolError, match="once"):
        rules.announce(Streams(token=TOKEN, count=2))
    with pytest.raises(RemoteProtocolError, match="stream 1 has come already"):
        come(rules, 1)
    for number, token in ((3, TOKEN), (2, OTHER), (0, TOKEN)):
        with pytest.raises(RemoteProtocolError, match=f"stream {number} is none of those that were announced"):
            come(rules, number, token)
    none: StreamRules[End] | None = None
    with pytest.raises(RemoteProtocolError, match="no migration is in progress that this stream could belong to"):
        attach_to(none, End(1), Attach(token=TOKEN, number=1), lambda: None)


def test_of_two_sides_that_have_lost_a_stream_one_speaks() -> None:
    assert [rules_of(role, 2).waits_for_a_word for role in (Role.SOURCE, Role.TARGET)] == [True, False]
