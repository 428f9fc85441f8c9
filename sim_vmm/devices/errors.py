"""What can be wrong with device state, always naming the device (device-payloads §2)."""

import attrs

from sim_vmm.payloads import Schema


class DeviceStateError(Exception):
    """Base of the errors of exporting and importing device state."""

    device: str

    @property
    def message(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"device {self.device!r}: {self.message}"


@attrs.frozen(str=False)
class NotMigratable(DeviceStateError):
    """This device refuses to be exported."""

    device: str
    kind: str
    reason: str

    @property
    def message(self) -> str:
        return f"a {self.kind} cannot migrate: {self.reason}"


@attrs.frozen(str=False)
class SchemaNotOffered(DeviceStateError):
    """The caller chose a payload version that this device does not export in that place; a bug of the caller."""

    device: str
    chosen: tuple[Schema, ...]
    offered: tuple[tuple[Schema, ...], ...]

    @property
    def message(self) -> str:
        offered = ", then ".join(" or ".join(map(str, schemas)) for schemas in self.offered) or "nothing"
        chosen = ", ".join(map(str, self.chosen)) or "nothing"
        return f"cannot export {chosen}; it exports {offered}"


@attrs.frozen(str=False, kw_only=True)
class StateNotRepresentable(DeviceStateError):
    """A payload version cannot give this device's state of the moment back unchanged.

    `version` is None if it is the lack of the payload that would lose something.  `field` is the first field lost,
    `have` its value as text, `need` what would carry it.
    """

    device: str
    kind: str
    version: int | None
    field: str
    have: str
    need: str

    @property
    def message(self) -> str:
        without = "without it" if self.version is None else f"by version {self.version}"
        return f"{self.kind}.{self.field} is {self.have}, which is lost {without}; needed: {self.need}"


@attrs.frozen(str=False)
class PayloadMissing(DeviceStateError):
    """A payload that the device wants has not arrived."""

    device: str
    kind: str
    version: int

    @property
    def message(self) -> str:
        return f"no {self.kind} v{self.version} has arrived; this device cannot go on without it"


@attrs.frozen(str=False)
class PayloadUnexpected(DeviceStateError):
    """A payload that the device does not want, or wants once, has arrived."""

    device: str
    kind: str
    version: int
    reason: str

    @property
    def message(self) -> str:
        return f"{self.kind} v{self.version} has arrived; {self.reason}"


@attrs.frozen(str=False)
class ImportFailed(DeviceStateError):
    """A value of a payload is not one that the device can take.  `problem` says which and what instead."""

    device: str
    kind: str
    version: int
    field: str
    problem: str

    @property
    def message(self) -> str:
        return f"{self.kind} v{self.version}, {self.field}: {self.problem}"


@attrs.frozen(str=False)
class InjectedFailure(DeviceStateError):
    """A failure injector did what it was asked to.  `direction` is `export` or `import`; `nth` counts from 1."""

    device: str
    direction: str
    nth: int
    of: int

    @property
    def message(self) -> str:
        return f"injected failure {self.nth} of {self.of} on {self.direction}"


@attrs.frozen(str=False)
class UnknownDevice(DeviceStateError):
    """State has arrived for a device that the machine does not have."""

    device: str

    @property
    def message(self) -> str:
        return "state has arrived for it, and this machine has no such device"


@attrs.frozen(str=False)
class DeviceTwice(DeviceStateError):
    """State has arrived twice for one device."""

    device: str

    @property
    def message(self) -> str:
        return "its state has arrived twice; each device is sent once"
