"""The reference migration of the simulator's tests."""

from typing import Any, Final

from migrate.simulation.world import Result, World
from tests.machines import EVERY_DEVICE, make_spec

SPEC: Final = make_spec(EVERY_DEVICE, memory_mb=1)


def run_world(**options: Any) -> Result:
    with World(spec=SPEC, **options) as world:
        return world.run()
