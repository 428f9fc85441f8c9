"""What every emulated device can do: be driven by the guest, give its state away, take another's.

Export is a list of payloads in a fixed order (device-payloads §4).  `exports()` tells, for each place in the list, the
schemas that can stand there, newest first; the caller chooses one for each.

Import is strict where upstream is lenient (device-payloads §3): a device takes exactly the payloads that it wants;
a missing, surplus or repeated one is an error, and so is a value that it would have to ignore.  All is checked before
anything changes, so a refused import leaves a device as it was.

A payload holds registers.  What a device derives from them (an interrupt line, a hook, the rings of a kernel link) does
not travel, and an import must rebuild it: forgetting that is the common shape of the defects in device-payloads §8.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, TypeVar

import attrs

from sim_vmm.devices.errors import (
    ImportFailed,
    NotMigratable,
    PayloadMissing,
    PayloadUnexpected,
    SchemaNotOffered,
)
from sim_vmm.payloads import Payload, Schema

PayloadT = TypeVar("PayloadT", bound=Payload)


@attrs.define
class InterruptPin:
    """A device's line to the interrupt controller; it knows its level only by being told."""

    asserted: bool = False


class Device:
    """A device without state: the base of the others, and all there is of pvpanic.

    `key` is the component key in canonical text.  `kind` is what reports call it.  `not_migratable` is the reason why
    a machine with it cannot migrate, or None.
    """

    kind: ClassVar[str]
    not_migratable: ClassVar[str | None] = None
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ()

    def __init__(self, key: str) -> None:
        self.key = key

    def driver_probe(self) -> None:
        """The guest's driver sets the device up, as at boot."""

    def driver_io(self) -> None:
        """The guest's driver uses the device once, so that its state moves on."""

    def exports(self) -> tuple[tuple[Schema, ...], ...]:
        """For each payload that this device exports, in order, the schemas that can carry it, newest first."""
        return self.EXPORTS

    def begin_export(self) -> None:
        """A real export, no rehearsal of one, is about to happen.

        Raises:
            InjectedFailure: by a failure injector.
        """

    def export(self, chosen: Sequence[Schema]) -> tuple[Payload, ...]:
        """The device's state, one payload for each of `chosen`, which has one schema for each place of `exports()`.

        Raises:
            NotMigratable: this device refuses.
            SchemaNotOffered: `chosen` does not fit `exports()`.
        """
        if self.not_migratable is not None:
            raise NotMigratable(self.key, self.kind, self.not_migratable)
        offered = self.exports()
        if len(chosen) != len(offered) or any(s not in schemas for s, schemas in zip(chosen, offered, strict=True)):
            raise SchemaNotOffered(self.key, tuple(chosen), offered)
        return self._payloads()

    def import_(self, payloads: Iterable[Payload]) -> None:
        """Take over the state in `payloads`, which may come in any order.

        Raises:
            PayloadMissing, PayloadUnexpected: not exactly the payloads that this device exports.
            ImportFailed: a value that this device cannot take.
            InjectedFailure: by a failure injector.
        """
        arrived = Arrived(self.key, payloads)
        arrived.expect([schemas[0] for schemas in self.exports()])
        self._take(arrived)

    def _payloads(self) -> tuple[Payload, ...]:
        """The state in the newest schemas."""
        return ()

    def _take(self, arrived: "Arrived") -> None:
        """Check the state, take it over, rebuild what is derived from it."""


class Arrived:
    """The payloads that have arrived for one device, one for each schema."""

    def __init__(self, device: str, payloads: Iterable[Payload]) -> None:
        """Raises PayloadUnexpected if two payloads have one schema (device-payloads §3)."""
        self._device = device
        self._payloads: dict[Schema, Payload] = {}
        for payload in payloads:
            schema = payload.SCHEMA
            if schema in self._payloads:
                raise PayloadUnexpected(
                    device, schema.kind, schema.version, "it must arrive once, and this is the second"
                )
            self._payloads[schema] = payload

    def expect(self, wanted: Sequence[Schema]) -> None:
        """Refuse payloads that are not `wanted`, then the lack of one that is.

        Raises:
            PayloadUnexpected, PayloadMissing: the first such, in order.
        """
        for schema in self._payloads:
            if schema not in wanted:
                wants = ", ".join(map(str, wanted)) or "nothing"
                raise PayloadUnexpected(self._device, schema.kind, schema.version, f"this device wants {wants}")
        for schema in wanted:
            if schema not in self._payloads:
                raise PayloadMissing(self._device, schema.kind, schema.version)

    def of(self, payload_type: type[PayloadT]) -> PayloadT:
        """The payload of this type, which `expect` has found."""
        payload = self._payloads[payload_type.SCHEMA]
        assert isinstance(payload, payload_type)
        return payload


#: Makes the error about one field of a payload: which field, and what is wrong with it.
Refuse = Callable[[str, str], ImportFailed]


def refusal(device: str, schema: Schema) -> Refuse:
    """The maker of errors about a payload of `schema` that has arrived for `device`."""

    def refuse(field: str, problem: str) -> ImportFailed:
        return ImportFailed(device, schema.kind, schema.version, field, problem)

    return refuse
