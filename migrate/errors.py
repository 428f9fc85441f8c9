"""What can go wrong in a migration, and whose fault it is.

Any exception that is not a `MigrationError` is a bug of ours.  Blame is laid at two doors only: the link's `send`
(local) and `receive` (remote).  Every error that leaves an engine says in which phase and on which side it arose.
"""

from collections.abc import Sequence

from migrate.reasons import Reason, sentence


class MigrationError(Exception):
    """Base of everything that is raised on purpose while migrating."""


class LocalProtocolError(MigrationError):
    """We were about to break the protocol.  Nothing has been sent."""


class RemoteProtocolError(MigrationError):
    """The peer broke the protocol.  Hang up; do not reason with it."""


class NotOurProtocol(RemoteProtocolError):
    """Whoever is on the other end does not speak this protocol at all."""


class TransportLost(MigrationError):
    """The connection is gone: closed, reset, or never made."""


class DeadlineExpired(MigrationError):
    """The peer was silent or slow beyond the deadline of the phase."""


class PeerFailed(MigrationError):
    """The peer kept to the protocol and reported a failure of its own."""

    def __init__(self, side: str, phase: str, error: str, message: str) -> None:
        super().__init__(f"the {side} failed in phase {phase!r}: {message} ({error})")
        self.side, self.phase, self.error, self.message = side, phase, error, message


class Refused(MigrationError):
    """The migration cannot happen as things are; nothing has moved and nothing was paused.  All reasons are listed.

    `by` is the side that said no.
    """

    def __init__(self, reasons: Sequence[Reason], by: str) -> None:
        super().__init__(sentence(reasons))
        self.reasons, self.by = tuple(reasons), by


class Distrusted(Refused):
    """One side does not accept who the other is: its certificate, or its name.  `by` is the one that does not."""


class StateRefused(Refused):
    """After the verdict the guest brought its devices into a state that no payload version known to both sides carries.

    The source found it and lets the guest go on; the target has to be told.
    """


class NotConverging(MigrationError):
    """The guest dirties its memory faster than the link carries it; the downtime limit cannot be met."""


class DeviceStateError(MigrationError):
    """A device's state could not be exported, or was refused on import."""


class TimeDataError(MigrationError):
    """The guest's clock could not be carried over."""


class SpecDigestMismatch(MigrationError):
    """The spec that arrived is not the spec that was sent."""


class MachineCreationFailed(MigrationError):
    """The target could not make the machine that the spec describes."""


class JournalFailed(MigrationError):
    """The record of ownership could not be written; the old one stands."""


class StorageUnreachable(MigrationError):
    """The register in the machine's storage can neither be read nor changed."""


class MigrationCancelled(MigrationError):
    """Somebody asked for the attempt to end."""


class HandoffInDoubt(MigrationError):
    """The source gave the machine away and does not know whether the target has it.  The source must not run it."""
