"""A record of the ledger, as it lies on disk (one block) and in RAM (at the beginning of a page).

    0    u64   magic "LEDGER01"
    8    u64   sequence number, from 1
    16   u64   the guest's uptime when it began the record, in ns
    24   u64   the run: how many ledgers there have been on this disk, this one included
    32   u32   length of the record in bytes, the block size of the disk
    36   u32   CRC-32 of the whole record with this field zero
    40         the sequence number again, as u64, over and over: a block that was written in parts is found out

Little-endian.  The reader of these (migrate/rehearsal/ledger.py) shares no code with this module.
"""

import struct
import zlib
from typing import Final

MAGIC: Final = int.from_bytes(b"LEDGER01", "little")
HEADER: Final = struct.Struct("<QQQQII")

_CHECKSUM_OFFSET: Final = 36


def encode_record(sequence: int, uptime_ns: int, run: int, length: int) -> bytes:
    """The record, `length` bytes, a multiple of 8."""
    record = bytearray(HEADER.pack(MAGIC, sequence, uptime_ns, run, length, 0))
    record += sequence.to_bytes(8, "little") * ((length - HEADER.size) // 8)
    struct.pack_into("<I", record, _CHECKSUM_OFFSET, zlib.crc32(record))
    return bytes(record)


def decode_run(data: bytes) -> int:
    """The run of the record in `data`; 0 if that is none.  Damaged ones count: what matters is to be another."""
    magic, _, _, run, _, _ = HEADER.unpack_from(data)
    return int(run) if magic == MAGIC else 0
