"""What another process does in tests of files that processes share: the fence of a directory, and guest RAM.

Run as `python -m tests.other_process DEED PATH`.  A deed says in lines what it has done.  Those that do not end of
themselves go on until their standard input ends, or they are killed.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

import numpy as np

from sim_vmm.fence import Fence, FencedOff, Title, TitleMoved
from sim_vmm.memory import PAGE_SIZE, GuestMemory
from sim_vmm.spec.components import FileStorageBackend
from sim_vmm.storage import Storage

ROOT: Final = Path(__file__).parents[1]
MACHINE: Final = UUID(int=0x1234)
BACKEND: Final = FileStorageBackend("", False, 512, None)
RAM_BYTES: Final = 8 << 20
RACES: Final = 100


def title(session: int, owner: str = "here") -> Title:
    return Title(session=session, generation=7, machine=MACHINE, owner=owner)


def say(words: object) -> None:
    print(words, flush=True)


def be_in_the_middle_of_io(directory: Path) -> None:
    fence = Fence(directory)
    fence.take(None, title(1))
    with fence.check():
        say("in the middle")
        sys.stdin.read()


def write_until_fenced_off(directory: Path) -> None:
    fence = Fence(directory)
    fence.take(None, title(1, "the other"))
    disk = Storage(directory, fence=fence).open("disk", BACKEND)
    number = 0
    try:
        while True:
            number += 1
            disk.write(0, number.to_bytes(8, "little") * 64)
            if number == 100:
                say("writing")
    except FencedOff as error:
        say(error.found)


def swap_for_ever(directory: Path) -> None:
    fence = Fence(directory)
    last = None
    for session in range(1, 1 << 40):
        new = title(session, f"{session}" * 5)
        fence.swap(last, new)
        last = new
        say(session)


def race(directory: Path) -> None:
    """Ever again try to be the next, until there were `RACES` sessions; tell those won."""
    fence = Fence(directory, wait_seconds=60)
    won = []
    while True:
        found = fence.read()
        session = 1 if found is None else found.session + 1
        if session > RACES:
            break
        try:
            fence.swap(found, title(session, f"{os.getpid()}"))
        except TitleMoved:
            continue
        won.append(session)
    say(" ".join(map(str, won)))


def fill_ram(path: Path) -> None:
    memory = GuestMemory.create(RAM_BYTES, path)
    memory.write(PAGE_SIZE - 3, b"across")
    memory.write(5 << 20, b"\0" * PAGE_SIZE)
    memory.write_pages(np.array([700, 900]), np.full((2, PAGE_SIZE), 0xAB, dtype=np.uint8))
    memory.write(RAM_BYTES - 1, b"z")
    say("written")
    sys.stdin.read()


DEEDS: Final[dict[str, Callable[[Path], None]]] = {
    deed.__name__: deed for deed in (be_in_the_middle_of_io, write_until_fenced_off, swap_for_ever, race, fill_ram)
}


@contextmanager
def process(deed: Callable[[Path], None], path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that does `deed`; it is killed at the end, if it still lives."""
    command = [sys.executable, "-m", "tests.other_process", deed.__name__, str(path)]
    # Its error output is ours, so that a test that fails shows it.
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def heard(started: "subprocess.Popen[str]") -> str:
    """The next line of what a process says."""
    assert started.stdout is not None
    return started.stdout.readline().rstrip("\n")


if __name__ == "__main__":
    DEEDS[sys.argv[1]](Path(sys.argv[2]))
