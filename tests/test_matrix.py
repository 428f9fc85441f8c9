"""Who can go where: every valid fixture, between all releases, with guests that use little or much.

What `check` says is compared with what a migration by the real engines then does.
"""

import json
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Final

import attrs
import pytest

from migrate.cli.app import run
from migrate.engine import source as engine
from migrate.engine.dry_run import Trial, Verdict, trial
from migrate.errors import DeviceStateError, PeerFailed, Refused, StateRefused
from migrate.rehearsal.matrix import Cell, along, every_pair
from migrate.releases import builtin_releases
from sim_vmm.guest import FeaturesGuest, GuestProgram, IdleGuest, LedgerGuest
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.payloads import PciVirtioV3
from sim_vmm.spec import Spec
from tests.corpus import FIXTURES, VALID_NAMES, spec_named
from tests.in_memory import Migration, migrate

RELEASES = builtin_releases()
R1, R2, R3, R6 = (RELEASES[name] for name in ("r1", "r2", "r3", "r6"))
FEATURES, LEGACY = FeaturesGuest(), FeaturesGuest(is_legacy=True)
GUESTS: dict[str, GuestProgram] = {"fresh": IdleGuest(), "busy": LedgerGuest(), "features": FEATURES, "legacy": LEGACY}

#: What bars a machine whatever its guest does: the fixture, and the releases from which it can go nowhere.
VSOCK = {"v3-vsock", "v5-vsock-smbios", "v6-kitchen-sink"}
#: Fixtures with devices of each sort, which is what decides the others.
NICS = {
    "v1-control-plane-crucible",
    "v1-cpuid-amd-two-nics",
    "v2-smbios-bare",
    "v3-local-storage",
    "v6-all-defaults",
}


def small(spec: Spec) -> Spec:
    """The same with as little RAM as drivers and a ledger need."""
    return attrs.evolve(spec, board=attrs.evolve(spec.board, memory_mb=12))


# Every cell is what the migration does


#: Guests that use everything on every machine; of the others, which use little, one each.
MOVES: Final = [
    *product(VALID_NAMES, ("features", "legacy")),
    *zip(VALID_NAMES, cycle(("fresh", "busy"))),
]


@pytest.mark.parametrize(("name", "guest"), MOVES)
def test_what_check_says_is_what_the_migration_does(name: str, guest: str) -> None:
    for source in RELEASES.values():
        with trial(small(spec_named(name)), source, GUESTS[guest]) as tried:
            assert isinstance(tried, Trial)
            for target in RELEASES.values():
                verdict = tried.judged(target)
                assert_names_what_pins(verdict, tried.machine)
                moved = migrate(tried, target)
                if verdict.reasons:
                    assert_refused(moved, verdict)
                else:
                    assert_moved(moved, verdict, tried)


def assert_names_what_pins(verdict: Verdict, machine: Machine) -> None:
    keys = {*map(str, machine.spec.components), *machine.devices, "smbios", "board", "release"}
    for reason in verdict.reasons:
        assert reason.component in keys
        assert reason.field
        assert reason.have
        assert reason.need


def assert_refused(moved: Migration, verdict: Verdict) -> None:
    assert isinstance(moved.source_error, Refused)
    assert isinstance(moved.target_error, Refused)
    assert moved.source_error.reasons == moved.target_error.reasons == verdict.reasons
    assert moved.arrived is None
    assert not moved.was_paused


def assert_moved(moved: Migration, verdict: Verdict, tried: Trial) -> None:
    assert moved.source_error is moved.target_error is None
    assert moved.source.spec_version == moved.target.spec_version == verdict.spec_version
    assert moved.source.payloads == moved.target.payloads == verdict.payloads
    assert moved.arrived is not None
    with moved.arrived as arrived:
        assert arrived.preflight() == tried.machine.preflight()
        assert arrived.birth == tried.machine.birth
        tried.guest.step(arrived)


# What bars the way

#: Fixture, guest, source, target, and every reason as component, field and need; a device is named by what it is.
NIC, DISK, CLOUD_INIT = (
    "2f6f4f9a-6f0b-4a3e-9a6d-0d3b8a8f2c55:device",
    "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89:device",
    "cloud-init-dev",
)
V1 = "v1-control-plane-crucible"
MODERN = "pci-virtio.device.negotiated_features"
BARRED: list[tuple[GuestProgram, str, str, set[tuple[str, str, str]]]] = [
    (
        LedgerGuest(),
        "r2",
        "r1",
        {
            (NIC, MODERN, "pci-virtio version 2 or newer"),
            (CLOUD_INIT, MODERN, "pci-virtio version 2 or newer"),
            (DISK, "nvme-ctrl.dbbuf_shadow", "nvme-ctrl version 2 or newer"),
        },
    ),
    (FEATURES, "r3", "r2", {(NIC, "pci-virtio.queues.peak", "pci-virtio version 3 or newer")}),
    (FEATURES, "r6", "r3", {(NIC, "pci-virtio-viona.unicast_mac_filters", "pci-virtio-viona version 1 or newer")}),
    (
        FEATURES,
        "r6",
        "r1",
        {
            (NIC, MODERN, "pci-virtio version 3 or newer"),
            (NIC, "pci-virtio-viona.unicast_mac_filters", "pci-virtio-viona version 1 or newer"),
            (CLOUD_INIT, MODERN, "pci-virtio version 2 or newer"),
            (DISK, "nvme-ctrl.dbbuf_shadow", "nvme-ctrl version 2 or newer"),
        },
    ),
    (LEGACY, "r6", "r1", set()),
    (IdleGuest(), "r6", "r1", set()),
]


