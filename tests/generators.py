"""Hypothesis strategies for machines: valid by construction, and built through the builder all the same."""

import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from hypothesis import strategies as st

from sim_vmm.integers import U8_MAX, U32_MAX, U64_MAX
from sim_vmm.spec import (
    Board,
    Cpuid,
    CpuidEntry,
    CpuVendor,
    HyperVFeature,
    PciPath,
    SmbiosType1,
    Spec,
    SpecKey,
    build_spec,
)
from sim_vmm.spec.components import (
    BlobStorageBackend,
    BootSettings,
    Component,
    CrucibleStorageBackend,
    FileStorageBackend,
    MigrationFailureInjector,
    NvmeDisk,
    PciBridge,
    Pvpanic,
    SerialNumber,
    SerialPort,
    StorageBackend,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
    VirtioSocket,
)

T = TypeVar("T")

BOTH: Final = st.booleans()
U8S: Final = st.integers(0, U8_MAX)
U32S: Final = st.integers(0, U32_MAX)
U64S: Final = st.integers(0, U64_MAX)
TEXTS: Final = st.text(max_size=8)
UUIDS: Final = st.uuids(allow_nil=True)
PCI_PATHS: Final = st.builds(PciPath, U8S, st.integers(0, 31), st.integers(0, 7))
#: Names that look ordinary, are empty or strange, and UUIDs.
SPEC_KEYS: Final = st.one_of(
    st.sampled_from(["disk0", "com1", "boot-settings", ""]), TEXTS, UUIDS.map(str), UUIDS.map(lambda uuid: f"{uuid}:x")
).map(SpecKey.parse)

HYPER_V: Final = st.none() | st.frozensets(st.sampled_from(HyperVFeature))
SMBIOS: Final = st.builds(SmbiosType1, manufacturer=TEXTS, product_name=TEXTS, serial_number=TEXTS, version=U64S)
STORAGE: Final = st.one_of(
    st.builds(CrucibleStorageBackend, TEXTS, BOTH),
    st.builds(FileStorageBackend, TEXTS, BOTH, U32S, st.none() | st.integers(1, U64_MAX)),
    st.builds(BlobStorageBackend, st.binary(max_size=6).map(lambda data: data.hex()), BOTH),
)


@st.composite
def cpuids(draw: st.DrawFn) -> Cpuid:
    """Leaves of both ranges, each without sub-leaves or with some, in any order."""
    leaves = draw(st.lists(st.integers(0, 0xFFFF) | st.integers(0x8000_0000, 0x8000_FFFF), max_size=3, unique=True))
    entries = []
    for leaf in leaves:
        subleaves: Sequence[int | None] = draw(st.just([None]) | st.lists(U32S, min_size=1, max_size=3, unique=True))
        entries += [CpuidEntry(leaf, subleaf, *draw(st.tuples(U32S, U32S, U32S, U32S))) for subleaf in subleaves]
    return Cpuid.checked(draw(st.sampled_from(CpuVendor)), draw(st.permutations(entries)))


BOARDS: Final = st.builds(
    Board, cpus=U8S, memory_mb=U64S, enable_pcie=BOTH, hyper_v=HYPER_V, cpuid=st.none() | cpuids()
)


def maybe(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[list[T]]:
    return st.lists(strategy, max_size=1)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any machine of the default build: every kind of component that it can have, those that refuse to migrate too."""
    keys = iter(draw(st.lists(SPEC_KEYS, min_size=20, max_size=20, unique=True)))
    paths = iter(draw(st.lists(PCI_PATHS, min_size=8, max_size=8, unique=True)))
    components: dict[SpecKey, Component] = {}
    disks: list[SpecKey] = []

    def add(component: Component) -> None:
        components[next(keys)] = component

    for backend in draw(st.lists(STORAGE, max_size=3)):
        disks.append(_add_disk(draw, components, next(keys), next(keys), next(paths), backend))
    for vnic_name, interface in draw(st.lists(st.tuples(TEXTS, UUIDS), max_size=2)):
        backend_key = next(keys)
        components[backend_key] = VirtioNetworkBackend(vnic_name)
        add(VirtioNic(backend_key, interface, next(paths)))
    for num in draw(st.sets(st.sampled_from(SerialNumber))):
        add(SerialPort(num))
    for bus in draw(st.lists(U8S, max_size=2)):
        add(PciBridge(bus, next(paths)))
    for cid in draw(maybe(U64S)):
        add(VirtioSocket(cid, next(paths)))
    for enable_isa in draw(maybe(BOTH)):
        add(Pvpanic(enable_isa))
    for failures in draw(maybe(st.tuples(U32S, U32S))):
        add(MigrationFailureInjector(*failures))
    for order in draw(maybe(st.lists(st.sampled_from(disks), max_size=5) if disks else st.just([]))):
        add(BootSettings(tuple(order)))
    return build_spec(draw(BOARDS), components, draw(st.none() | SMBIOS))


def _add_disk(
    draw: st.DrawFn,
    components: dict[SpecKey, Component],
    key: SpecKey,
    backend_key: SpecKey,
    path: PciPath,
    backend: StorageBackend,
) -> SpecKey:
    components[backend_key] = backend
    if draw(BOTH):
        components[key] = VirtioDisk(backend_key, path)
    else:
        components[key] = NvmeDisk(backend_key, path, draw(st.binary(min_size=20, max_size=20)), draw(BOTH))
    return key


#: Plain data as a hostile peer or a careless hand may write it, but what JSON and our CBOR can say.
PLAIN: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | BOTH | st.integers(-(2**64), U64_MAX) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def as_json(plain: Any) -> str:
    return json.dumps(plain, ensure_ascii=False)


def other_value(value: Any) -> Any:
    """A value of the same type as `value`, and not equal to it; the least that a change of a field can be."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1 if value < U8_MAX else value - 1
        case str() if type(value) is str:
            return value + "x"
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case UUID():
            return UUID(int=value.int ^ 1)
        case SpecKey():
            return SpecKey.parse(f"{value}-other")
        case PciPath():
            return PciPath(value.bus, value.device, value.function ^ 1)
        case frozenset():
            return value ^ {HyperVFeature.REFERENCE_TSC}
        case CpuVendor():
            return CpuVendor.INTEL if value is CpuVendor.AMD else CpuVendor.AMD
        case SerialNumber():
            return SerialNumber.COM2 if value is SerialNumber.COM1 else SerialNumber.COM1
        case tuple():
            return value[1:] if value else (SpecKey.parse("added"),)
        case _:
            raise AssertionError(f"no other value for {value!r}")
