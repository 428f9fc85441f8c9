"""Peers that break the protocol: scripted ones, honest up to some phase, against a real daemon over a real socket.

Against a source, attempt after attempt goes to the same daemon, which must be as good as new after each; against a
target, each attempt has a daemon of its own, which must be left without anything.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from migrate import cbor
from migrate.daemon.outcome import Outcome
from migrate.engine.handoff import Holding
from migrate.protocol import frames
from migrate.protocol.conversation import NEXT, Phase
from migrate.protocol.messages import (
    MESSAGES,
    OPTIONAL,
    Abandon,
    Commit,
    Failure,
    Inquire,
    Message,
    Preamble,
    RamPages,
    Role,
    RoundStored,
    Settle,
)
from sim_vmm.lifecycle import MachineState
from tests.daemons import (
    SPEAKER,
    Ending,
    Fault,
    Neighbourhood,
    Source,
    Target,
    Wire,
    assert_identical,
    connected,
    ignoring_loss,
    make_machine,
    play_source,
    play_target,
    source_script,
    until,
)
from tests.machines import EVERY_DEVICE, make_spec
from tests.specimens import SPECIMENS

Misbehave = Callable[[Wire], Awaitable[None]]

#: Phases in which the target speaks and the source can still undo everything, and those of the source.
TARGET_SPEAKS: Final = [Phase.HELLO, Phase.VERDICT, Phase.RECEIPT, Phase.READY]
SOURCE_SPEAKS: Final = [
    Phase.WELCOME,
    Phase.PREAMBLE,
    Phase.RAM,
    Phase.LAST_RAM,
    Phase.TIME,
    Phase.DEVICES,
    Phase.SERVER_STATE,
    Phase.PREPARE,
]
BEFORE_COMMIT: Final = TARGET_SPEAKS + SOURCE_SPEAKS


def illegal_in(phase: Phase) -> list[Message]:
    """One of every kind of message that the speaker of `phase` must not say there."""
    return [
        specimen
        for kind, specimen in SPECIMENS.items()
        if (phase, SPEAKER[phase], kind) not in NEXT and kind is not Failure
    ]


def saying(message: Message) -> Misbehave:
    return lambda wire: wire.put(wire.bytes_of(message))


def sending(data: bytes) -> Misbehave:
    return lambda wire: wire.put(wire.after_preface(data))


async def misbehaving_target(source: Source, phase: Phase, misbehave: Misbehave) -> Message | None:
    """Be a good target up to `phase`, then `misbehave`; returns the source's last words."""
    wire = await connected(source.port)
    async with wire.stream:
        with ignoring_loss():
            await play_target(wire, phase)
            await misbehave(wire)
        last = await wire.last_words()
    await until(lambda: len(source.told_of("attempt ended")) == len(source.told_of("attempt")))
    return last


async def misbehaving_source(
    neighbours: Neighbourhood, phase: Phase, misbehave: Misbehave
) -> tuple[Target, Message | None]:
    """A target that meets a source which is good up to `phase`, then misbehaves; and the target's last words."""
    last: list[Message | None] = []

    async def converse(wire: Wire) -> None:
        with make_machine(make_spec(EVERY_DEVICE)) as machine:
            script = source_script(machine)
        with ignoring_loss():
            await play_source(wire, iter(script), phase)
            await misbehave(wire)
        last.append(await wire.last_words())

    target = neighbours.target(await neighbours.scripted_source(converse))
    assert await target.daemon.migrate_in() is None
    await until(lambda: last)
    return target, last[0]


def assert_as_good_as_new(source: Source) -> None:
    assert source.machine.state is MachineState.RUNNING
    assert source.journal.record.holding is Holding.OWNER
    assert all(told.state is MachineState.RUNNING for told in source.told_of("attempt ended"))


async def assert_still_migrates(neighbours: Neighbourhood, source: Source) -> None:
    retry = neighbours.target(source.port)
    assert await retry.daemon.migrate_in() is not None
    await assert_identical(source, retry)


def assert_nothing_left(target: Target) -> None:
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.FAILED]
    assert target.hypervisor.kept == []
    assert target.hypervisor.runner is None
    assert target.journal.record.holding is Holding.NOT_OWNER


# Messages out of place


@pytest.mark.parametrize("phase", TARGET_SPEAKS)
async def test_a_source_refuses_every_message_that_is_not_the_targets_to_say(
    neighbourhood: Neighbourhood, phase: Phase
) -> None:
    source = await neighbourhood.source()
    for message in illegal_in(phase):
        last = await misbehaving_target(source, phase, saying(message))
        assert isinstance(last, Failure)
        assert last.error == "RemoteProtocolError"
        assert f"sent {type(message).__name__} from the target in phase {phase.value!r}" in last.message
        assert_as_good_as_new(source)
    assert len(source.daemon.attempts) == (0 if phase is Phase.HELLO else len(illegal_in(phase)))
    await assert_still_migrates(neighbourhood, source)


