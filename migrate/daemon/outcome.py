"""How an attempt ended, in the words of the command-line contract."""

import traceback
from enum import StrEnum
from typing import Any

import attrs

from migrate.engine.attempt import Attempt
from migrate.errors import HandoffInDoubt, MigrationError, PeerFailed, Refused


class Outcome(StrEnum):
    MIGRATED = "migrated"
    REFUSED = "refused"
    FAILED = "failed"
    IN_DOUBT = "in doubt"


class Cancelling(StrEnum):
    """What came of asking for the end of an attempt."""

    CANCELLED = "cancelled"
    TOO_LATE = "too late"
    NOTHING_TO_CANCEL = "nothing to cancel"


@attrs.frozen(kw_only=True)
class AttemptOutcome:
    """One attempt as one side saw it; `error` is None exactly if the machine moved."""

    attempt: Attempt
    error: MigrationError | None

    def __attrs_post_init__(self) -> None:
        """Outcomes are kept; what the frames of a failure still hold would keep the RAM of a discarded machine."""
        error: BaseException | None = self.error
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__

    @property
    def outcome(self) -> Outcome:
        match self.error:
            case None:
                return Outcome.MIGRATED
            case Refused():
                return Outcome.REFUSED
            case HandoffInDoubt():
                return Outcome.IN_DOUBT
            case _:
                return Outcome.FAILED

    def as_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome.value,
            "phase": self.error.phase if isinstance(self.error, PeerFailed) else self.attempt.phase,
            "error": self._error(),
            "raised": None if self.error is None else type(self.error).__name__,
            "reasons": [reason.as_json() for reason in self.error.reasons] if isinstance(self.error, Refused) else [],
            **self.attempt.as_json(),
        }

    def _error(self) -> dict[str, str] | None:
        """`side` is where the failure arose; a peer's report of its own failure keeps the peer's words."""
        match self.error:
            case None:
                return None
            case PeerFailed() as failed:
                return {"class": failed.error, "message": failed.message, "side": failed.side}
            case Refused() as refused:
                return {"class": "Refused", "message": str(refused), "side": str(refused.by)}
            case error:
                return {"class": type(error).__name__, "message": str(error), "side": self.attempt.side.value}
