"""Where the artefacts of a `ledger` guest are after a rehearsal, by the spec of its machine.

The guest remembers its disk by a slot: the index among the PCI devices in key order, UUIDs by their bytes before names
by theirs.
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import attrs

from migrate.rehearsal.ledger import (
    Artefacts,
    ConsoleText,
    LedgerAudit,
    NoLedger,
    audit_ledger,
    read_program,
    read_wire,
)
from sim_vmm.spec import Spec
from sim_vmm.spec.components import BlobStorageBackend, FileStorageBackend, NvmeDisk, VirtioDisk, VirtioNic
from sim_vmm.storage import file_name

#: Components that a machine shows on its PCI bus.
ON_PCI: Final = (VirtioDisk, NvmeDisk, VirtioNic)


@attrs.frozen(kw_only=True)
class Leftovers:
    """`left` is where the daemon that ran the machine last left its artefacts; `wire` is the record of an observer."""

    left: Path
    storage: Path
    wire: Path | None


def audit_leftovers(leftovers: Leftovers, spec: Spec) -> LedgerAudit | None:
    """The audit of the ledger; None if there is no ledger here, or nothing is left.

    Raises:
        OSError: a file that must be there cannot be read.
    """
    ram = leftovers.left / "ram"
    if not ram.exists():
        return None
    with ExitStack() as closing:
        view = closing.enter_context(_mapped(ram))
        try:
            program = read_program(view)
        except NoLedger:
            return None
        disk = None if program.disk_slot is None else disk_file(leftovers, spec, program.disk_slot)
        wire = None
        if leftovers.wire is not None:
            with leftovers.wire.open() as lines:
                wire = read_wire(lines)
        return audit_ledger(
            Artefacts(
                ram=view,
                disk=None if disk is None else closing.enter_context(_mapped(disk)),
                console=_console(leftovers.left / "console.json"),
                wire=wire,
            )
        )


def frames_seen(leftovers: Leftovers) -> tuple[int, ...]:
    """When the observer of the wire saw a sequenced frame, by its monotonic clock; nothing without a wire."""
    if leftovers.wire is None or not leftovers.wire.exists():
        return ()
    with leftovers.wire.open() as lines:
        return tuple(entry.when_ns for entry in read_wire(lines))


def disk_file(leftovers: Leftovers, spec: Spec, slot: int) -> Path:
    """The file that holds the disk in PCI slot `slot`."""
    on_pci = (key for key, component in spec.components.items() if isinstance(component, ON_PCI))
    key = sorted(on_pci)[slot]
    disk = spec.components[key]
    assert isinstance(disk, VirtioDisk | NvmeDisk), f"{str(key)!r} is no disk"
    name = file_name(str(disk.backend_id))
    match spec.components[disk.backend_id]:
        case BlobStorageBackend():
            return leftovers.left / f"{name}.blob"
        case FileStorageBackend():
            return leftovers.storage / f"{name}.disk"
        case _:
            return leftovers.storage / f"{name}.region" / "data"


def _console(path: Path) -> ConsoleText:
    history = json.loads(path.read_text())
    return ConsoleText(
        beginning=history["beginning"].encode("latin-1"),
        rolling=history["rolling"].encode("latin-1"),
        total_bytes=history["total_bytes"],
    )


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """The bytes of a file, which may be large and sparse."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
        memoryview(mapping) as view,
    ):
        yield view
