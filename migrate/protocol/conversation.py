"""Who may say what when: one table, which does not know which side we are.

Each phase has one speaker, so messages never cross, with one exception: either side may send `Failure` at any moment,
and the conversation is over.  The same table drives both daemons, the tests of refused moves and the diagram in
docs/protocol.md.

RAM is pipelined inside its phase: many batches, one receipt per round.  From `Paused` on, everything up to `Prepare`
goes in one flight.
"""

from enum import StrEnum
from typing import Final

import attrs
import xxhash

from migrate.errors import MigrationError
from migrate.protocol.messages import (
    Abandon,
    Accept,
    Attach,
    Commit,
    Declined,
    DevicesEnd,
    DeviceState,
    Failure,
    Gone,
    Hello,
    HelloFor,
    Inquire,
    Message,
    Owned,
    Paused,
    Preamble,
    Prepare,
    RamBatch,
    RamPages,
    Ready,
    Refuse,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    Settle,
    Streams,
    TimeOfDay,
    Transcript,
    Unknown,
    Welcome,
)


class Phase(StrEnum):
    """What is being waited for.  The values are the names in reports and messages."""

    HELLO = "hello"
    WELCOME = "welcome"
    PREAMBLE = "preamble"
    VERDICT = "verdict"
    RAM = "ram"
    RECEIPT = "ram receipt"
    LAST_RAM = "last ram"
    TIME = "time data"
    DEVICES = "devices"
    SERVER_STATE = "server state"
    PREPARE = "prepare"
    READY = "ready"
    COMMIT = "commit"
    OWNED = "owned"
    RELEASE = "release"
    SETTLE = "settle"
    STREAM = "stream"
    ENDED = "ended"


SOURCE, TARGET = Role.SOURCE, Role.TARGET

NEXT: Final[dict[tuple[Phase, Role, type[Message]], Phase]] = {
    (Phase.HELLO, TARGET, Hello): Phase.WELCOME,
    (Phase.HELLO, TARGET, HelloFor): Phase.WELCOME,
    (Phase.WELCOME, SOURCE, Welcome): Phase.PREAMBLE,
    (Phase.WELCOME, SOURCE, Refuse): Phase.ENDED,
    (Phase.PREAMBLE, SOURCE, Preamble): Phase.VERDICT,
    (Phase.VERDICT, TARGET, Streams): Phase.VERDICT,
    (Phase.VERDICT, TARGET, Accept): Phase.RAM,
    (Phase.VERDICT, TARGET, Refuse): Phase.ENDED,
    (Phase.RAM, SOURCE, RamPages): Phase.RAM,
    (Phase.RAM, SOURCE, RamBatch): Phase.RAM,
    (Phase.RAM, SOURCE, RoundEnd): Phase.RECEIPT,
    (Phase.RAM, SOURCE, Paused): Phase.LAST_RAM,
    (Phase.RECEIPT, TARGET, RoundStored): Phase.RAM,
    (Phase.LAST_RAM, SOURCE, RamPages): Phase.LAST_RAM,
    (Phase.LAST_RAM, SOURCE, RamBatch): Phase.LAST_RAM,
    (Phase.LAST_RAM, SOURCE, RoundEnd): Phase.TIME,
    (Phase.TIME, SOURCE, TimeOfDay): Phase.DEVICES,
    (Phase.DEVICES, SOURCE, DeviceState): Phase.DEVICES,
    (Phase.DEVICES, SOURCE, DevicesEnd): Phase.SERVER_STATE,
    (Phase.SERVER_STATE, SOURCE, ServerState): Phase.PREPARE,
    (Phase.PREPARE, SOURCE, Transcript): Phase.PREPARE,
    (Phase.PREPARE, SOURCE, Prepare): Phase.READY,
    (Phase.READY, TARGET, Ready): Phase.COMMIT,
    (Phase.COMMIT, SOURCE, Commit): Phase.OWNED,
    (Phase.OWNED, TARGET, Owned): Phase.RELEASE,
    (Phase.OWNED, TARGET, Declined): Phase.RELEASE,
    (Phase.RELEASE, SOURCE, Released): Phase.ENDED,
    # A further connection of a conversation, for guest RAM.
    (Phase.HELLO, TARGET, Attach): Phase.STREAM,
    (Phase.STREAM, SOURCE, RamPages): Phase.STREAM,
    (Phase.STREAM, SOURCE, RamBatch): Phase.STREAM,
    (Phase.STREAM, SOURCE, RoundEnd): Phase.STREAM,
    # A target that lost its connection during the handoff comes back to settle it.
    (Phase.HELLO, TARGET, Inquire): Phase.SETTLE,
    (Phase.HELLO, TARGET, Settle): Phase.SETTLE,
    (Phase.SETTLE, SOURCE, Commit): Phase.OWNED,
    (Phase.SETTLE, SOURCE, Abandon): Phase.ENDED,
    (Phase.SETTLE, SOURCE, Released): Phase.ENDED,
    (Phase.SETTLE, SOURCE, Gone): Phase.ENDED,
    (Phase.SETTLE, SOURCE, Unknown): Phase.ENDED,
    # Either may find that its records say nothing of what the other claims.
    (Phase.OWNED, TARGET, Unknown): Phase.ENDED,
    (Phase.RELEASE, SOURCE, Gone): Phase.ENDED,
    (Phase.RELEASE, SOURCE, Unknown): Phase.ENDED,
}


class OutOfTurn(MigrationError):
    """A message that the table does not allow here.  Neutral: the link decides whose fault it is."""

    def __init__(self, phase: Phase, sender: Role, kind: type[Message]) -> None:
        allowed = ", ".join(f"{role} {message.__name__}" for (at, role, message) in NEXT if at is phase)
        super().__init__(
            f"{kind.__name__} from the {sender} in phase {phase.value!r}, where only {allowed or 'nothing'}"
        )
        self.phase, self.sender, self.kind = phase, sender, kind


@attrs.define
class Conversation:
    """Where a conversation stands.  `advance` is called for every message, sent or received; then `note`."""

    phase: Phase = Phase.HELLO
    _heard: xxhash.xxh3_64 = attrs.field(factory=xxhash.xxh3_64, eq=False, repr=False)

    @property
    def transcript(self) -> int:
        """xxh3-64 of the headers of all frames so far, as both sides have them; not of those that were skipped."""
        return self._heard.intdigest()

    def note(self, header: bytes) -> None:
        """A frame with these first bytes was said; its checksum stands for its body, and a batch's for guest RAM."""
        self._heard.update(header)

    def advance(self, sender: Role, message: Message) -> None:
        """Note that `sender` says `message`.

        Raises:
            OutOfTurn: the table has no such move; the phase is unchanged.
        """
        move = (self.phase, sender, message.__class__)
        self.phase = NEXT[move] if move in NEXT else self.after(sender, message.__class__)

    def after(self, sender: Role, kind: type[Message]) -> Phase:
        """The phase that a message of `kind` leads to.

        Raises:
            OutOfTurn: the table has no such move.
        """
        move = (self.phase, sender, kind)
        if move in NEXT:
            return NEXT[move]
        if kind is Failure and self.phase is not Phase.ENDED:
            return Phase.ENDED
        raise OutOfTurn(*move)
