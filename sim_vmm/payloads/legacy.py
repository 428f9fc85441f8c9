"""State of devices older than PCI: serial port, firmware configuration (device-payloads §6)."""

import builtins
from enum import StrEnum
from typing import ClassVar

import attrs

from sim_vmm.integers import U8, U16, U32, U64
from sim_vmm.payloads.schema import Schema


@attrs.frozen(kw_only=True)
class Uart16550V1:
    SCHEMA: ClassVar[Schema] = Schema("uart-16550", 1)
    intr_enable: U8
    intr_status: U8
    line_ctrl: U8
    line_status: U8
    modem_ctrl: U8
    modem_status: U8
    scratch: U8
    div_low: U8
    div_high: U8
    thre_state: bool
    rx_fifo: bytes
    tx_fifo: bytes


class FwCfgValueKind(StrEnum):
    """What an entry's content is: the directory of files, the frame buffer's configuration, or plain bytes."""

    FILE_DIR = "file_dir"
    RAM_FB = "ram_fb"
    BYTES = "bytes"


@attrs.frozen(kw_only=True)
class FwCfgEntry:
    """`bytes` is the content of an entry of kind `bytes`, and empty for the others."""

    selector: U16
    name: str
    kind: FwCfgValueKind
    bytes: builtins.bytes


@attrs.frozen(kw_only=True)
class FwCfgSelected:
    """`cached_value` is content that was made when the guest selected it, and that it goes on reading."""

    selector: U16
    offset: U32
    cached_value: bytes | None


@attrs.frozen(kw_only=True)
class QemuFwCfgV2:
    SCHEMA: ClassVar[Schema] = Schema("qemu-fwcfg", 2)
    dma_addr: U64
    selected: FwCfgSelected | None
    entries: tuple[FwCfgEntry, ...]
