"""What else is spoken on ports: whoever comes to the wrong one, or finds the wrong one, should hear it by name."""

from typing import Final

TLS_HANDSHAKE: Final = b"\x16\x03"
TLS_ALERT: Final = b"\x15\x03"
"""Content type and the version's major number, with which every record of TLS begins (RFC 8446 §5.1)."""

_BEGINNINGS: Final[dict[bytes, str]] = {
    TLS_HANDSHAKE: "TLS",
    TLS_ALERT: "TLS",
    b"SSH-": "SSH",
    **dict.fromkeys((b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"PRI ", b"HTTP"), "HTTP"),
}


def language_of(data: bytes) -> str | None:
    """The protocol whose conversations begin with `data`, if that is enough to tell."""
    return next((name for beginning, name in _BEGINNINGS.items() if data.startswith(beginning)), None)
