"""The storage that both nodes reach, as far as a migration knows it: the register that says whose the disks are.

It is no part of a node: it outlives everybody.  A change of the register happens at one instant; whoever dies before
has not made it, and whoever dies after it has, and does not know.  The storage may be out of a node's reach for a
while: then it cannot be asked, and nothing is changed.
"""

from typing import TYPE_CHECKING, Final

import attrs

from migrate.errors import StorageUnreachable
from sim_vmm.fence import Title, TitleMoved

if TYPE_CHECKING:
    from migrate.simulation.node import Life

READ_NS: Final = 50_000
SWAP_NS: Final = 300_000


@attrs.define
class SharedStorage:
    """`title` is what the register holds; `unreachable` are the nodes that cannot reach it."""

    title: Title | None = None
    unreachable: set[str] = attrs.field(factory=set)


@attrs.define(eq=False)
class SimulatedFence:
    """The register as one process uses it; see `migrate.engine.ports.Fence`.  `held` is the title that it has taken."""

    life: "Life"
    storage: SharedStorage
    held: Title | None = None

    @property
    def session(self) -> int:
        return 0 if self.held is None else self.held.session

    async def read(self) -> Title | None:
        await self._reach(READ_NS)
        return self.storage.title

    async def take(self, expected: Title | None, title: Title) -> None:
        self.life.world.hooks.taking(self.life)
        await self._reach(SWAP_NS)
        found = self.storage.title
        if found != expected:
            raise TitleMoved(expected, found)
        assert title.session == (1 if found is None else found.session + 1), "sessions rise by one"
        self.storage.title = self.held = title
        self.life.world.say(self.life.node.name, lambda: f"takes {title.session}, generation {title.generation}")
        self.life.world.hooks.taken(self.life)

    async def _reach(self, ns: int) -> None:
        """Raises StorageUnreachable."""
        self.life.check()
        await self.life.world.scheduler.sleep(ns)
        self.life.check()
        if self.life.node.name in self.storage.unreachable:
            raise StorageUnreachable("the fence of the machine's storage cannot be asked: no route to it")
