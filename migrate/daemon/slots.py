"""Slots: how many may do something at once.  Whoever finds none free waits, and is served in the order of coming.

A slot that becomes free goes to whoever has waited longest, before anybody can come in between: nobody starves.
"""

from collections.abc import Callable

import attrs
import trio


class NoMoreSlots(Exception):
    """Nothing new is begun here: `str` says why."""


@attrs.define(eq=False)
class Slot:
    """A place that is held until it is released, which may be said again."""

    _slots: "Slots"
    is_held: bool = True

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self._slots._free()


@attrs.define(eq=False)
class Slots:
    limit: int
    held: int = attrs.field(default=0, init=False)
    _waiting: dict[trio.Event, None] = attrs.field(factory=dict, init=False)  # in the order of their coming
    _closed: str | None = attrs.field(default=None, init=False)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, on_wait: Callable[[int], None] | None = None) -> Slot:
        """A slot, when it is ours; `on_wait` is told our place in the queue if there is none free.

        Raises:
            NoMoreSlots: they are closed, or were while we waited.
        """
        if self._closed is not None:
            raise NoMoreSlots(self._closed)
        if self.held < self.limit and not self._waiting:
            self.held += 1
            return Slot(self)
        turn = trio.Event()
        self._waiting[turn] = None
        if on_wait is not None:
            on_wait(len(self._waiting))
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn in self._waiting:
                del self._waiting[turn]
            else:  # it had just become ours
                self._free()
            raise
        if turn in self._waiting:
            del self._waiting[turn]
            raise NoMoreSlots(self._closed or "")
        return Slot(self)

    def set_limit(self, limit: int) -> None:
        """Who has a slot keeps it, even if there are more of them than `limit` now."""
        self.limit = limit
        self._hand_on()

    def close(self, why: str) -> None:
        """Nobody gets one any more; whoever waits is told."""
        self._closed = why
        for turn in self._waiting:
            turn.set()

    def _free(self) -> None:
        self.held -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        if self._closed is not None:
            return
        while self._waiting and self.held < self.limit:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            self.held += 1
            turn.set()
