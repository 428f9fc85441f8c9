"""A guest that writes to memory at a rate, for experiments with convergence.

`dirty:RATE,WORKING_SET`: RATE is in bytes a second (`200M`, with K, M, G for powers of 1024) or in pages a second
(`5000p`); WORKING_SET in bytes (`64M`).  Both may be left out.  Of each page written all 4096 bytes change.  The set is
the last pages of RAM; its first fifth is hot and gets four fifths of the writes, the rest is cold.

Write n, from 0, goes to a page, and has a content, that follow from n alone (`splitmix64`).  The state page holds how
many writes were done, so a program object in another process goes on with the same sequence, and `stale_pages` can say
which page missed its last write.

The rate is kept by the guest's own clock: a step does what has become due since the last one, to the fraction of a
page.  Time beyond `STEP_NS_MAX` is forgotten, so a guest that was away does not make up for it in a burst; so is steal
time, in which its host kept it from running, and so are writes beyond `STEP_WRITES_MAX`, which no host of ours would
keep up with.
"""

import re
import struct
from typing import ClassVar, Final, Self

import attrs
import numpy as np
import numpy.typing as npt

from sim_vmm.clock import NS_PER_S
from sim_vmm.drivers.uart import UartDriver
from sim_vmm.guest.program import STATE_GPA, GuestDoesNotFit, require_running
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE, GuestMemory

MAGIC: Final = int.from_bytes(b"dirty\x01!!", "little")
STEP_NS_MAX: Final = 20_000_000
"""Four steps of a daemon: beyond this the guest was away, not late."""
FIRST_PAGE: Final = 16
"""Below lie the program's state and what firmware keeps for itself."""
DEFAULT_RATE: Final = 100 << 20
DEFAULT_SET_BYTES: Final = 16 << 20
STEP_WRITES_MAX: Final = 8192
"""32 MiB a step, 6 GiB a second at a daemon's pace: a step must not keep the daemon from everything else."""
WRITES_AT_ONCE: Final = 1024
REPLAY_WRITES: Final = 1 << 16

HOT_WRITES: Final = (4, 5)
HOT_PAGES: Final = (1, 5)

_STATE: Final = struct.Struct("<QQQQQQQQ")
_Words = npt.NDArray[np.uint64]
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@attrs.define
class DirtyState:
    """The state page, field by field, u64, little-endian.

    `owed` is what is due of the next page, in bytes * ns; `stolen_ns` the host's steal time at the last step.
    """

    magic: int
    steps: int
    uptime_ns: int
    rate: int
    set_pages: int
    writes: int
    owed: int
    stolen_ns: int

    @classmethod
    def load(cls, memory: GuestMemory) -> Self | None:
        """None if no such guest was booted in this RAM."""
        state = cls(*_STATE.unpack(memory.read(STATE_GPA, _STATE.size)))
        return state if state.magic == MAGIC else None

    def store(self, memory: GuestMemory) -> None:
        memory.write(STATE_GPA, _STATE.pack(*attrs.astuple(self)))


