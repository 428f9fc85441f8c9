"""Every release to every release, for every published spec: over real TCP, with real daemons.

What must happen is worked out here from the JSON of the specs and from tables of the domain notes alone: which version
is the oldest that can say what a machine has (instance-specs §7), which devices never migrate (device-payloads §4), and
which version of a payload is the oldest that can say what a guest has made of a device (device-payloads §8).  A machine
moves in the newest version that both releases know, or it is refused before any of its memory has moved, with every
reason; there is no third outcome.

Machines are born on the release of their source, and two guests are tried: one that has touched no device, whose
machine any payload version can carry, and one that has used everything that its machine shows it.
"""

import json
from itertools import product
from typing import Any, ClassVar, Final, Self

import attrs
import pytest

from migrate.daemon.outcome import Outcome
from migrate.engine.handoff import Holding
from migrate.errors import Refused
from sim_vmm.guest import FeaturesGuest
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.memory import GuestMemory
from tests.corpus import VALID, spec_named, text_of
from tests.daemons import Neighbourhood, assert_identical, until

#: The spec versions that each release knows; a release is named after the newest.
KNOWS: Final = {"r1": {1}, "r2": {1, 2}, "r3": {1, 2, 3}, "r6": {1, 2, 3, 6}}

#: Every machine here is this small, except where its true size is the point.
SMALL_MB: Final = 2
#: But for the drivers of all devices.
DRIVEN_MB: Final = 12


def write_handful(machine: Machine) -> None:
    """A few pages, one of them the last."""
    memory = machine.memory
    for page in (2, 3, 300, memory.page_count - 1):
        memory.write(memory.gpa_of(page), f"page {page}".encode())


@attrs.frozen
class HandfulGuest:
    """Writes a few pages at birth, and then rests; it touches no device."""

    name: ClassVar[str] = "handful"

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        """It leaves nothing to be found by: where it comes to, the machine idles."""

    def boot(self, machine: Machine) -> None:
        write_handful(machine)

    def step(self, machine: Machine) -> None:
        pass


@attrs.frozen
class UsingGuest(HandfulGuest):
    """Uses every feature that its machine shows it, then rests; the target finds `features` in RAM, and runs that."""

    name: ClassVar[str] = "using"

    def boot(self, machine: Machine) -> None:
        write_handful(machine)
        FeaturesGuest().boot(machine)


def document_of(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text_of(next(entry for entry in VALID if entry["name"] == name)))
    return document


def features(name: str) -> list[tuple[str, str, int]]:
    """Component, field and oldest version of everything in a spec that version 1 cannot say."""
    document = document_of(name)
    found = []
    for key, component in document["components"].items():
        if component["type"] == "virtio_socket":
            found.append((key, "type", 3))
        if component["type"] == "nvme_disk" and component["component"].get("has_write_cache") is False:
            found.append((key, "has_write_cache", 6))
    if document.get("smbios") is not None:
        found.append(("smbios", "smbios", 2))
    return found


def unmovable(name: str) -> set[tuple[str, str]]:
    """Devices that no release migrates."""
    components = document_of(name)["components"].items()
    return {(key, "type") for key, component in components if component["type"] in ("virtio_socket", "pci_pci_bridge")}


def injected_failures(name: str) -> int:
    """How many attempts a failure injector spoils before one succeeds."""
    injectors = [
        component["component"]
        for component in document_of(name)["components"].values()
        if component["type"] == "migration_failure_injector"
    ]
    return sum(injector["fail_exports"] + injector["fail_imports"] for injector in injectors)


#: By type of component: the payload kinds by which features arrived, with the release that brought each of them.  A
#: guest that uses everything ties its machine to the newest of them that the release of its birth had.
ARRIVED: Final[dict[str, dict[str, list[str]]]] = {
    "virtio_disk": {"pci-virtio": ["r2"]},
    "virtio_nic": {"pci-virtio": ["r2", "r3"], "pci-virtio-viona": ["r6"]},
    "nvme_disk": {"nvme-ctrl": ["r2"]},
}
AGE: Final = list(KNOWS)


def used(name: str, born: str) -> list[tuple[str, str, str]]:
    """Component, payload kind and oldest release that can carry it, of what a guest finds and uses."""
    found = []
    for key, component in document_of(name)["components"].items():
        for kind, arrivals in ARRIVED.get(component["type"], {}).items():
            shown = [release for release in arrivals if AGE.index(release) <= AGE.index(born)]
            found += [(key, kind, release) for release in shown[-1:]]
    return found


