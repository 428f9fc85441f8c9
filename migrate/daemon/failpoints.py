"""Points at which a daemon waits for a word from outside, so that it can be killed exactly there, or made to fail.

With `--failpoints PATH` a daemon connects to the unix socket at PATH and says its side.  At every point it says which
one, one datagram of JSON, and does nothing more, not even a step of its guest, until it is answered:

    {"at": "phase", "name": "ram"}              an engine enters a phase
    {"at": "point", "name": "before write C"}   the points of `--die-at`
    {"at": "received", "name": "RoundEnd"}      a message has come, and nobody has seen it yet
    {"at": "received", "name": "RoundEnd 1"}    the same on stream 1
    {"at": "export"}, {"at": "import"}          device state is about to leave a machine, or to come into one

The answer is `{}` to go on, or any of

    {"trouble": "disk full"}        the change of the journal that comes next fails so ("sync error" as well)
    {"fail": true}                  the devices cannot be exported, or imported
    {"wall_offset_ns": n}           from here on the host's wall clock is so far from the real one

A daemon that nobody answers any more goes on by itself.  Without the option none of this exists.
"""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs

from migrate.daemon.state import DiskTrouble
from sim_vmm.clock import SystemClock
from sim_vmm.devices.errors import InjectedFailure
from sim_vmm.interception import intercept
from sim_vmm.machine import Machine

DATAGRAM_MAX: Final = 1 << 16
ALL_DEVICES: Final = "devices"
"""The key that an injected failure names: no single device is to blame."""


@attrs.define
class ShiftedClock(SystemClock):
    """The host's clocks, with a wall clock that somebody may have set."""

    offset_ns: int = 0

    def wall_ns(self) -> int:
        return super().wall_ns() + self.offset_ns


@attrs.define(eq=False)
class Failpoints:
    """The daemon's side.  `on_trouble` is told what is to become of the next change of the journal."""

    path: Path
    clock: ShiftedClock = attrs.field(factory=ShiftedClock)
    on_trouble: Callable[[DiskTrouble], None] | None = None
    _socket: socket.socket | None = None

    def connect(self, side: str) -> None:
        """Raises OSError: nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(str(self.path))
        self._socket.send(side.encode())

    def heed(self, event: dict[str, Any]) -> None:
        """A listener of the daemon's events."""
        match event["event"]:
            case "phase":
                self._ask("phase", event["phase"])
            case "point":
                self._ask("point", event["name"])
            case "receives":
                self._ask("received", f"{event['name']} {event.get('stream', '')}".rstrip())

    def watch(self, machine: Machine) -> None:
        """Ask before every export and import of `machine`."""
        intercept(machine, lambda: self._devices("export"), lambda: self._devices("import"))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _devices(self, stage: str) -> None:
        if self._ask(stage).get("fail"):
            raise InjectedFailure(ALL_DEVICES, stage, 1, 1)

    def _ask(self, at: str, name: str = "") -> dict[str, Any]:
        if self._socket is None:
            return {}
        try:
            self._socket.send(json.dumps({"at": at, "name": name}).encode())
            said = self._socket.recv(DATAGRAM_MAX)
        except OSError:
            said = b""
        if not said:
            self._socket.close()
            self._socket = None
            return {}
        answer: dict[str, Any] = json.loads(said)
        self.clock.offset_ns = answer.get("wall_offset_ns", self.clock.offset_ns)
        if "trouble" in answer and self.on_trouble is not None:
            self.on_trouble(DiskTrouble(answer["trouble"]))
        return answer
