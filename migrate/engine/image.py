"""The small part of a paused machine: everything but its RAM, as the very frames that a migration sends.

Whoever keeps a machine that it must not run, the source after `C(n)` and the target from `R(n)` on, keeps this with the
record, so that the two are durable together; RAM lies in a file of its own.  The frames carry checksums and are read by
the door through which everything comes in, so a torn image is noticed and never resumed.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Self

import attrs

from migrate.errors import DeviceStateError, MigrationError, RemoteProtocolError, TimeDataError
from migrate.payloads import PayloadError, decode_payload, encode_payload
from migrate.plain import fields_of
from migrate.protocol import frames
from migrate.protocol.messages import DevicesEnd, DeviceState, Message, Payload, ServerState, TimeOfDay
from migrate.releases import Release
from sim_vmm.clock import TimeData
from sim_vmm.clock import TimeDataError as MachineTimeDataError
from sim_vmm.console import ConsoleState, ConsoleStateError
from sim_vmm.devices.errors import DeviceStateError as MachineDeviceError
from sim_vmm.machine import DeviceState as ImportedState
from sim_vmm.machine import Machine
from sim_vmm.payloads import Payload as MachinePayload
from sim_vmm.payloads import Schema


class ImageDamaged(MigrationError):
    """What was kept of a paused machine is not what was written: the machine must not be resumed from it."""


@attrs.frozen(kw_only=True)
class PauseImage:
    """The state of a paused machine beside its RAM: messages that were sent or received."""

    time: TimeOfDay
    devices: tuple[DeviceState, ...]
    server: ServerState

    def encode(self) -> bytes:
        parts: tuple[Message, ...] = (self.time, *self.devices, DevicesEnd(devices=len(self.devices)), self.server)
        return b"".join(map(frames.encode_again, parts))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ImageDamaged."""
        try:
            messages = frames_in(data)
            time, *devices, end, server = messages
        except (RemoteProtocolError, ValueError) as error:
            raise ImageDamaged(f"the image of the paused machine cannot be read: {error}") from error
        states = tuple(device for device in devices if isinstance(device, DeviceState))
        if not (
            isinstance(time, TimeOfDay)
            and isinstance(end, DevicesEnd)
            and isinstance(server, ServerState)
            and end.devices == len(states) == len(devices)
        ):
            raise ImageDamaged("the image of the paused machine is not made as images are")
        return cls(time=time, devices=states, server=server)

    def restore(self, machine: Machine, release: Release) -> str | None:
        """Fill `machine`, which has its RAM already and is ready to receive; returns a warning about clocks.

        Raises:
            MigrationError: it does not fit; the machine is good for nothing.
        """
        warning = import_clock(machine, self.time)
        import_devices(machine, self.devices, release)
        import_console(machine, self.server)
        return warning


def frames_in(data: bytes) -> tuple[Message, ...]:
    """The messages of a row of frames.

    Raises:
        RemoteProtocolError, ValueError: these are not whole frames of ours.
    """
    messages, rest = [], memoryview(data)
    while rest:
        if len(rest) < frames.HEADER.size:
            raise ValueError(f"{len(rest)} bytes are left, which are no frame")
        header = frames.decode_header(bytes(rest[: frames.HEADER.size]))
        if header.skippable:
            raise ValueError(f"frames of type {header.type:#06x} are in no image")
        body = bytes(rest[frames.HEADER.size :][: header.length])
        if len(body) < header.length:
            raise ValueError(f"a frame of {header.length} bytes ends after {len(body)}")
        messages.append(frames.decode_body(header, body))
        rest = rest[frames.HEADER.size + header.length :]
    return tuple(messages)


def import_clock(machine: Machine, message: TimeOfDay) -> str | None:
    """Returns a warning if the time in flight is a guess.  Raises TimeDataError."""
    try:
        return machine.clock.import_(TimeData(**fields_of(message))).warning
    except MachineTimeDataError as error:
        raise TimeDataError(str(error)) from error


def read_device(message: DeviceState, release: Release) -> ImportedState:
    """Raises DeviceStateError if this build does not know a payload, whatever this program has code for."""
    try:
        return ImportedState(message.device, tuple(_read_payload(payload, release) for payload in message.payloads))
    except PayloadError as error:
        raise DeviceStateError(f"device {message.device!r}: {error}") from error


def _read_payload(payload: Payload, release: Release) -> MachinePayload:
    schema = Schema(payload.kind, payload.version)
    if not release.knows(schema):
        known = ", ".join(map(str, release.payloads.get(schema.kind, ()))) or "none"
        raise PayloadError(f"{schema} has arrived, and the target ({release.name}) knows versions {known} of it")
    return decode_payload(schema, payload.data)


def warm_up_devices(machine: Machine, release: Release) -> None:
    """Read once what `machine`, as it was made, would send: what is done the first time takes four times as long."""
    with suppress(MachineDeviceError):  # one that never travels
        for state in machine.preflight():
            for payload in state.payloads:
                if release.knows(payload.SCHEMA):
                    decode_payload(payload.SCHEMA, encode_payload(payload))


def import_devices(machine: Machine, messages: tuple[DeviceState, ...], release: Release) -> None:
    """Raises DeviceStateError."""
    import_states(machine, [read_device(message, release) for message in messages])


def import_states(machine: Machine, states: Iterable[ImportedState]) -> None:
    """Raises DeviceStateError."""
    try:
        machine.import_devices(states)
    except MachineDeviceError as error:
        raise DeviceStateError(str(error)) from error


def import_console(machine: Machine, state: ServerState) -> None:
    """Raises RemoteProtocolError."""
    try:
        machine.console.import_(ConsoleState(**fields_of(state)))
    except ConsoleStateError as error:
        raise RemoteProtocolError(f"console history: {error}") from error