@pytest.mark.parametrize(("guest", "source", "target", "reasons"), BARRED)
def test_a_refusal_names_every_device_with_the_kind_and_field_that_pin_it(
    guest: GuestProgram, source: str, target: str, reasons: set[tuple[str, str, str]]
) -> None:
    with trial(spec_named(V1), RELEASES[source], guest) as tried:
        assert isinstance(tried, Trial)
        verdict = tried.judged(RELEASES[target])
    assert {(reason.component, reason.field, reason.need) for reason in verdict.reasons} == reasons


#: The cells that are ok, by fixture: for each source, from r1 on, the targets.
ALL = "r1 r2 r3 r6"
UP_FROM_R2 = "r2 r3 r6"


@pytest.mark.parametrize(
    ("name", "guest", "ok"),
    [
        (V1, "fresh", [ALL, ALL, ALL, ALL]),
        (V1, "legacy", [ALL, ALL, ALL, ALL]),
        (V1, "busy", [ALL, UP_FROM_R2, UP_FROM_R2, UP_FROM_R2]),
        (V1, "features", [ALL, UP_FROM_R2, "r3 r6", "r6"]),
        ("v1-cli-virtio-crucible", "features", [ALL, UP_FROM_R2, UP_FROM_R2, UP_FROM_R2]),
        ("v2-smbios-bare", "fresh", ["", UP_FROM_R2, UP_FROM_R2, UP_FROM_R2]),
        ("v6-local-no-write-cache", "fresh", ["", "", "", "r6"]),
        ("v6-minimal", "features", [ALL, ALL, ALL, ALL]),
        *((name, guest, ["", "", "", ""]) for name in sorted(VSOCK) for guest in ("fresh", "features")),
    ],
)
def test_the_matrix_of_a_machine(name: str, guest: str, ok: list[str]) -> None:
    cells = list(every_pair(name, spec_named(name), [R1, R2, R3, R6], GUESTS[guest]))
    assert len(cells) == 16
    found = [" ".join(cell.target for cell in cells if cell.source == source and cell.is_ok) for source in RELEASES]
    assert found == ok


# Chains


def steps(cells: Iterator[Cell]) -> list[tuple[str, str, str]]:
    return [(cell.source, cell.target, cell.verdict.word) for cell in cells]


@pytest.mark.parametrize("guest", GUESTS)
@pytest.mark.parametrize("name", sorted(NICS - {"v2-smbios-bare"}))
def test_a_machine_born_on_the_oldest_release_goes_up_and_comes_down_again_whatever_its_guest_does(
    name: str, guest: str
) -> None:
    cells = list(along(name, spec_named(name), [R1, R6, R1, R3, R2, R1], GUESTS[guest]))
    assert [cell.verdict.reasons for cell in cells] == [()] * 5
    for cell in cells:
        kinds = {kind: version for payloads in cell.verdict.payloads.values() for kind, version in payloads.items()}
        assert (kinds["qemu-fwcfg"] == 1) == ("r1" in (cell.source, cell.target))


def test_what_a_machine_shows_is_fixed_at_birth_and_travels_with_it() -> None:
    with Trial.born(spec_named(V1), R1, FEATURES) as born, born.carried(R6) as newer, newer.carried(R1) as back:
        assert back.machine.birth == newer.machine.birth == born.machine.birth
        assert born.machine.birth.release == "r1"
        assert not born.machine.birth.shows
        modes = [
            payload.device.mode
            for state in newer.machine.preflight()
            for payload in state.payloads
            if isinstance(payload, PciVirtioV3)
        ]
        assert modes == [0, 0], "a machine born on r1 shows the legacy interface on r6 too"


def test_a_machine_born_on_the_newest_release_comes_to_the_oldest_only_while_its_guest_is_old() -> None:
    spec = spec_named(V1)
    assert steps(along(V1, spec, [R6, R1, R6], LEGACY)) == [("r6", "r1", "ok"), ("r1", "r6", "ok")]
    assert steps(along(V1, spec, [R6, R1, R6], FEATURES)) == [("r6", "r1", "refused")]


def test_a_machine_that_has_outgrown_the_release_that_it_is_on_says_so() -> None:
    """Born on r6, it came to r1 while its guest was idle; then the guest has found the modern interface."""
    with Trial.born(spec_named(V1), R6, IdleGuest()) as born, born.carried(R1) as here:
        here.guest = FEATURES
        FEATURES.boot(here.machine)
        verdict = here.judged(R6)
        assert ("cloud-init-dev", MODERN) in {(reason.component, reason.field) for reason in verdict.reasons}
        assert_refused(migrate(here, R6), verdict)


