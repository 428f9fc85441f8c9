"""Names of components and places on the PCI bus.

A `SpecKey` is a UUID or a name, told apart by spelling alone (instance-specs §5).  Two spellings of one UUID are one
key; a near miss is a name.  Keys order all UUIDs, by their 16 bytes, before all names, by their UTF-8 bytes: that order
fixes evaluation, device and replacement order everywhere.
"""

import re
from functools import total_ordering
from typing import Final, Self
from uuid import UUID

import attrs

_HEX = "[0-9a-fA-F]"
_HYPHENATED = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
#: The four spellings that are a UUID.  `uuid.UUID()` accepts more and must not decide.
_UUID_SPELLINGS: Final = re.compile(
    rf"(?:{_HYPHENATED}|{_HEX}{{32}}|\{{{_HYPHENATED}\}}|urn:uuid:{_HYPHENATED})", re.ASCII
)

PCI_DEVICE_MAX: Final = 31
PCI_FUNCTION_MAX: Final = 7


def parse_uuid(text: str) -> UUID | None:
    """The UUID that `text` spells in one of the four accepted forms, or None."""
    if _UUID_SPELLINGS.fullmatch(text) is None:
        return None
    return UUID(text.removeprefix("urn:uuid:").strip("{}"))


@total_ordering
@attrs.frozen(order=False, repr=False)
class SpecKey:
    """The key of a component: a UUID or a name.  Build it with `SpecKey.parse`."""

    uuid: UUID | None
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Any string is a key: a UUID if it is spelled as one, else a name, kept as it is (it may be empty)."""
        uuid = parse_uuid(text)
        return cls(uuid, "") if uuid is not None else cls(None, text)

    def __str__(self) -> str:
        """The canonical spelling: UUIDs lower-case and hyphenated, names byte for byte."""
        return self.name if self.uuid is None else str(self.uuid)

    def __repr__(self) -> str:
        return f"SpecKey({str(self)!r})"

    def __lt__(self, other: "SpecKey") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[bool, bytes]:
        if self.uuid is None:
            return True, self.name.encode()
        return False, self.uuid.bytes


@attrs.frozen(order=True)
class PciPath:
    """Bus, device and function of a PCI device.  Ordered by bus, then device, then function.

    Raises:
        ValueError: the path lies outside 0-255.0-31.0-7.
    """

    bus: int
    device: int
    function: int

    def __attrs_post_init__(self) -> None:
        if not (
            0 <= self.bus <= 0xFF and 0 <= self.device <= PCI_DEVICE_MAX and 0 <= self.function <= PCI_FUNCTION_MAX
        ):
            raise ValueError(f"{self} is no PCI path: bus is 0-255, device 0-31, function 0-7")

    def __str__(self) -> str:
        return f"{self.bus}.{self.device}.{self.function}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `b.d.f`: three decimal bytes; a leading `+` and leading zeros pass, as in upstream's parser."""
        fields = text.split(".")
        if len(fields) != 3 or not all(re.fullmatch(r"\+?[0-9]+", field, re.ASCII) for field in fields):
            raise ValueError(f"{text!r} is no PCI path: expected bus.device.function in decimal, such as 0.16.0")
        return cls(*(int(field) for field in fields))
