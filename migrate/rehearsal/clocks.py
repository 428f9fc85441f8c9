"""Two hosts' clocks laid together, by what each side noted of the messages between them.

A side notes, of a request and its answer, when it was about to send the one and when it had heard the other, each by
its own monotonic clock.  No message is heard before it was sent, so every request bounds the difference of the clocks
from above and every answer from below.  The narrowest such bounds are what can be known; half their distance is what
cannot.  This is what NTP does with one exchange (RFC 5905, section 8), done with all.
"""

from collections.abc import Mapping
from typing import Any, Self

import attrs

from migrate.engine.rounds import NS_PER_MS


@attrs.frozen(kw_only=True)
class Exchange:
    """A request and its answer as one side noted them, in ns of its clock.

    The side that asked notes `sent_ns`, then `heard_ns`; the one that answered heard first.
    """

    sent_ns: int
    heard_ns: int


Exchanges = Mapping[str, Exchange]
"""By name; both sides call an exchange the same."""


@attrs.frozen(kw_only=True)
class Offset:
    """What a clock of the target shows more than one of the source, within `error_ns`; both in ns.

    `is_one_clock` says that the two may be the same one, and then are taken for that: as on one host.
    """

    offset_ns: int
    error_ns: int

    @property
    def is_one_clock(self) -> bool:
        return self.offset_ns == 0

    def as_json(self) -> dict[str, Any]:
        return {"offset_ms": self.offset_ns / NS_PER_MS, "error_ms": self.error_ns / NS_PER_MS}

    @classmethod
    def between(cls, source: Exchanges, target: Exchanges) -> Self | None:
        """From all exchanges that both know, in which the source asked; None if there is none.

        Raises:
            ValueError: no two clocks fit them, so these are not two views of one conversation.
        """
        common = [(source[name], target[name]) for name in source.keys() & target.keys()]
        if not common:
            return None
        most = min(there.heard_ns - here.sent_ns for here, there in common)
        least = max(there.sent_ns - here.heard_ns for here, there in common)
        if least > most:
            raise ValueError(f"{len(common)} exchanges allow no difference of the clocks: {least} ns to {most} ns")
        if least <= 0 <= most:
            return cls(offset_ns=0, error_ns=max(-least, most))
        return cls(offset_ns=(most + least) // 2, error_ns=(most - least + 1) // 2)


def exchanges_in(attempt: Mapping[str, Any]) -> Exchanges:
    """Those in what one side has told of an attempt; none in what older builds told."""
    began_ns = attempt["started_ns"]
    return {
        name: Exchange(
            sent_ns=began_ns + round(noted["sent_ms"] * NS_PER_MS),
            heard_ns=began_ns + round(noted["heard_ms"] * NS_PER_MS),
        )
        for name, noted in attempt.get("exchanges", {}).items()
    }
