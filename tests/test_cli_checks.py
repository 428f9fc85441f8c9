"""`migrate releases` and `migrate check`: what builds know, and whether a machine would migrate between two of them."""

from pathlib import Path

import pytest

from tests.commands import EXAMPLE, call
from tests.corpus import FIXTURES
from tests.documents import document
from tests.test_cli_specs import REASON_KEYS, assert_for_people, written

Capsys = pytest.CaptureFixture[str]

OF_ANY_RELEASE = "v1-control-plane-crucible"
"""A machine of which every release can say everything; these are two of its devices."""
NVME_DISK = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89:device"
NIC = "2f6f4f9a-6f0b-4a3e-9a6d-0d3b8a8f2c55:device"
BOOT_DISK = "b1f2f1e0-5d0c-4f8e-8d8b-3c6f1fd0a9d2:device"
MODERN = "pci-virtio.device.negotiated_features"
DRIVEN_BEYOND_R1 = [
    (NVME_DISK, "nvme-ctrl.dbbuf_shadow"),
    (NIC, MODERN),
    ("cloud-init-dev", MODERN),
]
"""What a machine with an NVMe disk, a NIC and a virtio disk, driven as one born on r2 or later shows them, has that
payloads of r1 cannot say: doorbell buffers, and drivers that have found the modern virtio interface."""
CAUTIOUS = '[cautious]\nspecs = [2, 1]\n[cautious.payloads]\nuart-16550 = [1]\n"qemu-fwcfg" = [2]\n'
#: All that a machine has that has nothing but a serial port.
NARROW = """
[r6]
specs = [1]
[r6.payloads]
bhyve-rtc = [2]
bhyve-x86-lapic = [1]
bhyve-x86-vcpu-gpregs = [1]
bhyve-x86-vcpu-runstate = [1]
qemu-fwcfg = [2]
uart-16550 = [1]
"""


def fixture(name: str) -> Path:
    return FIXTURES / f"specs/valid/{name}.json"


# releases


def test_releases_are_listed_with_what_they_know(capsys: Capsys) -> None:
    said = call(capsys, "releases", "--json")
    assert (said.code, said.err) == (0, "")
    assert all(set(release) == {"name", "specs", "payloads"} for release in said.document)
    assert {release["name"]: release["specs"] for release in said.document} == {
        "r1": [1],
        "r2": [2, 1],
        "r3": [3, 2, 1],
        "r6": [6, 3, 2, 1],
    }
    assert {release["name"]: release["payloads"]["pci-virtio"] for release in said.document} == {
        "r1": [1],
        "r2": [2, 1],
        "r3": [3, 2, 1],
        "r6": [3, 2, 1],
    }
    assert [release["name"] for release in said.document if "pci-virtio-viona" in release["payloads"]] == ["r6"]


def test_the_table_of_releases_has_a_column_for_each(capsys: Capsys) -> None:
    said = call(capsys, "releases")
    assert_for_people(said.out)
    heading, _, specs, *_ = said.out.splitlines()
    assert heading.split() == ["versions", "of", "r1", "r2", "r3", "r6"]
    assert specs.split() == ["spec", "1", "2,", "1", "3,", "2,", "1", "6,", "3,", "2,", "1"]


def test_a_file_adds_releases(capsys: Capsys, tmp_path: Path) -> None:
    said = call(capsys, "releases", "--json", "--releases", written(tmp_path / "ours.toml", CAUTIOUS))
    assert [release["name"] for release in said.document] == ["r1", "r2", "r3", "r6", "cautious"]
    assert said.document[-1] == {
        "name": "cautious",
        "specs": [2, 1],
        "payloads": {"uart-16550": [1], "qemu-fwcfg": [2]},
    }


