"""How many simulated migrations a second on one core, with light machines, as a campaign runs them.

The peer does what no spike could leave out: it writes and reads the CBOR of one undisturbed migration's messages, once
for each schedule, and nothing else: no engine, no guest, no clock, no audit.  We do all that, and remember the CBOR.
Single faults, and one of eight other plans, end with another migration, undisturbed.

`python -m benchmarks.simulation campaigns` tries all that `make explore` does instead, chunk by chunk on one core, and
prints what each campaign took of it, and all together; that takes minutes.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from random import Random
from typing import Any, Final

import attrs
import cbor2

from benchmarks.measure import Result, compare
from migrate.cli.exploring import simulated
from migrate.faults.campaign import Campaign, Kind, Order, chunks_of, leave_worker, prepare_worker, try_chunk
from migrate.faults.explore import Experiment, Tried, first_faults, random_plan, single_plans
from migrate.faults.futures import Foresight
from migrate.faults.pairs import alike, try_alike
from migrate.faults.plan import Plan
from migrate.plain import make_converter
from migrate.protocol.messages import Message
from migrate.simulation.hooks import Hooks
from migrate.simulation.link import SimulatedLink
from migrate.specs.files import read_spec_file

SPEC: Final = Path(__file__).parents[1] / "examples" / "web-server.json"
AT_A_TIME: Final = 60
TIMES: Final = 7
RANDOM_PLANS: Final = 20_000
BEFORE: Final = 600
"""Pieces of the work that are done before it is timed."""
ENOUGH: Final = BEFORE + (1 + TIMES) * AT_A_TIME
LIMITS: Final = {"undisturbed": 0.015, "single faults": 0.02, "pairs of faults": 0.08, "random faults": 0.015}


@attrs.frozen(kw_only=True)
class Rates(Result):
    """Of schedules, and of those that were run for them."""

    runs_each: float

    def __str__(self) -> str:
        runs = self.runs_each * self.amount / self.ours_s
        return f"{super().__str__()}\n  {runs:,.4g} runs/s: of the schedules {self.runs_each:.1%} are run"


@attrs.frozen
class Work:
    """Pieces of a campaign, how one is tried, and for how many schedules it stands on the average over all pieces."""

    name: str
    pieces: Iterator[Any]
    attempt: Callable[[Any], Iterable[Tried]]
    runs: Callable[[], int]
    schedules_each: float = 1.0

    def go_on(self, count: int) -> None:
        """Try the next pieces."""
        for _ in range(count):
            for tried in self.attempt(next(self.pieces)):
                assert not tried.violations, tried.plan


class _Notes(Hooks):
    """Keeps the messages that are sent, as plain data."""

    def __init__(self) -> None:
        self.plain: list[Any] = []
        self._converter = make_converter()

    def sending(self, link: SimulatedLink, message: Message, data: bytes) -> bytes:
        self.plain.append(self._converter.unstructure(message))
        return data


def results() -> Iterator[Rates]:
    experiment = Experiment(spec=simulated(read_spec_file(SPEC).spec))
    notes = _Notes()
    with experiment.world(notes) as world:
        world.run()

    def write_and_read(schedules: int) -> None:
        for _ in range(schedules):
            for plain in notes.plain:
                cbor2.loads(cbor2.dumps(plain))

    prepare_worker(experiment)
    try:
        for work in _works(experiment):
            work.go_on(BEFORE)
            schedules, runs_before = round(AT_A_TIME * work.schedules_each), work.runs()
            result = compare(
                f"simulation, {work.name}, on one core, as a campaign tries them",
                lambda work=work: work.go_on(AT_A_TIME),  # type: ignore[misc]
                lambda schedules=schedules: write_and_read(schedules),  # type: ignore[misc]
                against=f"cbor2 alone, {len(notes.plain)} messages each",
                limit=LIMITS[work.name],
                amount=schedules,
                unit="schedules",
                runs=TIMES,
                clock=time.process_time,
            )
            runs_each = (work.runs() - runs_before) / ((1 + TIMES) * schedules)
            yield Rates(**attrs.asdict(result), runs_each=runs_each)
    finally:
        leave_worker()


def _works(experiment: Experiment) -> Iterator[Work]:
    begun = [0]

    def whole(plan: Plan) -> list[Tried]:
        begun[0] += 1
        return [experiment.run(plan)]

    yield Work("undisturbed", repeat(Plan(faults=())), whole, lambda: begun[0])
    plain = Foresight(experiment=experiment)
    singles = Random(0).sample(list(single_plans(experiment)), ENOUGH)
    yield Work("single faults", iter(singles), lambda plan: [plain.run(plan)], lambda: plain.runs)
    found = alike(experiment, first_faults(experiment))
    mixed, each = Random(0).sample(found, ENOUGH), sum(map(len, found)) / len(found)
    pairs = Foresight(experiment=experiment)
    yield Work("pairs of faults", iter(mixed), lambda alike: try_alike(pairs, alike), lambda: pairs.runs, each)
    counting = Foresight(experiment=experiment, counts=True)
    random = map(random_plan, range(ENOUGH))
    yield Work("random faults", random, lambda plan: [counting.run(plan)], lambda: counting.runs)


def campaigns() -> Iterator[str]:
    """What whole campaigns take of one core's time, including what is done once for each."""
    schedules, taken_s = 0, 0.0
    prepare_worker(Experiment(spec=simulated(read_spec_file(SPEC).spec)))
    try:
        for kind in Kind:
            campaign = Campaign(order=Order(kind=kind, random=RANDOM_PLANS))
            began_s = time.process_time()
            for number in range(chunks_of(campaign.order)):
                chunk = try_chunk(campaign.order, number)
                assert not chunk.violating, chunk.violating[0].plan
                campaign.add(chunk)
            took_s = time.process_time() - began_s
            schedules, taken_s = schedules + campaign.schedules, taken_s + took_s
            yield (
                f"{kind.value}: {campaign.schedules:,} schedules, {campaign.runs:,} runs, "
                f"{campaign.checked:,} checked, in {took_s:.1f} s: {campaign.schedules / took_s:,.0f} schedules/s"
            )
    finally:
        leave_worker()
    yield f"all: {schedules:,} schedules in {taken_s:.1f} s: {schedules / taken_s:,.0f} schedules/s"


if __name__ == "__main__":
    for line in campaigns() if sys.argv[1:] == ["campaigns"] else results():
        print(line, flush=True)
