"""Against QEMU's own TCP migration on this machine: the same bytes, the same downtime limit, an idle guest.

`python -m benchmarks.qemu [MIB ...]` prints, for each size and kind of RAM, our time over QEMU's and our blackout over
QEMU's, medians of interleaved runs.  It is no part of `make bench`, since it needs Debian's `qemu-system-x86`; where
that is missing it says so.

Ours is a source and a target daemon, from the connection until the guest runs again, with the checksums that everybody
gets and with journals on disk.  QEMU's is what it reports itself (`query-migrate`, total-time and downtime), under TCG,
with its RAM in a file in shared memory that holds random bytes, or nothing.  Both machines are bare: a processor, a
serial port, no disk and no NIC.  The target's memory is fresh in both: it was never touched.  Right before each
migration three times as much is written and given back, so that neither waits for the machine's own host to find some:
virtual machines give what they do not use back to theirs within seconds.
"""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import attrs
import numpy as np

from benchmarks.measure import MIB, have_memory
from migrate.rehearsal.downtime import ledger_of

QEMU: Final = "qemu-system-x86_64"
SHARED_MEMORY: Final = Path("/dev/shm")
#: What QEMU's `pc` has with `-nodefaults`, as far as a spec says it.
BARE: Final[dict[str, Any]] = {
    "board": {
        "cpus": 1,
        "memory_mb": 512,
        "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}},
        "guest_hv_interface": {"type": "bhyve"},
    },
    "components": {"com1": {"type": "serial_port", "component": {"num": "com1"}}},
}
RUNS: Final = 5
LIMIT_MS: Final = 20
PATIENCE_S: Final = 120.0
SPARE: Final = 3
LOOK_EVERY_S: Final = 0.1
UNLIMITED: Final = 1 << 40


