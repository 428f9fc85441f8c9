"""`python -m tests.freeze_frames` adds the golden frame of every specimen that has none.

What exists is never written again: a frame is a promise to daemons already deployed.  A frame that cannot be read any more,
or is written differently now, is a bug of the code, not of the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from migrate import cbor
from migrate.protocol.frames import HEADER, encode_frame
from migrate.protocol.messages import MESSAGES, Message
from tests.specimens import SPECIMENS

GOLDEN: Final = Path(__file__).parent / "golden" / "frames"
BYTES_A_LINE: Final = 32


def path_of(kind: type[Message]) -> Path:
    """Sorted by type number."""
    return GOLDEN / f"{kind.TYPE:02}-{kind.__name__}.hex"


def add_missing() -> list[Path]:
    """Returns what was added."""
    added = []
    for kind in MESSAGES.values():
        path = path_of(kind)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(annotated(SPECIMENS[kind]))
            added.append(path)
    return added


def annotated(message: Message) -> str:
    """The frame as hexadecimal digits, with comments for the reviewer."""
    frame = encode_frame(message)
    head, body = frame[: HEADER.size], frame[HEADER.size :]
    lines = [
        f"# {type(message).__name__}",
        f"{head[0:2].hex():18}# type {message.TYPE}",
        f"{head[2:4].hex():18}# zero",
        f"{head[4:8].hex():18}# body of {len(body)} bytes",
        f"{head[8:16].hex():18}# xxh3-64 of the 8 bytes above and the body",
    ]
    lines += [f"# {line}" for line in notation(cbor.decode(body))]
    lines += [body[start : start + BYTES_A_LINE].hex() for start in range(0, len(body), BYTES_A_LINE)]
    return "\n".join(lines) + "\n"


def read_annotated(text: str) -> bytes:
    """The frame that `annotated` wrote."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def notation(plain: Any, indent: str = "") -> Iterator[str]:
    """Plain data as CBOR's diagnostic notation has it (RFC 8949 §8), a field a line."""
    match plain:
        case dict() if plain:
            for key, value in plain.items():
                first, *rest = notation(value, indent + "  ")
                yield f"{indent}{key}: {first.lstrip()}"
                yield from rest
        case list() if plain:
            yield f"{indent}["
            for value in plain:
                first, *rest = notation(value, indent + "  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            yield f"{indent}]"
        case bytes():
            yield f"{indent}h'{plain.hex()}'"
        case bool():
            yield f"{indent}{str(plain).lower()}"
        case str():
            yield f'{indent}"{plain}"'
        case _:
            yield f"{indent}{plain}"


if __name__ == "__main__":
    for path in add_missing():
        print(f"added {path}")
