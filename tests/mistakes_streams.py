"""Mistakes in the rules of streams, which real daemons and the simulator share (`migrate.protocol.streams`)."""

from typing import Any

import pytest

from migrate.protocol.messages import Role, RoundEnd
from migrate.protocol.streams import RAM_PHASES, StreamRules


def end_with_the_first(patch: pytest.MonkeyPatch) -> None:
    """What comes later on the other connections belongs to the next round."""

    def heard(self: Any, link: Any, message: Any) -> Any:
        if isinstance(message, RoundEnd) and link is not self.first:
            return None
        self._heard_last = link
        return message

    patch.setattr(StreamRules, "heard", heard)


def leave_streams_out_of_the_transcript(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamRules, "note_round", lambda self: None)


def leave_streams_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamRules, "all_streams", lambda self: [])


def hear_streams_only_until_the_conversation_goes_on(patch: pytest.MonkeyPatch) -> None:
    """After the last round that phase is over on the first connection as soon as it has ended there."""

    def carry(self: Any) -> bool:
        return bool(self.others) and self.role is Role.TARGET and self.conversation.phase in RAM_PHASES

    patch.setattr(StreamRules, "carry", property(carry))


def begin_without_streams(patch: pytest.MonkeyPatch) -> None:
    """The source sends all on the first connection, and ends no round on the others."""
    patch.setattr(StreamRules, "adopt", lambda self: None)
