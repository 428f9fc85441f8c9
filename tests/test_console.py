"""Console history: what is kept, what is answered, what travels."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.console import ConsoleData, ConsoleHistory, ConsoleQueryError, ConsoleState, ConsoleStateError


def history(text: bytes, buffer_size: int = 4) -> ConsoleHistory:
    console = ConsoleHistory(buffer_size)
    console.append(text)
    return console


#: Twelve bytes in buffers of four: "abcd" and "ijkl" are kept, "efgh" has expired.
LONG = b"abcdefghijkl"

ANSWERS = [
    ("all of a short history", b"abcdef", {"from_start": 0}, b"abcdef", 6),
    ("across the buffers when nothing has expired", b"abcdefgh", {"from_start": 2}, b"cdefgh", 8),
    ("no more than asked for", b"abcdef", {"from_start": 3, "max_bytes": 2}, b"de", 5),
    ("nothing at the end", b"abcdef", {"from_start": 6}, b"", 6),
    ("nothing beyond the end", b"abcdef", {"from_start": 99}, b"", 6),
    ("the most recent bytes", b"abcdef", {"most_recent": 2}, b"ef", 6),
    ("everything, if more is asked for than there is", b"abcdef", {"most_recent": 99}, b"abcdef", 6),
    ("no most recent bytes", b"abcdef", {"most_recent": 0}, b"", 6),
    ("the beginning stops at the gap", LONG, {"from_start": 1}, b"bcd", 4),
    ("what is kept behind the gap", LONG, {"from_start": 8}, b"ijkl", 12),
    ("the most recent bytes behind the gap", LONG, {"most_recent": 3}, b"jkl", 12),
    ("the most recent bytes, beginning before the gap", LONG, {"most_recent": 10}, b"cd", 4),
    ("nothing of nothing", b"", {"from_start": 0}, b"", 0),
    ("no bytes at all", LONG, {"from_start": 1, "max_bytes": 0}, b"", 1),
]


@pytest.mark.parametrize(
    ("text", "query", "data", "last"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS]
)
def test_a_query_is_answered(text: bytes, query: dict[str, int], data: bytes, last: int) -> None:
    assert history(text).read(**query) == ConsoleData(data, last)


REFUSED = [
    ("neither start", {}, "exactly one"),
    ("both starts", {"from_start": 0, "most_recent": 0}, "exactly one"),
    ("a negative offset", {"from_start": -1}, "must not be negative"),
    ("a negative count", {"most_recent": -1}, "must not be negative"),
    ("a negative limit", {"from_start": 0, "max_bytes": -1}, "must not be negative"),
    ("the first expired byte", {"from_start": 4}, "byte 4 of the console has expired; kept are 0-3 and 8-11"),
    ("the last expired byte", {"from_start": 7}, "has expired"),
    ("a most recent byte in the gap", {"most_recent": 5}, "byte 7 of the console has expired"),
]


@pytest.mark.parametrize(("query", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_query_without_an_answer_is_refused(query: dict[str, int], message: str) -> None:
    with pytest.raises(ConsoleQueryError, match=message):
        history(LONG).read(**query)


def test_by_default_a_mib_is_kept_at_each_end_and_16_kib_are_answered() -> None:
    console = ConsoleHistory()
    console.append(bytes(3 << 20))
    assert len(console.read(from_start=0).data) == 16384
    assert console.export().buffer_size == 1 << 20
    assert len(console.read(most_recent=1 << 20, max_bytes=1 << 30).data) == 1 << 20


@given(st.lists(st.binary(max_size=9), max_size=8), st.integers(0, 40), st.integers(0, 12))
def test_a_history_answers_as_the_whole_text_would(pieces: list[bytes], start: int, max_bytes: int) -> None:
    console = ConsoleHistory(4)
    for piece in pieces:
        console.append(piece)
    text = b"".join(pieces)
    assert console.total_bytes == len(text)
    gap = range(4, len(text) - 4)
    clamped = min(start, len(text))
    if clamped in gap:
        with pytest.raises(ConsoleQueryError):
            console.read(from_start=start, max_bytes=max_bytes)
        return
    end = 4 if gap and clamped < 4 else len(text)
    expected = text[clamped:end][:max_bytes]
    assert console.read(from_start=start, max_bytes=max_bytes) == ConsoleData(expected, clamped + len(expected))


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(1, 6))
def test_an_imported_history_goes_on_as_the_original(before: bytes, after: bytes, buffer_size: int) -> None:
    original, moved = history(before, buffer_size), ConsoleHistory()
    moved.import_(original.export())
    for console in (original, moved):
        console.append(after)
    assert moved.export() == original.export()
    assert moved.total_bytes == len(before) + len(after)


STATE = ConsoleState(beginning=b"abcd", rolling=b"ijkl", total_bytes=12, buffer_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer_size": 0}, "buffer_size is 0"),
        ({"beginning": b"abc"}, "beginning has 3 bytes; .* it must have 4"),
        ({"rolling": b"ijk"}, "rolling has 3 bytes; .* it must have 4"),
        ({"total_bytes": 7}, "rolling has 4 bytes; .* it must have 3"),
        ({"total_bytes": 3}, "beginning has 4 bytes; .* it must have 3"),
        ({"buffer_size": 5}, "beginning has 4 bytes; .* it must have 5"),
    ],
)
def test_a_history_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    console = history(b"ours")
    with pytest.raises(ConsoleStateError, match=message):
        console.import_(attrs.evolve(STATE, **changes))
    assert console.read(from_start=0).data == b"ours"
