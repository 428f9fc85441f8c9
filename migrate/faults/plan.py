"""A fault is a value: when it strikes, and what it does.  A plan is some faults and a seed.

When, counted from 1, over everything that the sides do from the beginning of the run:

    message     the n-th message of a kind that a side sends: before it leaves, after, or when the peer receives it
    byte        the n-th byte that a side sends
    phase       the n-th time that a side's engine enters a phase
    write       the n-th record that a side writes: before, or once it is durable
    round       the n-th RAM round begins
    time        so many seconds after the beginning

A fault strikes once.  What it does to a connection, it does to the one at which it struck, or else to the newest.  What
it does to data (`DATA_ACTIONS`) needs data, so it can only strike before a message or at a byte.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import attrs

from migrate.protocol.conversation import NEXT
from migrate.protocol.messages import MESSAGES, Role


class PlanError(ValueError):
    """A plan that means nothing: which key, and what could stand there instead."""


class Moment(StrEnum):
    BEFORE = "before"
    AFTER = "after"
    RECEIVED = "received"


MESSAGE_NAMES: Final = tuple(sorted(kind.__name__ for kind in MESSAGES.values()))
SENDERS: Final = {
    name: tuple(sorted({role.value for (_, role, kind) in NEXT if kind.__name__ == name})) or tuple(map(str, Role))
    for name in MESSAGE_NAMES
}
PHASES: Final = (
    "hello",
    "preamble",
    "verdict",
    "ram",
    "pre-flight",
    "pause",
    "last ram",
    "time data",
    "devices",
    "server state",
    "handoff",
)


def _above(least: float) -> Callable[[Any, Any, Any], None]:
    def check(_: Any, attribute: Any, value: Any) -> None:
        if value < least:
            raise PlanError(f"{attribute.name} is {value}; it must be at least {least}")

    return check


# When


@attrs.frozen(kw_only=True)
class AtMessage:
    message: str
    side: Role
    number: int = attrs.field(default=1, validator=_above(1))
    moment: Moment = Moment.BEFORE

    def __attrs_post_init__(self) -> None:
        if self.message not in MESSAGE_NAMES:
            raise PlanError(f"message is {self.message!r}; it must be one of {', '.join(MESSAGE_NAMES)}")
        if self.side not in SENDERS[self.message]:
            raise PlanError(f"side is {self.side}; {self.message} is sent by the {SENDERS[self.message][0]}")


@attrs.frozen(kw_only=True)
class AtByte:
    side: Role
    byte: int = attrs.field(validator=_above(1))


@attrs.frozen(kw_only=True)
class InPhase:
    phase: str
    side: Role
    number: int = attrs.field(default=1, validator=_above(1))

    def __attrs_post_init__(self) -> None:
        if self.phase not in PHASES:
            raise PlanError(f"phase is {self.phase!r}; it must be one of {', '.join(PHASES)}")


@attrs.frozen(kw_only=True)
class AtWrite:
    side: Role
    number: int = attrs.field(default=1, validator=_above(1))
    moment: Moment = Moment.BEFORE

    def __attrs_post_init__(self) -> None:
        if self.moment is Moment.RECEIVED:
            raise PlanError("moment is 'received'; of a write it must be 'before' or 'after'")


@attrs.frozen(kw_only=True)
class InRound:
    round: int = attrs.field(validator=_above(1))


@attrs.frozen(kw_only=True)
class AtTime:
    seconds: float = attrs.field(validator=_above(0))


Trigger = AtMessage | AtByte | InPhase | AtWrite | InRound | AtTime
TRIGGERS: Final[dict[str, type[Trigger]]] = {
    "message": AtMessage,
    "byte": AtByte,
    "phase": InPhase,
    "write": AtWrite,
    "round": InRound,
    "time": AtTime,
}


# What


@attrs.frozen(kw_only=True)
class Cut:
    """Nothing arrives and nobody can connect for `for_s`; what was lost is sent again then."""

    for_s: float = attrs.field(default=2.0, validator=_above(0))


@attrs.frozen(kw_only=True)
class End:
    """The connection is closed in good order: what is under way arrives."""


@attrs.frozen(kw_only=True)
class Reset:
    """What is under way is lost, and both ends know."""


@attrs.frozen(kw_only=True)
class HalfOpen:
    """Nothing arrives any more on this connection, and nobody is told."""


@attrs.frozen(kw_only=True)
class OneWay:
    """What `side` sends on this connection does not arrive any more, and it is not told."""

    side: Role


@attrs.frozen(kw_only=True)
class Stall:
    """What `side` sends arrives only `for_s` later."""

    side: Role
    for_s: float = attrs.field(default=40.0, validator=_above(0))


@attrs.frozen(kw_only=True)
class Throttle:
    """From now on this connection carries so many bytes a second."""

    bytes_per_s: float = attrs.field(default=1000.0, validator=_above(1))


@attrs.frozen(kw_only=True)
class Slice:
    """The data arrives in pieces of so many bytes."""

    bytes: int = attrs.field(default=1, validator=_above(1))


@attrs.frozen(kw_only=True)
class Truncate:
    """Only so many bytes of the data arrive, and then the end of the stream."""

    bytes: int = attrs.field(default=10, validator=_above(0))


@attrs.frozen(kw_only=True)
class FlipBit:
    """One bit of the data arrives changed; counted from its end if negative, modulo its length."""

    bit: int = 0


@attrs.frozen(kw_only=True)
class Duplicate:
    """The data arrives twice."""


@attrs.frozen(kw_only=True)
class Kill:
    """Kill -9 of the daemon of `side`, which is started again after `restart_s`; when all is well if that is None."""

    side: Role
    restart_s: float | None = 1.0


@attrs.frozen(kw_only=True)
class PowerLoss:
    """The host of `side` loses power: what was not synced is gone, and guest RAM."""

    side: Role
    restart_s: float | None = 1.0


@attrs.frozen(kw_only=True)
class Freeze:
    """The daemon of `side` does nothing for `for_s`."""

    side: Role
    for_s: float = attrs.field(default=40.0, validator=_above(0))


@attrs.frozen(kw_only=True)
class ClockJump:
    """The wall clock of `side` jumps by `seconds`, which may be negative."""

    side: Role
    seconds: float = 3600.0


@attrs.frozen(kw_only=True)
class DiskFull:
    """The next so many changes of the journal of `side` find no space."""

    side: Role
    times: int = attrs.field(default=1, validator=_above(1))


@attrs.frozen(kw_only=True)
class SyncError:
    """The next so many changes of the journal of `side` cannot be synced."""

    side: Role
    times: int = attrs.field(default=1, validator=_above(1))


@attrs.frozen(kw_only=True)
class ExportFailure:
    """The source's devices cannot be exported the next so many times."""

    times: int = attrs.field(default=1, validator=_above(1))


