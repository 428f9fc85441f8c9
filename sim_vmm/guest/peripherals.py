"""What a program needs of the machine's devices: one disk, one NIC, the console.

A program chooses PCI devices once, at boot, and remembers them by their slots: indices in key order, which also say
where their drivers' memory and interrupt vectors are.  Elsewhere: how they are found and driven (hardware.py).
"""

from typing import Final, Protocol

import attrs

NO_SLOT: Final = 0xFFFF_FFFF


@attrs.frozen
class Completion:
    """The request that was submitted with `token` has ended; `data` is what it read."""

    token: int
    is_done: bool
    data: bytes = b""


class Disk(Protocol):
    """A disk as programs use it: a block at a time, every request with a token that comes back with its end."""

    @property
    def blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    def submit_read(self, block: int, token: int) -> bool:
        """Read a block; False if there is no room for the request now."""

    def submit_write(self, block: int, data: bytes, token: int) -> bool:
        """Write a block; False if there is no room for the request now."""

    def submit_flush(self, token: int) -> bool:
        """Make lasting what was written; False if there is no room for the request now."""

    def poll(self) -> list[Completion]:
        """What has ended, if the disk has interrupted since the last call; else nothing."""


class Nic(Protocol):
    """A NIC as programs use it."""

    @property
    def mac(self) -> bytes: ...

    def send(self, frame: bytes) -> bool:
        """Send a frame; False if the queue has no room now."""

    def poll(self) -> list[bytes]:
        """If the NIC has interrupted since the last call, take back what was sent; the frames that have come in."""


class Console(Protocol):
    def write(self, data: bytes) -> None: ...


@attrs.frozen
class Chosen:
    """The slots of the disk and the NIC, or `NO_SLOT`."""

    disk: int
    nic: int


@attrs.frozen
class Peripherals:
    disk: Disk | None
    nic: Nic | None
    console: Console