# State that comes about while the machine is on its way


def test_state_that_comes_about_during_the_copying_is_refused_before_the_guest_is_paused() -> None:
    with Trial.born(small(spec_named(V1)), R6, IdleGuest()) as tried:
        moved = migrate(tried, R3, during=lambda event: FEATURES.boot(tried.machine) if event == "round" else None)
        assert isinstance(moved.source_error, StateRefused)
        assert [(reason.component, reason.field) for reason in moved.source_error.reasons] == [
            (NIC, "pci-virtio-viona.unicast_mac_filters")
        ]
        assert moved.source.phase == "pre-flight"
        assert not moved.was_paused
        assert tried.machine.state is MachineState.RUNNING
        assert isinstance(moved.target_error, PeerFailed)
        assert "unicast_mac_filters is 1 of them" in str(moved.target_error)
        assert moved.arrived is None


def test_state_that_comes_about_at_the_last_moment_is_refused_and_the_guest_goes_on() -> None:
    def boot_before_the_pause(event: str) -> None:
        phases.append(event)
        if phases.count("phase") == 6:  # hello, preamble, verdict, ram, pre-flight, pause
            FEATURES.boot(tried.machine)

    phases: list[str] = []
    with Trial.born(small(spec_named(V1)), R6, IdleGuest()) as tried:
        moved = migrate(tried, R3, during=boot_before_the_pause)
        assert isinstance(moved.source_error, StateRefused)
        assert moved.source.phase == "devices"
        assert moved.was_paused
        assert tried.machine.state is MachineState.RUNNING
        assert isinstance(moved.target_error, PeerFailed)
        assert moved.arrived is None


def test_a_target_takes_no_version_that_its_release_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that does not keep to what the target said, though this program has code for what it sends."""
    monkeypatch.setattr(engine, "common_versions", lambda release, _imports: release.payloads)
    with Trial.born(small(spec_named(V1)), R6, IdleGuest()) as tried:
        moved = migrate(tried, R1)
        assert isinstance(moved.target_error, DeviceStateError)
        assert "nvme-ctrl v2 has arrived, and the target (r1) knows versions 1 of it" in str(moved.target_error)
        assert tried.machine.state is MachineState.RUNNING


# The command


def file_of(name: str) -> str:
    return str(FIXTURES / "specs" / "valid" / f"{name}.json")


def test_the_command_prints_every_cell_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["matrix", file_of(V1), file_of("v6-minimal"), "--guest", "features", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert len(cells) == 32
    assert {tuple(cell) for cell in cells} == {("spec", "from", "to", "verdict", "spec_version", "reasons")}
    barred = next(cell for cell in cells if (cell["from"], cell["to"]) == ("r6", "r3"))
    assert (barred["spec"], barred["verdict"], barred["spec_version"]) == (file_of(V1), "refused", None)
    assert [(reason["component"], reason["field"], reason["need"]) for reason in barred["reasons"]] == [
        (NIC, "pci-virtio-viona.unicast_mac_filters", "pci-virtio-viona version 1 or newer")
    ]


@pytest.mark.parametrize(
    ("path", "guest", "code", "verdicts"),
    [
        ("r1,r6,r1", "features", 0, ["ok", "ok"]),
        ("r6,r1,r6", "features", 1, ["refused"]),
        ("r6,r2", "features:legacy", 0, ["ok"]),
    ],
)
def test_a_path_ends_where_it_is_barred(
    path: str, guest: str, code: int, verdicts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["matrix", file_of(V1), "--path", path, "--guest", guest, "--json"]) == code
    assert [cell["verdict"] for cell in json.loads(capsys.readouterr().out)] == verdicts


def test_the_heat_map_fits_a_page_and_has_no_colours_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["matrix", file_of(V1), "--guest", "features"]) == 0
    out = capsys.readouterr().out
    assert "■■■■     ·■■■     ··■■     ···■" in out
    assert "10 of 16 ok" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no spec file given"),
        ([file_of(V1), "--path", "r1"], "a path has two releases at least"),
        ([file_of(V1), "--path", "r1,r9"], "there is no release 'r9'"),
        ([file_of(V1), "--guest", "tetris"], "unknown guest program 'tetris'"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["matrix", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_check_judges_the_state_that_the_guest_brings_about(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", file_of(V1), "--from", "r6", "--to", "r1", "--json", "--guest"]
    assert run([*command, "features:legacy"]) == 0
    payloads = json.loads(capsys.readouterr().out)["payloads"]
    assert payloads[NIC] == {"pci-virtio": 1, "pci-device": 1}
    assert payloads[DISK] == {"nvme-ctrl": 1, "pci-device": 1}
    assert payloads["qemu-fwcfg"] == {"qemu-fwcfg": 1}
    assert run([*command, "features"]) == 1
    assert json.loads(capsys.readouterr().out)["payloads"] == {}
    assert Path(file_of(V1)).exists()
