"""State of clocks that the guest reads through ports (device-payloads §6)."""

from typing import Annotated, ClassVar

import attrs

from sim_vmm.integers import I64, U8, Exactly
from sim_vmm.payloads.schema import Schema


@attrs.frozen(kw_only=True)
class BhyveRtcV2:
    """`base_clock` and `last_period` in ns since the guest booted, so that they hold under another host's clock.

    `cmos` has 128 bytes; `addr` is the one that the guest has selected.
    """

    SCHEMA: ClassVar[Schema] = Schema("bhyve-rtc", 2)
    base_clock: I64
    last_period: I64
    cmos: Annotated[bytes, Exactly(128)]
    addr: U8
