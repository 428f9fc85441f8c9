"""Rules of the builder beyond the fixtures: those a map of components cannot break, and the order of evaluation."""

from collections.abc import Callable

import attrs
import pytest

from sim_vmm.spec import (
    Board,
    Cpuid,
    CpuidEntry,
    CpuVendor,
    PciPath,
    Spec,
    SpecBuilder,
    SpecError,
    SpecKey,
    build_spec,
    errors,
    host_cpuid,
)
from sim_vmm.spec.components import (
    BlobStorageBackend,
    BootSettings,
    Component,
    DlpiNetworkBackend,
    Feature,
    FileStorageBackend,
    MigrationFailureInjector,
    P9fs,
    Pvpanic,
    SerialNumber,
    SerialPort,
    SoftNpuP9,
    SoftNpuPciPort,
    SoftNpuPort,
    VirtioDisk,
    VirtioSocket,
)
from tests.documents import PATH, V6, board, document


def key(text: str) -> SpecKey:
    return SpecKey.parse(text)


DISK = VirtioDisk(key("backend"), PciPath(0, 4, 0))
BACKEND = FileStorageBackend("/disk", False, 512, None)
BOARD = Board(cpus=1, memory_mb=512, enable_pcie=False)
FALCON = frozenset({Feature.FALCON, Feature.FAILURE_INJECTION})


def name_disk_as_its_backend(builder: SpecBuilder) -> None:
    builder.add_with_backend(key("backend"), DISK, BACKEND)


def use_a_name_twice(builder: SpecBuilder) -> None:
    builder.add(key("a"), SerialPort(SerialNumber.COM1))
    builder.add(key("a"), SerialPort(SerialNumber.COM2))


def use_a_backend_name_twice(builder: SpecBuilder) -> None:
    builder.add(key("backend"), SerialPort(SerialNumber.COM1))
    builder.add_with_backend(key("disk"), DISK, BACKEND)


def give_one_backend_to_two_disks(builder: SpecBuilder) -> None:
    builder.add_with_backend(key("disk"), DISK, BACKEND)
    builder.add_with_backend(key("disk2"), VirtioDisk(key("backend"), PciPath(0, 5, 0)), BACKEND)


def add_boot_settings_twice(builder: SpecBuilder) -> None:
    builder.add(key("a"), BootSettings(()))
    builder.add(key("b"), BootSettings(()))


def add_two_injectors(builder: SpecBuilder) -> None:
    builder.add(key("a"), MigrationFailureInjector(0, 0))
    builder.add(key("b"), MigrationFailureInjector(0, 0))


def add_two_pvpanics(builder: SpecBuilder) -> None:
    builder.add(key("a"), Pvpanic(True))
    builder.add(key("b"), Pvpanic(False))


def add_two_sockets(builder: SpecBuilder) -> None:
    builder.add(key("a"), VirtioSocket(3, PciPath(0, 4, 0)))
    builder.add(key("b"), VirtioSocket(4, PciPath(0, 5, 0)))


def put_softnpu_where_com4_is(builder: SpecBuilder) -> None:
    builder.add(key("a"), SerialPort(SerialNumber.COM4))
    builder.add(key("b"), SoftNpuPciPort(PciPath(0, 5, 0)))


def put_com4_where_softnpu_is(builder: SpecBuilder) -> None:
    builder.add(key("a"), SoftNpuPciPort(PciPath(0, 5, 0)))
    builder.add(key("b"), SerialPort(SerialNumber.COM4))


def boot_from_a_backend(builder: SpecBuilder) -> None:
    builder.add(key("a"), BootSettings((key("backend"),)))
    builder.add_with_backend(key("disk"), DISK, BACKEND)
    builder.build()


@pytest.mark.parametrize(
    ("misuse", "error", "component_key"),
    [
        (name_disk_as_its_backend, errors.DeviceAndBackendNamesIdentical, "backend"),
        (use_a_name_twice, errors.ComponentNameInUse, "a"),
        (use_a_backend_name_twice, errors.ComponentNameInUse, "backend"),
        (give_one_backend_to_two_disks, errors.ComponentNameInUse, "backend"),
        (add_boot_settings_twice, errors.BootSettingsInUse, "b"),
        (add_two_injectors, errors.MigrationFailureInjectionInUse, "b"),
        (add_two_pvpanics, errors.PvpanicInUse, "b"),
        (add_two_sockets, errors.VsockInUse, "b"),
        (put_softnpu_where_com4_is, errors.SerialPortInUse, "b"),
        (put_com4_where_softnpu_is, errors.SerialPortInUse, "b"),
        (boot_from_a_backend, errors.BootOptionMissing, "a"),
    ],
)
def test_a_program_that_breaks_a_rule_is_refused(
    misuse: Callable[[SpecBuilder], None], error: type[SpecError], component_key: str
) -> None:
    with pytest.raises(error) as caught:
        misuse(SpecBuilder(BOARD, features=FALCON))
    assert (caught.value.error, caught.value.component) == (error.__name__, component_key)
    assert repr(component_key) in str(caught.value)


