"""What a machine may be asked to do, and when: one table.

    creating ──start──▶ running ──pause──▶ paused ──resume──▶ running
        │                  ▲
        └──receive──▶ migrating          stop: any but stopped ──▶ stopped
              (start) ─────┘             fail: any but stopped and failed ──▶ failed

`migrating` is a machine that is being filled by a migration and has never run here; `start` then sets it going where
the other stopped.  A machine that migrates away runs while its RAM is copied, so it is `running`, and `paused` for the
rest: that somebody copies it is not its affair.
"""

from enum import StrEnum
from typing import Final

import attrs


class MachineState(StrEnum):
    CREATING = "creating"
    MIGRATING = "migrating"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"


class Verb(StrEnum):
    """What may be asked of a machine."""

    START = "start"
    RECEIVE = "receive"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    FAIL = "fail"


NEXT: Final[dict[tuple[MachineState, Verb], MachineState]] = {
    (MachineState.CREATING, Verb.START): MachineState.RUNNING,
    (MachineState.CREATING, Verb.RECEIVE): MachineState.MIGRATING,
    (MachineState.MIGRATING, Verb.START): MachineState.RUNNING,
    (MachineState.RUNNING, Verb.PAUSE): MachineState.PAUSED,
    (MachineState.PAUSED, Verb.RESUME): MachineState.RUNNING,
    (MachineState.CREATING, Verb.STOP): MachineState.STOPPED,
    (MachineState.MIGRATING, Verb.STOP): MachineState.STOPPED,
    (MachineState.RUNNING, Verb.STOP): MachineState.STOPPED,
    (MachineState.PAUSED, Verb.STOP): MachineState.STOPPED,
    (MachineState.FAILED, Verb.STOP): MachineState.STOPPED,
    (MachineState.CREATING, Verb.FAIL): MachineState.FAILED,
    (MachineState.MIGRATING, Verb.FAIL): MachineState.FAILED,
    (MachineState.RUNNING, Verb.FAIL): MachineState.FAILED,
    (MachineState.PAUSED, Verb.FAIL): MachineState.FAILED,
}


@attrs.frozen(str=False)
class IllegalTransition(Exception):
    """Something was asked of a machine in a state that does not allow it; nothing has happened."""

    state: MachineState
    asked: str
    allowed_in: tuple[MachineState, ...]

    def __str__(self) -> str:
        return f"cannot {self.asked} a machine that is {self.state}; it must be {' or '.join(self.allowed_in)}"


class Lifecycle:
    """What keeps to the table.  A machine does what a verb means to it beside the move.

    Every verb raises IllegalTransition if the table has no such move, and the state is unchanged.
    """

    def __init__(self) -> None:
        self.state = MachineState.CREATING

    def start(self) -> None:
        """Run: a machine just born, or one that a migration has filled."""
        self._advance(Verb.START)

    def receive(self) -> None:
        """Get ready to be filled by a migration."""
        self._advance(Verb.RECEIVE)

    def pause(self) -> None:
        """Stop the guest."""
        self._advance(Verb.PAUSE)

    def resume(self) -> None:
        self._advance(Verb.RESUME)

    def stop(self) -> None:
        self._advance(Verb.STOP)

    def _advance(self, verb: Verb) -> None:
        move = (self.state, verb)
        if move not in NEXT:
            raise IllegalTransition(self.state, verb, tuple(state for state, asked in NEXT if asked is verb))
        self.state = NEXT[move]

    def _require(self, asked: str, state: MachineState) -> None:
        if self.state is not state:
            raise IllegalTransition(self.state, asked, (state,))
