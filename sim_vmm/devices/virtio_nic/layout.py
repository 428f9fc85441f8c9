"""Numbers and layouts of a virtio NIC (VIRTIO 1.2 §5.1; checked against linux/virtio_net.h by a test).

Queues alternate receive and transmit; the control queue follows the last pair that was agreed on.  Every frame in a
queue has a header before it:

    flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16 [, num_buffers u16]

little-endian, and with `num_buffers` if the driver is modern or has agreed to receive one frame in several buffers.
"""

import struct
from typing import Final

from sim_vmm.devices.virtio import FEATURE_VERSION_1, QueueShape

RX_QUEUE_SIZE: Final = 2048
TX_QUEUE_SIZE: Final = 256
CONTROL_QUEUE_SIZE: Final = 32
PAIRS_MAX: Final = 11

FEATURE_CSUM: Final = 1 << 0
FEATURE_MAC: Final = 1 << 5
FEATURE_MRG_RXBUF: Final = 1 << 15
FEATURE_STATUS: Final = 1 << 16
FEATURE_CTRL_VQ: Final = 1 << 17
FEATURE_CTRL_RX: Final = 1 << 18
FEATURE_CTRL_RX_EXTRA: Final = 1 << 20
FEATURE_MQ: Final = 1 << 22

#: What every NIC offers.  Not among it: a settable address, for which no payload version has a place.
LINK_FEATURES: Final = FEATURE_CSUM | FEATURE_MAC | FEATURE_MRG_RXBUF | FEATURE_STATUS | FEATURE_CTRL_VQ
FILTER_FEATURES: Final = FEATURE_CTRL_RX | FEATURE_CTRL_RX_EXTRA

# struct virtio_net_config: mac, status, max_virtqueue_pairs, then what belongs to features that we do not offer

CONFIG: Final = struct.Struct("<6sHH14x")
CONFIG_BYTES: Final = CONFIG.size
STATUS_LINK_UP: Final = 1

# struct virtio_net_hdr_v1

NET_HEADER: Final = struct.Struct("<BBHHHH")
NUM_BUFFERS: Final = struct.Struct("<H")
HEADER_NEEDS_CHECKSUM: Final = 1
GSO_NONE: Final = 0


def queue_shapes(pairs: int) -> list[QueueShape]:
    """The queues of `pairs` pairs: receive and transmit for each, then the control queue."""
    return [QueueShape(RX_QUEUE_SIZE), QueueShape(TX_QUEUE_SIZE)] * pairs + [QueueShape(CONTROL_QUEUE_SIZE, True)]


def is_mergeable(features: int) -> bool:
    """Whether a frame may be spread over several receive buffers."""
    return bool(features & FEATURE_MRG_RXBUF)


def header_bytes(features: int) -> int:
    """The size of the header of each frame, by the features in force: 10 or 12."""
    has_count = features & (FEATURE_VERSION_1 | FEATURE_MRG_RXBUF)
    return NET_HEADER.size + (NUM_BUFFERS.size if has_count else 0)


def receive_header(features: int, buffers: int) -> bytes:
    """The header of a frame for the guest that is spread over `buffers` buffers."""
    header = NET_HEADER.pack(0, GSO_NONE, 0, 0, 0, 0) + NUM_BUFFERS.pack(buffers)
    return header[: header_bytes(features)]


def frame_to_send(header: bytes, frame: bytes) -> bytes | None:
    """What goes out for `frame` with this header; None if that asks for what was never offered."""
    flags, gso_type, _, _, start, offset = NET_HEADER.unpack_from(header)
    if gso_type != GSO_NONE:
        return None
    return with_checksum(frame, start, offset) if flags & HEADER_NEEDS_CHECKSUM else frame


def with_checksum(frame: bytes, start: int, offset: int) -> bytes | None:
    """`frame` with the Internet checksum (RFC 1071) of all from `start` on put at `start + offset`.

    The sum is over what is in the place already, too: a driver leaves the pseudo header's there (VIRTIO 1.2 §5.1.6.2).
    None if the place is outside the frame.
    """
    place = start + offset
    if place + 2 > len(frame):
        return None
    summed = frame[start:] + bytes((len(frame) - start) % 2)
    total: int = sum(struct.unpack(f">{len(summed) // 2}H", summed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return frame[:place] + struct.pack(">H", total ^ 0xFFFF) + frame[place + 2 :]
