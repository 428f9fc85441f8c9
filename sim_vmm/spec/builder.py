"""The only way to a `Spec`: every rule of spec-validation §3, checked in the order of §2.

`build_spec` takes a map of components, as every published document holds one.  `SpecBuilder` is the incremental form
underneath, in which a device is added together with its backend; a program can break rules with it that a map cannot
express (a name used twice, a device named as its backend), so it checks those too.

Where upstream drops something silently, this refuses: a second `boot_settings` is `BootSettingsInUse`, and a SoftNPU
PCI port, which occupies COM4, conflicts with a serial port there whichever comes first.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

from sim_vmm.spec import errors
from sim_vmm.spec.board import Board, SmbiosType1
from sim_vmm.spec.components import (
    NEEDS_FEATURE,
    Backend,
    BlobStorageBackend,
    BootSettings,
    Component,
    CrucibleStorageBackend,
    Disk,
    DlpiNetworkBackend,
    Feature,
    FileStorageBackend,
    MigrationFailureInjector,
    NvmeDisk,
    PciDevice,
    Pvpanic,
    SerialNumber,
    SerialPort,
    SoftNpuPciPort,
    SoftNpuPort,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
    VirtioSocket,
)
from sim_vmm.spec.cpuid import Cpuid
from sim_vmm.spec.keys import PciPath, SpecKey
from sim_vmm.spec.spec import Spec

#: What our machines can be built with; falcon devices have no emulation here.
BUILD_FEATURES: Final = frozenset({Feature.FAILURE_INJECTION})

STORAGE_BACKENDS: Final = (CrucibleStorageBackend, FileStorageBackend, BlobStorageBackend)

DeviceWithBackend = VirtioDisk | NvmeDisk | VirtioNic | SoftNpuPort

#: Devices of which a machine has at most one.
_AT_MOST_ONE: Final[dict[type[Component], type[errors.SpecError]]] = {
    Pvpanic: errors.PvpanicInUse,
    VirtioSocket: errors.VsockInUse,
    MigrationFailureInjector: errors.MigrationFailureInjectionInUse,
    BootSettings: errors.BootSettingsInUse,
}


@attrs.define
class SpecBuilder:
    """Collects components and refuses the first that breaks a rule.

    `host_cpuid`, if given, is read at once for a board without CPUID: a machine that is born keeps its host's set
    (instance-specs §5).  Without it an absent CPUID stays absent, which is what checking and converting documents want.

    Raises:
        SpecError: from every method, naming the rule.
    """

    board: Board
    smbios: SmbiosType1 | None = None
    features: frozenset[Feature] = BUILD_FEATURES
    host_cpuid: Callable[[], Cpuid] | None = None
    _components: dict[SpecKey, Component] = attrs.field(factory=dict, init=False)
    _pci_paths: set[PciPath] = attrs.field(factory=set, init=False)
    _serial_ports: set[SerialNumber] = attrs.field(factory=set, init=False)
    _singletons: set[type[Component]] = attrs.field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        cpuid = self.board.cpuid
        if cpuid is not None:
            cpuid = Cpuid.checked(cpuid.vendor, cpuid.entries)
        elif self.host_cpuid is not None:
            try:
                cpuid = self.host_cpuid()
            except OSError as error:
                raise errors.DefaultCpuidReadFailed(reason=str(error)) from error
        self.board = attrs.evolve(self.board, cpuid=cpuid)

    def add_with_backend(self, key: SpecKey, device: DeviceWithBackend, backend: Backend) -> None:
        """Add a disk, NIC or SoftNPU port together with the backend that its `backend_id` names."""
        if key == device.backend_id:
            raise errors.DeviceAndBackendNamesIdentical(device=str(key))
        if not isinstance(backend, _backends_of(device)):
            raise _missing_backend(device)(device=str(key), backend=str(device.backend_id))
        self._claim_name(key)
        self._claim_name(device.backend_id)
        self._add(key, device)
        self._add(device.backend_id, backend)

    def add(self, key: SpecKey, device: Component) -> None:
        """Add a device that has no backend.

        Raises:
            TypeError: it has one, or is one.
        """
        if isinstance(device, DeviceWithBackend | Backend):
            raise TypeError(f"{key}: add a {device.KIND} with add_with_backend")
        self._claim_name(key)
        self._add(key, device)

    def build(self) -> Spec:
        """The finished spec; checks the boot order, which may name any disk added before or after it."""
        for key, component in sorted(self._components.items()):
            if isinstance(component, BootSettings):
                for entry in component.order:
                    if not isinstance(self._components.get(entry), VirtioDisk | NvmeDisk):
                        raise errors.BootOptionMissing(id=str(entry), device=str(key))
        return Spec(board=self.board, components=self._components, smbios=self.smbios)

    def _claim_name(self, key: SpecKey) -> None:
        if key in self._components:
            raise errors.ComponentNameInUse(device=str(key))

    def _add(self, key: SpecKey, component: Component) -> None:
        needed = NEEDS_FEATURE.get(type(component))
        if needed is not None and needed not in self.features:
            raise errors.FeatureCompiledOut(device=str(key), feature=needed.value)
        if isinstance(component, PciDevice):
            if component.pci_path in self._pci_paths:
                raise errors.PciPathInUse(pci_path=str(component.pci_path), device=str(key))
            self._pci_paths.add(component.pci_path)
        port = _serial_port_of(component)
        if port is not None:
            if port in self._serial_ports:
                raise errors.SerialPortInUse(num=port.value, device=str(key))
            self._serial_ports.add(port)
        at_most_one = _AT_MOST_ONE.get(type(component))
        if at_most_one is not None:
            if type(component) in self._singletons:
                raise at_most_one(str(key))
            self._singletons.add(type(component))
        self._components[key] = component


def _serial_port_of(component: Component) -> SerialNumber | None:
    match component:
        case SerialPort(num=num):
            return num
        case SoftNpuPciPort():
            return SerialNumber.COM4
        case _:
            return None


def _backends_of(device: DeviceWithBackend) -> tuple[type[Backend], ...]:
    match device:
        case VirtioDisk() | NvmeDisk():
            return STORAGE_BACKENDS
        case VirtioNic():
            return (VirtioNetworkBackend,)
        case SoftNpuPort():
            return (DlpiNetworkBackend,)


def _missing_backend(device: DeviceWithBackend) -> type[errors.StorageBackendNotFound | errors.NetworkBackendNotFound]:
    return errors.StorageBackendNotFound if isinstance(device, Disk) else errors.NetworkBackendNotFound


@attrs.define
class _UnusedBackends:
    """Backends of a document that no device has taken yet, by the group in which left-overs are reported."""

    storage: dict[SpecKey, Backend] = attrs.field(factory=dict)
    virtio_network: dict[SpecKey, Backend] = attrs.field(factory=dict)
    dlpi_network: dict[SpecKey, Backend] = attrs.field(factory=dict)

    def take(self, key: SpecKey, device: DeviceWithBackend) -> Backend:
        group = self._group(device)
        backend = group.pop(device.backend_id, None)
        if backend is None:
            raise _missing_backend(device)(device=str(key), backend=str(device.backend_id))
        return backend

    def _group(self, device: DeviceWithBackend) -> dict[SpecKey, Backend]:
        match device:
            case VirtioDisk() | NvmeDisk():
                return self.storage
            case VirtioNic():
                return self.virtio_network
            case SoftNpuPort():
                return self.dlpi_network

    def left_over(self) -> Iterable[SpecKey]:
        for group in (self.storage, self.virtio_network, self.dlpi_network):
            yield from sorted(group)


def build_spec(
    board: Board,
    components: Mapping[SpecKey, Component],
    smbios: SmbiosType1 | None = None,
    *,
    features: frozenset[Feature] = BUILD_FEATURES,
    host_cpuid: Callable[[], Cpuid] | None = None,
) -> Spec:
    """Build a spec from a document's components, in the evaluation order of spec-validation §2.

    Raises:
        SpecError: the first broken rule in that order.
    """
    builder = SpecBuilder(board, smbios, features, host_cpuid)
    unused = _UnusedBackends()
    devices: list[tuple[SpecKey, Component]] = []
    for key, component in sorted(components.items()):
        match component:
            case CrucibleStorageBackend() | FileStorageBackend() | BlobStorageBackend():
                unused.storage[key] = component
            case VirtioNetworkBackend():
                unused.virtio_network[key] = component
            case DlpiNetworkBackend():
                unused.dlpi_network[key] = component
            case _:
                devices.append((key, component))
    for key, device in devices:
        if isinstance(device, DeviceWithBackend):
            builder.add_with_backend(key, device, unused.take(key, device))
        else:
            builder.add(key, device)
    spec = builder.build()
    for key in unused.left_over():
        raise errors.BackendNotUsed(backend=str(key))
    return spec
