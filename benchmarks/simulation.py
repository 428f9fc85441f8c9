"""How many simulated migrations a second on one core, with light machines, as a campaign runs them.

The peer does what no spike could leave out: it writes and reads the CBOR of one undisturbed migration's messages, once
for each schedule, and nothing else: no engine, no guest, no clock, no audit.  We do all that, and remember the CBOR.
Single faults, and one of eight other plans, end with another migration, undisturbed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import cbor2

from benchmarks.measure import Result, compare
from migrate.cli.exploring import simulated
from migrate.faults.campaign import leave_worker, prepare_worker
from migrate.faults.explore import Experiment, first_faults, pairs_after, random_plan, single_plans
from migrate.faults.plan import Plan
from migrate.plain import make_converter
from migrate.protocol.messages import Message
from migrate.simulation.hooks import Hooks
from migrate.simulation.link import SimulatedLink
from migrate.specs.files import read_spec_file

SPEC: Final = Path(__file__).parents[1] / "examples" / "web-server.json"
PLANS: Final = 60
LIMITS: Final = {"undisturbed": 0.015, "single faults": 0.013, "pairs of faults": 0.013, "random faults": 0.015}


class _Notes(Hooks):
    """Keeps the messages that are sent, as plain data."""

    def __init__(self) -> None:
        self.plain: list[Any] = []
        self._converter = make_converter()

    def sending(self, link: SimulatedLink, message: Message, data: bytes) -> bytes:
        self.plain.append(self._converter.unstructure(message))
        return data


def results() -> Iterator[Result]:
    experiment = Experiment(spec=simulated(read_spec_file(SPEC).spec))
    notes = _Notes()
    with experiment.world(notes) as world:
        world.run()

    def write_and_read() -> None:
        for _ in range(PLANS):
            for plain in notes.plain:
                cbor2.loads(cbor2.dumps(plain))

    prepare_worker(experiment)
    try:
        for name, plans in _plans(experiment):
            yield compare(
                f"simulation, {name}, on one core",
                _all_of(experiment, plans),
                write_and_read,
                against=f"cbor2 alone, {len(notes.plain)} messages each",
                limit=LIMITS[name],
                amount=PLANS,
                unit="schedules",
                runs=7,
                clock=time.process_time,
            )
    finally:
        leave_worker()


def _plans(experiment: Experiment) -> Iterator[tuple[str, Sequence[Plan]]]:
    random = Random(0)
    yield "undisturbed", [Plan(faults=())] * PLANS
    yield "single faults", random.sample(list(single_plans(experiment)), PLANS)
    firsts = random.sample(first_faults(experiment), PLANS)
    yield (
        "pairs of faults",
        [random.choice(list(pairs_after(experiment, first)) or [Plan(faults=())]) for first in firsts],
    )
    yield "random faults", [random_plan(seed) for seed in range(PLANS)]


def _all_of(experiment: Experiment, plans: Sequence[Plan]) -> Callable[[], None]:
    def run() -> None:
        for plan in plans:
            assert not experiment.run(plan).violations, plan

    return run


if __name__ == "__main__":
    for result in results():
        print(result)
