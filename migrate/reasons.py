"""Why a migration is refused: always a component, a field, what it has and what would do."""

from collections.abc import Iterable

import attrs


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
