"""What a guest is shown of its machine, fixed at birth.

The build that creates a machine decides which interfaces its devices show: a guest chooses drivers by them when it
boots, and nobody asks it again.  So this is settled once, travels with the machine, and every later host shows the
same, however new it is: the rule of QEMU's machine types.  A guest born on an old build can therefore never come to
have state that the old build does not know, and can always go back.

It is also what payloads of old versions leave unsaid: see `sim_vmm.payloads.conversions`.
"""

from enum import StrEnum
from typing import Final
from uuid import UUID

import attrs

NIL_UUID: Final = UUID(int=0)


class Interface(StrEnum):
    """Something that a guest may be shown.  These names travel: they are never changed, only added to."""

    MODERN_VIRTIO = "modern-virtio"
    """Virtio devices show the interface of VIRTIO 1.0 and later beside the legacy one."""
    MULTI_QUEUE = "virtio-net-multi-queue"
    """NICs offer several pairs of queues."""
    DOORBELL_BUFFERS = "nvme-doorbell-buffers"
    MAC_FILTERS = "virtio-net-mac-filters"
    """NICs let the guest set receive filters."""
    FW_CFG_TABLES = "fw-cfg-tables"
    """The firmware configuration holds the boot order and the memory map."""


@attrs.frozen(kw_only=True)
class Birth:
    """Where a machine was born and what it shows.  `vm_id` is the system's UUID as the guest sees it."""

    release: str
    vm_id: UUID = NIL_UUID
    shows: frozenset[Interface] = frozenset(Interface)

    @property
    def modern_virtio(self) -> bool:
        return Interface.MODERN_VIRTIO in self.shows

    @property
    def multi_queue(self) -> bool:
        return Interface.MULTI_QUEUE in self.shows

    @property
    def doorbell_buffers(self) -> bool:
        return Interface.DOORBELL_BUFFERS in self.shows

    @property
    def mac_filters(self) -> bool:
        return Interface.MAC_FILTERS in self.shows

    @property
    def fw_cfg_tables(self) -> bool:
        return Interface.FW_CFG_TABLES in self.shows


#: A machine that shows everything that there is.
NEWEST: Final = Birth(release="newest")
