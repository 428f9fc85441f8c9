"""The clock port over trio and the host's monotonic clock."""

import time

import trio


class TrioClock:
    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        if not seconds:  # who is due has a turn beside ours, maybe after it; so there are two
            await trio.lowlevel.checkpoint()
        await trio.sleep(seconds)