@attrs.frozen(kw_only=True)
class DirtyGuest:
    """See the module; `rate` in bytes a second, `working_set` in bytes, rounded up to whole pages."""

    name: ClassVar[str] = "dirty"
    rate: int = DEFAULT_RATE
    working_set: int = DEFAULT_SET_BYTES

    @classmethod
    def parse(cls, arguments: str) -> Self:
        """`RATE,WORKING_SET` of `dirty:RATE,WORKING_SET`, of which the second or both may be left out.

        Raises:
            ValueError: it is not that.
        """
        if not arguments:
            return cls()
        rate_text, comma, set_text = arguments.partition(",")
        set_text = set_text if comma else str(DEFAULT_SET_BYTES)
        pages = rate_text.endswith("p")
        rate, working_set = _number(rate_text.removesuffix("p")), _number(set_text)
        if rate is None or not working_set:
            raise ValueError(
                f"dirty:{arguments}: expected dirty:RATE,WORKING_SET, such as dirty:200M,64M or dirty:5000p,64M"
            )
        return cls(rate=rate * PAGE_SIZE if pages else rate, working_set=working_set)

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        state = DirtyState.load(memory)
        return None if state is None else cls(rate=state.rate, working_set=state.set_pages * PAGE_SIZE)

    def boot(self, machine: Machine) -> None:
        memory = machine.memory
        pages = -(-self.working_set // PAGE_SIZE)
        if pages > memory.page_count - FIRST_PAGE:
            room = (memory.page_count - FIRST_PAGE) * PAGE_SIZE
            raise GuestDoesNotFit(f"a working set of {self.working_set} bytes in a machine with room for {room}")
        state = DirtyState(MAGIC, 0, machine.clock.uptime_ns(), self.rate, pages, 0, 0, machine.stolen_ns)
        for first in range(0, pages, WRITES_AT_ONCE):
            chosen = np.arange(first, min(first + WRITES_AT_ONCE, pages), dtype=np.int64)
            memory.write_pages(chosen + memory.page_count - pages, _contents(chosen.astype(np.uint64) + _BOOT))
        state.store(memory)
        line = f"dirty guest: {self.rate} bytes a second in {pages} pages\n"
        console = UartDriver(machine.bus)
        console.probe()
        console.write(line.encode())

    def step(self, machine: Machine) -> None:
        require_running(machine)
        memory = machine.memory
        state = DirtyState.load(memory)
        assert state is not None, "this machine was not booted with the dirty guest"
        now = machine.clock.uptime_ns()
        stolen_ns = max(machine.stolen_ns - state.stolen_ns, 0)  # another host counts from 0 again
        due = state.owed + min(max(now - state.uptime_ns - stolen_ns, 0), STEP_NS_MAX) * state.rate
        writes, state.owed = divmod(due, PAGE_SIZE * NS_PER_S)
        writes = min(writes, STEP_WRITES_MAX)
        for first in range(state.writes, state.writes + writes, WRITES_AT_ONCE):
            count = min(WRITES_AT_ONCE, state.writes + writes - first)
            pages, numbers = _last_writes(state.set_pages, first, count)
            memory.write_pages(pages + memory.page_count - state.set_pages, _contents(numbers))
        state.writes += writes
        state.steps += 1
        state.uptime_ns, state.stolen_ns = now, machine.stolen_ns
        state.store(memory)

    def stale_pages(self, memory: GuestMemory) -> list[int]:
        """Pages of the set that do not hold what was last written to them, ascending.

        Looks at those that one of the last 65,536 writes went to, and after fewer writes at all of the set.
        """
        state = DirtyState.load(memory)
        if state is None:
            return []
        base = memory.page_count - state.set_pages
        first = max(0, state.writes - REPLAY_WRITES)
        expected = {page: page + _BOOT for page in range(state.set_pages)} if first == 0 else {}
        pages, numbers = _last_writes(state.set_pages, first, state.writes - first)
        expected.update(zip(pages.tolist(), numbers.tolist(), strict=True))
        chosen = np.array(sorted(expected), dtype=np.int64)
        found = memory.pages[chosen + base].view(np.uint64)[:, 0].tolist()
        return [page + base for page, number in zip(chosen.tolist(), found, strict=True) if number != expected[page]]


#: The number that the content of page n of the set bears from boot on is this and n.
_BOOT: Final = 1 << 63


def _number(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def splitmix64(numbers: _Words) -> _Words:
    """Pseudo-random words for `numbers`, each from its number alone (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        word = (numbers + np.uint64(1)) * np.uint64(0x9E37_79B9_7F4A_7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
        mixed: _Words = word ^ (word >> np.uint64(31))
    return mixed


def pages_written(set_pages: int, first: int, count: int) -> npt.NDArray[np.int64]:
    """To which page of a set of `set_pages` the `count` writes from number `first` on go."""
    words = splitmix64(np.arange(first, first + count, dtype=np.uint64))
    hot_pages = max(set_pages * HOT_PAGES[0] // HOT_PAGES[1], 1)
    cold_pages = max(set_pages - hot_pages, 1)
    is_hot = words % np.uint64(HOT_WRITES[1]) < HOT_WRITES[0]
    choice = words >> np.uint64(16)
    cold = (hot_pages + choice % np.uint64(cold_pages)) % set_pages
    return np.where(is_hot, choice % np.uint64(hot_pages), cold).astype(np.int64)


def _last_writes(set_pages: int, first: int, count: int) -> tuple[npt.NDArray[np.int64], _Words]:
    """The pages that those writes go to, each once, and the number of the last write to it."""
    pages = pages_written(set_pages, first, count)
    found, from_end = np.unique(pages[::-1], return_index=True)
    return found, (first + count - 1 - from_end).astype(np.uint64)


def _contents(numbers: _Words) -> npt.NDArray[np.uint8]:
    """The pages that writes `numbers` leave: first the number, then words that follow from it and do not compress."""
    with np.errstate(over="ignore"):
        words = splitmix64(numbers)[:, None] * _ODD_WORDS
    words[:, 0] = numbers
    return words.view(np.uint8)


_ODD_WORDS: Final = splitmix64(np.arange(PAGE_SIZE // 8, dtype=np.uint64)) | np.uint64(1)
