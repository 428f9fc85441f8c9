"""The table of legal moves, drawn: as a Mermaid diagram and as text of at most 80 columns.

`python -m migrate.protocol.diagram` prints the block that stands in docs/protocol.md, and a test compares the two.  The
drawing knows the chapters of a migration and nothing else: every edge comes from the table.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from migrate.protocol.conversation import NEXT, Phase
from migrate.protocol.messages import Role

START_MARKER: Final = "<!-- generated: conversation -->"
END_MARKER: Final = "<!-- end -->"

#: A phase belongs to the chapter under which it is listed; together they are all phases that somebody speaks in.
CHAPTERS: Final[dict[str, tuple[Phase, ...]]] = {
    "opening": (Phase.HELLO, Phase.WELCOME, Phase.PREAMBLE, Phase.VERDICT),
    "guest RAM, while the guest runs": (Phase.RAM, Phase.RECEIPT),
    "blackout, in one flight": (Phase.LAST_RAM, Phase.TIME, Phase.DEVICES, Phase.SERVER_STATE, Phase.PREPARE),
    "handoff": (Phase.READY, Phase.COMMIT, Phase.OWNED, Phase.RELEASE),
    "after a lost connection": (Phase.SETTLE,),
    "a further connection": (Phase.STREAM,),
}

_COLUMNS: Final = "{:<14}{:<9}{:<39}{}"


def mermaid() -> str:
    """A state diagram: phases coloured by who speaks in them, messages on the edges."""
    lines = [
        "stateDiagram-v2",
        "    direction TB",
        "    classDef source fill:#dbe9ff,stroke:#3b6fb6,color:#000",
        "    classDef target fill:#ffe9d2,stroke:#b6702a,color:#000",
    ]
    for chapter, phases in CHAPTERS.items():
        lines += ["", f"    %% {chapter}"]
        for phase in phases:
            lines.append(f"    {phase.name} : {phase} ({speaker_of(phase)} speaks)")
            lines.append(f"    class {phase.name} {speaker_of(phase)}")
        lines += [
            f"    {phase.name} --> {_node(then)} : {' / '.join(messages)}"
            for phase, _, messages, then in _moves(phases)
        ]
    lines += ["", f"    [*] --> {Phase.HELLO.name}"]
    return "\n".join(lines)


def text_table() -> str:
    """One line for each move, by chapter."""
    lines = [_COLUMNS.format("phase", "speaker", "message", "next phase")]
    for chapter, phases in CHAPTERS.items():
        lines += ["", f"-- {chapter} ".ljust(64, "-")]
        lines += [
            _COLUMNS.format(phase, speaker, " or ".join(messages), then)
            for phase, speaker, messages, then in _moves(phases)
        ]
    return "\n".join(line.rstrip() for line in lines)


def block() -> str:
    """What docs/protocol.md holds, markers included."""
    return "\n".join(
        [
            START_MARKER,
            "",
            "```mermaid",
            mermaid(),
            "```",
            "",
            "The same as text, where `Failure` from either side ends every phase as well:",
            "",
            "```text",
            text_table(),
            "```",
            "",
            END_MARKER,
        ]
    )


def speaker_of(phase: Phase) -> Role:
    """The only one who speaks in `phase`."""
    (speaker,) = {role for at, role, _ in NEXT if at is phase}
    return speaker


def _moves(phases: Sequence[Phase]) -> Iterator[tuple[Phase, Role, list[str], Phase]]:
    """The moves out of `phases`; messages that lead to the same phase are put together."""
    for phase in phases:
        moves = [(speaker, then, kind.__name__) for (at, speaker, kind), then in NEXT.items() if at is phase]
        for (speaker, then), group in groupby(moves, lambda move: move[:2]):
            yield phase, speaker, [name for _, _, name in group], then


def _node(phase: Phase) -> str:
    return "[*]" if phase is Phase.ENDED else phase.name


if __name__ == "__main__":
    print(block())
