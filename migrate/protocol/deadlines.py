"""How long a peer may take: per frame and per phase, never per read.

One byte every 0.9 s passes a time-out of 1 s a read for an hour, so what is bounded is the whole frame and the whole
phase.  A RAM phase is bounded by the size of the machine at the slowest link worth migrating over.
"""

from collections.abc import Mapping
from typing import Final

import attrs

from migrate.protocol.conversation import Phase

MIB: Final = 1 << 20
RAM_PHASES: Final = frozenset({Phase.RAM, Phase.LAST_RAM})
OPENING_PHASES: Final = frozenset({Phase.HELLO, Phase.WELCOME, Phase.SETTLE, Phase.RELEASE})


@attrs.frozen(kw_only=True)
class Deadlines:
    """Seconds; `handshake_s` is for all of TLS's.  `overrides` replaces the allowance of single phases."""

    connect_s: float = 10.0
    handshake_s: float = 10.0
    frame_s: float = 30.0
    opening_s: float = 10.0
    phase_s: float = 60.0
    slowest_bytes_per_s: float = 1.0 * MIB
    farewell_s: float = 2.0
    overrides: Mapping[Phase, float] = attrs.field(factory=dict)

    def scaled(self, factor: float) -> "Deadlines":
        """Everything takes `factor` times as long as here."""
        seconds = [field.name for field in attrs.fields(Deadlines) if field.type is float and field.name.endswith("_s")]
        rates = ["slowest_bytes_per_s"]
        return attrs.evolve(
            self,
            **{name: factor * getattr(self, name) for name in seconds if name not in rates},
            **{name: getattr(self, name) / factor for name in rates},
            overrides={phase: factor * allowance for phase, allowance in self.overrides.items()},
        )

    def allowance_s(self, phase: Phase, ram_bytes: int) -> float:
        """How long `phase` may last for a machine of `ram_bytes`; a phase that is entered again starts anew."""
        if phase in self.overrides:
            return self.overrides[phase]
        if phase in OPENING_PHASES:
            return self.opening_s
        if phase in RAM_PHASES:
            return self.phase_s + ram_bytes / self.slowest_bytes_per_s
        return self.phase_s
