"""A fault is a value: when it strikes, and what it does.  A plan is some faults and a seed.

When, counted from 1, over everything that the sides do from the beginning of the run:

    message     the n-th message of a kind that a side sends: before it leaves, after, or when the peer receives it
    byte        the n-th byte that a side sends
    phase       the n-th time that a side's engine enters a phase
    write       the n-th record that a side writes: before, or once it is durable
    take        the n-th time that a side takes the register of the shared storage: before, or once it has
    round       the n-th RAM round begins
    time        so many seconds after the beginning

Messages and bytes are counted on the connections of conversations or, with `stream`, on their streams of that number:
which of them carries a batch depends on who has room, so what is counted over all of them would mean little.

A fault strikes once.  What it does to a connection, it does to the one at which it struck, or else to that of the
newest conversation.  What it does to data (`DATA_ACTIONS`) needs data, so it can only strike before a message or at a
byte.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import attrs

from migrate.protocol.conversation import NEXT, Phase
from migrate.protocol.messages import MESSAGES, STREAMS_MAX, Attach, Failure, Role


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
OPENS_A_STREAM: Final = Attach.__name__
ON_STREAMS: Final = tuple(
    sorted({OPENS_A_STREAM, Failure.__name__, *(kind.__name__ for (at, _, kind) in NEXT if at is Phase.STREAM)})
)
"""The messages that are said on a stream."""
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


def _is_stream(_: Any, attribute: Any, value: Any) -> None:
    if not 0 <= value <= STREAMS_MAX:
        raise PlanError(f"{attribute.name} is {value}; it must be 0 to {STREAMS_MAX}")


# When


@attrs.frozen(kw_only=True)
class AtMessage:
    """`stream` is 0 for the connection of the conversation."""

    message: str
    side: Role
    number: int = attrs.field(default=1, validator=_above(1))
    moment: Moment = Moment.BEFORE
    stream: int = attrs.field(default=0, validator=_is_stream)

    def __attrs_post_init__(self) -> None:
        if self.message not in MESSAGE_NAMES:
            raise PlanError(f"message is {self.message!r}; it must be one of {', '.join(MESSAGE_NAMES)}")
        if self.side not in SENDERS[self.message]:
            raise PlanError(f"side is {self.side}; {self.message} is sent by the {SENDERS[self.message][0]}")
        if self.stream and self.message not in ON_STREAMS:
            raise PlanError(
                f"stream is {self.stream}, where no {self.message} is said; of a stream, message must be one of "
                f"{', '.join(ON_STREAMS)}"
            )
        if not self.stream and self.message == OPENS_A_STREAM:
            raise PlanError(f"stream is 0; {OPENS_A_STREAM} is said on those from 1 on")


@attrs.frozen(kw_only=True)
class AtByte:
    """`stream` is 0 for the connection of the conversation."""

    side: Role
    byte: int = attrs.field(validator=_above(1))
    stream: int = attrs.field(default=0, validator=_is_stream)


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
class AtTake:
    """Only in a world with a fence."""

    side: Role
    number: int = attrs.field(default=1, validator=_above(1))
    moment: Moment = Moment.BEFORE

    def __attrs_post_init__(self) -> None:
        if self.moment is Moment.RECEIVED:
            raise PlanError("moment is 'received'; of a take it must be 'before' or 'after'")


@attrs.frozen(kw_only=True)
class InRound:
    round: int = attrs.field(validator=_above(1))


@attrs.frozen(kw_only=True)
class AtTime:
    seconds: float = attrs.field(validator=_above(0))


Trigger = AtMessage | AtByte | InPhase | AtWrite | AtTake | InRound | AtTime
TRIGGERS: Final[dict[str, type[Trigger]]] = {
    "message": AtMessage,
    "byte": AtByte,
    "phase": InPhase,
    "write": AtWrite,
    "take": AtTake,
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
class Replay:
    """In the place of this message goes what its side sent last, of the same kind, on an older connection.

    It does not strike if there is nothing of the kind.
    """


class Untruth(StrEnum):
    """What a lying peer says; see `migrate.faults.lies`."""

    WRONG_MESSAGE = "wrong-message"
    UNKNOWN_VERSION = "unknown-version"
    BAD_EXTENTS = "bad-extents"
    OVERSIZE = "oversize"
    WRONG_COUNT = "wrong-count"
    NO_EVIDENCE = "no-evidence"


UNTRUTHS_OF: Final[dict[Untruth, tuple[str, ...]]] = {
    Untruth.WRONG_MESSAGE: MESSAGE_NAMES,
    Untruth.UNKNOWN_VERSION: ("Hello", "Preamble", "Accept", "DeviceState"),
    Untruth.BAD_EXTENTS: ("Preamble", "RamBatch", "RamPages"),
    Untruth.OVERSIZE: MESSAGE_NAMES,
    Untruth.NO_EVIDENCE: ("Declined", "Owned", "Released"),
    Untruth.WRONG_COUNT: ("RoundEnd", "RoundStored", "DevicesEnd"),
}
"""In which messages each can be said."""


@attrs.frozen(kw_only=True)
class Lie:
    """In the place of this message goes one of a peer that does not keep to the protocol, well framed.

    `way` is one of the ways to tell it, see `migrate.faults.lies`; those that are too many begin again.
    """

    what: Untruth = Untruth.WRONG_MESSAGE
    way: int = attrs.field(default=0, validator=_above(0))


@attrs.frozen(kw_only=True)
class Delay:
    """From now on, everything that `side` sends on this connection arrives `seconds` later."""

    side: Role
    seconds: float = attrs.field(default=0.05, validator=_above(0))


@attrs.frozen(kw_only=True)
class Jitter:
    """From now on, what `side` sends on this connection arrives up to `seconds` later: drawn from `seed` each time."""

    side: Role
    seconds: float = attrs.field(default=0.05, validator=_above(0))
    seed: int = 0


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
class Hang:
    """The daemon of `side` does nothing any more, until all is well again."""

    side: Role


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
class StorageOutage:
    """`side` cannot reach the shared storage for `for_s`; nothing without one."""

    side: Role
    for_s: float = attrs.field(default=30.0, validator=_above(0))


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
    | Replay
    | Lie
    | Delay
    | Jitter
    | Kill
    | PowerLoss
    | Freeze
    | Hang
    | ClockJump
    | DiskFull
    | SyncError
    | StorageOutage
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
    "replay": Replay,
    "lie": Lie,
    "delay": Delay,
    "jitter": Jitter,
    "kill": Kill,
    "power-loss": PowerLoss,
    "freeze": Freeze,
    "hang": Hang,
    "clock-jump": ClockJump,
    "disk-full": DiskFull,
    "sync-error": SyncError,
    "storage-outage": StorageOutage,
    "export-failure": ExportFailure,
    "import-failure": ImportFailure,
}
DATA_ACTIONS: Final = (Slice, Truncate, FlipBit, Duplicate)
MESSAGE_ACTIONS: Final = (Replay, Lie)
"""They put a message in the place of another one."""


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
        self._check_message()

    def _check_message(self) -> None:
        if not isinstance(self.do, MESSAGE_ACTIONS):
            return
        if not isinstance(self.when, AtMessage) or self.when.moment is not Moment.BEFORE:
            raise PlanError(f"do is {name_of(self.do, ACTIONS)!r}: when must be a message, before it is sent")
        if isinstance(self.do, Lie) and self.when.message not in UNTRUTHS_OF[self.do.what]:
            raise PlanError(
                f"what is {self.do.what.value!r}, which {self.when.message} cannot say; it must be one of "
                f"{', '.join(what for what, names in UNTRUTHS_OF.items() if self.when.message in names)}"
            )


@attrs.frozen(kw_only=True)
class Plan:
    """`seed` is the one from which the plan was drawn, 0 if it was not; `spec` a file with the machine.

    In a simulation with several connections, in which order they deliver follows from the seed as well.

    With `fence` it is meant for a machine whose disks are on shared storage, with `streams` for so many connections.
    """

    faults: tuple[Fault, ...]
    seed: int = 0
    spec: str = ""
    fence: bool = False
    streams: int = attrs.field(default=1)

    @streams.validator
    def _can_be(self, _: Any, value: int) -> None:
        if not 1 <= value <= STREAMS_MAX:
            raise PlanError(f"streams is {value}; it must be 1 to {STREAMS_MAX}")

    def over(self, streams: int) -> "Plan":
        """The plan for so many connections, or for as many as it says itself if those are more.

        Raises:
            PlanError: it wants to strike a stream that there is not.
        """
        streams = max(streams, self.streams)
        for number, fault in enumerate(self.faults, 1):
            stream = getattr(fault.when, "stream", 0)
            if stream >= streams:
                there = "there is none" if streams == 1 else f"the last is stream {streams - 1}"
                raise PlanError(
                    f"fault {number}: stream is {stream}, and {there}; say streams = {stream + 1} in the plan, or "
                    f"--streams {stream + 1}"
                )
        return attrs.evolve(self, streams=streams)


def name_of(value: Trigger | Action, names: "dict[str, type[Trigger]] | dict[str, type[Action]]") -> str:
    return next(name for name, kind in names.items() if type(value) is kind)
