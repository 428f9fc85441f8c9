"""Why a migration is refused: always a component, a field, what it has and what would do."""

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

TEXT_MAX: Final = 4096
"""Characters of one text of a reason that are said to a peer."""
SAID_BYTES_MAX: Final = 1 << 20
"""What all reasons that are said to a peer may cost it, so that they fit a frame and what may be read from one."""
REASON_BYTES: Final = 1170
"""Of a reason beside its texts; so there are never more than 900, which are as many items as a body may have."""
CUT: Final = "..."  # in ASCII, as a text of which one character is not costs its reader more
WIDEST_CHARACTER: Final = 16  # four bytes, and a reader that reckons with four for each


@attrs.frozen(kw_only=True)
class Reason:
    """One obstacle.  A refusal lists all of them.

    Attributes:
        component: key of the component, or `board`, `smbios`, `release`, `protocol` for what is no component.
        field: the field that cannot be carried; `type` if it is the whole component.
        have: the value found, as text.
        need: what would do, as text.
    """

    component: str
    field: str
    have: str
    need: str

    @property
    def message(self) -> str:
        component = self.component if self.component.isprintable() else repr(self.component)
        return f"{component}: {self.field} is {self.have}; needed: {self.need}"

    def as_json(self) -> dict[str, str]:
        """The keys promised by the command-line contract."""
        return {
            "component": self.component,
            "field": self.field,
            "have": self.have,
            "need": self.need,
            "message": self.message,
        }


def sentence(reasons: Iterable[Reason]) -> str:
    """All reasons as one line."""
    return "; ".join(reason.message for reason in reasons)


def sayable(reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    """`reasons` as they fit a refusal: all of them, unless a peer has given so many or such long ones back to us."""
    said: list[Reason] = []
    left = SAID_BYTES_MAX
    for reason in reasons:
        short = Reason(**{name: _cut(text) for name, text in attrs.asdict(reason).items()})
        left -= REASON_BYTES + sum(map(_cost, attrs.astuple(short)))
        if left < 0:
            have, need = f"{len(reasons) - len(said)} reasons more than can be said", "a refusal that fits its frame"
            return (*said, Reason(component="protocol", field="reasons", have=have, need=need))
        said.append(short)
    return tuple(said)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - len(CUT)] + CUT


def _cost(text: str) -> int:
    return len(text) if text.isascii() else len(text) * WIDEST_CHARACTER
