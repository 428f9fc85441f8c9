"""A campaign: very many plans, over all cores, that can be stopped and gone on with.

The work is cut into chunks in a fixed order: some single plans, some pairs with all that are alike, or some seeds.
Each chunk is tried in one go by some process, and results are taken in the order of the chunks, so what has been done
is a number, which is written into the campaign's file now and then, with the counts and the violations so far.
"""

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from migrate.faults.explore import Experiment, Tried, first_faults, random_plan, shrink, single_plans
from migrate.faults.futures import Foresight
from migrate.faults.pairs import Pair, alike, try_alike
from migrate.faults.plan import Plan
from migrate.faults.tally import Tally
from migrate.faults.toml import read_plan, write_plan
from migrate.simulation.remembering import remembering

CHUNK_PLANS: Final = 100
CHUNK_ALIKE: Final = 25
IN_FLIGHT: Final = 4
"""Chunks for each worker that are asked for ahead."""
SHRUNK_MAX: Final = 20
"""Violations that are made smaller; of the others, the plan as it was is kept."""


class CampaignError(ValueError):
    """A campaign file that is not this campaign's, or none at all."""


class Kind(StrEnum):
    SINGLES = "singles"
    PAIRS = "pairs"
    RANDOM = "random"


@attrs.frozen(kw_only=True)
class Order:
    """What is to be tried; of a random campaign from `seed` on, `random` plans.

    `fenced` and `streams` are those of the experiment; with several connections, of other campaigns the seed as well.
    """

    kind: Kind
    seed: int = 0
    random: int = 0
    fenced: bool = False
    streams: int = 1


@attrs.frozen(kw_only=True)
class Found:
    """A violation, and the smallest plan that was found to bring it about."""

    plan: Plan
    check: str
    message: str

    def as_json(self) -> dict[str, Any]:
        return {"plan": write_plan(self.plan), "check": self.check, "message": self.message}


@attrs.frozen(kw_only=True)
class Chunk:
    """What came of one piece of the work; `runs` and `checked` as of `Foresight`."""

    schedules: int
    runs: int
    checked: int
    outcomes: Counter[str]
    violating: tuple[Tried, ...]
    tally: Tally | None = None


