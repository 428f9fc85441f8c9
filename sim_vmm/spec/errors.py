"""Why a set of components is no machine: upstream's builder errors (spec-validation §3), one class each.

`component` is the key of the component that must change, where there is one.  `detail` holds the data of the error
under the names that `fixtures/index.json` uses.
"""

from typing import ClassVar, cast

import attrs


class SpecError(Exception):
    """A rule of the spec builder is broken.  The class name is the error's name in every report."""

    layer: ClassVar[str] = "builder"

    @property
    def error(self) -> str:
        return type(self).__name__

    @property
    def component(self) -> str | None:
        device = getattr(self, "device", None)
        return None if device is None else str(device)

    @property
    def detail(self) -> dict[str, object]:
        return attrs.asdict(cast("attrs.AttrsInstance", self))

    @property
    def message(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return self.message


@attrs.frozen(str=False)
class StorageBackendNotFound(SpecError):
    device: str
    backend: str

    @property
    def message(self) -> str:
        return (
            f"disk {self.device!r} names backend {self.backend!r}, which is no storage backend of this spec or serves "
            f"another disk already; add one, or correct backend_id"
        )


@attrs.frozen(str=False)
class NetworkBackendNotFound(SpecError):
    device: str
    backend: str

    @property
    def message(self) -> str:
        return (
            f"device {self.device!r} names backend {self.backend!r}, which is no network backend of its kind in this "
            f"spec or serves another device already; add one, or correct backend_id"
        )


@attrs.frozen(str=False)
class BackendNotUsed(SpecError):
    backend: str

    @property
    def component(self) -> str:
        return self.backend

    @property
    def message(self) -> str:
        return f"backend {self.backend!r} serves no device; remove it, or name it in a device's backend_id"


@attrs.frozen(str=False)
class PciPathInUse(SpecError):
    pci_path: str
    device: str

    @property
    def message(self) -> str:
        return f"device {self.device!r} wants PCI path {self.pci_path}, which another device has; move one of them"


@attrs.frozen(str=False)
class SerialPortInUse(SpecError):
    num: str
    device: str

    @property
    def message(self) -> str:
        return f"device {self.device!r} wants serial port {self.num}, which another device has"


@attrs.frozen(str=False)
class PvpanicInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{self.device!r} is a second pvpanic device; a machine has at most one"


@attrs.frozen(str=False)
class VsockInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{self.device!r} is a second virtio socket; a machine has at most one"


@attrs.frozen(str=False)
class MigrationFailureInjectionInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{self.device!r} is a second migration failure injector; a machine has at most one"


@attrs.frozen(str=False)
class BootSettingsInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{self.device!r} is a second boot_settings component; a machine has at most one"


@attrs.frozen(str=False)
class BootOptionMissing(SpecError):
    id: str
    device: str

    @property
    def message(self) -> str:
        return f"boot order of {self.device!r} names {self.id!r}, which is no disk device of this spec"


@attrs.frozen(str=False)
class DeviceAndBackendNamesIdentical(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{self.device!r} names both a device and its backend; give them different keys"


@attrs.frozen(str=False)
class ComponentNameInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"component key {self.device!r} is used twice"


@attrs.frozen(str=False)
class FeatureCompiledOut(SpecError):
    device: str
    feature: str

    @property
    def message(self) -> str:
        return f"component {self.device!r} needs the feature {self.feature!r}, which this build lacks"


@attrs.frozen(str=False)
class CpuidEntriesInvalid(SpecError):
    cause: str
    leaf: int
    subleaf: int | None

    @property
    def component(self) -> str:
        return "board"

    @property
    def message(self) -> str:
        where = f"leaf {self.leaf:#x}" + ("" if self.subleaf is None else f", sub-leaf {self.subleaf:#x}")
        return f"board.cpuid, {where}: {_CPUID_CAUSES[self.cause]} ({self.cause})"


_CPUID_CAUSES = {
    "LeafOutOfRange": "leaves lie in 0-0xFFFF or 0x80000000-0x8000FFFF; the hypervisor supplies its own range",
    "DuplicateLeaf": "given twice",
    "SubleavesAlreadyPresent": "an entry without sub-leaf beside entries with one",
    "SubleavesAlreadyAbsent": "an entry with sub-leaf beside one without",
}


@attrs.frozen(str=False)
class DefaultCpuidReadFailed(SpecError):
    reason: str

    @property
    def component(self) -> str:
        return "board"

    @property
    def message(self) -> str:
        return f"the spec has no CPUID and the host's could not be read: {self.reason}"