def test_a_file_overrides_a_release_of_the_same_name(capsys: Capsys, tmp_path: Path) -> None:
    file = written(tmp_path / "ours.toml", CAUTIOUS.replace("cautious", "r6"))
    said = call(capsys, "releases", "--json", "--releases", file)
    assert {release["name"]: release["specs"] for release in said.document}["r6"] == [2, 1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[x]\nspecs = [7]\npayloads = {}\n", "release 'x': there is no spec version 7; there are 1, 2, 3, 6"),
        ("[x]\nspecs = []\npayloads = {}\n", "release 'x' knows no spec version; give it at least one"),
        (
            "[x]\nspecs = [1]\npayloads = {nvme-ctrl = [9]}\n",
            "release 'x': there is no payload 'nvme-ctrl' version 9; there are 1, 2",
        ),
        (
            "[x]\nspecs = [1]\npayloads = {floppy = [1]}\n",
            "release 'x': there is no payload 'floppy' version 1; there are none",
        ),
        ("[x]\npayloads = {}\n", "specs"),
        ("[x]\nspecs = 'all'\npayloads = {}\n", "x.specs"),
        ("[x]\nspecs = [1]\npayloads = {}\nspec = [1]\n", "'spec'"),
        ("x = 1\n", "x"),
        ("{}", "line 1"),
    ],
)
def test_a_bad_releases_file_is_named_with_what_is_wrong(
    text: str, problem: str, capsys: Capsys, tmp_path: Path
) -> None:
    file = written(tmp_path / "ours.toml", text)
    for command in (("releases",), ("check", EXAMPLE), ("rehearse", EXAMPLE), ("source", EXAMPLE)):
        said = call(capsys, *command, "--releases", file)
        assert (said.code, said.out) == (2, "")
        assert said.complaint.startswith(f"migrate: {file}: ")
        assert problem in said.complaint