@attrs.define(kw_only=True)
class Campaign:
    """What has been done of an order; a `tally` only if somebody wants to look at it.

    Of the schedules so many were `runs`, and of the others it is known that they come to the same; `checked` have been
    run once more, whole, and held against what was found.
    """

    order: Order
    chunks_done: int = 0
    schedules: int = 0
    runs: int = 0
    checked: int = 0
    outcomes: Counter[str] = attrs.field(factory=Counter)
    violations: list[Found] = attrs.field(factory=list)
    tally: Tally | None = None

    def keep_tally(self) -> None:
        """From here on; for a campaign of which nothing has been done yet, or which keeps one already.

        Raises:
            CampaignError: some of it has been done, and nobody knows what came of it plan by plan.
        """
        if self.tally is None and self.chunks_done:
            raise CampaignError(f"what came of its {self.schedules:,} schedules one by one was not kept")
        self.tally = self.tally or Tally(is_coarse=self.order.kind is not Kind.SINGLES)

    def add(self, chunk: Chunk) -> None:
        if self.tally is not None and chunk.tally is not None:
            self.tally.merge(chunk.tally)
        self.chunks_done += 1
        self.schedules += chunk.schedules
        self.runs += chunk.runs
        self.checked += chunk.checked
        self.outcomes.update(chunk.outcomes)

    def save(self, path: Path) -> None:
        """Whole or not at all: whoever is interrupted finds what was there before."""
        document = {
            "order": attrs.asdict(self.order),
            "chunks_done": self.chunks_done,
            "schedules": self.schedules,
            "runs": self.runs,
            "checked": self.checked,
            "outcomes": dict(sorted(self.outcomes.items())),
            "violations": [found.as_json() for found in self.violations],
            **({} if self.tally is None else {"tally": self.tally.as_json()}),
        }
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.write_text(json.dumps(document, indent=2) + "\n")
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path, order: Order) -> "Campaign":
        """What the file says of this order; a campaign not yet begun if there is no file.

        Raises:
            CampaignError: it is another order's, or no campaign file.
        """
        if not path.exists():
            return cls(order=order)
        try:
            document = json.loads(path.read_text())
            there = Order(**{**document["order"], "kind": Kind(document["order"]["kind"])})
            violations = [
                Found(plan=read_plan(found["plan"]), check=found["check"], message=found["message"])
                for found in document["violations"]
            ]
            campaign = cls(
                order=there,
                chunks_done=document["chunks_done"],
                schedules=document["schedules"],
                runs=document["runs"],
                checked=document["checked"],
                outcomes=Counter(document["outcomes"]),
                violations=violations,
                tally=Tally.from_json(document["tally"]) if "tally" in document else None,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CampaignError(f"{path} is no campaign file: {error}") from None
        if there != order:
            raise CampaignError(f"{path} holds another campaign ({there.kind}); give another file, or remove it")
        return campaign


# In a worker

_experiments: list[Experiment] = []
_lasting: Final = ExitStack()


def prepare_worker(experiment: Experiment) -> None:
    """Before the first chunk in a process: from here on pure functions remember.

    A process that was forked from one that is prepared is so, too.
    """
    if _experiments == [experiment]:
        return
    leave_worker()
    _lasting.enter_context(remembering())
    _experiments.append(experiment)
    experiment.run(Plan(faults=()))
    _lasting.enter_context(_frozen())
    _lasting.callback(gc.set_threshold, *gc.get_threshold())
    gc.set_threshold(2_000, 50, 1_000)  # what is over goes while it is still in a cache


@contextmanager
def _frozen() -> Iterator[None]:
    """Inside, what is there already is not looked at again and again.

    Where somebody has frozen that before, it lasts: nobody can undo his own part alone.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def leave_worker() -> None:
    """As if nothing had been prepared."""
    _lasting.close()
    _experiments.clear()
    _singles.cache_clear()
    _alike.cache_clear()
    _foresight.cache_clear()


@cache
def _singles() -> list[Plan]:
    return list(single_plans(_experiments[0]))


@cache
def _alike() -> list[list[Pair]]:
    return alike(_experiments[0], first_faults(_experiments[0]))


@cache
def _foresight(kind: Kind) -> Foresight:
    return Foresight(experiment=_experiments[0], counts=kind is Kind.RANDOM)


def _tried(order: Order, number: int, foresight: Foresight) -> Iterator[Tried]:
    """What came of the plans of the chunk with that number."""
    first = number * CHUNK_PLANS
    match order.kind:
        case Kind.SINGLES:
            yield from map(foresight.run, _singles()[first : first + CHUNK_PLANS])
        case Kind.PAIRS:
            for pairs in _alike()[number * CHUNK_ALIKE : (number + 1) * CHUNK_ALIKE]:
                yield from try_alike(foresight, pairs)
        case Kind.RANDOM:
            last = min(first + CHUNK_PLANS, order.random)
            yield from (foresight.run(random_plan(order.seed + index, order.streams)) for index in range(first, last))


def chunks_of(order: Order) -> int:
    match order.kind:
        case Kind.SINGLES:
            return -(-len(_singles()) // CHUNK_PLANS)
        case Kind.PAIRS:
            return -(-len(_alike()) // CHUNK_ALIKE)
        case Kind.RANDOM:
            return -(-order.random // CHUNK_PLANS)


def try_chunk(order: Order, number: int, keep_tally: bool = False) -> Chunk:
    """Run in a worker that was prepared."""
    tally = Tally(is_coarse=order.kind is not Kind.SINGLES) if keep_tally else None
    outcomes: Counter[str] = Counter()
    violating = []
    schedules = 0
    foresight = _foresight(order.kind)
    foresight.begin(number)
    runs, checked = foresight.runs, foresight.checks
    for tried in _tried(order, number, foresight):
        schedules += 1
        outcomes[tried.outcome] += 1
        if tally is not None:
            tally.add(tried)
        if tried.violations:
            violating.append(tried)
    return Chunk(
        schedules=schedules,
        runs=foresight.runs - runs,
        checked=foresight.checks - checked,
        outcomes=outcomes,
        violating=tuple(violating),
        tally=tally,
    )


# In charge


@contextmanager
def workers(experiment: Experiment, number: int) -> Iterator[Executor]:
    """Processes that are ready to try chunks; this one is prepared as well, until the block is left."""
    prepare_worker(experiment)
    try:
        with ProcessPoolExecutor(number, initializer=prepare_worker, initargs=(experiment,)) as executor:
            try:
                yield executor
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        leave_worker()


class Submits(Protocol):
    """What a campaign needs of a concurrent.futures.Executor."""

    def submit(self, function: Callable[..., Chunk], /, *arguments: Any) -> "Future[Chunk]": ...


def carry_on(
    campaign: Campaign,
    experiment: Experiment,
    executor: Submits,
    *,
    ahead: int,
    after_chunk: Callable[[Campaign, int], None],
) -> None:
    """Do what is left of the campaign; `after_chunk` is told after each chunk how many there are in all."""
    total = chunks_of(campaign.order)
    numbers = iter(range(campaign.chunks_done, total))

    def ask(count: int) -> list[Future[Chunk]]:
        keep_tally = campaign.tally is not None
        return [executor.submit(try_chunk, campaign.order, number, keep_tally) for number in islice(numbers, count)]

    waiting = ask(ahead * IN_FLIGHT)
    while waiting:
        chunk = waiting.pop(0).result()
        waiting += ask(1)
        campaign.add(chunk)
        for tried in chunk.violating:
            campaign.violations += _found(tried, experiment, smaller=len(campaign.violations) < SHRUNK_MAX)
        after_chunk(campaign, total)


def _found(tried: Tried, experiment: Experiment, *, smaller: bool) -> Iterator[Found]:
    """One for each check that was violated, with the smallest plan for it."""
    by_check = {violation.check: violation for violation in reversed(tried.violations)}
    for check, violation in by_check.items():

        def violates(plan: Plan, check: str = check) -> bool:
            return any(found.check == check for found in experiment.run(plan).violations)

        plan = shrink(tried.plan, violates) if smaller else tried.plan
        yield Found(plan=plan, check=check, message=violation.message)
