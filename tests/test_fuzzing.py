"""200,000 hostile inputs, the same ones every time: only our errors, in time, in bounds, and nobody's machine is lost.

What is fuzzed and how: tests/fuzzing.  Beside the volume stand two things that keep it honest: every finding of earlier
days is run again, and of each thing that is looked for there is a broken reader with which it is found.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate import cbor
from migrate.engine import source, target
from migrate.engine.handoff import Act, on_prepare, on_ready
from migrate.errors import RemoteProtocolError
from migrate.protocol import frames
from migrate.protocol.frames import HEADER, encode_frame, encode_raw
from migrate.protocol.messages import MESSAGES, Message
from migrate.simulation.remembering import remembering
from migrate.specs import VERSIONS
from sim_vmm.payloads import PAYLOADS
from tests.fuzzing.conversations import Flags, converse_with_source, converse_with_target
from tests.fuzzing.generation import damaged_body, inputs, segments_of
from tests.fuzzing.limits import CPU_S_MAX, Finding, examine, peak_memory
from tests.fuzzing.seeds import FINDINGS, findings, read_finding, seeds
from tests.fuzzing.targets import SCHEMAS, TARGETS, fuzz_frame
from tests.specimens import ANY_MESSAGE

#: How many inputs of each target, in shares that can run side by side.
SHARES: Final[dict[str, tuple[int, ...]]] = {
    "frame": (47_000,) * 4,
    "image": (1_000,),
    "payload": (4_000,),
    "spec": (3_000,),
    "source": (2_000,),
    "target": (2_000,),
}
#: What is said to an engine is new every time; what the engine works out of its own machine need not be.
REMEMBERING: Final = ("source", "target")


def test_at_least_200000_inputs_are_run() -> None:
    assert SHARES.keys() == TARGETS.keys()
    assert sum(map(sum, SHARES.values())) >= 200_000
    assert min(sum(SHARES["source"]), sum(SHARES["target"])) >= 2_000


@pytest.mark.parametrize(
    ("name", "share", "count"),
    [(name, share, count) for name, counts in SHARES.items() for share, count in enumerate(counts)],
)
def test_no_generated_input_does_what_none_may_do(
    name: str, share: int, count: int, record_property: Callable[[str, object], None]
) -> None:
    ran = 0
    how: AbstractContextManager[None] = remembering() if name in REMEMBERING else nullcontext()
    with how:
        for data in inputs(name, share, count):
            try:
                TARGETS[name](data)
            except Finding as finding:
                keep = FINDINGS / name / f"share-{share}-{ran}"
                pytest.fail(f"{finding}; to keep it: write {data[:2000].hex()} to {keep}")
            ran += 1
    assert ran == count
    record_property("fuzzed", (name, ran))


def test_inputs_are_the_same_every_time_and_differ_by_share() -> None:
    for name in TARGETS:
        assert list(inputs(name, 1, 20)) == list(inputs(name, 1, 20)) != list(inputs(name, 2, 20))


def test_most_generated_inputs_get_past_the_first_check() -> None:
    """A fuzzer whose every input fails at the checksum tests nothing else."""
    refused: dict[str, int] = {}
    accepted = 0
    for data in inputs("frame", 9, 2000):
        if len(data) < HEADER.size:
            continue
        try:
            header = frames.decode_header(data[: HEADER.size])
            if not header.skippable:
                frames.decode_body(header, data[HEADER.size :])
                accepted += 1
        except RemoteProtocolError as error:
            kind = next(
                (word for word in ("checksum", "at byte", "unknown mandatory", "announces") if word in str(error)),
                "shape",
            )
            refused[kind] = refused.get(kind, 0) + 1
    assert accepted > 100
    assert refused["shape"] > 300
    assert refused["at byte"] > 300
    assert refused["checksum"] < 200


def test_seeds_have_every_message_payload_and_spec_version() -> None:
    assert {int.from_bytes(seed[:2], "big") for seed in seeds("frame")} == set(MESSAGES)
    assert {SCHEMAS[seed[0]] for seed in seeds("payload")} == set(PAYLOADS)
    assert {VERSIONS[seed[0]] for seed in seeds("spec")} == set(VERSIONS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_no_finding(name: str) -> None:
    assert len(seeds(name)) >= 2
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name in TARGETS for path in findings(name)],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_every_finding_of_earlier_days_is_none_any_more(name: str, path: Path) -> None:
    TARGETS[name](read_finding(path))


def test_every_finding_belongs_to_a_target() -> None:
    assert {path.name for path in FINDINGS.iterdir() if path.is_dir()} <= set(TARGETS)


# Drawn by hypothesis, which shrinks what it finds


@settings(max_examples=150)
@given(ANY_MESSAGE, st.randoms(use_true_random=False))
def test_no_damaged_message_does_what_none_may_do(message: Message, rng: Random) -> None:
    plain = cbor.decode(encode_frame(message)[HEADER.size :])
    fuzz_frame(encode_raw(message.TYPE, damaged_body(rng, plain)))


@settings(max_examples=400)
@given(st.sampled_from(list(MESSAGES)), st.binary(max_size=200))
def test_no_random_body_does_what_none_may_do(kind: int, body: bytes) -> None:
    fuzz_frame(encode_raw(kind, body))


@pytest.mark.parametrize("name", ["source", "target"])
@settings(max_examples=80)
@given(data=st.data())
def test_any_messages_may_follow_any_part_of_a_conversation(name: str, data: st.DataObject) -> None:
    """Valid ones of any content, in any order: what the table of moves and the engines make of them."""
    seed = data.draw(st.sampled_from(seeds(name)))
    known = segments_of(seed[1:])
    begun = known[: data.draw(st.integers(0, len(known)))]
    after = data.draw(st.lists(ANY_MESSAGE, max_size=4))
    rest = known[len(begun) + 1 :] if data.draw(st.booleans()) else ()
    stream = [segment.encode() for segment in begun] + [encode_frame(message) for message in after]
    TARGETS[name](seed[:1] + b"".join(stream) + b"".join(segment.encode() for segment in rest))


# What is looked for is found where it is


def test_an_error_of_another_class_is_a_finding() -> None:
    with pytest.raises(Finding, match="KeyError is no refusal: 'x'"):
        examine(lambda: dict[str, int]()["x"], (ValueError,), size=1, memory_max=1 << 20)
    assert examine(lambda: int("x"), (ValueError,), size=1, memory_max=1 << 20) is None
    assert examine(lambda: int("7"), (ValueError,), size=1, memory_max=1 << 20) == 7


@pytest.mark.parametrize("error", [AssertionError, RecursionError, MemoryError, KeyboardInterrupt, SystemExit])
def test_no_error_of_the_interpreter_is_a_refusal(error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(Finding, match=error.__name__):
        examine(fail, (RemoteProtocolError,), size=1, memory_max=1 << 20)


def test_an_input_that_is_slow_every_time_is_a_finding() -> None:
    def burn() -> None:
        until = time.thread_time() + 1.2 * CPU_S_MAX
        while time.thread_time() < until:
            pass

    with pytest.raises(Finding, match="of processor time; 50 may be"):
        examine(burn, (), size=9, memory_max=1 << 20)


def test_an_input_that_is_slow_once_is_none() -> None:
    left = [1.2 * CPU_S_MAX]

    def burn_once() -> None:
        until = time.thread_time() + left.pop() if left else 0.0
        while time.thread_time() < until:
            pass

    examine(burn_once, (), size=9, memory_max=1 << 20)
    assert not left


def test_an_input_that_takes_too_much_memory_is_a_finding() -> None:
    with pytest.raises(Finding, match=r"made us allocate 100\d{3}; at most 99000"):
        examine(lambda: bytes(100_000), (), size=1000, memory_max=99_000)
    examine(lambda: bytes(100_000), (), size=1000, memory_max=101_000)
    with peak_memory() as peak:
        len(bytes(50_000))
    assert 50_000 <= peak[0] < 60_000


def test_a_reader_that_looks_at_no_shape_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = list(inputs("frame", 0, 200))
    monkeypatch.setattr(frames, "structure", lambda converter, plain, kind: kind(**plain))
    with pytest.raises(Finding, match="is no refusal"):
        any(map(fuzz_frame, damaged))


def test_a_reader_without_budgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By inputs that were findings before there were any."""
    boundless = cbor.Budget(items=1 << 40, memory=1 << 40)
    monkeypatch.setattr(frames, "_BUDGETS", dict.fromkeys(MESSAGES, boundless))
    for path in findings("frame"):
        if path.name in ("large-accept-of-empty-lists.gz", "large-text-with-one-wide-character.gz"):
            with pytest.raises(Finding, match=r"made us allocate|processor time"):
                fuzz_frame(read_finding(path))


