"""A round of RAM, as it was measured."""

import math
from typing import Any, Final

import attrs

from migrate.plain import fields_of

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


@attrs.frozen(kw_only=True)
class Round:
    """One pass over the dirty pages.  `bytes` counts page contents on the wire, `pages` zero pages included.

    `duration_ns` is from the first page taken until everything was handed to the network, `receipt_ns` from then until
    the target had stored it; 0 for the last round, whose receipt is `Ready`.  `dirtied_pages` are what the guest left
    dirty when the round had been sent, `throttle` the share of the time for which it was kept asleep meanwhile.
    """

    number: int
    pages: int
    zero_pages: int
    bytes: int
    duration_ns: int
    dirtied_pages: int
    receipt_ns: int = 0
    throttle: float = 0.0

    @property
    def elapsed_ns(self) -> int:
        return self.duration_ns + self.receipt_ns

    def as_json(self) -> dict[str, Any]:
        facts = fields_of(self)
        facts["duration_ms"] = facts.pop("duration_ns") / NS_PER_MS
        facts["receipt_ms"] = facts.pop("receipt_ns") / NS_PER_MS
        return facts


def finite(number: float) -> float | None:
    """For JSON, which has no infinity."""
    return number if math.isfinite(number) else None
