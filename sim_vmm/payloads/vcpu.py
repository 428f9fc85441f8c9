"""State of a virtual processor (device-payloads §7)."""

from typing import ClassVar

import attrs

from sim_vmm.integers import I64, U8, U32, U64
from sim_vmm.payloads.schema import Schema


@attrs.frozen(kw_only=True)
class VcpuRunstateV1:
    """`run_state` is bhyve's bit set: 1 initialised, 2 running."""

    SCHEMA: ClassVar[Schema] = Schema("bhyve-x86-vcpu-runstate", 1)
    run_state: U32
    sipi_vector: U8
    intr_shadow: bool
    pending_nmi: bool
    pending_extint: bool
    pending_exception: U64
    pending_intinfo: U64


@attrs.frozen(kw_only=True)
class VcpuGpregsV1:
    """The general registers, instruction pointer and flags."""

    SCHEMA: ClassVar[Schema] = Schema("bhyve-x86-vcpu-gpregs", 1)
    rax: U64
    rbx: U64
    rcx: U64
    rdx: U64
    rsi: U64
    rdi: U64
    rbp: U64
    rsp: U64
    r8: U64
    r9: U64
    r10: U64
    r11: U64
    r12: U64
    r13: U64
    r14: U64
    r15: U64
    rip: U64
    rflags: U64


@attrs.frozen(kw_only=True)
class LapicPage:
    """Registers of a local APIC; `isr`, `tmr` and `irr` are 256 bits each, eight words, vector 0 lowest."""

    id: U32
    version: U32
    tpr: U32
    svr: U32
    isr: tuple[U32, ...]
    tmr: tuple[U32, ...]
    irr: tuple[U32, ...]
    esr: U32
    lvt_timer: U32
    icr_timer: U32
    dcr_timer: U32


@attrs.frozen(kw_only=True)
class LapicV1:
    """`timer_target` in ns since the guest booted, 0 if the timer is not armed."""

    SCHEMA: ClassVar[Schema] = Schema("bhyve-x86-lapic", 1)
    page: LapicPage
    msr_apicbase: U64
    timer_target: I64
    esr_pending: U32
