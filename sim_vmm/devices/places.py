"""The places in the list of payloads that a device exports, and which payload versions can stand there right now.

Every place has one kind.  Which of its versions can carry the state depends on the state of the moment: those that give
it back unchanged (`sim_vmm.payloads.conversions`).  An optional place may also be left empty, which says "as at birth":
so it must be filled exactly if the device is not as it was at birth in that respect.
"""

from typing import Any

import attrs

from sim_vmm.devices.errors import SchemaNotOffered, StateNotRepresentable
from sim_vmm.payloads import Payload, Schema
from sim_vmm.payloads.conversions import downgrade, first_difference, upgrade, value_text, versions_of


@attrs.frozen(kw_only=True)
class Place:
    """One place: `state` is the device's state now, `born` its state at birth, both in the newest version."""

    device: str
    state: Payload
    born: Payload
    optional: bool

    @property
    def kind(self) -> str:
        return self.state.SCHEMA.kind

    @property
    def schemas(self) -> tuple[Schema, ...]:
        """The versions that exist, newest first; not each can carry every state."""
        return versions_of(self.state.SCHEMA)

    def express(self, schema: Schema | None) -> Payload | None:
        """The state in `schema`; None is the choice to leave the place empty, and what stands there then.

        Raises:
            StateNotRepresentable: that would lose something.
            SchemaNotOffered: there is no such choice.
        """
        problem = self.problem(schema)
        if problem is not None:
            raise problem
        return None if schema is None else downgrade(self.state, schema)

    def problem(self, schema: Schema | None) -> StateNotRepresentable | None:
        """Why `schema`, or an empty place, cannot carry the state of this moment; None if it can.

        Raises:
            SchemaNotOffered: there is no such choice.
        """
        lost = self._lost(schema)
        if lost is None:
            return None
        field, have = lost
        carrier = next((other for other in reversed(self.schemas) if self._lost(other) is None), self.state.SCHEMA)
        return StateNotRepresentable(
            device=self.device,
            kind=self.kind,
            version=None if schema is None else schema.version,
            field=field,
            have=value_text(have),
            need=f"{self.kind} version {carrier.version} or newer",
        )

    def _lost(self, schema: Schema | None) -> tuple[str, object] | None:
        """The first field that would not come back, and its value."""
        if schema == self.state.SCHEMA:
            return None
        if schema is None and self.optional:
            return first_difference(self.state, self.born)
        if schema not in self.schemas:
            raise SchemaNotOffered(self.device, () if schema is None else (schema,), (self.schemas,))
        assert schema is not None, "an empty place that is not optional is no choice"
        back: Any = upgrade(downgrade(self.state, schema), self.born)
        return first_difference(self.state, back)
