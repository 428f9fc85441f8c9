"""Quantities as people type them."""

import re
from typing import Final

from migrate.daemon.address import BadInput

_MULTIPLES: Final = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30}
BANDWIDTH_MIN: Final = 65536
"""Below this a single batch of RAM could outlast the deadline of a frame."""


def parse_rate(text: str | None) -> float | None:
    """Bytes a second: `100M`, `1.5G`, `64Ki`, `2000000`, with or without `B/s`; None stays None.

    Raises:
        BadInput: no such quantity, or less than the slowest that works.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMG]?I?)(?:B?(?:/S)?)", text.strip().upper())
    if match is None or match[2] not in _MULTIPLES:
        raise BadInput(f"--bandwidth {text!r}: expected bytes a second, such as 100M, 1.5G or 64Mi")
    rate = float(match[1]) * _MULTIPLES[match[2]]
    if rate < BANDWIDTH_MIN:
        raise BadInput(f"--bandwidth {text!r}: expected at least {BANDWIDTH_MIN // 1024}Ki")
    return rate