def test_a_boot_order_may_come_before_its_disks_be_empty_and_repeat_itself() -> None:
    builder = SpecBuilder(BOARD)
    builder.add(key("a"), BootSettings((key("disk"), key("disk"))))
    builder.add_with_backend(key("disk"), DISK, BACKEND)
    assert builder.build().components[key("a")] == BootSettings((key("disk"), key("disk")))


@pytest.mark.parametrize(
    "device", [SoftNpuPciPort(PciPath(0, 5, 0)), SoftNpuP9(PciPath(0, 5, 0)), P9fs("s", "t", 1, PciPath(0, 5, 0))]
)
def test_a_falcon_device_needs_a_falcon_build(device: SoftNpuPciPort | SoftNpuP9 | P9fs) -> None:
    with pytest.raises(errors.FeatureCompiledOut) as caught:
        build_spec(BOARD, {key("x"): device})
    assert caught.value.detail == {"device": "x", "feature": "falcon"}
    assert build_spec(BOARD, {key("x"): device}, features=FALCON).components == {key("x"): device}


def test_a_softnpu_port_takes_a_dlpi_backend_and_no_other() -> None:
    port = SoftNpuPort("link", key("net"))
    spec = build_spec(BOARD, {key("port"): port, key("net"): DlpiNetworkBackend("vnic")}, features=FALCON)
    assert list(map(str, spec.components)) == ["net", "port"]
    with pytest.raises(errors.NetworkBackendNotFound):
        build_spec(BOARD, {key("port"): port, key("net"): BlobStorageBackend("", False)}, features=FALCON)


def test_an_injector_needs_a_build_with_failure_injection() -> None:
    with pytest.raises(errors.FeatureCompiledOut, match="failure-injection"):
        build_spec(BOARD, {key("x"): MigrationFailureInjector(1, 1)}, features=frozenset())


def test_a_machine_that_is_born_keeps_its_hosts_cpuid() -> None:
    assert build_spec(BOARD, {}).board.cpuid is None
    spec = build_spec(BOARD, {}, host_cpuid=host_cpuid)
    assert spec.board.cpuid == host_cpuid()
    explicit = Cpuid.checked(CpuVendor.INTEL, [CpuidEntry(1, None, 0, 0, 0, 0)])
    assert build_spec(attrs.evolve(BOARD, cpuid=explicit), {}, host_cpuid=host_cpuid).board.cpuid == explicit


def test_a_host_that_cannot_read_its_cpuid_says_so_before_any_component() -> None:
    def unreadable() -> Cpuid:
        raise OSError("no /dev/cpu")

    with pytest.raises(errors.DefaultCpuidReadFailed, match="no /dev/cpu"):
        build_spec(BOARD, {key("disk"): DISK}, host_cpuid=unreadable)


def test_errors_follow_the_order_of_evaluation() -> None:
    """Board, then devices in key order, then the boot order, then backends left over (spec-validation §2)."""
    parts: dict[SpecKey, Component] = {
        key("z-disk"): VirtioDisk(key("missing"), PciPath(0, 4, 0)),
        key("boot"): BootSettings((key("nothing"),)),
        key("left-over"): BACKEND,
    }
    bad_cpuid = Cpuid(CpuVendor.AMD, (CpuidEntry(0x4000_0000, None, 0, 0, 0, 0),))
    with pytest.raises(errors.CpuidEntriesInvalid):
        build_spec(attrs.evolve(BOARD, cpuid=bad_cpuid), parts)
    with pytest.raises(errors.StorageBackendNotFound):
        build_spec(BOARD, parts)
    del parts[key("z-disk")]
    with pytest.raises(errors.BootOptionMissing):
        build_spec(BOARD, parts)
    del parts[key("boot")]
    with pytest.raises(errors.BackendNotUsed):
        build_spec(BOARD, parts)


def test_left_over_backends_are_named_storage_first_then_by_lowest_key() -> None:
    left: dict[SpecKey, Component] = {
        key("a"): DlpiNetworkBackend("v"),
        key("c"): BACKEND,
        key("b"): BlobStorageBackend("", False),
    }
    with pytest.raises(errors.BackendNotUsed) as caught:
        build_spec(BOARD, left, features=FALCON)
    assert caught.value.backend == "b"


def test_odd_but_allowed_machines_are_allowed() -> None:
    for changes in ({"memory_mb": 0}, {"cpus": 0}, {"cpus": 255}):
        assert isinstance(V6.decode(document(board=board(**changes))), Spec)
    bridges = {
        name: {"type": "pci_pci_bridge", "component": {"downstream_bus": 7, "pci_path": {**PATH, "function": function}}}
        for name, function in (("a", 1), ("", 2))
    }
    assert list(map(str, V6.decode(document(bridges)).components)) == ["", "a"]