@attrs.frozen(kw_only=True)
class ImportFailure:
    """The target's devices cannot be imported the next so many times."""

    times: int = attrs.field(default=1, validator=_above(1))


Action = (
    Cut
    | End
    | Reset
    | HalfOpen
    | OneWay
    | Stall
    | Throttle
    | Slice
    | Truncate
    | FlipBit
    | Duplicate
    | Kill
    | PowerLoss
    | Freeze
    | ClockJump
    | DiskFull
    | SyncError
    | ExportFailure
    | ImportFailure
)
ACTIONS: Final[dict[str, type[Action]]] = {
    "cut": Cut,
    "end": End,
    "reset": Reset,
    "half-open": HalfOpen,
    "one-way": OneWay,
    "stall": Stall,
    "throttle": Throttle,
    "slice": Slice,
    "truncate": Truncate,
    "flip-bit": FlipBit,
    "duplicate": Duplicate,
    "kill": Kill,
    "power-loss": PowerLoss,
    "freeze": Freeze,
    "clock-jump": ClockJump,
    "disk-full": DiskFull,
    "sync-error": SyncError,
    "export-failure": ExportFailure,
    "import-failure": ImportFailure,
}
DATA_ACTIONS: Final = (Slice, Truncate, FlipBit, Duplicate)


@attrs.frozen(kw_only=True)
class Fault:
    when: Trigger
    do: Action

    def __attrs_post_init__(self) -> None:
        has_data = isinstance(self.when, AtByte) or (
            isinstance(self.when, AtMessage) and self.when.moment is Moment.BEFORE
        )
        if isinstance(self.do, DATA_ACTIONS) and not has_data:
            raise PlanError(
                f"do is {name_of(self.do, ACTIONS)!r}, which needs data: when must be a message, before it is sent, or "
                "a byte"
            )


@attrs.frozen(kw_only=True)
class Plan:
    """`seed` is the one from which the plan was drawn, 0 if it was not; `spec` a file with the machine."""

    faults: tuple[Fault, ...]
    seed: int = 0
    spec: str = ""


def name_of(value: Trigger | Action, names: "dict[str, type[Trigger]] | dict[str, type[Action]]") -> str:
    return next(name for name, kind in names.items() if type(value) is kind)
