"""What the built-in releases know, and what machines that are born on them show their guests."""

from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest

from migrate.releases import SHOWN_FROM, ReleaseError, all_releases, builtin_releases, read_releases
from sim_vmm.birth import NEWEST, Birth, Interface
from sim_vmm.payloads import PAYLOADS, Schema
from tests.machines import EVERY_DEVICE, make_machine

RELEASES = builtin_releases()
VM_ID = UUID(int=7)

#: Kind, then its versions in r1, r2, r3, r6; a kind that is not listed has the same in all.
KNOWN: list[tuple[str, list[tuple[int, ...]]]] = [
    ("pci-virtio", [(1,), (2, 1), (3, 2, 1), (3, 2, 1)]),
    ("pci-virtio-viona", [(), (), (), (1,)]),
    ("nvme-ctrl", [(1,), (2, 1), (2, 1), (2, 1)]),
    ("qemu-fwcfg", [(1,), (2, 1), (2, 1), (2, 1)]),
    ("bhyve-rtc", [(2,)] * 4),
]


@pytest.mark.parametrize(("kind", "versions"), KNOWN)
def test_releases_differ_in_payloads(kind: str, versions: list[tuple[int, ...]]) -> None:
    assert [release.payloads.get(kind, ()) for release in RELEASES.values()] == versions


def test_every_other_kind_is_known_to_all_releases_alike() -> None:
    others = {schema.kind for schema in PAYLOADS} - {kind for kind, _ in KNOWN}
    for kind in others:
        assert {release.payloads[kind] for release in RELEASES.values()} == {(1,)}


def test_every_payload_version_is_known_to_some_release() -> None:
    known = {
        Schema(kind, version)
        for release in RELEASES.values()
        for kind, versions in release.payloads.items()
        for version in versions
    }
    assert known == set(PAYLOADS)


def test_a_release_knows_what_the_one_before_it_knew() -> None:
    releases = list(RELEASES.values())
    for older, newer in pairwise(releases):
        assert set(older.specs) < set(newer.specs)
        for kind, versions in older.payloads.items():
            assert set(versions) <= set(newer.payloads[kind])


# Births

MODERN, SEVERAL, BUFFERS, FILTERS, TABLES = (
    Interface.MODERN_VIRTIO,
    Interface.MULTI_QUEUE,
    Interface.DOORBELL_BUFFERS,
    Interface.MAC_FILTERS,
    Interface.FW_CFG_TABLES,
)


@pytest.mark.parametrize(
    ("release", "shows"),
    [
        ("r1", set()),
        ("r2", {MODERN, BUFFERS, TABLES}),
        ("r3", {MODERN, SEVERAL, BUFFERS, TABLES}),
        ("r6", {MODERN, SEVERAL, BUFFERS, TABLES, FILTERS}),
    ],
)
def test_a_machine_shows_what_its_release_can_carry_when_it_is_used(release: str, shows: set[Interface]) -> None:
    birth = RELEASES[release].birth(VM_ID)
    assert (birth.release, birth.vm_id, set(birth.shows)) == (release, VM_ID, shows)
    assert birth.modern_virtio == (MODERN in shows)
    assert birth.multi_queue == (SEVERAL in shows)
    assert birth.doorbell_buffers == (BUFFERS in shows)
    assert birth.mac_filters == (FILTERS in shows)
    assert birth.fw_cfg_tables == (TABLES in shows)


def test_everything_that_can_be_shown_has_a_payload_that_carries_it() -> None:
    assert set(SHOWN_FROM) == set(Interface) == NEWEST.shows
    assert {Schema(kind, version) for kind, version in SHOWN_FROM.values()} <= set(PAYLOADS)


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_can_export_every_machine_that_is_born_on_it(release: str) -> None:
    """At birth, in every version that it knows; with the guest at work: tests/test_matrix.py."""
    known = RELEASES[release]
    with make_machine(EVERY_DEVICE, birth=known.birth(VM_ID)) as machine:
        for device in machine.devices.values():
            for place in device.places():
                versions = [schema for schema in place.schemas if known.knows(schema)]
                assert versions or place.optional
                assert [place.problem(schema) for schema in versions] == [None] * len(versions)


def test_the_firmware_tables_of_a_machine_are_those_of_its_birth() -> None:
    names = {}
    for release in ("r1", "r2"):
        with make_machine(EVERY_DEVICE, birth=RELEASES[release].birth(VM_ID)) as machine:
            (payload,) = machine.devices["qemu-fwcfg"].export([Schema("qemu-fwcfg", 2)])
            names[release] = {entry.name for entry in payload.entries}  # type: ignore[union-attr]
    assert names["r2"] - names["r1"] == {"bootorder", "etc/e820"}
    assert "etc/smbios/smbios-tables" in names["r1"]


def test_births_differ_by_what_they_show() -> None:
    assert Birth(release="r6") == Birth(release="r6", shows=frozenset(Interface))
    assert Birth(release="r6") != Birth(release="r6", shows=frozenset())


# Files of one's own


def test_a_file_of_releases_adds_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "releases.toml"
    file.write_text("[lab]\nspecs = [1, 6]\n[lab.payloads]\npci-virtio = [1, 3]\n")
    lab = all_releases(file)["lab"]
    assert (lab.specs, lab.payloads) == ((6, 1), {"pci-virtio": (3, 1)})
    assert lab.birth(VM_ID).shows == {MODERN, SEVERAL}
    assert set(all_releases(file)) == {*RELEASES, "lab"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x]\nspecs = [4]\n[x.payloads]\n", "there is no spec version 4; there are 1, 2, 3, 6"),
        ("[x]\nspecs = []\n[x.payloads]\n", "knows no spec version"),
        ("[x]\nspecs = [1]\n[x.payloads]\npci-virtio = [4]\n", "no payload 'pci-virtio' version 4; there are 1, 2, 3"),
        ("[x]\nspecs = [1]\n[x.payloads]\nbhyve-rtc = [1]\n", "no payload 'bhyve-rtc' version 1; there are 2"),
        ("[x]\nspecs = [1]\n[x.payloads]\nacpi = [1]\n", "no payload 'acpi' version 1; there are none"),
    ],
)
def test_a_release_can_only_know_what_there_is_code_for(text: str, complaint: str) -> None:
    with pytest.raises(ReleaseError, match=complaint):
        read_releases(text, "file")
