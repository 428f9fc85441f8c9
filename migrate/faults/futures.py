"""What is known already is not run again: a world in a state that has been seen before has the future that was seen.

A world is a function of what it is (`migrate.simulation.fingerprint`), and of what is still to strike it.  So where
every task waits, as an attempt is about to begin or all is well again, a run looks whether one has been there before
it from which nothing struck any more.  If nothing will strike this one either, the rest is known: it ends here, and
what comes of it is what was published so far, and what the other one published from there on.

Only what violated nothing is remembered.  And a fixed share of all plans is run once more, to the end, and held against
what was found so (`Foresight.checked`).
"""

from collections.abc import Mapping
from typing import Final

import attrs

from migrate.faults.explore import Experiment, Tried, tried_of
from migrate.faults.injection import Injector, Key
from migrate.faults.plan import Plan, Replay
from migrate.faults.resuming import Begun, Image, Resumed, way_to
from migrate.simulation.audits import Violation
from migrate.simulation.fingerprint import fingerprint
from migrate.simulation.hooks import Hooks
from migrate.simulation.machines import LightMachines
from migrate.simulation.telling import Incomparable
from migrate.simulation.world import STEPS_MAX, Result, World

FUTURES_MAX: Final = 1 << 15
LOOKS: Final = 2
"""How often a run looks after each fault: who is in doubt asks for long, and each time things stand otherwise."""
CHECKED_OF: Final = 128
SPREAD: Final = 37
"""Between pieces of the work; has no divisor in common with the above."""
SAME_FUTURE: Final = "same state, same future"


@attrs.frozen(kw_only=True)
class Future:
    """What came after a state from which nothing struck any more: who had the machine, what was published from there.

    `passing` says how often what passed until all was well, if somebody counted: all that a fault can wait for.
    """

    owner: str
    published: tuple[str, ...]
    reasons: tuple[str, ...]
    steps: int
    passing: Mapping[Key, int] | None


@attrs.frozen(kw_only=True)
class Visit:
    """A run was in `state` after so many faults, with so much published, so many steps taken, and that counted."""

    state: bytes
    is_calm: bool
    is_concluded: bool
    fired: int
    published: int
    reasons: int
    steps: int
    counts: Mapping[Key, int]
    image: Image | None = attrs.field(default=None, eq=False, repr=False)

    def before(self, rest: Future) -> Future:
        """What came after it, of a run whose whole future is `rest`."""
        passing = None
        if rest.passing is not None:
            passing = {key: count - self.counts.get(key, 0) for key, count in rest.passing.items()}
        return Future(
            owner=rest.owner,
            published=rest.published[self.published :],
            reasons=rest.reasons[self.reasons :],
            steps=rest.steps - self.steps,
            passing=passing,
        )

    def then(self, future: Future, published: tuple[str, ...], reasons: tuple[str, ...]) -> Future:
        """The whole of a run that published this until here, where `future` was known."""
        passing = None
        if future.passing is not None:
            keys = {**self.counts, **future.passing}
            passing = {key: self.counts.get(key, 0) + future.passing.get(key, 0) for key in keys}
        return Future(
            owner=future.owner,
            published=published[: self.published] + future.published,
            reasons=reasons[: self.reasons] + future.reasons,
            steps=self.steps + future.steps,
            passing=passing,
        )


class Known(Exception):
    """The rest of this run is known."""

    def __init__(self, whole: Future) -> None:
        super().__init__()
        self.whole = whole


def visit_of(world: World, injector: Injector) -> Visit | None:
    """Where a run is, if that can be told."""
    try:
        state = fingerprint(world, injector.residue())
    except Incomparable:
        return None
    return Visit(
        state=state,
        is_calm=world.is_calm,
        is_concluded=world.is_concluded,
        fired=len(injector.fired),
        published=len(world.audits.published),
        reasons=len(world.audits.reasons),
        steps=world.scheduler.steps,
        counts=injector.counted(),
    )


