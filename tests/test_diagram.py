"""docs/protocol.md says what the code does, as far as a program can tell."""

import re
from pathlib import Path

import pytest

from migrate.protocol.conversation import NEXT, Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.diagram import CHAPTERS, END_MARKER, START_MARKER, block, mermaid, text_table
from migrate.protocol.frames import PREFACE
from migrate.protocol.messages import KIBIBYTE, MEBIBYTE, MESSAGES, Failure, Role

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
MESSAGE_ROW = re.compile(r"^\| (\d+) \| (\w+) \| ([a-z, ]+) \| (\d+) ([KM])iB \|", re.MULTILINE)


def test_the_page_holds_the_generated_block() -> None:
    start, end = PAGE.index(START_MARKER), PAGE.index(END_MARKER) + len(END_MARKER)
    assert PAGE[start:end] == block(), "run `python -m migrate.protocol.diagram` and paste what it prints"


def test_every_phase_in_which_somebody_speaks_belongs_to_one_chapter() -> None:
    phases = [phase for chapter in CHAPTERS.values() for phase in chapter]
    assert sorted(phases) == sorted({phase for phase, _, _ in NEXT})


def test_every_move_is_drawn_once() -> None:
    drawn = [
        (source, message, target)
        for source, target, messages in re.findall(r"(\w+) --> (\S+) : (.+)", mermaid())
        for message in messages.split(" / ")
    ]
    expected = [
        (phase.name, kind.__name__, "[*]" if then is Phase.ENDED else then.name)
        for (phase, _, kind), then in NEXT.items()
    ]
    assert sorted(drawn) == sorted(expected)


def test_the_text_table_fits_80_columns_and_shows_every_move() -> None:
    lines = text_table().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3] == "hello         target   Hello or HelloFor                      welcome"
    rows = [line for line in lines[1:] if line and not line.startswith("--")]
    assert sum(1 + row.count(" or ") for row in rows) == len(NEXT)


def test_the_message_table_has_numbers_speakers_and_caps_of_the_code() -> None:
    unit = {"K": KIBIBYTE, "M": MEBIBYTE}
    written = {
        int(number): (name, speakers, int(size) * unit[prefix])
        for number, name, speakers, size, prefix in MESSAGE_ROW.findall(PAGE)
    }
    spoken = {kind: sorted({role for _, role, said in NEXT if said is kind}) for kind in MESSAGES.values()}
    spoken[Failure] = sorted(Role)
    assert written == {
        number: (kind.__name__, ", ".join(spoken[kind]), kind.BODY_MAX) for number, kind in MESSAGES.items()
    }


def test_the_preface_is_written_out() -> None:
    assert PREFACE.hex(" ") in PAGE


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        ("connecting", Deadlines().connect_s),
        ("the TLS handshake", Deadlines().handshake_s),
        ("one frame, or one batch's contents", Deadlines().frame_s),
        ("hello, welcome, settle, release", Deadlines().opening_s),
        ("any other phase", Deadlines().phase_s),
        ("farewell", Deadlines().farewell_s),
    ],
)
def test_the_deadlines_are_the_daemons_defaults(row: str, seconds: float) -> None:
    assert re.search(rf"^\| {row} \| {seconds:g}\b", PAGE, re.MULTILINE)
