"""What a machine has besides components: processors, memory size, chipset, CPUID, and the SMBIOS table."""

from enum import StrEnum

import attrs

from sim_vmm.spec.cpuid import Cpuid, CpuidEntry, CpuVendor

__all__ = ["Board", "CpuVendor", "Cpuid", "CpuidEntry", "HyperVFeature", "SmbiosType1"]


class HyperVFeature(StrEnum):
    REFERENCE_TSC = "reference_tsc"


@attrs.frozen(kw_only=True)
class Board:
    """`memory_mb` in MiB.  `hyper_v` is None for bhyve's own interface; an empty feature set is not the same.

    `cpuid` is None only before a machine is born: see `SpecBuilder`.
    """

    cpus: int
    memory_mb: int
    enable_pcie: bool
    hyper_v: frozenset[HyperVFeature] | None = None
    cpuid: Cpuid | None = None


@attrs.frozen(kw_only=True)
class SmbiosType1:
    """System information shown to the guest.  When a spec has none, the server makes one from the VM's id."""

    manufacturer: str
    product_name: str
    serial_number: str
    version: int