@attrs.define(kw_only=True)
class Foresight:
    """Runs plans of an experiment as far as is needed to know what comes of them.

    With `counts` it knows of faults that will not strike any more, too, which costs every run a little.  `runs` counts
    the worlds that were begun for that, whether their end was known before or not; `checks` those that were run whole
    to be held against what was found.
    """

    experiment: Experiment
    counts: bool = False
    runs: int = 0
    checks: int = 0
    _since: int = 0
    _futures: dict[bytes, Future] = attrs.field(factory=dict)
    _undisturbed: dict[Plan, Future | None] = attrs.field(factory=dict)
    _images: dict[bytes, Image | None] = attrs.field(factory=dict)
    _ways: dict[bytes, int | None] = attrs.field(factory=dict)

    def begin(self, number: int) -> None:
        """A piece of the work: which of its plans are checked follows from its `number`, and in time it is each."""
        self._since = number * SPREAD % CHECKED_OF

    def run(self, plan: Plan, begun: Begun | None = None) -> Tried:
        """What `Experiment.run` gives for it, but for what it would have noted.

        With what has `begun`, the run may go on from there, and all of its faults but the last have struck before.
        """
        if not isinstance(self.experiment.foundry, LightMachines):
            self.runs += 1
            return self.experiment.run(plan)
        injector = self._resumed(plan, begun) or Injector(plan, counts_all=self.counts)
        if self.counts and not injector.waits_for_a_time():
            undisturbed = self._nothing_strikes(plan.seed)
            if undisturbed is not None and not injector.could_strike(undisturbed.passing or {}):
                return self.checked(tried_of(plan, injector, undisturbed))
        return self.checked(self._run(plan, injector))

    def visited(self, plan: Plan) -> tuple[Tried, tuple[Visit, ...]]:
        """Run it to its end, and note what passes after its last fault, and where it rests then until all is well."""
        self.runs += 1
        visits: list[Visit] = []
        injector = Injector(plan, passed=[])

        def rest(world: World) -> None:
            if len(injector.fired) == len(plan.faults) and not world.is_calm and not world.audits.violations:
                visit = visit_of(world, injector)
                if visit is not None:
                    visits.append(attrs.evolve(visit, image=self._image_of(visit, world, injector)))

        injector.on_rest = rest
        with self._world(injector) as world:
            result = world.run()
        return tried_of(plan, injector, result, result.violations), tuple(visits)

    def _world(self, hooks: Hooks) -> World:
        return self.experiment.world(hooks, once_more=True)

    def _image_of(self, visit: Visit, world: World, injector: Injector) -> Image | None:
        """One for each state."""
        if visit.state not in self._images:
            self._images[visit.state] = Image.of(world, injector, visit.state)
        return self._images[visit.state]

    def _resumed(self, plan: Plan, begun: Begun | None) -> Injector | None:
        """What lets a world begin there, if one can; but what is replayed was said before."""
        if begun is None or isinstance(plan.faults[-1].do, Replay):
            return None
        image = begun.image
        if image.state not in self._ways:
            self._ways[image.state] = way_to(image, self._world)
        failed = self._ways[image.state]
        return None if failed is None else Resumed(plan, begun=begun, failed=failed)

    def checked(self, tried: Tried) -> Tried:
        """The same; but a fixed share of plans is run once more, whole, and if that is another, it is told so."""
        self._since += 1
        if self._since % CHECKED_OF:
            return tried
        self.checks += 1
        whole = self.experiment.run(tried.plan)
        if whole.came == tried.came:
            return tried
        wrong = Violation(SAME_FUTURE, f"what was taken for known is another: {tried.outcome}")
        return attrs.evolve(whole, violations=(*whole.violations, wrong))

    def _nothing_strikes(self, seed: int) -> Future | None:
        """What comes of a migration that nothing disturbs, with all that passes; None if it violates something."""
        plan = self.experiment.undisturbed(seed)
        if plan not in self._undisturbed:
            injector = Injector(plan, counts_all=True)
            with self.experiment.world(injector, once_more=True) as world:
                result = world.run()
            self._undisturbed[plan] = None if result.violations else _whole(result, injector.counted())
        return self._undisturbed[plan]

    def _run(self, plan: Plan, injector: Injector) -> Tried:
        """Until its end, or until that is known."""
        self.runs += 1
        visits: list[Visit] = []
        injector.on_rest = lambda world: self._look(world, injector, visits)
        with self._world(injector) as world:
            try:
                result = world.run()
            except Known as known:
                self._learn(visits, known.whole, injector)
                return tried_of(plan, injector, known.whole)
        if not result.violations:
            self._learn(visits, _whole(result, injector.counted() if self.counts else None), injector)
        return tried_of(plan, injector, result, result.violations)

    def _look(self, world: World, injector: Injector, visits: list[Visit]) -> None:
        """Note where the run is, or end it if the rest is known.  Raises Known."""
        if not self._may_be_known(world, injector, visits):
            return
        visit = visit_of(world, injector)
        if visit is None:
            return
        future = self._futures.get(visit.state)
        if future is None or visit.steps + future.steps >= STEPS_MAX or _strikes_yet(world, injector, future.passing):
            visits.append(visit)
            return
        raise Known(visit.then(future, tuple(world.audits.published), tuple(world.audits.reasons)))

    def _may_be_known(self, world: World, injector: Injector, visits: list[Visit]) -> bool:
        """Whether it is worth while to look.  Who waits for a time is alone with it: its state is like no other."""
        fired, is_calm = len(injector.fired), world.is_calm
        if world.audits.violations:
            return False
        if not is_calm:
            waits = fired < len(injector.plan.faults)
            if not fired or (waits and not self.counts) or injector.waits_for_a_time():
                return False
        if world.is_concluded:
            return not any(visit.is_concluded for visit in visits)
        return sum((visit.fired, visit.is_calm) == (fired, is_calm) for visit in visits) < LOOKS

    def _learn(self, visits: list[Visit], whole: Future, injector: Injector) -> None:
        if len(self._futures) > FUTURES_MAX:
            self._futures.clear()
        for visit in visits:
            if visit.fired == len(injector.fired):
                self._futures[visit.state] = visit.before(whole)


def _strikes_yet(world: World, injector: Injector, passing: Mapping[Key, int] | None) -> bool:
    """Whether a fault may still strike this run, if so much is going to pass: for all that is known, if that is not."""
    if world.is_calm or len(injector.fired) == len(injector.plan.faults):
        return False
    return passing is None or injector.could_strike(passing)


def _whole(result: Result, passing: Mapping[Key, int] | None) -> Future:
    return Future(
        owner=result.owner,
        published=result.published,
        reasons=result.reasons,
        steps=result.steps,
        passing=passing,
    )
