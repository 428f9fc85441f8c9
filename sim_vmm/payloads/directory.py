"""What a guest reads of an entry of the firmware configuration, the directory of files included."""

import struct
from collections.abc import Sequence
from typing import Final

from sim_vmm.payloads.legacy import FwCfgEntry, FwCfgValueKind

#: Files have selectors from here on.
SELECTOR_FIRST_FILE: Final = 0x0020
#: Selects nothing.
SELECTOR_INVALID: Final = 0xFFFF

#: Bytes of a name in the file directory, its terminating zero included.
FILE_NAME_BYTES: Final = 56
RAM_FB_BYTES: Final = 28


def content_of(entry: FwCfgEntry, entries: Sequence[FwCfgEntry]) -> bytes:
    """The bytes of `entry`, one of `entries`."""
    match entry.kind:
        case FwCfgValueKind.FILE_DIR:
            return directory_of(entries)
        case FwCfgValueKind.RAM_FB:
            return bytes(RAM_FB_BYTES)
        case FwCfgValueKind.BYTES:
            return entry.bytes


def directory_of(entries: Sequence[FwCfgEntry]) -> bytes:
    """Big-endian: the number of files, then each file's size, selector, two reserved bytes and name.

    A name has at most `FILE_NAME_BYTES` - 1 bytes; a longer one is cut, as the format has no room for it.
    """
    files = [
        entry
        for entry in entries
        if entry.selector >= SELECTOR_FIRST_FILE and entry.kind is not FwCfgValueKind.FILE_DIR
    ]
    listing = (
        struct.pack(f">IHH{FILE_NAME_BYTES}s", len(content_of(file, entries)), file.selector, 0, file.name.encode())
        for file in files
    )
    return struct.pack(">I", len(files)) + b"".join(listing)
