"""A disk for a controller that was given none: in memory, sparse, and lost with the process."""

from typing import Final

SCRATCH_BYTES: Final = 64 << 20


class ScratchDisk:
    """`SCRATCH_BYTES` of blocks of 512 bytes, zero until written; a `sim_vmm.platform.BlockBackend`."""

    readonly: bool = False
    block_size: int = 512

    def __init__(self, size: int = SCRATCH_BYTES) -> None:
        self._size = size
        self._blocks: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        empty = bytes(self.block_size)
        return b"".join(self._blocks.get(at, empty) for at in range(offset, offset + length, self.block_size))

    def write(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), self.block_size):
            self._blocks[offset + start] = data[start : start + self.block_size]

    def flush(self) -> None:
        """Memory is all the medium that there is."""
