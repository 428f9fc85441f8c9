"""State of an NVMe controller (device-payloads §5)."""

from typing import ClassVar

import attrs

from sim_vmm.integers import U16, U32, U64
from sim_vmm.payloads.schema import Schema


@attrs.frozen(kw_only=True)
class CompletionQueueState:
    """`avail` entries are free for the controller; `phase` is the tag of the entries it writes; `iv` the vector."""

    id: U16
    size: U32
    head: U16
    tail: U16
    avail: U16
    phase: bool
    base: U64
    iv: U16


@attrs.frozen(kw_only=True)
class SubmissionQueueState:
    id: U16
    size: U32
    head: U16
    tail: U16
    base: U64
    cq_id: U16


@attrs.frozen(kw_only=True)
class NvmeCtrlV2:
    """`dbbuf_shadow` and `dbbuf_evtidx` are guest addresses of the doorbell buffers, 0 if there are none."""

    SCHEMA: ClassVar[Schema] = Schema("nvme-ctrl", 2)
    cap: U64
    cc: U32
    csts: U32
    aqa: U32
    acq_base: U64
    asq_base: U64
    dbbuf_shadow: U64
    dbbuf_evtidx: U64
    cqs: tuple[CompletionQueueState, ...]
    sqs: tuple[SubmissionQueueState, ...]
