"""Property tests draw the same examples on every run, and a busy machine fails none of them for being slow.

What the tests that kill have to tell of themselves is said at the end: how many, and how long it took to settle.
"""

import pytest
from hypothesis import settings

from tests.certificates import holders
from tests.daemons import clock, neighbourhood

__all__ = ["clock", "holders", "neighbourhood"]

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    played = [
        tuple(one)
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "kills"
        for one in value
    ]
    if played:
        times = sorted((settled_s, scenario) for _, settled_s, scenario in played)
        middle, late, (worst, scenario) = times[len(times) // 2][0], times[len(times) * 95 // 100][0], times[-1]
        terminalreporter.write_line(
            f"{sum(killed for killed, _, _ in played)} kills in {len(played)} scenarios; settled after {middle:.2f} s "
            f"at the median, {late:.2f} s at the 95th percentile, {worst:.2f} s at worst ({scenario})"
        )