def test_a_releases_file_that_cannot_be_read_is_named_with_why(capsys: Capsys, tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for file, why in [
        (tmp_path / "none.toml", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "byte 0 is not UTF-8"),
    ]:
        said = call(capsys, "releases", "--releases", file)
        assert (said.code, said.complaint) == (2, f"migrate: {file}: {why}")


# check


@pytest.mark.parametrize(
    ("name", "guest", "from_", "to", "spec_version"),
    [
        ("v1-control-plane-crucible", "stamp", "r6", "r6", 6),
        ("v1-control-plane-crucible", "stamp", "r6", "r3", 3),
        ("v1-control-plane-crucible", "stamp", "r1", "r6", 1),
        ("v1-control-plane-crucible", "stamp", "r2", "r3", 2),
        ("v1-control-plane-crucible", "idle", "r6", "r1", 1),
        ("v1-control-plane-crucible", "features:legacy", "r6", "r1", 1),
        ("v2-smbios-bare", "stamp", "r6", "r2", 2),
        ("v2-smbios-bare", "stamp", "r3", "r6", 3),
        ("v6-minimal", "stamp", "r6", "r1", 1),
        ("v6-local-no-write-cache", "stamp", "r6", "r6", 6),
        ("v1-test-suite-hyperv-file", "stamp", "r6", "r2", 2),
        ("v1-test-suite-hyperv-file", "idle", "r6", "r1", 1),
    ],
)
def test_a_machine_migrates_in_the_newest_version_that_both_know(
    name: str, guest: str, from_: str, to: str, spec_version: int, capsys: Capsys
) -> None:
    said = call(capsys, "check", fixture(name), "--from", from_, "--to", to, "--guest", guest, "--json")
    assert said.code == 0
    assert set(said.document) == {"verdict", "spec_version", "payloads", "reasons"}
    assert (said.document["verdict"], said.document["reasons"]) == ("ok", [])
    assert said.document["spec_version"] == spec_version
    assert said.document["payloads"]


def test_an_accepted_machine_names_the_payload_versions_of_each_device(capsys: Capsys) -> None:
    payloads = call(capsys, "check", EXAMPLE, "--json").document["payloads"]
    assert payloads["com1"] == {"uart-16550": 1}
    assert payloads[BOOT_DISK] == {"pci-device": 1, "nvme-ctrl": 2}
    assert payloads["cloud-init-dev"] == {"pci-device": 1, "pci-virtio": 3}
    assert payloads["qemu-fwcfg"] == {"qemu-fwcfg": 2}


def test_a_machine_that_goes_to_an_older_release_goes_in_the_versions_that_this_knows(capsys: Capsys) -> None:
    said = call(capsys, "check", fixture(OF_ANY_RELEASE), "--to", "r1", "--guest", "idle", "--json")
    payloads = said.document["payloads"]
    assert payloads["com1"] == {"uart-16550": 1}
    assert payloads[NVME_DISK] == {"pci-device": 1, "nvme-ctrl": 1}
    assert payloads["cloud-init-dev"] == {"pci-device": 1, "pci-virtio": 1}
    assert payloads["qemu-fwcfg"] == {"qemu-fwcfg": 1}
    assert "pci-virtio-viona" not in {kind for device in payloads.values() for kind in device}


@pytest.mark.parametrize(
    ("name", "from_", "to", "obstacles"),
    [
        ("v1-control-plane-crucible", "r6", "r1", DRIVEN_BEYOND_R1),
        ("v1-control-plane-crucible", "r2", "r1", DRIVEN_BEYOND_R1),
        ("v6-local-no-write-cache", "r6", "r3", [(BOOT_DISK, "has_write_cache")]),
        ("v6-local-no-write-cache", "r1", "r6", [(BOOT_DISK, "has_write_cache")]),
        ("v2-smbios-bare", "r6", "r1", [("smbios", "smbios"), *DRIVEN_BEYOND_R1]),
        ("v2-smbios-bare", "r1", "r6", [("smbios", "smbios")]),
        ("v3-vsock", "r6", "r6", [("vsock", "type")]),
        ("v3-vsock", "r6", "r2", [("vsock", "type"), ("vsock", "type")]),
    ],
)
def test_a_machine_that_would_be_refused_is_told_component_and_field(
    name: str, from_: str, to: str, obstacles: list[tuple[str, str]], capsys: Capsys
) -> None:
    said = call(capsys, "check", fixture(name), "--from", from_, "--to", to, "--json")
    assert (said.code, said.err) == (1, "")
    assert (said.document["verdict"], said.document["spec_version"], said.document["payloads"]) == ("refused", None, {})
    assert all(set(reason) == REASON_KEYS for reason in said.document["reasons"])
    assert [(reason["component"], reason["field"]) for reason in said.document["reasons"]] == obstacles


def test_a_release_that_lacks_a_payload_refuses_the_device_that_needs_it(capsys: Capsys, tmp_path: Path) -> None:
    file = written(tmp_path / "ours.toml", CAUTIOUS)
    said = call(capsys, "check", EXAMPLE, "--to", "cautious", "--releases", file, "--json")
    assert said.code == 1
    assert {"component": BOOT_DISK, "field": "nvme-ctrl"}.items() <= {
        key: reason[key]
        for reason in said.document["reasons"]
        for key in ("component", "field")
        if reason["field"] == "nvme-ctrl"
    }.items()


def test_an_overriding_release_decides(capsys: Capsys, tmp_path: Path) -> None:
    older = written(tmp_path / "ours.toml", NARROW)
    spec = written(tmp_path / "spec.json", document({"com1": {"type": "serial_port", "component": {"num": "com1"}}}))
    assert call(capsys, "check", spec, "--json").document["spec_version"] == 6
    assert call(capsys, "check", spec, "--json", "--releases", older).document["spec_version"] == 1


@pytest.mark.parametrize("to", ["r6", "r1"])
@pytest.mark.parametrize("name", ["v1-control-plane-crucible", "v6-kitchen-sink", "v6-local-no-write-cache"])
def test_a_verdict_for_people_fits_80_columns(name: str, to: str, capsys: Capsys) -> None:
    said = call(capsys, "check", fixture(name), "--to", to)
    assert_for_people(said.out)
    heading = " ".join(said.out.split("\n  ")[0].split())  # the longer the file's path, the more lines
    assert ("refused" if said.code else "ok, in spec version") in heading


@pytest.mark.parametrize("guest", ["idle", "stamp", "features"])
def test_between_two_of_a_release_the_guest_decides_nothing(guest: str, capsys: Capsys) -> None:
    said = call(capsys, "check", EXAMPLE, "--guest", guest, "--json")
    assert said.document == call(capsys, "check", EXAMPLE, "--guest", "idle", "--json").document


@pytest.mark.parametrize(
    ("guest", "pinned"),
    [
        ("idle", set()),
        ("features:legacy", set()),
        ("stamp", {"pci-virtio"}),
        ("ledger", {"pci-virtio"}),
        ("features", {"pci-virtio", "pci-virtio-viona"}),
    ],
)
def test_what_the_guest_has_made_of_a_nic_decides_whether_it_goes_to_an_older_release(
    guest: str, pinned: set[str], capsys: Capsys
) -> None:
    said = call(capsys, "check", fixture(OF_ANY_RELEASE), "--to", "r1", "--guest", guest, "--json")
    assert said.code == (1 if pinned else 0)
    fields = {reason["field"] for reason in said.document["reasons"] if reason["component"] == NIC}
    assert {field.partition(".")[0] for field in fields} == pinned