@attrs.define
class Monitor:
    """A conversation with one QEMU over its QMP socket."""

    connection: socket.socket
    process: "subprocess.Popen[bytes]"
    _lines: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = self.connection.makefile("rb")
        self._lines.readline()  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        self.connection.sendall(request + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RuntimeError(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def until(self, *statuses: str) -> None:
        """Return when its migration has one of these statuses; the capability `events` is on."""
        while True:
            line = self._lines.readline()
            event = json.loads(line)
            if event.get("event") == "MIGRATION" and event["data"]["status"] in statuses:
                return


@contextmanager
def qemu(place: Path, name: str, memory: Path, mib: int, *more: str) -> Iterator[Monitor]:
    address = place / f"{name}.qmp"
    size = f"{mib}M"
    command = [
        QEMU,
        *("-machine", "pc,memory-backend=ram", "-accel", "tcg", "-m", size, "-nodefaults", "-display", "none"),
        *("-object", f"memory-backend-file,id=ram,size={size},mem-path={memory},share=on"),
        *("-qmp", f"unix:{address},server=on,wait=off", *more),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                deadline = time.monotonic() + PATIENCE_S
                while True:
                    try:
                        connection.connect(str(address))
                        break
                    except (FileNotFoundError, ConnectionRefusedError):
                        if process.poll() is not None or time.monotonic() > deadline:
                            raise
                connection.settimeout(PATIENCE_S)
                yield Monitor(connection, process)
        finally:
            process.kill()


def migrate_qemu(place: Path, memory: Path, mib: int, limit_ms: float, channels: int) -> tuple[float, float]:
    """One migration; total and downtime in ms, as QEMU counts them."""
    fresh = SHARED_MEMORY / f"{place.name}-target"
    try:
        with (
            qemu(place, "source", memory, mib) as source,
            qemu(place, "target", fresh, mib, "-incoming", "defer") as target,
        ):
            for side in (source, target):
                capabilities = [{"capability": "events", "state": True}]
                if channels > 1:
                    capabilities.append({"capability": "multifd", "state": True})
                side.ask("migrate-set-capabilities", capabilities=capabilities)
                if channels > 1:
                    side.ask("migrate-set-parameters", **{"multifd-channels": channels})
            source.ask("migrate-set-parameters", **{"max-bandwidth": UNLIMITED, "downtime-limit": max(1, limit_ms)})
            target.ask("migrate-incoming", uri="tcp:127.0.0.1:0")
            port = target.ask("query-migrate")["socket-address"][0]["port"]
            have_memory(SPARE * mib)
            source.ask("migrate", uri=f"tcp:127.0.0.1:{port}")
            source.until("completed", "failed")
            while (outcome := source.ask("query-migrate"))["total-time"] == 0:
                time.sleep(0.01)  # it has told of its end before it has summed up
            if outcome["status"] != "completed":
                raise RuntimeError(f"QEMU's migration is {outcome['status']}")
            return outcome["total-time"], outcome["downtime"]
    finally:
        fresh.unlink(missing_ok=True)


def migrate_ours(
    mib: int, limit_ms: float, guest: str, *more: str, machine: dict[str, Any] = BARE, spare: int = SPARE
) -> tuple[float, float]:
    """One migration of `machine`; total and downtime in ms, from the connection on."""
    with in_memory() as ram, tempfile.TemporaryDirectory(prefix="migrate-bench-") as made:
        place = Path(made)
        spec = place / "spec.json"
        spec.write_text(json.dumps(machine))
        born = ("--memory-mb", str(mib), "--guest", guest, "--downtime-limit-ms", str(limit_ms))
        with daemon(place, ram, "source", str(spec), *born, "--listen", "127.0.0.1:0"):
            address = told(place, "source", "listening")["address"]
            have_memory(spare * mib)
            with daemon(place, ram, "target", address, *more):
                arrived, left = (told(place, side, "attempt ended") for side in ("target", "source"))
                ledger = ledger_of(left, arrived)
    return ledger["total_ms"], ledger["downtime_ms"]


@contextmanager
def daemon(place: Path, ram: Path, side: str, *arguments: str) -> Iterator[None]:
    """One of a pair.  Its events go to a file: whoever reads them as they come takes a processor from both."""
    kept = ("--state-dir", str(place / f"{side}-state"), "--ram-dir", str(ram), "--events", str(place / side))
    command = [sys.executable, "-m", "migrate", side, *arguments, *kept]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def told(place: Path, side: str, name: str) -> dict[str, Any]:
    """The first event of that name, once it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, json.JSONDecodeError):  # its last line may be half there
            for line in (place / side).read_text().splitlines():
                event: dict[str, Any] = json.loads(line)
                if event["event"] == name:
                    return event
        time.sleep(LOOK_EVERY_S)
    raise RuntimeError(f"the {side} did not tell {name!r}")


@contextmanager
def in_memory() -> Iterator[Path]:
    """A directory for guest RAM that journals survive with; what is left of it goes."""
    with tempfile.TemporaryDirectory(prefix="migrate-bench-", dir=SHARED_MEMORY) as directory:
        yield Path(directory)


@contextmanager
def source_memory(name: str, mib: int, *, filled: bool) -> Iterator[Path]:
    path = SHARED_MEMORY / name
    random = np.random.Generator(np.random.SFC64(1))
    try:
        with path.open("wb") as file:
            for _ in range(mib if filled else 0):
                file.write(random.bytes(MIB))
            file.truncate(mib * MIB)
        yield path
    finally:
        path.unlink(missing_ok=True)


def compare(place: Path, mib: int, *, filled: bool, channels: int) -> None:
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    guest = "idle:filled" if filled else "idle"
    streams = ["--streams", str(channels)] if channels > 1 else []
    with source_memory(f"{place.name}-source", mib, filled=filled) as memory:
        for _ in range(RUNS):
            theirs.append(migrate_qemu(place, memory, mib, LIMIT_MS, channels))
            ours.append(migrate_ours(mib, LIMIT_MS, guest, *streams))
    total, away = (median(run[part] for run in ours) for part in (0, 1))
    their_total, their_away = (median(run[part] for run in theirs) for part in (0, 1))
    kind = "random bytes" if filled else "zeros"
    print(
        f"{mib} MiB of {kind}, fresh target, {channels} connection(s), limit {LIMIT_MS} ms\n"
        f"  total    {total:8.0f} ms, QEMU {their_total:8.0f} ms: ratio {total / max(their_total, 1):.2f}\n"
        f"  blackout {away:8.1f} ms, QEMU {their_away:8.1f} ms: ratio {away / max(their_away, 1):.2f}\n"
        f"  {RUNS} interleaved runs, medians",
        flush=True,
    )


def main() -> None:
    if shutil.which(QEMU) is None:
        print(f"skipped: there is no {QEMU} here (Debian's package qemu-system-x86)")
        return
    with tempfile.TemporaryDirectory(prefix="migrate-bench-") as directory:
        place = Path(directory)
        for mib in map(int, sys.argv[1:] or ("1024",)):
            for channels in (1, 2):
                compare(place, mib, filled=True, channels=channels)
            compare(place, mib, filled=False, channels=1)


if __name__ == "__main__":
    main()
