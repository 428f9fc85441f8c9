"""The fence port over the register in the machine's storage directory, off the event loop."""

from collections.abc import Callable
from typing import TypeVar

import attrs
import trio

from migrate.errors import StorageUnreachable
from sim_vmm.fence import Fence, FenceError, Title, TitleMoved

T = TypeVar("T")


@attrs.frozen
class TrioFence:
    """See `migrate.engine.ports.Fence`.  `register` gives that of the machine that is here at the moment.

    `on_point` is told "before take" and "after take" around every change of the register.
    """

    register: Callable[[], Fence]
    on_point: Callable[[str], None]

    @property
    def session(self) -> int:
        held = self.register().held
        return 0 if held is None else held.session

    async def read(self) -> Title | None:
        return await _in_thread(self.register().read)

    async def take(self, expected: Title | None, title: Title) -> None:
        register = self.register()
        self.on_point("before take")
        await _in_thread(lambda: register.take(expected, title))
        self.on_point("after take")


async def _in_thread(ask: Callable[[], T]) -> T:
    """A swap that has begun is waited for, whoever is cancelled meanwhile: what it did must be known."""
    try:
        return await trio.to_thread.run_sync(ask)  # a thread is not cancelled, unless it is asked to be abandoned
    except TitleMoved:
        raise
    except (FenceError, OSError) as error:
        raise StorageUnreachable(f"the fence of the machine's storage cannot be asked: {error}") from error