@pytest.mark.parametrize("phase", SOURCE_SPEAKS)
async def test_a_target_refuses_every_message_that_is_not_the_sources_to_say(
    neighbourhood: Neighbourhood, phase: Phase
) -> None:
    for message in illegal_in(phase):
        target, last = await misbehaving_source(neighbourhood, phase, saying(message))
        assert isinstance(last, Failure)
        assert last.error == "RemoteProtocolError"
        assert f"sent {type(message).__name__} from the source in phase {phase.value!r}" in last.message
        assert_nothing_left(target)


async def test_a_target_that_speaks_while_ram_is_coming_is_heard_and_refused(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    for message in illegal_in(Phase.RAM):
        last = await misbehaving_target(source, Phase.RAM, saying(message))
        assert isinstance(last, Failure)
        assert last.error == "RemoteProtocolError"
        # A receipt may arrive when all of the round has left: one is due then, and its number is what is wrong.
        assert f"sent {type(message).__name__} " in last.message or (
            isinstance(message, RoundStored) and "a receipt for round 2 after round 0" in last.message
        )
        assert_as_good_as_new(source)
    await assert_still_migrates(neighbourhood, source)


async def test_no_answer_but_the_targets_choice_releases_a_source_that_has_committed(
    neighbourhood: Neighbourhood,
) -> None:
    """Each time the target comes back, hears the commit again, and says something that is no choice."""
    source = await neighbourhood.source()
    illegal = illegal_in(Phase.OWNED)
    await misbehaving_target(source, Phase.OWNED, saying(illegal[0]))
    for message in illegal[1:]:
        wire = await connected(source.port)
        async with wire.stream:
            await wire.say(Settle(machine="vm", generation=2, owned=False))
            assert isinstance(await wire.hear(), Commit)
            await wire.put(wire.bytes_of(message))
            await wire.last_words()
    await until(lambda: len(source.daemon.attempts) == len(illegal))
    assert {attempt.outcome for attempt in source.daemon.attempts} == {Outcome.IN_DOUBT}
    assert {told.state for told in source.told_of("attempt ended")} == {MachineState.PAUSED}
    assert source.journal.record.holding is Holding.COMMITTED


@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.SETTLE])
async def test_no_word_but_the_commit_lets_a_target_run_what_it_holds(
    neighbourhood: Neighbourhood, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source says everything else, one connection after another, and in the end that the image is dead."""
    monkeypatch.setattr("migrate.daemon.target.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("migrate.daemon.target.PAUSE_MAX_S", 0.001)
    wrong = iter(illegal_in(phase))
    with make_machine(make_spec(EVERY_DEVICE)) as machine:
        script = source_script(machine)

    async def converse(wire: Wire) -> None:
        first = await wire.hear()
        if not isinstance(first, Inquire):
            await play_source(wire, iter(script), Phase.COMMIT)
            await wire.put(wire.bytes_of(next(wrong) if phase is Phase.COMMIT else SPECIMENS[Abandon]))
        elif phase is Phase.SETTLE and (message := next(wrong, None)) is not None:
            await wire.put(wire.bytes_of(message))
        else:
            await wire.say(Abandon(generation=first.generation))
        await wire.last_words()

    for _ in illegal_in(phase) if phase is Phase.COMMIT else [None]:
        target = neighbourhood.target(await neighbourhood.scripted_source(converse))
        assert await target.daemon.migrate_in() is None
        assert_nothing_left(target)
    assert next(wrong, None) is None, "not everything was said"


# Bytes that are no message


def header(frame_type: int, length: int) -> bytes:
    return frames.HEADER.pack(frame_type, 0, length, 0)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


#: What is sent in place of a message of type 4 or 16, say, and what the daemon says of it.
MALFORMED: Final[list[tuple[str, Callable[[int], bytes], str]]] = [
    ("oversize", lambda kind: header(kind, MESSAGES[kind].BODY_MAX + 1), "at most"),
    ("largest length", lambda kind: header(kind, 0xFFFF_FFFF), "at most"),
    ("checksum", lambda kind: flipped(frames.encode_frame(SPECIMENS[MESSAGES[kind]])), "checksum"),
    ("no CBOR", lambda kind: frames.encode_raw(kind, b"\xff\xff"), "at byte 0"),
    ("empty body", lambda kind: frames.encode_raw(kind, b""), "at byte 0"),
    ("tag", lambda kind: frames.encode_raw(kind, b"\xc4\x82\x1b" + bytes([0xFF] * 8) + b"\x01"), "tags"),
    ("trailing", lambda kind: frames.encode_raw(kind, cbor.encode({}) + b"\x00"), "follow"),
    ("unknown field", lambda kind: frames.encode_raw(kind, cbor.encode({"surprise": 1})), ""),
    ("not a map", lambda kind: frames.encode_raw(kind, cbor.encode([1])), "expected an object"),
    ("unknown mandatory type", lambda _: frames.encode_raw(0x7FFF, b"\xa0"), "unknown mandatory type 0x7fff"),
    ("oversize optional type", lambda _: header(OPTIONAL, frames.UNKNOWN_OPTIONAL_BODY_MAX + 1), "at most"),
    ("damaged header", lambda kind: b"\x00\x04\x01\x00" + bytes(12), "damaged"),
]
each_malformed = pytest.mark.parametrize(
    ("make", "said"), [row[1:] for row in MALFORMED], ids=[r[0] for r in MALFORMED]
)


def type_said_in(phase: Phase) -> int:
    return next(kind.TYPE for (at, _, kind) in NEXT if at is phase)


@each_malformed
async def test_a_source_names_what_is_wrong_with_a_malformed_frame_in_any_phase(
    neighbourhood: Neighbourhood, make: Callable[[int], bytes], said: str
) -> None:
    source = await neighbourhood.source()
    for phase in TARGET_SPEAKS:
        data = make(type_said_in(phase))
        last = await misbehaving_target(source, phase, sending(data))
        assert isinstance(last, Failure)
        assert (last.error, said in last.message) == ("RemoteProtocolError", True), last.message
        assert_as_good_as_new(source)
    await assert_still_migrates(neighbourhood, source)


@each_malformed
async def test_a_target_names_what_is_wrong_with_a_malformed_frame_in_any_phase(
    neighbourhood: Neighbourhood, make: Callable[[int], bytes], said: str
) -> None:
    for phase in SOURCE_SPEAKS:
        data = make(type_said_in(phase))
        target, last = await misbehaving_source(neighbourhood, phase, sending(data))
        assert isinstance(last, Failure)
        assert (last.error, said in last.message) == ("RemoteProtocolError", True), last.message
        assert_nothing_left(target)


async def test_one_bit_flipped_in_guest_ram_is_found_and_ends_the_attempt(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(Role.SOURCE, RamPages, flipped, Ending.NONE))
    target = neighbourhood.target(tap.port, retries=1)
    assert await target.daemon.migrate_in() is not None
    first = target.daemon.attempts[0].as_json()
    assert (first["phase"], first["error"]["side"]) == ("ram", "target")
    assert "RAM batch of round 0 from" in first["error"]["message"]
    await until(source.daemon.over.is_set)
    assert source.daemon.attempts[0].as_json()["error"]["side"] == "target"
    await assert_identical(source, target)


# Messages that one may skip

EXTRA: Final = frames.encode_raw(OPTIONAL + 1, b"from the future")


async def test_messages_of_unknown_optional_types_are_skipped_wherever_they_come(neighbourhood: Neighbourhood) -> None:
    """One follows every message of either side: in its sender's turn, or out of it."""
    source = await neighbourhood.source()
    kinds = [(sender, kind) for (_, sender, kind) in NEXT if kind not in (Settle, Abandon)]
    tap = await neighbourhood.tap(
        source.port, *(Fault(sender, kind, lambda data: data + EXTRA, Ending.NONE) for sender, kind in set(kinds))
    )
    target = neighbourhood.target(tap.port)
    arrived = await target.daemon.migrate_in()
    assert arrived is not None
    assert arrived.settled
    await assert_identical(source, target)


# Peers that are slow


def trickling(clock: MockClock, data: bytes) -> Misbehave:
    """One byte a second: each read makes progress, the message does not."""

    async def trickle(wire: Wire) -> None:
        for index in range(len(data)):
            await wire.put(data[index : index + 1])
            clock.jump(1)
            await trio.sleep(0.005)

    return trickle


@pytest.mark.parametrize("phase", TARGET_SPEAKS)
async def test_a_target_that_sends_byte_by_byte_runs_into_the_frame_deadline(
    neighbourhood: Neighbourhood, clock: MockClock, phase: Phase
) -> None:
    source = await neighbourhood.source()
    data = frames.encode_frame(SPECIMENS[next(kind for (at, _, kind) in NEXT if at is phase)])
    await misbehaving_target(source, phase, trickling(clock, frames.PREFACE + data if phase is Phase.HELLO else data))
    if phase is not Phase.HELLO:
        facts = source.daemon.attempts[0].as_json()
        assert facts["error"]["class"] == "DeadlineExpired"
    assert_as_good_as_new(source)
    await assert_still_migrates(neighbourhood, source)


@pytest.mark.parametrize("phase", SOURCE_SPEAKS)
async def test_a_source_that_sends_byte_by_byte_runs_into_the_frame_deadline(
    neighbourhood: Neighbourhood, clock: MockClock, phase: Phase
) -> None:
    data = frames.encode_frame(SPECIMENS[Preamble])
    target, _ = await misbehaving_source(
        neighbourhood, phase, trickling(clock, frames.PREFACE + data if phase is Phase.WELCOME else data)
    )
    assert target.daemon.attempts[0].as_json()["error"]["class"] == "DeadlineExpired"
    assert_nothing_left(target)
