"""A disk kept in memory: the bytes of a blob backend, which travel under the backend's key (device-payloads §3).

It is a `sim_vmm.platform.BlockBackend` for the disk in front of it.
"""

import base64
import binascii
from typing import ClassVar

from sim_vmm.devices.base import Arrived, Device, refusal
from sim_vmm.payloads import InMemoryBlockBackendV1, Payload, Schema


def decode_blob(text: str) -> bytes:
    """The bytes of a blob backend's standard base64 (instance-specs §6).

    Raises:
        ValueError: `text` is not what an encoder makes: wrong characters, padding or left-over bits.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not standard base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("not standard base64: padding or left-over bits are not as an encoder makes them")
    return data


class BlobBackend(Device):
    kind: ClassVar[str] = "blob_storage_backend"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((InMemoryBlockBackendV1.SCHEMA,),)

    block_size: int = 512

    def __init__(self, key: str, data: bytes, *, readonly: bool) -> None:
        super().__init__(key)
        self.readonly = readonly
        self._data = bytearray(data)

    @property
    def size(self) -> int:
        """Bytes that a disk over this blob has: whole sectors."""
        return len(self._data) // self.block_size * self.block_size

    def __len__(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Raises ValueError if a byte of the range lies outside the disk."""
        self._check_range(offset, length)
        return bytes(self._data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Raises ValueError if the disk is read-only or a byte of the range lies outside it; nothing is written."""
        if self.readonly:
            raise ValueError(f"blob {self.key!r} is read-only")
        self._check_range(offset, len(data))
        self._data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """The blob is state of the machine: nothing is more durable than that."""

    def _check_range(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= len(self._data):
            raise ValueError(f"bytes {offset} to {offset + length - 1} of blob {self.key!r}: it has {len(self._data)}")

    def _payloads(self) -> tuple[Payload, ...]:
        return (InMemoryBlockBackendV1(bytes(self._data)),)

    def _take(self, arrived: Arrived) -> None:
        payload = arrived.of(InMemoryBlockBackendV1)
        if len(payload.bytes) != len(self._data):
            refuse = refusal(self.key, payload.SCHEMA)
            raise refuse("bytes", f"{len(payload.bytes)} bytes; this machine's blob has {len(self._data)}")
        self._data = bytearray(payload.bytes)
