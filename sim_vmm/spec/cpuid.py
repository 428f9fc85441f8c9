"""CPUID as a guest sees it: a set of leaves with the rules of instance-specs §5, and the emulated host's default."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import attrs

from sim_vmm.integers import U32
from sim_vmm.spec.errors import CpuidEntriesInvalid

STANDARD_LEAVES: Final = range(0x0001_0000)
EXTENDED_LEAVES: Final = range(0x8000_0000, 0x8001_0000)


class CpuVendor(StrEnum):
    AMD = "amd"
    INTEL = "intel"


@attrs.frozen
class CpuidEntry:
    """What `cpuid` returns for one leaf, or for one sub-leaf of it."""

    leaf: U32
    subleaf: U32 | None
    eax: U32
    ebx: U32
    ecx: U32
    edx: U32

    @property
    def order(self) -> tuple[int, int]:
        return self.leaf, -1 if self.subleaf is None else self.subleaf


@attrs.frozen
class Cpuid:
    """A complete CPUID set.  `entries` is sorted by leaf, then sub-leaf, and obeys every rule: see `checked`."""

    vendor: CpuVendor
    entries: tuple[CpuidEntry, ...]

    @classmethod
    def checked(cls, vendor: CpuVendor, entries: Iterable[CpuidEntry]) -> "Cpuid":
        """Sort `entries` and hold them against the rules, in the order given.

        Raises:
            CpuidEntriesInvalid: a leaf out of range or given twice, or a leaf both with and without sub-leaves.
        """
        seen: dict[int, set[int | None]] = {}
        for entry in (entries := tuple(entries)):
            if entry.leaf not in STANDARD_LEAVES and entry.leaf not in EXTENDED_LEAVES:
                raise CpuidEntriesInvalid(cause="LeafOutOfRange", leaf=entry.leaf, subleaf=entry.subleaf)
            subleaves = seen.setdefault(entry.leaf, set())
            if entry.subleaf in subleaves:
                raise CpuidEntriesInvalid(cause="DuplicateLeaf", leaf=entry.leaf, subleaf=entry.subleaf)
            if subleaves and entry.subleaf is None:
                raise CpuidEntriesInvalid(cause="SubleavesAlreadyPresent", leaf=entry.leaf, subleaf=None)
            if None in subleaves:
                raise CpuidEntriesInvalid(cause="SubleavesAlreadyAbsent", leaf=entry.leaf, subleaf=entry.subleaf)
            subleaves.add(entry.subleaf)
        return cls(vendor, tuple(sorted(entries, key=lambda entry: entry.order)))


def host_cpuid() -> Cpuid:
    """What the emulated host offers a machine whose spec has no CPUID; a machine keeps it from birth on."""
    return Cpuid.checked(
        CpuVendor.AMD,
        (
            CpuidEntry(0x0, None, 0xD, 0x68747541, 0x444D4163, 0x69746E65),
            CpuidEntry(0x1, None, 0x00A00F11, 0x0000_0800, 0xF6D8_3203, 0x178B_FBFF),
            CpuidEntry(0x7, 0x0, 0x0, 0x2018_01A9, 0x0, 0x0),
            CpuidEntry(0xD, 0x0, 0x7, 0x340, 0x340, 0x0),
            CpuidEntry(0xD, 0x1, 0x7, 0x340, 0x0, 0x0),
            CpuidEntry(0x8000_0000, None, 0x8000_0021, 0x68747541, 0x444D4163, 0x69746E65),
            CpuidEntry(0x8000_0001, None, 0x00A00F11, 0x4000_0000, 0x4440_01FB, 0x25D3_FBFF),
            CpuidEntry(0x8000_0008, None, 0x3030, 0x7, 0x0, 0x0),
        ),
    )
