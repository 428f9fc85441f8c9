"""What a machine is: the internal form of an instance spec.

A `Spec` is a value, equal to another exactly if both describe the same machine.  It is made by the builder only
(`sim_vmm.spec.builder`), so every rule of spec-validation §3 holds for it, and it is never serialized: published
versions convert to and from it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import attrs

from sim_vmm.spec.board import Board, SmbiosType1
from sim_vmm.spec.components import Component
from sim_vmm.spec.keys import SpecKey

ComponentT = TypeVar("ComponentT", bound=Component)


def _in_key_order(components: Mapping[SpecKey, Component]) -> Mapping[SpecKey, Component]:
    return MappingProxyType(dict(sorted(components.items())))


@attrs.frozen(kw_only=True, hash=False)
class Spec:
    """A valid machine.  `components` is in key order."""

    board: Board
    components: Mapping[SpecKey, Component] = attrs.field(converter=_in_key_order)
    smbios: SmbiosType1 | None = None

    def of_kind(self, *kinds: type[ComponentT]) -> Iterator[tuple[SpecKey, ComponentT]]:
        """Components of these classes, in key order."""
        for key, component in self.components.items():
            if isinstance(component, kinds):
                yield key, component
