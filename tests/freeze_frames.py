"""`python -m tests.freeze_frames` adds the golden frame of every specimen that has none.

What exists is never written again: a frame is a promise to daemons already deployed.  A frame that cannot be read any
more, or is written differently now, is a bug of the code, not of the file.
"""

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


def notation(plain: Any) -> list[str]:
    """Plain data in CBOR's diagnostic notation (RFC 8949 §8), an item a line."""
    match plain:
        case dict() if plain:
            return ["{", *(line for key, value in plain.items() for line in _indented(f'"{key}": ', value)), "}"]
        case list() if plain:
            return ["[", *(line for value in plain for line in _indented("", value)), "]"]
        case bytes():
            return [f"h'{plain.hex()}'"]
        case str():
            return [f'"{plain}"']
        case _:
            return [str(plain).lower()]


def _indented(name: str, value: Any) -> list[str]:
    first, *rest = notation(value)
    *lines, last = [name + first, *rest]
    return [f"  {line}" for line in (*lines, f"{last},")]


if __name__ == "__main__":
    for path in add_missing():
        print(f"added {path}")
