"""State of blob backends and test devices (device-payloads §6)."""

import builtins
from typing import ClassVar

import attrs

from sim_vmm.payloads.schema import Schema


@attrs.frozen
class InMemoryBlockBackendV1:
    SCHEMA: ClassVar[Schema] = Schema("in-memory-block-backend", 1)
    bytes: builtins.bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class TestdevMigrationFailureV1:
    SCHEMA: ClassVar[Schema] = Schema("testdev-migration-failure", 1)
    __test__: ClassVar[bool] = False  # the name looks like a test class to pytest
