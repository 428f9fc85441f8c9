"""Which frames a NIC receives (VIRTIO 1.2 §5.1.6.5.1-2, device-payloads §5).

The driver's settings are six switches and two lists of addresses, as the payload `pci-virtio-viona` has them.  Where
the standard leaves open which of two contradicting switches wins, we do as QEMU does (`receive_filter` in
hw/net/virtio-net.c): promiscuous beats all, then "none of these" beats "all of these" beats the lists.

`promisc` is what the settings ask of the link below, which knows no finer levels: enough to let everything through that
the switches want.  It says nothing new, so a payload in which it contradicts them is refused.
"""

from typing import Final

import attrs

from sim_vmm.devices.base import Refuse
from sim_vmm.payloads import PciVirtioVionaV1, Promisc
from sim_vmm.wire import BROADCAST, is_group_address

FILTER_PROMISC: Final = 1 << 0
FILTER_ALL_MULTICAST: Final = 1 << 1
FILTER_ALL_UNICAST: Final = 1 << 2
FILTER_NO_MULTICAST: Final = 1 << 3
FILTER_NO_UNICAST: Final = 1 << 4
FILTER_NO_BROADCAST: Final = 1 << 5
FILTER_KNOWN: Final = 0x3F

#: Addresses that each of the lists can hold: the size of QEMU's table.
ADDRESSES_MAX: Final = 64
ADDRESS_BYTES: Final = 6

#: As at reset: the NIC's own address and broadcasts.
NO_FILTERS: Final = PciVirtioVionaV1(promisc=Promisc.NONE, filter=0, unicast_mac_filters=(), multicast_mac_filters=())


def promisc_of(switches: int) -> Promisc:
    """The lowest level of the link that lets through what `switches` want."""
    if switches & (FILTER_PROMISC | FILTER_ALL_UNICAST):
        return Promisc.ALL
    return Promisc.ALL_MULTI if switches & FILTER_ALL_MULTICAST else Promisc.NONE


def with_switches(filters: PciVirtioVionaV1, switches: int) -> PciVirtioVionaV1:
    """`filters` with other switches."""
    return attrs.evolve(filters, filter=switches, promisc=promisc_of(switches))


@attrs.frozen
class ReceiveFilter:
    """The filter in force at a NIC whose own address is `own`; `switches` are the bits of `FILTER_KNOWN`."""

    own: bytes
    switches: int
    unicast: frozenset[bytes]
    multicast: frozenset[bytes]

    @classmethod
    def of(cls, own: bytes, filters: PciVirtioVionaV1) -> "ReceiveFilter":
        unicast, multicast = frozenset(filters.unicast_mac_filters), frozenset(filters.multicast_mac_filters)
        return cls(own, filters.filter, unicast, multicast)

    def accepts(self, destination: bytes) -> bool:
        """Whether the guest gets a frame to `destination`."""
        if self.switches & FILTER_PROMISC:
            return True
        if destination == BROADCAST:
            return not self.switches & FILTER_NO_BROADCAST
        if is_group_address(destination):
            if self.switches & FILTER_NO_MULTICAST:
                return False
            return bool(self.switches & FILTER_ALL_MULTICAST) or destination in self.multicast
        if self.switches & FILTER_NO_UNICAST:
            return False
        return bool(self.switches & FILTER_ALL_UNICAST) or destination == self.own or destination in self.unicast


def check_filters(filters: PciVirtioVionaV1, refuse: Refuse) -> None:
    """Raises ImportFailed for the first value that no driver can have set."""
    if unknown := filters.filter & ~FILTER_KNOWN:
        raise refuse("filter", f"unknown bits {unknown:#x}; known are {FILTER_KNOWN:#x}")
    if filters.promisc is not promisc_of(filters.filter):
        raise refuse("promisc", f"{filters.promisc}; filter {filters.filter:#x} makes it {promisc_of(filters.filter)}")
    for field, addresses, group in (
        ("unicast_mac_filters", filters.unicast_mac_filters, False),
        ("multicast_mac_filters", filters.multicast_mac_filters, True),
    ):
        if len(addresses) > ADDRESSES_MAX:
            raise refuse(field, f"{len(addresses)} addresses; this NIC holds {ADDRESSES_MAX}")
        for index, address in enumerate(addresses):
            if len(address) != ADDRESS_BYTES:
                raise refuse(f"{field}[{index}]", f"{len(address)} bytes; an Ethernet address has 6")
            if is_group_address(address) is not group:
                raise refuse(f"{field}[{index}]", f"{address.hex(':')} belongs into the other list")
