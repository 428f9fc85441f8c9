"""What every emulated device can do: be driven by the guest, give its state away, take another's.

Export is a list of payloads in a fixed order (device-payloads §4).  `exports()` tells, for each place in the list, the
schemas that there are, newest first; `places()` which of them can carry the state of the moment.  The caller chooses
one for each, or to leave an optional place empty.

Import is strict where upstream is lenient (device-payloads §3): a device takes exactly the payloads that it wants, each
in any version that there is; a missing, surplus or repeated one is an error, and so is a value that it would have to
ignore.  Devices see the newest version only: older ones are converted on the way in and out.  All is checked before
anything changes, so a refused import leaves a device as it was.

The guest reaches a device through the registers behind its PCI base addresses (`bar_read`, `bar_write`) or at fixed
ports (`port_read`, `port_write`); sim_vmm/bus.py routes the accesses.  Like hardware, a device never fails an access:
what it does not know reads as zero, and a write to it is ignored.

A payload holds registers.  What a device derives from them (an interrupt line, a hook, the rings of a kernel link) does
not travel, and an import must rebuild it: forgetting that is the common shape of the defects in device-payloads §8.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import ClassVar, TypeVar

import attrs

from sim_vmm.devices.errors import (
    ImportFailed,
    NotMigratable,
    PayloadMissing,
    PayloadUnexpected,
    SchemaNotOffered,
)
from sim_vmm.devices.places import Place
from sim_vmm.payloads import Payload, Schema
from sim_vmm.payloads.conversions import upgrade, versions_of
from sim_vmm.platform import Platform

PayloadT = TypeVar("PayloadT", bound=Payload)


@attrs.define
class InterruptPin:
    """A device's line to the interrupt controller; it knows its level only by being told."""

    asserted: bool = False


