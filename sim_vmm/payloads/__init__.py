"""Device state as it travels: one class for each kind and version of payload (device-payloads §5 and §6).

A payload is a value of plain types, so that the layer above can turn any of them into bytes by one generic rule.  The
widths of its integers are in the annotations; rules between fields are checked by the device that imports it.

A version is never edited once released: a change of shape is a new class with the next number, and a step up and down
between the two in `conversions.py`.  Upstream changed pci-virtio and nvme-ctrl without a new number (device-payloads
§8); we number those changes: pci-virtio 1 is legacy, 2 adds the modern interface, 3 adds `peak`; nvme-ctrl 2 adds
doorbell buffers.  The newest shapes stand with their device, those before them in `earlier.py`.
"""

from typing import Final

from sim_vmm.payloads.clocks import BhyveRtcV2
from sim_vmm.payloads.earlier import (
    LegacyVirtioDeviceState,
    LegacyVirtQueueState,
    NvmeCtrlV1,
    PciVirtioV1,
    PciVirtioV2,
    QemuFwCfgV1,
    VirtQueuesInUse,
)
from sim_vmm.payloads.legacy import FwCfgEntry, FwCfgSelected, FwCfgValueKind, QemuFwCfgV2, Uart16550V1
from sim_vmm.payloads.nvme import CompletionQueueState, NvmeCtrlV2, SubmissionQueueState
from sim_vmm.payloads.other import InMemoryBlockBackendV1, TestdevMigrationFailureV1
from sim_vmm.payloads.pci import Bar, BarKind, Bars, Msix, MsixEntry, PciDeviceV1
from sim_vmm.payloads.schema import Schema
from sim_vmm.payloads.vcpu import LapicPage, LapicV1, VcpuGpregsV1, VcpuRunstateV1
from sim_vmm.payloads.virtio import (
    MacAddress,
    PciVirtioV3,
    PciVirtioVionaV1,
    Promisc,
    VirtioDeviceState,
    VirtQueuesState,
    VirtQueueState,
)

__all__ = [
    "PAYLOADS",
    "Bar",
    "BarKind",
    "Bars",
    "BhyveRtcV2",
    "CompletionQueueState",
    "FwCfgEntry",
    "FwCfgSelected",
    "FwCfgValueKind",
    "InMemoryBlockBackendV1",
    "LapicPage",
    "LapicV1",
    "LegacyVirtQueueState",
    "LegacyVirtioDeviceState",
    "MacAddress",
    "Msix",
    "MsixEntry",
    "NvmeCtrlV1",
    "NvmeCtrlV2",
    "Payload",
    "PciDeviceV1",
    "PciVirtioV1",
    "PciVirtioV2",
    "PciVirtioV3",
    "PciVirtioVionaV1",
    "Promisc",
    "QemuFwCfgV1",
    "QemuFwCfgV2",
    "Schema",
    "SubmissionQueueState",
    "TestdevMigrationFailureV1",
    "Uart16550V1",
    "VcpuGpregsV1",
    "VcpuRunstateV1",
    "VirtQueueState",
    "VirtQueuesInUse",
    "VirtQueuesState",
    "VirtioDeviceState",
]

Payload = (
    VcpuRunstateV1
    | VcpuGpregsV1
    | LapicV1
    | PciDeviceV1
    | PciVirtioV1
    | PciVirtioV2
    | PciVirtioV3
    | PciVirtioVionaV1
    | NvmeCtrlV1
    | NvmeCtrlV2
    | Uart16550V1
    | QemuFwCfgV1
    | QemuFwCfgV2
    | BhyveRtcV2
    | InMemoryBlockBackendV1
    | TestdevMigrationFailureV1
)

PAYLOADS: Final[dict[Schema, type[Payload]]] = {
    cls.SCHEMA: cls
    for cls in (
        VcpuRunstateV1,
        VcpuGpregsV1,
        LapicV1,
        PciDeviceV1,
        PciVirtioV1,
        PciVirtioV2,
        PciVirtioV3,
        PciVirtioVionaV1,
        NvmeCtrlV1,
        NvmeCtrlV2,
        Uart16550V1,
        QemuFwCfgV1,
        QemuFwCfgV2,
        BhyveRtcV2,
        InMemoryBlockBackendV1,
        TestdevMigrationFailureV1,
    )
}
