"""All pairs, and which of them come to the same: where two first faults lead to one state, a second one does the same.

Each first fault is run once by itself, and where it rests afterwards is noted (`migrate.faults.futures`).  A second
fault strikes at something that passes after the last of those rests before it.  What happens from there on follows from
the state there, what has yet to pass, and what is done then; so pairs in which these are equal are alike from there on,
and one of them is run for all.  What the others come to is what their first fault had published until there, and what
that one published from there on.
"""

from collections.abc import Iterable, Iterator

import attrs

from migrate.faults.explore import Experiment, Tried, seconds_after
from migrate.faults.futures import Foresight, Visit
from migrate.faults.injection import key_of
from migrate.faults.plan import Fault, Plan, Replay
from migrate.faults.resuming import Begun


@attrs.frozen(kw_only=True)
class First:
    """A first fault by itself: what came of it, and where the run rested after it, until all was well again."""

    tried: Tried
    visits: tuple[Visit, ...]

    def last_before(self, second: Fault) -> Visit | None:
        """The last rest before what `second` waits for passes."""
        key, number = key_of(second.when)
        return next((visit for visit in reversed(self.visits) if visit.counts.get(key, 0) < number), None)


@attrs.frozen(kw_only=True)
class Pair:
    first: First
    second: Fault
    rest: Visit | None

    @property
    def plan(self) -> Plan:
        first = self.first.tried.plan
        return attrs.evolve(first, faults=(*first.faults, self.second))

    @property
    def likeness(self) -> object:
        """Equal for those that are alike from their rest on; None for one that is like no other."""
        if self.rest is None:
            return None
        key, number = key_of(self.second.when)
        replayed = None
        if isinstance(self.second.do, Replay):
            replayed = self.first.tried.said_before[key, number]
        return self.rest.state, key, number - self.rest.counts.get(key, 0), self.second.do, replayed

    @property
    def begun(self) -> Begun | None:
        """What has been of this one until its rest, if a run can begin there."""
        rest, tried = self.rest, self.first.tried
        if rest is None or rest.image is None:
            return None
        return Begun(
            image=rest.image,
            steps=rest.steps,
            counts=rest.counts,
            fired=tried.plan.faults,
            published=tried.published[: rest.published],
            reasons=tried.reasons[: rest.reasons],
        )

    def as_other(self, other: "Pair", came: Tried) -> Tried:
        """What comes of this one, which is alike, if this came of the other."""
        assert self.rest is not None, "it is alike"
        assert other.rest is not None, "it is alike"
        mine = self.first.tried
        return attrs.evolve(
            came,
            plan=self.plan,
            published=mine.published[: self.rest.published] + came.published[other.rest.published :],
            reasons=mine.reasons[: self.rest.reasons] + came.reasons[other.rest.reasons :],
        )


def alike(experiment: Experiment, firsts: Iterable[Fault]) -> list[list[Pair]]:
    """All pairs that begin with these faults, those that are alike together; in a fixed order."""
    foresight = Foresight(experiment=experiment)
    found: dict[object, list[Pair]] = {}
    for fault in firsts:
        tried, visits = foresight.visited(Plan(faults=(fault,), seed=experiment.seed))
        first = First(tried=tried, visits=visits)
        for second in seconds_after(first.tried):
            pair = Pair(first=first, second=second, rest=first.last_before(second))
            likeness = pair.likeness
            found.setdefault(object() if likeness is None else likeness, []).append(pair)
    return list(found.values())


def try_alike(foresight: Foresight, pairs: list[Pair]) -> Iterator[Tried]:
    """What comes of each of them; one is run for all, unless it violates something: then all are."""
    one = pairs[0]
    came = foresight.run(one.plan, one.begun)
    yield came
    is_for_all = not came.violations and came.fired == len(one.plan.faults)
    for pair in pairs[1:]:
        yield foresight.checked(pair.as_other(one, came)) if is_for_all else foresight.run(pair.plan, pair.begun)