def _to_ready() -> bytes:
    """A target's side of a conversation up to its promise."""
    seed = seeds("source")[0]
    return seed[:1] + b"".join(segment.encode() for segment in segments_of(seed[1:])[:4])


def test_a_source_that_runs_what_it_gave_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert converse_with_source(_to_ready()).conversation.phase.value == "owned"
    rule = on_ready
    monkeypatch.setattr(source, "on_ready", lambda *asked, **more: (*rule(*asked, **more), Act.RUN))
    with pytest.raises(Finding, match=r"the source holds C\(2\), and its machine is running"):
        converse_with_source(_to_ready())


def test_a_source_that_stays_paused_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = seeds("source")[0][:1] + b"".join(segment.encode() for segment in segments_of(seeds("source")[0][1:])[:3])
    converse_with_source(seed)
    monkeypatch.setattr(source, "rolling_back", lambda record: ())
    with pytest.raises(Finding, match=r"the source holds O\(1\), and its machine is paused"):
        converse_with_source(seed)


def test_a_target_that_runs_without_having_been_given_the_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = seeds("target")[0]
    stream = seed[:1] + b"".join(segment.encode() for segment in segments_of(seed[1:])[:-2])
    converse_with_target(stream)
    rule = on_prepare
    monkeypatch.setattr(
        target, "on_prepare", lambda *asked, **more: (*rule(*asked, **more)[:1], Act.RUN, rule(*asked, **more)[-1])
    )
    with pytest.raises(Finding, match=r"an image is held, and the target holds R\(2\)"):
        converse_with_target(stream)


def test_a_target_that_leaves_its_machine_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = seeds("target")[0]
    stream = seed[:1] + b"".join(segment.encode() for segment in segments_of(seed[1:])[:3])
    converse_with_target(stream)

    async def forget(*_: object) -> None:
        """Discards nothing."""

    monkeypatch.setattr("tests.fuzzing.conversations.Host.discard", forget)
    with pytest.raises(Finding, match=r"left .* behind"):
        converse_with_target(stream)


def test_a_conversation_without_mercy_ends_at_the_first_wrong_checksum() -> None:
    seed = seeds("target")[0]
    damaged = seed[:9] + bytes([seed[9] ^ 1]) + seed[10:]
    assert len(converse_with_target(damaged).heard) > 10
    assert not converse_with_target(bytes([seed[0] & ~Flags.FORGIVING]) + damaged[1:]).heard
