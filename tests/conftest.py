"""Property tests draw the same examples on every run, and a busy machine fails none of them for being slow.

What some tests have to tell of themselves is said at the end: how many kills, and how long it took to settle; how many
hostile inputs.
"""

import gc
from collections import Counter

import pytest
from hypothesis import settings

from tests.certificates import holders
from tests.daemons import clock, neighbourhood

__all__ = ["clock", "holders", "neighbourhood"]

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What thousands of collected tests are made of stays to the end: no test that collects is to look at it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [
        prop
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for prop in report.user_properties
    ]
    played = [tuple(one) for name, value in told if name == "kills" for one in value]
    if played:
        times = sorted((settled_s, scenario) for _, settled_s, scenario in played)
        middle, late, (worst, scenario) = times[len(times) // 2][0], times[len(times) * 95 // 100][0], times[-1]
        terminalreporter.write_line(
            f"{sum(killed for killed, _, _ in played)} kills in {len(played)} scenarios; settled after {middle:.2f} s "
            f"at the median, {late:.2f} s at the 95th percentile, {worst:.2f} s at worst ({scenario})"
        )
    fuzzed: Counter[str] = Counter()
    for name, value in told:
        if name == "fuzzed":
            fuzzed[value[0]] += value[1]
    if fuzzed:
        by_target = ", ".join(f"{target} {count:,}" for target, count in fuzzed.items())
        terminalreporter.write_line(f"{fuzzed.total():,} hostile inputs, none a finding: {by_target}")
