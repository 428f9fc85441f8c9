"""A virtio block device: one queue over the virtio transport (VIRTIO 1.2 §5.2).

A request is a header (16 bytes, readable), the data, and a status byte (the last writable one):

    le32 type, le32 reserved, le64 sector     0 read, 1 write, 4 flush, 8 get the disk's id (20 bytes)
    status                                    0 done, 1 error, 2 not known

Sectors have 512 bytes whatever the block size; a request that is not in whole blocks, or lies outside the disk, or
writes to a read-only one, is answered with an error.  A buffer that is no request at all breaks the device.

A request is done when it is taken from the ring, or not begun: there is none half done, whenever the machine is paused.
One notification, or one poll, does `REQUESTS_AT_ONCE` requests at most.  The others stay in the ring in guest RAM, so
requests in flight at a pause travel with it, and the new host's first poll goes on with them.
"""

import struct
from typing import ClassVar, Final

from sim_vmm.devices.base import Arrived
from sim_vmm.devices.virtio import (
    DEVICE_BLOCK,
    TYPE_BLOCK,
    QueueShape,
    VirtioDevice,
    VirtioTransport,
    virtio_function,
)
from sim_vmm.payloads import Payload, PciDeviceV1, PciVirtioV3, Schema
from sim_vmm.platform import BlockBackend
from sim_vmm.spec import PciPath
from sim_vmm.virtqueue import Chain

QUEUE: Final = 0
QUEUE_SIZE: Final = 256
VECTORS: Final = 2
CLASS_CODE: Final = 0x010000
REQUESTS_AT_ONCE: Final = 8

FEATURE_READ_ONLY: Final = 1 << 5
FEATURE_BLOCK_SIZE: Final = 1 << 6
FEATURE_FLUSH: Final = 1 << 9

REQUEST_HEADER: Final = struct.Struct("<IIQ")
TYPE_IN: Final = 0
TYPE_OUT: Final = 1
TYPE_FLUSH: Final = 4
TYPE_GET_ID: Final = 8
STATUS_OK: Final = 0
STATUS_IO_ERROR: Final = 1
STATUS_UNSUPPORTED: Final = 2

SECTOR_BYTES: Final = 512
ID_BYTES: Final = 20

#: struct virtio_blk_config: the fields that we fill in, and its length up to the fields of newer features.
CONFIG_CAPACITY: Final = 0
CONFIG_BLOCK_SIZE: Final = 20
CONFIG_BYTES: Final = 60


class VirtioDisk(VirtioDevice):
    """The disk over `backend`.  It is read-only if that is."""

    kind: ClassVar[str] = "virtio_disk"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((PciVirtioV3.SCHEMA,), (PciDeviceV1.SCHEMA,))

    def __init__(self, key: str, path: PciPath, backend: BlockBackend, *, legacy_only: bool = False) -> None:
        super().__init__(key)
        self.backend = backend
        self.pci = virtio_function(
            key,
            path,
            vectors=VECTORS,
            device=DEVICE_BLOCK,
            virtio_type=TYPE_BLOCK,
            class_code=CLASS_CODE,
            config_size=CONFIG_BYTES,
            legacy_only=legacy_only,
        )
        self.virtio = VirtioTransport(
            self.pci,
            self,
            shapes=[QueueShape(QUEUE_SIZE)],
            size_maxima=[QUEUE_SIZE],
            features=FEATURE_BLOCK_SIZE | FEATURE_FLUSH | (FEATURE_READ_ONLY if backend.readonly else 0),
            config_size=CONFIG_BYTES,
            legacy_only=legacy_only,
        )
        self.note_birth()

    def queue_notified(self, number: int) -> None:
        self._work()

    def poll(self) -> None:
        self._work()

    def config_space(self) -> bytes:
        config = bytearray(CONFIG_BYTES)
        struct.pack_into("<Q", config, CONFIG_CAPACITY, self.backend.size // SECTOR_BYTES)
        struct.pack_into("<I", config, CONFIG_BLOCK_SIZE, self.backend.block_size)
        return bytes(config)

    def _work(self) -> None:
        """Do some of the requests that wait, and interrupt once for all of them."""
        done = 0
        while done < REQUESTS_AT_ONCE and (chain := self.virtio.pop(QUEUE)) is not None and self._answer(chain):
            done += 1
        if done:
            self.virtio.interrupt(QUEUE)

    def _answer(self, chain: Chain) -> bool:
        """Do one request and give its buffer back; False if it was none, and the device is broken now."""
        request = self.virtio.read(QUEUE, chain)
        if request is None:
            return False
        if len(request) < REQUEST_HEADER.size or chain.writable_bytes < 1:
            self.virtio.need_reset()
            return False
        kind, _, sector = REQUEST_HEADER.unpack_from(request)
        room = chain.writable_bytes - 1
        status, data = self._do(kind, sector * SECTOR_BYTES, request[REQUEST_HEADER.size :], room)
        if status == STATUS_OK and kind in (TYPE_IN, TYPE_GET_ID):
            return self.virtio.push(QUEUE, chain, data[:room].ljust(room, b"\0") + bytes([status]))
        return self.virtio.push(QUEUE, chain, bytes([status]), offset=room)

    def _do(self, kind: int, offset: int, data: bytes, room: int) -> tuple[int, bytes]:
        """The status of a request at byte `offset`, and what it reads into `room` bytes."""
        try:
            if kind == TYPE_IN and self._is_on_disk(offset, room):
                return STATUS_OK, self.backend.read(offset, room)
            if kind == TYPE_OUT and self._is_on_disk(offset, len(data)) and not self.backend.readonly:
                self.backend.write(offset, data)
                return STATUS_OK, b""
            if kind == TYPE_FLUSH:
                self.backend.flush()
                return STATUS_OK, b""
            if kind == TYPE_GET_ID:
                return STATUS_OK, self.key.encode()[:ID_BYTES]
        except OSError:
            return STATUS_IO_ERROR, b""
        return (STATUS_IO_ERROR if kind in (TYPE_IN, TYPE_OUT) else STATUS_UNSUPPORTED), b""

    def _is_on_disk(self, offset: int, length: int) -> bool:
        block = self.backend.block_size
        return offset % block == 0 and length % block == 0 and offset + length <= self.backend.size

    def _payloads(self) -> tuple[Payload, ...]:
        return self.virtio.export(), self.pci.export()

    def _take(self, arrived: Arrived) -> None:
        pci, virtio = arrived.of(PciDeviceV1), arrived.of(PciVirtioV3)
        self.pci.check(pci)
        self.virtio.check(virtio)
        self.pci.take(pci)
        self.virtio.take(virtio)
