"""Instance specs as the machine understands them: components, keys, CPUID, and the builder with every invariant."""

from sim_vmm.spec.board import Board, HyperVFeature, SmbiosType1
from sim_vmm.spec.builder import BUILD_FEATURES, SpecBuilder, build_spec
from sim_vmm.spec.cpuid import Cpuid, CpuidEntry, CpuVendor, host_cpuid
from sim_vmm.spec.errors import SpecError
from sim_vmm.spec.keys import PciPath, SpecKey, parse_uuid
from sim_vmm.spec.spec import Spec

__all__ = [
    "BUILD_FEATURES",
    "Board",
    "CpuVendor",
    "Cpuid",
    "CpuidEntry",
    "HyperVFeature",
    "PciPath",
    "SmbiosType1",
    "Spec",
    "SpecBuilder",
    "SpecError",
    "SpecKey",
    "build_spec",
    "host_cpuid",
    "parse_uuid",
]
