"""Mistakes in what travels: pages, the state of devices, clocks, the console; and in what is believed of a peer."""

from typing import Any

import attrs
import numpy as np
import pytest

from migrate.engine import image, source, target
from migrate.engine.ram import RamReceiver
from migrate.protocol import frames
from migrate.protocol.conversation import NEXT, Conversation
from migrate.protocol.messages import PROTOCOL_VERSIONS, Hello, RamContent
from sim_vmm.clock import GuestClock, TimeData, TimeInFlight
from sim_vmm.dirty import DirtyPages
from sim_vmm.light_memory import LightMemory
from sim_vmm.memory import GuestMemory


def restore_only_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    def restore(self: Any) -> None:
        self._dirty.update(self._in_flight)
        self.settle()

    patch.setattr(DirtyPages, "restore", restore)
    use_real_memory(patch)


def use_real_memory(patch: pytest.MonkeyPatch) -> None:
    """Not that of the simulator, which keeps its dirty pages in another way."""
    patch.setattr(LightMemory, "lend", GuestMemory.create)


def lose_the_console(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target, "import_console", lambda machine, state: None)


def lose_the_last_round(patch: pytest.MonkeyPatch) -> None:
    def mark_dirty(self: Any) -> None:
        """What has been received is not noted."""

    patch.setattr(RamReceiver, "mark_received_dirty", mark_dirty)


def believe_every_frame(patch: pytest.MonkeyPatch) -> None:
    """Both lines of defence: the checksum of each frame, and the transcript of all."""
    patch.setattr(frames, "check_body", lambda header, body: None)
    do_not_compare_transcripts(patch)


def do_not_compare_transcripts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conversation, "note", lambda self, header: None)


def lose_a_dirty_page(patch: pytest.MonkeyPatch) -> None:
    """The last page of a round counts as sent, and is not."""

    def take(self: Any, limit: int) -> Any:
        taken = right(self, limit)
        return taken[:-1] if taken.size > 1 else taken

    right = DirtyPages.take
    patch.setattr(DirtyPages, "take", take)
    use_real_memory(patch)


def forget_what_was_dirtied_meanwhile(patch: pytest.MonkeyPatch) -> None:
    def acknowledge(self: Any) -> None:
        right(self)
        self._dirty.clear()

    right = DirtyPages.acknowledge
    patch.setattr(DirtyPages, "acknowledge", acknowledge)
    use_real_memory(patch)


def leave_what_became_zero(patch: pytest.MonkeyPatch) -> None:
    async def take(self: Any, batch: RamContent) -> None:
        received = self.received
        self.received = np.zeros_like(received)
        try:
            await right(self, batch)
        finally:
            self.received = received | self.received

    right = RamReceiver.take
    patch.setattr(RamReceiver, "take", take)


def believe_the_contents_of_a_batch(patch: pytest.MonkeyPatch) -> None:
    async def take(self: Any, batch: RamContent) -> None:
        expected.append(batch.checksum)
        await right_take(self, batch)

    async def receive(self: Any, pages: Any) -> int:
        await right_receive(self, pages)
        return expected[-1]

    expected: list[int] = []
    right_take, right_receive = RamReceiver.take, RamReceiver._receive
    patch.setattr(RamReceiver, "take", take)
    patch.setattr(RamReceiver, "_receive", receive)


def believe_any_count(patch: pytest.MonkeyPatch) -> None:
    def end_round(self: Any, end: Any) -> None:
        self._round += 1
        self._pages = self._zero_pages = 0

    patch.setattr(RamReceiver, "end_round", end_round)
    do_not_compare_transcripts(patch)


def believe_an_unknown_version(patch: pytest.MonkeyPatch) -> None:
    async def welcome(self: Any, hello: Hello) -> None:
        await right(self, attrs.evolve(hello, protocol_versions=PROTOCOL_VERSIONS))

    right = source._Source.welcome
    patch.setattr(source._Source, "welcome", welcome)
    do_not_compare_transcripts(patch)


def believe_any_move(patch: pytest.MonkeyPatch) -> None:
    """What is said out of turn is let through, wherever the conversation stands."""

    def advance(self: Conversation, sender: Any, message: Any) -> None:
        if (self.phase, sender, type(message)) in NEXT or type(message).__name__ == "Failure":
            right(self, sender, message)

    right = Conversation.advance
    patch.setattr(Conversation, "advance", advance)


def ignore_a_payload(patch: pytest.MonkeyPatch) -> None:
    """What arrives of one device is left unread, and it stays as it was made."""

    def import_states(machine: Any, states: list[Any]) -> None:
        own = {state.key: state for state in machine.preflight()}
        right(machine, [own[state.key] if state.key == "com2" else state for state in states])

    right = image.import_states
    patch.setattr(image, "import_states", import_states)
    patch.setattr(target, "import_states", import_states)


def leave_the_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target, "import_clock", lambda machine, time: None)


def take_no_time_for_the_flight(patch: pytest.MonkeyPatch) -> None:
    def import_(self: GuestClock, data: TimeData) -> TimeInFlight:
        wall = self._host.wall_ns()
        return right(self, attrs.evolve(data, hres_sec=wall // 10**9, hres_ns=wall % 10**9))

    right = GuestClock.import_
    patch.setattr(GuestClock, "import_", import_)


def let_the_ticks_stand(patch: pytest.MonkeyPatch) -> None:
    """The uptime goes on, and the TSC does not count the time in flight."""

    def import_(self: GuestClock, data: TimeData) -> TimeInFlight:
        flight = right(self, data)
        self._read_tsc = data.guest_tsc
        return flight

    right = GuestClock.import_
    patch.setattr(GuestClock, "import_", import_)
