"""Why a set of components is no machine: upstream's builder errors (spec-validation §3), one class each.

`component` is the key of the component that must change, where there is one.  `detail` holds the data of the error
under the names that `fixtures/index.json` uses.
"""

from typing import ClassVar, cast

import attrs

#: Characters of a key that a message repeats, at most: keys may come from a peer, and have no length limit.
QUOTE_MAX = 64


def _quote(key: str) -> str:
    text = repr(key)
    return text if len(text) <= QUOTE_MAX else text[: QUOTE_MAX - 1] + "…"


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
            f"disk {_quote(self.device)} names backend {_quote(self.backend)}, which is no storage backend of this "
            "spec or serves another disk already; add one, or correct backend_id"
        )


@attrs.frozen(str=False)
class NetworkBackendNotFound(SpecError):
    device: str
    backend: str

    @property
    def message(self) -> str:
        return (
            f"device {_quote(self.device)} names backend {_quote(self.backend)}, which is no network backend of its "
            "kind in this spec or serves another device already; add one, or correct backend_id"
        )


@attrs.frozen(str=False)
class BackendNotUsed(SpecError):
    backend: str

    @property
    def component(self) -> str:
        return self.backend

    @property
    def message(self) -> str:
        return f"backend {_quote(self.backend)} serves no device; remove it, or name it in a device's backend_id"


@attrs.frozen(str=False)
class PciPathInUse(SpecError):
    pci_path: str
    device: str

    @property
    def message(self) -> str:
        return (
            f"device {_quote(self.device)} wants PCI path {self.pci_path}, which another device has; move one of them"
        )


@attrs.frozen(str=False)
class SerialPortInUse(SpecError):
    num: str
    device: str

    @property
    def message(self) -> str:
        return f"device {_quote(self.device)} wants serial port {self.num}, which another device has"


@attrs.frozen(str=False)
class PvpanicInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{_quote(self.device)} is a second pvpanic device; a machine has at most one"


@attrs.frozen(str=False)
class VsockInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{_quote(self.device)} is a second virtio socket; a machine has at most one"


@attrs.frozen(str=False)
class MigrationFailureInjectionInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{_quote(self.device)} is a second migration failure injector; a machine has at most one"


@attrs.frozen(str=False)
class BootSettingsInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{_quote(self.device)} is a second boot_settings component; a machine has at most one"


@attrs.frozen(str=False)
class BootOptionMissing(SpecError):
    id: str
    device: str

    @property
    def message(self) -> str:
        return f"boot order of {_quote(self.device)} names {_quote(self.id)}, which is no disk device of this spec"


@attrs.frozen(str=False)
class DeviceAndBackendNamesIdentical(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"{_quote(self.device)} names both a device and its backend; give them different keys"


@attrs.frozen(str=False)
class ComponentNameInUse(SpecError):
    device: str

    @property
    def message(self) -> str:
        return f"component key {_quote(self.device)} is used twice"


@attrs.frozen(str=False)
class FeatureCompiledOut(SpecError):
    device: str
    feature: str

    @property
    def message(self) -> str:
        return f"component {_quote(self.device)} needs the feature {_quote(self.feature)}, which this build lacks"


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