@attrs.frozen
class Expected:
    """Migrated in `version`, or refused for `reasons`: component, and field of the spec or payload kind."""

    version: int | None
    reasons: set[tuple[str, str]]


def expected(name: str, source: str, target: str, *, uses: bool = False) -> Expected:
    newest = max(KNOWS[source] & KNOWS[target])
    reasons = {(component, field) for component, field, oldest in features(name) if oldest > newest} | unmovable(name)
    if uses:
        reasons |= {
            (component, kind) for component, kind, oldest in used(name, source) if AGE.index(target) < AGE.index(oldest)
        }
    return Expected(None if reasons else newest, reasons)


NAMES: Final = [entry["name"] for entry in VALID]
CELLS: Final = list(product(NAMES, KNOWS, KNOWS))


@pytest.mark.parametrize(("uses", "moves"), [(False, 138), (True, 102)])
def test_the_matrix_has_every_cell_and_both_outcomes(uses: bool, moves: int) -> None:
    outcomes = [expected(*cell, uses=uses).version is not None for cell in CELLS]
    assert (len(CELLS), outcomes.count(True), outcomes.count(False)) == (13 * 16, moves, 13 * 16 - moves)


async def migrate(
    neighbours: Neighbourhood, name: str, source: str, target: str, memory_mb: int | None, *, uses: bool = False
) -> None:
    """One cell: rehearse it, and hold what happens against what must."""
    spec = spec_named(name)
    if memory_mb is not None:
        spec = attrs.evolve(spec, board=attrs.evolve(spec.board, memory_mb=memory_mb))
    must = expected(name, source, target, uses=uses)
    here = await neighbours.source(spec, program=UsingGuest() if uses else HandfulGuest(), release=source)
    spoilt = injected_failures(name) if must.version is not None else 0
    there = neighbours.target(here.port, release=target, retries=spoilt)
    arrived = await there.daemon.migrate_in()
    await until(lambda: len(here.told_of("attempt ended")) == spoilt + 1)
    (*failed_here, sent), (*failed_there, received) = here.daemon.attempts, there.daemon.attempts
    assert [attempt.outcome for attempt in failed_here + failed_there] == [Outcome.FAILED] * 2 * spoilt

    if must.version is not None:
        assert (sent.outcome, received.outcome) == (Outcome.MIGRATED, Outcome.MIGRATED)
        assert (sent.attempt.spec_version, received.attempt.spec_version) == (must.version, must.version)
        assert arrived is not None
        assert arrived.machine.spec == spec, "nothing of the machine is lost, in whatever version it travelled"
        await assert_identical(here, there)
        return

    assert arrived is None
    for attempt in (sent, received):
        assert attempt.outcome is Outcome.REFUSED
        assert isinstance(attempt.error, Refused)
        pinned = {(reason.component, reason.field.partition(".")[0]) for reason in attempt.error.reasons}
        assert pinned == must.reasons
        assert all(reason.have and reason.need for reason in attempt.error.reasons)
        assert attempt.attempt.rounds == [], "no RAM has moved"
        assert attempt.attempt.steps == [], "nothing was paused, or promised"
    assert {told.event.get("phase") for told in here.told_of("phase")} <= {"hello", "preamble", "verdict"}
    assert {told.state for told in here.told} == {MachineState.RUNNING}
    assert here.journal.record.holding is Holding.OWNER
    assert there.hypervisor.kept == []


@pytest.mark.parametrize(("name", "source", "target"), CELLS, ids=["-".join(cell) for cell in CELLS])
async def test_a_machine_moves_in_the_newest_common_version_or_is_refused_before_any_ram(
    neighbourhood: Neighbourhood, name: str, source: str, target: str
) -> None:
    await migrate(neighbourhood, name, source, target, SMALL_MB)


@pytest.mark.parametrize(("name", "source", "target"), CELLS, ids=["-".join(cell) for cell in CELLS])
async def test_a_machine_whose_guest_uses_what_it_is_shown_goes_no_further_back_than_that(
    neighbourhood: Neighbourhood, name: str, source: str, target: str
) -> None:
    await migrate(neighbourhood, name, source, target, DRIVEN_MB, uses=True)


@pytest.mark.parametrize("name", NAMES)
async def test_a_machine_of_its_true_size_moves_or_is_refused_just_so(neighbourhood: Neighbourhood, name: str) -> None:
    """Up to 128 GiB of RAM, of which a few pages are in use."""
    await migrate(neighbourhood, name, "r6", "r6", memory_mb=None)