class Device:
    """A device without state: the base of the others, and all there is of pvpanic.

    `key` is the component key in canonical text.  `kind` is what reports call it.  `not_migratable` is the reason why
    a machine with it cannot migrate, or None.  `ports` are the I/O ports at which it always answers.
    """

    kind: ClassVar[str]
    not_migratable: ClassVar[str | None] = None
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ()
    #: Kinds that are left out while the device is as it was at birth in that respect.
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    ports: tuple[range, ...] = ()
    platform: Platform

    def __init__(self, key: str) -> None:
        self.key = key
        self._born: tuple[Payload, ...] = ()

    def attach(self, platform: Platform) -> None:
        """Put the device into the machine whose memory and interrupts these are; once, before its first use."""
        self.platform = platform

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """The guest reads `size` bytes (1, 2, 4 or 8) at `offset` of what base address register `bar` shows."""
        return 0

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """The guest writes `size` bytes, `value` little-endian, at `offset` of what `bar` shows."""

    def port_read(self, port: int, size: int) -> int:
        """The guest reads `size` bytes (1, 2 or 4) from one of `ports`."""
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest writes `size` bytes to one of `ports`."""

    def poll(self) -> None:
        """Do the work that waits for this device while the machine runs: what was left over, what has come in."""

    def quiesce(self) -> None:
        """The machine is being paused: finish what must not be cut in two.  Work that stays in a queue is carried."""

    def exports(self) -> tuple[tuple[Schema, ...], ...]:
        """For each place in the list of payloads that this device exports, the schemas that there are, newest first."""
        return tuple(versions_of(schemas[0]) for schemas in self.EXPORTS)

    def places(self) -> tuple[Place, ...]:
        """The state of this moment, place by place, and what can carry it.

        Raises:
            NotMigratable: this device refuses.
        """
        if self.not_migratable is not None:
            raise NotMigratable(self.key, self.kind, self.not_migratable)
        state = self._payloads()
        return tuple(
            Place(device=self.key, state=now, born=born, optional=now.SCHEMA.kind in self.OPTIONAL)
            for now, born in zip(state, self._born or state, strict=True)
        )

    def note_birth(self) -> None:
        """The device is as the guest finds it at birth: what older payload versions do not say is as it is now.

        Called at the end of making a device that has optional payloads, or any with more than one version.
        """
        self._born = self._payloads()

    def begin_export(self) -> None:
        """A real export, no rehearsal of one, is about to happen.

        Raises:
            InjectedFailure: by a failure injector.
        """

    def export(self, chosen: Sequence[Schema | None]) -> tuple[Payload, ...]:
        """The device's state, one payload for each of `chosen`, which says what is to stand in each place: see `Place`.

        Raises:
            NotMigratable: this device refuses.
            SchemaNotOffered: `chosen` does not fit `exports()`.
            StateNotRepresentable: something would be lost.
        """
        places = self.places()
        if len(chosen) != len(places):
            raise SchemaNotOffered(self.key, tuple(filter(None, chosen)), self.exports())
        expressed = (place.express(schema) for place, schema in zip(places, chosen, strict=True))
        return tuple(payload for payload in expressed if payload is not None)

    def import_(self, payloads: Iterable[Payload]) -> None:
        """Take over the state in `payloads`, which may come in any order and in any version.

        Raises:
            PayloadMissing, PayloadUnexpected: not exactly the payloads that this device exports.
            ImportFailed: a value that this device cannot take.
            InjectedFailure: by a failure injector.
        """
        arrived = Arrived(self.key, payloads)
        arrived.expect([schemas[0] for schemas in self.EXPORTS], self.OPTIONAL)
        arrived.upgrade(self._born)
        self._take(arrived)

    def _payloads(self) -> tuple[Payload, ...]:
        """The state in the newest schemas."""
        return ()

    def _take(self, arrived: "Arrived") -> None:
        """Check the state, take it over, rebuild what is derived from it."""


class Arrived:
    """The payloads that have arrived for one device, one of each kind."""

    def __init__(self, device: str, payloads: Iterable[Payload]) -> None:
        """Raises PayloadUnexpected if two payloads have one kind (device-payloads §3), be it in two versions."""
        self._device = device
        self._payloads: dict[str, Payload] = {}
        for payload in payloads:
            schema = payload.SCHEMA
            if schema.kind in self._payloads:
                raise PayloadUnexpected(
                    device, schema.kind, schema.version, "it must arrive once, and this is the second"
                )
            self._payloads[schema.kind] = payload

    def expect(self, wanted: Sequence[Schema], optional: Container[str] = ()) -> None:
        """Refuse payloads that are of no version of those `wanted`, then the lack of one that is not `optional`.

        Raises:
            PayloadUnexpected, PayloadMissing: the first such, in order.
        """
        known = {schema for newest in wanted for schema in versions_of(newest)}
        for payload in self._payloads.values():
            schema = payload.SCHEMA
            if schema not in known:
                wants = ", ".join(" or ".join(map(str, versions_of(newest))) for newest in wanted) or "nothing"
                raise PayloadUnexpected(self._device, schema.kind, schema.version, f"this device wants {wants}")
        for schema in wanted:
            if schema.kind not in self._payloads and schema.kind not in optional:
                raise PayloadMissing(self._device, schema.kind, schema.version)

    def upgrade(self, born: Iterable[Payload]) -> None:
        """Bring every payload into the version of its kind in `born`, which also stands in for those left out."""
        for payload in born:
            arrived = self._payloads.get(payload.SCHEMA.kind)
            self._payloads[payload.SCHEMA.kind] = payload if arrived is None else upgrade(arrived, payload)

    def of(self, payload_type: type[PayloadT]) -> PayloadT:
        """The payload of this type, which `expect` has found."""
        payload = self._payloads[payload_type.SCHEMA.kind]
        assert isinstance(payload, payload_type)
        return payload


#: Makes the error about one field of a payload: which field, and what is wrong with it.
Refuse = Callable[[str, str], ImportFailed]


def refusal(device: str, schema: Schema) -> Refuse:
    """The maker of errors about a payload of `schema` that has arrived for `device`."""

    def refuse(field: str, problem: str) -> ImportFailed:
        return ImportFailed(device, schema.kind, schema.version, field, problem)

    return refuse
