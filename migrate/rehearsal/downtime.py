"""The downtime ledger: what both sides timed, on one axis, and what of it the guest waited for.

The axis is the source's clock and begins with its attempt.  Where the two sides are on hosts with clocks of their own,
the target's times are moved by the offset between these (`clocks`).

What the guest waited for is the time from the end of its last step on the source to the end of its first on the target,
cut where the conversation goes on: each part ends when the target has done what it is named after (the source, for the
pause).  So the parts add up to what the guest was away, with nothing left over and nothing counted twice, though both
sides work at the same time.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs

from migrate.engine.rounds import NS_PER_MS
from migrate.rehearsal.clocks import Offset, exchanges_in

Json = dict[str, Any]

BEFORE: Final = "before the pause"
PAUSE: Final = "pause"
ON_TARGET: Final = ("last ram", "time data", "devices", "server state", "ready", "commit", "own", "run")
"""Steps of the target, one after the other."""
FIRST_STEP: Final = "first step"
FIRST_FRAME: Final = "first frame"


@attrs.frozen(kw_only=True)
class WentOn:
    """When the guest had made its first step on the target, and when frames of its NICs were seen on the wire.

    In order, in ns, by the monotonic clock of the target's host.
    """

    step_ns: int
    frames_ns: Sequence[int] = ()

    @classmethod
    def of(cls, resumed: Mapping[str, Any] | None, frames_ns: Sequence[int] = ()) -> "WentOn | None":
        """From the event `guest resumed`; None if there was none, or an older build told it."""
        if resumed is None or resumed.get("first_ns") is None:
            return None
        return cls(step_ns=resumed["first_ns"], frames_ns=frames_ns)


def ledger_of(source: Json | None, target: Json | None, went_on: WentOn | None = None) -> Json:
    """The `ledger` of an attempt, from both views of it; without the source's there is no axis.

    `blackout` is None unless the guest was seen to stop and to go on; `clock` unless there is something to tell it by.
    """
    if source is None:
        return {"total_ms": None, "downtime_ms": None, "steps": [], "devices": {}, "blackout": None, "clock": None}
    offset = None if target is None else offset_between(source, target)
    moved_ns = source["started_ns"] + (0 if offset is None else offset.offset_ns)
    steps = list(source["steps"])
    if target is not None:
        steps += _moved(target["steps"], (target["started_ns"] - moved_ns) / NS_PER_MS)
    if went_on is not None:
        steps += _went_on(steps, went_on, moved_ns)
    steps.sort(key=lambda step: step["start_ms"])
    pause, run = _end_of(steps, "source", PAUSE), _end_of(steps, "target", "run")
    paused = next((step["start_ms"] for step in steps if step["step"] == PAUSE), None)
    return {
        "total_ms": run,
        "downtime_ms": None if paused is None or run is None else run - paused,
        "steps": steps,
        "devices": _devices(source, target),
        "blackout": None if pause is None else blackout_of(steps, source.get("stopped_ms")),
        "clock": None if offset is None else offset.as_json(),
    }


def offset_between(source: Json, target: Json) -> Offset | None:
    """None if nothing tells it, or no two clocks fit what was noted."""
    with suppress(ValueError):
        return Offset.between(exchanges_in(source), exchanges_in(target))
    return None


def blackout_of(steps: Sequence[Json], stopped_ms: float | None) -> Json | None:
    """How long the guest was away, and for what; None if it was not seen to stop, or to go on.

    `stopped_ms` is the end of its last step on the source.
    """
    went_on_ms = _end_of(steps, "target", FIRST_STEP)
    if stopped_ms is None or went_on_ms is None:
        return None
    parts, at_ms = [], stopped_ms
    for name, end_ms in (*_ends(steps), (FIRST_STEP, went_on_ms)):
        end_ms = min(max(end_ms, at_ms), went_on_ms)  # what was done ahead of its turn took the guest no time
        parts.append({"step": name, "ms": end_ms - at_ms})
        at_ms = end_ms
    return {"total_ms": went_on_ms - stopped_ms, "parts": parts}


def _ends(steps: Sequence[Json]) -> Iterator[tuple[str, float]]:
    paused = next(step for step in steps if step["side"] == "source" and step["step"] == PAUSE)
    yield BEFORE, paused["start_ms"]
    yield PAUSE, paused["start_ms"] + paused["duration_ms"]
    for name in ON_TARGET:
        end_ms = _end_of(steps, "target", name)
        if end_ms is not None:
            yield name, end_ms


def _end_of(steps: Sequence[Json], side: str, name: str) -> float | None:
    step = next((step for step in reversed(steps) if step["side"] == side and step["step"] == name), None)
    return None if step is None else float(step["start_ms"] + step["duration_ms"])


def _moved(steps: Sequence[Json], shift_ms: float) -> list[Json]:
    return [{**step, "start_ms": step["start_ms"] + shift_ms} for step in steps]


def _went_on(steps: Sequence[Json], went_on: WentOn, moved_ns: int) -> Iterator[Json]:
    """Both from when the machine was let go: the source sends nothing since the pause."""
    run = next((step for step in steps if step["side"] == "target" and step["step"] == "run"), None)
    if run is None:
        return
    began_ms = run["start_ms"] + run["duration_ms"]
    frames_ms = [(at_ns - moved_ns) / NS_PER_MS for at_ns in went_on.frames_ns]
    first = bisect_left(frames_ms, run["start_ms"])
    ends_ms = {FIRST_STEP: (went_on.step_ns - moved_ns) / NS_PER_MS}
    if first < len(frames_ms):
        ends_ms[FIRST_FRAME] = frames_ms[first]
    for name, end_ms in ends_ms.items():
        yield {"side": "target", "step": name, "start_ms": began_ms, "duration_ms": max(end_ms - began_ms, 0.0)}


def _devices(source: Json, target: Json | None) -> Json:
    """How long each device took: to be exported on the source, to be read and imported on the target."""
    exported = source.get("devices", {})
    imported = {} if target is None else target.get("devices", {})
    return {
        device: {"export_ms": exported.get(device), "import_ms": imported.get(device)}
        for device in {**exported, **imported}
    }
