"""A controller's volatile write cache, between its commands and the backend.

With a cache, a completed write may be here only, until the guest flushes, the cache is full, or the machine is paused:
a pause writes everything back, because nothing of a cache travels.  Without one, a completed write is on the medium:
then the guest need not flush at all (instance-specs §10), so a machine that lost the `false` in its spec on the way
would lose its guest's data at the next power cut.

The first write goes to the backend at once, though not to its medium: whether a disk has been written to decides
whether its machine may migrate (sim_vmm/storage.py), and that must be known before the pause.
"""

from typing import Final

from sim_vmm.platform import BlockBackend

#: When more than this waits, it is all written back.
CACHED_BYTES_MAX: Final = 1 << 20


class WriteCache:
    """Whole blocks of `backend`; offsets and lengths in bytes.  Errors are those of the backend (OSError)."""

    def __init__(self, backend: BlockBackend) -> None:
        self.backend = backend
        self._blocks: dict[int, bytes] = {}
        self._is_written = False
        self._is_flushed = True

    @property
    def is_flushed(self) -> bool:
        """Whether all that was written is on the medium."""
        return self._is_flushed

    def read(self, offset: int, length: int) -> bytes:
        if not self._blocks:
            return self.backend.read(offset, length)
        size = self.backend.block_size
        data = bytearray(self.backend.read(offset, length))
        for start in range(0, length, size):
            cached = self._blocks.get(offset + start)
            if cached is not None:
                data[start : start + size] = cached
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Keep `data` here for now."""
        self._is_flushed = False
        if not self._is_written:
            self.backend.write(offset, data)
            self._is_written = True
            return
        size = self.backend.block_size
        for start in range(0, len(data), size):
            self._blocks[offset + start] = data[start : start + size]
        if len(self._blocks) * size > CACHED_BYTES_MAX:
            self.flush()

    def write_through(self, offset: int, data: bytes) -> None:
        """On return `data`, and all that was written before it, is on the medium."""
        self._write_back()
        self.backend.write(offset, data)
        self.backend.flush()
        self._is_written = self._is_flushed = True

    def flush(self) -> None:
        """On return all that was written is on the medium.  After an error it can be tried again."""
        self._write_back()
        self.backend.flush()
        self._is_flushed = True

    def _write_back(self) -> None:
        run: list[bytes] = []
        begin = end = 0
        for offset in sorted(self._blocks):
            if offset != end:
                self._write_run(begin, run)
                begin, run = offset, []
            run.append(self._blocks[offset])
            end = offset + self.backend.block_size
        self._write_run(begin, run)
        self._blocks.clear()

    def _write_run(self, offset: int, run: list[bytes]) -> None:
        if run:
            self.backend.write(offset, b"".join(run))
