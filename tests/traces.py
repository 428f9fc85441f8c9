"""The rules of the Chrome trace format, as a check that tests apply to any trace."""

from collections import Counter, defaultdict
from typing import Any

KEYS = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "i": {"name", "cat", "pid", "tid", "ts", "s"},
    "C": {"name", "pid", "ts", "args"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
}
METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index"}
METADATA["thread_sort_index"] = "sort_index"


def objections(document: Any) -> list[str]:
    """What is wrong with a trace; nothing, if Perfetto can show all of it."""
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        return ["there are no traceEvents"]
    events = document["traceEvents"]
    found = [
        f"event {number} ({event.get('ph')}) lacks {sorted(KEYS.get(event.get('ph'), {'ph'}) - set(event))}"
        for number, event in enumerate(events)
        if not KEYS.get(event.get("ph"), {"ph of the format"}) <= set(event)
    ]
    if found:
        return found
    timed = [event for event in events if event["ph"] != "M"]
    return [*_numbers(timed), *_names(events), *_nesting(timed), *_flows(timed)]


def _numbers(timed: list[dict[str, Any]]) -> list[str]:
    found = [] if [e["ts"] for e in timed] == sorted(e["ts"] for e in timed) else ["events are not in order of ts"]
    for event in timed:
        if event["ts"] < 0 or event.get("dur", 0) < 0:
            found.append(f"{event['name']} has a negative time")
        if event["ph"] == "i" and event["s"] not in "gpt":
            found.append(f"{event['name']} has scope {event['s']!r}")
        if event["ph"] == "C" and not all(isinstance(value, int | float) for value in event["args"].values()):
            found.append(f"counter {event['name']} counts no numbers")
    return found


def _names(events: list[dict[str, Any]]) -> list[str]:
    found, processes, threads = [], set(), set()
    for event in events:
        if event["ph"] != "M":
            continue
        if METADATA.get(event["name"]) not in event["args"]:
            found.append(f"metadata {event['name']} says {event['args']}")
        if event["name"] == "process_name":
            processes.add(event["pid"])
        if event["name"] == "thread_name":
            threads.add((event["pid"], event["tid"]))
    for event in events:
        if event["pid"] not in processes:
            found.append(f"{event['name']} is of process {event['pid']}, which has no name")
        if event["ph"] in "Xisf" and (event["pid"], event["tid"]) not in threads:
            found.append(f"{event['name']} is of a thread without a name")
    return found


def _slices(timed: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    of_threads = defaultdict(list)
    for event in timed:
        if event["ph"] == "X":
            of_threads[event["pid"], event["tid"]].append(event)
    return of_threads


def _nesting(timed: list[dict[str, Any]]) -> list[str]:
    """Slices of one thread enclose each other or stand apart; times are compared in whole ns."""
    found = []
    for slices in _slices(timed).values():
        enclosing: list[tuple[int, str]] = []
        for event in slices:
            start, end = round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)
            while enclosing and enclosing[-1][0] <= start:
                enclosing.pop()
            if enclosing and end > enclosing[-1][0]:
                found.append(f"{event['name']} begins within {enclosing[-1][1]} and ends after it")
            enclosing.append((end, event["name"]))
    return found


def _flows(timed: list[dict[str, Any]]) -> list[str]:
    starts = {event["id"]: event for event in timed if event["ph"] == "s"}
    ends = {event["id"]: event for event in timed if event["ph"] == "f"}
    counts = Counter((event["ph"], event["id"]) for event in timed if event["ph"] in "sf")
    found = [f"flow {key} is there {count} times" for key, count in counts.items() if count > 1]
    found += [f"flow {number} has one end" for number in starts.keys() ^ ends.keys()]
    slices = _slices(timed)
    for event in (*starts.values(), *ends.values()):
        around = slices[event["pid"], event["tid"]]
        if not any(one["ts"] <= event["ts"] <= one["ts"] + one["dur"] for one in around):
            found.append(f"flow {event['id']} touches no slice of its thread")
        if event["ph"] == "f" and event["bp"] != "e":
            found.append(f"flow {event['id']} does not bind to the slice around it")
    found += [
        f"flow {number} ends before it begins"
        for number in starts.keys() & ends.keys()
        if starts[number]["ts"] > ends[number]["ts"]
    ]
    return found
