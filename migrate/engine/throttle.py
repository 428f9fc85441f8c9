"""A guest that is kept asleep for a share of the time, as auto-converge does it.  Pure: whoever runs the guest asks."""

import attrs


@attrs.define
class Rest:
    """How much sleep a guest still owes: `share` of each time that it was awake or asleep, 0 for none.

    Asked in steps of the runner, so a small share is a step left out now and then, and a large one many in a row.
    """

    share: float = 0.0
    _owed_ns: float = 0.0

    def is_due(self, elapsed_ns: int, *, was_awake: bool) -> bool:
        """Whether the guest sleeps now; `elapsed_ns` have passed since last asked, and it `was_awake` meanwhile."""
        if not self.share:
            self._owed_ns = 0.0
        elif was_awake:
            self._owed_ns += elapsed_ns * self.share / (1 - self.share)
        else:
            self._owed_ns -= elapsed_ns
        return self._owed_ns >= max(elapsed_ns / 2, 1)
