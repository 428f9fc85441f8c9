"""A device whose state cannot be exported, or imported, the first few times (device-payloads §6).

It shows that an attempt which fails late is undone, and that the next one works.  The counts belong to the process and
outlive the machine: a retry makes a new machine on the target and must meet the next count.
"""

from collections import Counter
from typing import ClassVar

import attrs

from sim_vmm.devices.base import Arrived, Device
from sim_vmm.devices.errors import InjectedFailure
from sim_vmm.payloads import Payload, Schema, TestdevMigrationFailureV1


@attrs.define
class InjectionCounters:
    """How often each failure injector of this process, by component key, was exported and imported."""

    exports: Counter[str] = attrs.field(factory=Counter)
    imports: Counter[str] = attrs.field(factory=Counter)


class FailureInjector(Device):
    kind: ClassVar[str] = "migration_failure_injector"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((TestdevMigrationFailureV1.SCHEMA,),)

    def __init__(self, key: str, counters: InjectionCounters, *, fail_exports: int, fail_imports: int) -> None:
        super().__init__(key)
        self._counters = counters
        self._fail_exports = fail_exports
        self._fail_imports = fail_imports

    def begin_export(self) -> None:
        self._counters.exports[self.key] += 1
        nth = self._counters.exports[self.key]
        if nth <= self._fail_exports:
            raise InjectedFailure(self.key, "export", nth, self._fail_exports)

    def _payloads(self) -> tuple[Payload, ...]:
        return (TestdevMigrationFailureV1(),)

    def _take(self, arrived: Arrived) -> None:
        self._counters.imports[self.key] += 1
        nth = self._counters.imports[self.key]
        if nth <= self._fail_imports:
            raise InjectedFailure(self.key, "import", nth, self._fail_imports)
