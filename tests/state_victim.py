"""A process that keeps its state in a directory and is killed: run as `python -m tests.state_victim DIR MODE [ARG]`.

at POINT       play the story, and die by SIGKILL at POINT: "N before" or "N after" step N, or "N unwitnessed", which
               is after its commit and before the witness is told
count          take one generation after the other for ever, and print each
hold           open the directory, print "held", and wait to be killed
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from migrate.daemon.state import Debt, KnownMachine, PauseImage, StateDirectory
from migrate.daemon.state.witness import Seen, Witness
from migrate.engine.handoff import Holding, Record

VM: Final = UUID("6a1c2a5e-8f0e-4a53-9d6a-0d7e57a7e001")
MACHINE: Final = KnownMachine(
    vm_id=VM,
    name="web-server",
    spec_version=6,
    spec_document=b"\xa1\x00 spec \xff",
    birth_release="2025.1",
    birth_shows=("modern-virtio", "fw-cfg-tables"),
    release="2026.2",
    guest="ledger",
    memory_bytes=1 << 30,
)
COMMITTED_IMAGE: Final = PauseImage(frames=b"paused" * 5000, ram="ram-of-2", boot_id="boot", generation=2)
READY_IMAGE: Final = PauseImage(frames=b"received" * 5000, ram="ram-of-3", boot_id="boot", generation=3)
OWED: Final = Debt(generation=3, peer="south", address="192.0.2.7:4400", owned=True)


async def _birth(state: StateDirectory) -> None:
    await state.birth(MACHINE, Record(Holding.OWNER, 1))


async def _generation(state: StateDirectory) -> None:
    assert await state.journal(VM).new_generation() == 2


async def _give_away(state: StateDirectory) -> None:
    given = Record(Holding.COMMITTED, 2, peer="south", owned=1, session=4)
    await state.journal(VM).write(given, image=COMMITTED_IMAGE)


async def _let_go(state: StateDirectory) -> None:
    await state.journal(VM).write(Record(Holding.NOT_OWNER, 2, peer="south", owned=1))


async def _receive(state: StateDirectory) -> None:
    record = Record(Holding.READY, 3, peer="south", owned=1)
    await state.journal(VM).write(record, image=READY_IMAGE, machine=MACHINE)


async def _take(state: StateDirectory) -> None:
    await state.journal(VM).write(Record(Holding.OWNER, 3, peer="south"), debt=OWED)


async def _settle(state: StateDirectory) -> None:
    await state.journal(VM).settle_debt(3, "south")


async def _remember(state: StateDirectory) -> None:
    await state.note_attempt(
        VM, side="target", outcome="moved", phase="owned", generation=3, peer="south", error=None, at=17
    )


async def _listen(state: StateDirectory) -> None:
    await state.set_fact("listens", "192.0.2.1:4400")


#: What a node does in its life, and what the points around each step are called.
STORY: Final[list[tuple[str, Callable[[StateDirectory], Awaitable[None]]]]] = [
    ("birth", _birth),
    ("new generation", _generation),
    ("write C", _give_away),
    ("write N", _let_go),
    ("write R", _receive),
    ("write O", _take),
    ("settle debt", _settle),
    ("note attempt", _remember),
    ("set fact", _listen),
]


#: Where to die: around each step, and in it after its commit and before the witness is told.
PLACES: Final = [f"{number} {when}" for number in range(len(STORY)) for when in ("before", "unwitnessed", "after")]


async def play(state: StateDirectory, die: Callable[[str], None]) -> None:
    for number, (name, step) in enumerate(STORY):

        def visit(point: str, number: int = number, name: str = name) -> None:
            when, what = point.split(" ", 1)
            assert what == name, f"{point!r} around {name!r}"
            die(f"{number} {when}")

        state.on_point = visit
        await step(state)


def die_at(place: str, path: Path) -> None:
    """Play the story and die."""

    def die(reached: str) -> None:
        if reached == place:
            os.kill(os.getpid(), signal.SIGKILL)

    with StateDirectory.open(path) as state:
        note = Witness.note

        def note_or_die(witness: Witness, seen: Seen) -> None:
            die(f"{seen.sequence - 1} unwitnessed")
            note(witness, seen)

        setattr(Witness, "note", note_or_die)  # noqa: B010  # mypy takes no assignment of a method
        trio.run(play, state, die)


async def count(state: StateDirectory) -> None:
    while True:
        print(await state.journal(VM).new_generation(), flush=True)


def main() -> None:
    match sys.argv[2:]:
        case ["everywhere"]:
            for place in PLACES:
                child = os.fork()  # no thread has been started yet
                if not child:
                    die_at(place, Path(sys.argv[1]) / place)
                    os._exit(0)
                print(f"{place} {os.WTERMSIG(os.waitpid(child, 0)[1])}", flush=True)
        case ["count"]:
            with StateDirectory.open(Path(sys.argv[1])) as state:
                trio.run(count, state)
        case ["hold"]:
            with StateDirectory.open(Path(sys.argv[1])):
                print("held", flush=True)
                signal.pause()


if __name__ == "__main__":
    main()
