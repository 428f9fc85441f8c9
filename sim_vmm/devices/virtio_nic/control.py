"""The control queue's commands, as a function over bytes (VIRTIO 1.2 §5.1.6.5).

A command is a class, a number and data; the answer is one byte.  A command that was not negotiated, is malformed, or
asks for more than there is, changes nothing and is answered with an error.

Not here: setting the NIC's own address (its feature is not offered: no payload version could carry it), VLAN filters,
announcements, offloads.
"""

import struct
from collections.abc import Callable
from typing import Final

import attrs

from sim_vmm.devices.virtio_nic.layout import FEATURE_CTRL_RX, FEATURE_CTRL_RX_EXTRA, FEATURE_MQ, PAIRS_MAX
from sim_vmm.devices.virtio_nic.receive_filter import (
    ADDRESS_BYTES,
    ADDRESSES_MAX,
    FILTER_ALL_MULTICAST,
    FILTER_ALL_UNICAST,
    FILTER_NO_BROADCAST,
    FILTER_NO_MULTICAST,
    FILTER_NO_UNICAST,
    FILTER_PROMISC,
    with_switches,
)
from sim_vmm.payloads import PciVirtioVionaV1
from sim_vmm.wire import is_group_address

CLASS_RX: Final = 0
CLASS_MAC: Final = 1
CLASS_MQ: Final = 4

RX_PROMISC: Final = 0
RX_ALL_MULTICAST: Final = 1
RX_ALL_UNICAST: Final = 2
RX_NO_MULTICAST: Final = 3
RX_NO_UNICAST: Final = 4
RX_NO_BROADCAST: Final = 5
MAC_TABLE_SET: Final = 0
MAC_ADDRESS_SET: Final = 1
MQ_PAIRS_SET: Final = 0

ACK_OK: Final = 0
ACK_ERROR: Final = 1

HEADER_BYTES: Final = 2
_COUNT: Final = struct.Struct("<I")
_PAIRS: Final = struct.Struct("<H")
#: The longest command that can be right; nothing longer is read.
COMMAND_BYTES_MAX: Final = HEADER_BYTES + 2 * (_COUNT.size + ADDRESS_BYTES * ADDRESSES_MAX)


@attrs.frozen
class Settings:
    """What the driver can set: receive filters, and how many pairs of queues are in use."""

    filters: PciVirtioVionaV1
    pairs: int


class Malformed(Exception):
    """The data of a command is not what the command takes."""


def obey(command: bytes, settings: Settings, features: int) -> Settings | None:
    """The settings after `command`, under the `features` in force; None if it is answered with an error."""
    number = (command[0], command[1]) if len(command) >= HEADER_BYTES else None
    needed, carry_out = COMMANDS.get(number, (0, None)) if number is not None else (0, None)
    if carry_out is None or not features & needed:
        return None
    try:
        return carry_out(settings, command[HEADER_BYTES:])
    except Malformed:
        return None


def _switch(bit: int) -> Callable[[Settings, bytes], Settings]:
    def carry_out(settings: Settings, data: bytes) -> Settings:
        if data not in (b"\0", b"\1"):
            raise Malformed
        switches = settings.filters.filter & ~bit | bit * data[0]
        return attrs.evolve(settings, filters=with_switches(settings.filters, switches))

    return carry_out


def _set_tables(settings: Settings, data: bytes) -> Settings:
    unicast, rest = _take_addresses(data)
    multicast, rest = _take_addresses(rest)
    if rest or any(map(is_group_address, unicast)) or not all(map(is_group_address, multicast)):
        raise Malformed
    filters = attrs.evolve(settings.filters, unicast_mac_filters=unicast, multicast_mac_filters=multicast)
    return attrs.evolve(settings, filters=filters)


def _take_addresses(data: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """A list of addresses from the beginning of `data`, and the rest."""
    if len(data) < _COUNT.size:
        raise Malformed
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + ADDRESS_BYTES * count
    if count > ADDRESSES_MAX or end > len(data):
        raise Malformed
    return tuple(data[at : at + ADDRESS_BYTES] for at in range(_COUNT.size, end, ADDRESS_BYTES)), data[end:]


def _set_pairs(settings: Settings, data: bytes) -> Settings:
    if len(data) != _PAIRS.size:
        raise Malformed
    (pairs,) = _PAIRS.unpack(data)
    if not 1 <= pairs <= PAIRS_MAX:
        raise Malformed
    return attrs.evolve(settings, pairs=pairs)


COMMANDS: Final[dict[tuple[int, int], tuple[int, Callable[[Settings, bytes], Settings]]]] = {
    (CLASS_RX, RX_PROMISC): (FEATURE_CTRL_RX, _switch(FILTER_PROMISC)),
    (CLASS_RX, RX_ALL_MULTICAST): (FEATURE_CTRL_RX, _switch(FILTER_ALL_MULTICAST)),
    (CLASS_RX, RX_ALL_UNICAST): (FEATURE_CTRL_RX_EXTRA, _switch(FILTER_ALL_UNICAST)),
    (CLASS_RX, RX_NO_MULTICAST): (FEATURE_CTRL_RX_EXTRA, _switch(FILTER_NO_MULTICAST)),
    (CLASS_RX, RX_NO_UNICAST): (FEATURE_CTRL_RX_EXTRA, _switch(FILTER_NO_UNICAST)),
    (CLASS_RX, RX_NO_BROADCAST): (FEATURE_CTRL_RX_EXTRA, _switch(FILTER_NO_BROADCAST)),
    (CLASS_MAC, MAC_TABLE_SET): (FEATURE_CTRL_RX, _set_tables),
    (CLASS_MQ, MQ_PAIRS_SET): (FEATURE_MQ, _set_pairs),
}
"""By class and number: the feature that a command needs, and what it does."""


# Commands, as a driver makes them


def switch_command(number: int, on: bool) -> bytes:
    """One of the commands of `CLASS_RX`."""
    return bytes((CLASS_RX, number, on))


def tables_command(unicast: tuple[bytes, ...], multicast: tuple[bytes, ...]) -> bytes:
    lists = (_COUNT.pack(len(addresses)) + b"".join(addresses) for addresses in (unicast, multicast))
    return bytes((CLASS_MAC, MAC_TABLE_SET)) + b"".join(lists)


def pairs_command(pairs: int) -> bytes:
    return bytes((CLASS_MQ, MQ_PAIRS_SET)) + _PAIRS.pack(pairs)
