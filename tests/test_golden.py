"""Every spec document ever published still loads as the machine it was, and is still written byte for byte alike."""

import re
from pathlib import Path
from uuid import UUID

import pytest

from migrate import cbor
from migrate.published import golden, text_twin
from migrate.specs import BY_NUMBER
from migrate.specs.digest import spec_digest
from sim_vmm.spec import Board, Cpuid, CpuidEntry, CpuVendor, PciPath, SmbiosType1, Spec, SpecKey
from sim_vmm.spec.components import (
    BootSettings,
    CrucibleStorageBackend,
    FileStorageBackend,
    NvmeDisk,
    SerialNumber,
    SerialPort,
    VirtioDisk,
)
from tests.corpus import VALID, spec_named

GOLDEN = Path(__file__).parent / "golden" / "specs"
FROZEN = sorted(GOLDEN.glob("*.cbor"))
BY_HAND = sorted(GOLDEN.glob("by_hand/*.hex"))

#: Versions that can carry each fixture, by the oldest of them.
NUMBERS_FROM = {1: (1, 2, 3, 6), 2: (2, 3, 6), 3: (3, 6), 6: (6,)}


def fixture_and_number(path: Path) -> tuple[str, int]:
    name, number = path.stem.rsplit(".v", 1)
    return name, int(number)


def test_every_fixture_is_frozen_in_every_version_that_can_carry_it() -> None:
    expected = {
        f"{entry['name']}.v{number}" for entry in VALID for number in NUMBERS_FROM[entry["oldest_lossless_version"]]
    }
    assert {path.stem for path in FROZEN} == expected
    assert len(FROZEN) == 42
    assert len(golden()) == 2 * len(FROZEN)


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_a_frozen_document_is_the_machine_of_its_fixture(path: Path) -> None:
    name, number = fixture_and_number(path)
    assert BY_NUMBER[number].decode(cbor.decode(path.read_bytes())) == spec_named(name)


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_a_frozen_document_is_written_byte_for_byte_alike(path: Path) -> None:
    name, number = fixture_and_number(path)
    assert cbor.encode(BY_NUMBER[number].encode(spec_named(name))) == path.read_bytes()


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_the_text_twin_of_a_frozen_document_says_what_its_bytes_say(path: Path) -> None:
    _, number = fixture_and_number(path)
    twin = path.with_suffix(".txt")
    assert text_twin(number, path.read_bytes()) == twin.read_bytes()
    assert spec_digest(BY_NUMBER[number].decode(cbor.decode(path.read_bytes()))).hex() in twin.read_text()


# Documents assembled by hand, byte by byte: no encoder of ours had a part in them


def bytes_of(path: Path) -> bytes:
    return bytes.fromhex(re.sub("#.*", "", path.read_text()))


def key(text: str) -> SpecKey:
    return SpecKey.parse(text)


UUID_KEY = SpecKey(UUID("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"), "")
MACHINES = {
    "minimal.v1": Spec(
        board=Board(cpus=1, memory_mb=512, enable_pcie=False),
        components={key("com1"): SerialPort(SerialNumber.COM1)},
    ),
    "uncached-disk.v6": Spec(
        board=Board(cpus=4, memory_mb=70000, enable_pcie=False, hyper_v=frozenset()),
        components={
            key("disk"): NvmeDisk(key("zvol"), PciPath(0, 16, 0), b"01234567890123456789", False),
            key("zvol"): FileStorageBackend("/dev/zvol/rdsk/é", False, 4096, None),
        },
    ),
    "odd-spellings.v2": Spec(
        board=Board(
            cpus=255,
            memory_mb=0,
            enable_pcie=True,
            cpuid=Cpuid(
                CpuVendor.INTEL,
                (
                    CpuidEntry(7, 0, 1, 2, 3, 4),
                    CpuidEntry(7, 1, 0xFFFF_FFFF, 1, 2, 3),
                    CpuidEntry(0x8000_0008, None, 0x3030, 0, 0, 0),
                ),
            ),
        ),
        components={
            UUID_KEY: CrucibleStorageBackend("{}", True),
            key("boot"): BootSettings((key("disk"), key("disk"))),
            key("disk"): VirtioDisk(UUID_KEY, PciPath(255, 31, 7)),
        },
        smbios=SmbiosType1(manufacturer="Oxide", product_name="", serial_number="s", version=2**64 - 1),
    ),
}


def test_every_document_assembled_by_hand_has_an_expectation() -> None:
    assert [path.stem for path in BY_HAND] == sorted(MACHINES)


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.stem)
def test_a_document_assembled_by_hand_is_the_machine_it_means(path: Path) -> None:
    _, number = fixture_and_number(path)
    assert BY_NUMBER[number].decode(cbor.decode(bytes_of(path))) == MACHINES[path.stem]


def test_the_minimal_document_assembled_by_hand_is_what_we_write() -> None:
    machine = MACHINES["minimal.v1"]
    assert cbor.encode(BY_NUMBER[1].encode(machine)) == bytes_of(GOLDEN / "by_hand" / "minimal.v1.hex")


@pytest.mark.parametrize("name", ["uncached-disk.v6", "odd-spellings.v2"])
def test_what_may_be_spelled_otherwise_is_written_canonically(name: str) -> None:
    number = BY_NUMBER[int(name[-1])]
    written = cbor.encode(number.encode(MACHINES[name]))
    assert written != bytes_of(GOLDEN / "by_hand" / f"{name}.hex")
    assert number.decode(cbor.decode(written)) == MACHINES[name]
