"""What no input may do: raise anything that is not ours, take more than 50 ms, or take more memory than was agreed.

Time is that of our thread on a processor.  It cannot be more than what has passed on the clock, which is cheap to read,
so it is asked for only if that was too much.  On a busy machine it can still be wrong, but only upwards: so an input
that seems slow is run again, and its fastest run counts.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

CPU_S_MAX: Final = 0.05
AGAIN: Final = 8
"""How often an input that seems slow is run again."""

BYTES_PER_BYTE: Final = 128
"""What a byte of input may cost at the very worst: an input too short to reach its limit at that rate is light."""
WEIGHED_ONE_IN: Final = 16
"""Of the light ones."""


class Finding(Exception):
    """An input did what no input may do."""


class Scales:
    """Decides which inputs are weighed: all that could be heavy, and a few of the others."""

    def __init__(self, one_in: int = WEIGHED_ONE_IN) -> None:
        self._one_in = one_in
        self._light = 0
        self.weighed = 0

    def take(self, size: int, memory_max: int) -> bool:
        if size * BYTES_PER_BYTE < memory_max:
            self._light += 1
            if self._light % self._one_in:
                return False
        self.weighed += 1
        return True


SCALES: Final = Scales()


def examine(
    action: Callable[[], Any],
    refusals: tuple[type[Exception], ...],
    *,
    size: int,
    memory_max: int,
    scales: Scales = SCALES,
) -> Any:
    """What `action` returns, or None if it refuses its input, of `size` bytes, by one of `refusals`.

    Raises:
        Finding: it did something else, took too long, or allocated more than `memory_max` bytes at once.
    """
    start = time.perf_counter()
    result = _outcome(action, refusals)
    if time.perf_counter() - start > CPU_S_MAX:
        check_time(lambda: _seconds(action, refusals), f"{size} bytes")
    if scales.take(size, memory_max):
        with peak_memory() as peak:
            result = _outcome(action, refusals)
        if peak[0] > memory_max:
            raise Finding(f"{size} bytes made us allocate {peak[0]}; at most {memory_max} may be")
    return result


def check_time(seconds: Callable[[], float], what: str) -> None:
    """Raise Finding if each of several runs of `seconds` says that it took too long."""
    fastest = float("inf")
    for _ in range(AGAIN):
        fastest = min(fastest, seconds())
        if fastest <= CPU_S_MAX:
            return
    raise Finding(f"{what} took {fastest * 1000:.1f} ms of processor time; {CPU_S_MAX * 1000:.0f} may be")


def _outcome(action: Callable[[], Any], refusals: tuple[type[Exception], ...]) -> Any:
    try:
        return action()
    except refusals:
        return None
    except Finding:
        raise
    except BaseException as error:
        raise Finding(f"{type(error).__name__} is no refusal: {str(error)[:200]}") from error


def _seconds(action: Callable[[], Any], refusals: tuple[type[Exception], ...]) -> float:
    start = time.thread_time()
    _outcome(action, refusals)
    return time.thread_time() - start


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most that was allocated at once inside, in bytes, as the one element of a list that is filled at the end."""
    peak = [0]
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield peak
    finally:
        peak[0] = tracemalloc.get_traced_memory()[1] - before
        if not was_on:
            tracemalloc.stop()
