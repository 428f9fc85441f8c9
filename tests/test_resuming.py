"""A run that begins where another has rested comes to what it would have come to; one that would not is not begun."""

from collections.abc import Iterator
from random import Random
from typing import Any

import attrs
import pytest

from migrate.faults import futures, resuming
from migrate.faults.explore import Experiment, first_faults
from migrate.faults.futures import SAME_FUTURE, Foresight
from migrate.faults.injection import Injector
from migrate.faults.pairs import Pair, alike
from migrate.faults.plan import Fault, Kill, PowerLoss, Replay, Reset
from migrate.faults.resuming import Image, Resumed, way_to
from migrate.simulation.hooks import Hooks
from migrate.simulation.remembering import remembering
from migrate.simulation.world import World
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)
KINDS = (Kill, PowerLoss, Reset)


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    with remembering():
        yield


def firsts() -> list[Fault]:
    faults = first_faults(EXPERIMENT)
    return [fault for kind in KINDS for fault in faults if isinstance(fault.do, kind)][5::40]


def begun(experiment: Experiment = EXPERIMENT) -> list[Pair]:
    """One of each likeness that has an image to begin at."""
    return [pairs[0] for pairs in alike(experiment, firsts()) if pairs[0].begun is not None]


def world_of(hooks: Hooks) -> World:
    return EXPERIMENT.world(hooks, once_more=True)


def images(pairs: list[Pair]) -> dict[bytes, Image]:
    return {pair.rest.state: pair.rest.image for pair in pairs if pair.rest is not None and pair.rest.image is not None}


def test_a_pair_that_begins_at_its_rest_comes_to_the_same() -> None:
    pairs, foresight, resumed = begun(), Foresight(experiment=EXPERIMENT), 0
    for pair in Random(3).sample(pairs, 60):
        resumed += foresight._resumed(pair.plan, pair.begun) is not None
        assert foresight.run(pair.plan, pair.begun).came == EXPERIMENT.run(pair.plan).came, pair.plan
    assert resumed > 30
    assert foresight.checks == 0


def test_it_goes_on_to_the_last_line_as_the_one_that_came_there() -> None:
    """What is traced from the rest on, of a run that began there and of one that began at the beginning."""
    compared = 0
    for pair in Random(4).sample(begun(), 25):
        assert pair.begun is not None
        resumed = Foresight(experiment=EXPERIMENT)._resumed(pair.plan, pair.begun)
        if resumed is None:
            continue
        assert isinstance(resumed, Resumed)
        ours, theirs = (_trace_from(injector, pair) for injector in (resumed, Injector(pair.plan)))
        assert ours == theirs
        assert len(ours) > 10
        compared += 1
    assert compared > 10


def _trace_from(injector: Injector, pair: Pair) -> list[str]:
    """The lines after the pair's rest."""
    assert pair.rest is not None
    assert pair.rest.image is not None
    at_ns, lines = pair.rest.image.now_ns, 0

    def rest(world: World) -> None:
        nonlocal lines
        if world.scheduler.now_ns == at_ns:
            lines = len(world.trace)

    injector.on_rest = rest
    with EXPERIMENT.world(injector, once_more=True, traced=True) as world:
        return list(world.run().trace[lines:])


def test_targets_that_have_failed_never_and_once_are_found_again() -> None:
    ways = {way_to(image, world_of) for image in images(begun()).values()}
    assert {0, 1} <= ways


CHANGES: dict[str, Any] = {
    "another time": lambda image: attrs.evolve(image, now_ns=image.now_ns + 10_000_000),
    "RAM that is another": lambda image: of_guest(image, ram=bytes(len(image.guest.ram))),
    "sets of pages that are others": lambda image: of_guest(image, sets=(1, 0, 0, 0)),
    "a guest that is in a hurry": lambda image: of_guest(image, runner={**image.guest.runner, "busy_steps": 2}),
    "another history": lambda image: attrs.evolve(image, runs=image.runs + 1),
    "a disk that is full": lambda image: attrs.evolve(
        image, nodes=(attrs.evolve(image.nodes[0], full=1), image.nodes[1])
    ),
}


def of_guest(image: Image, **changes: Any) -> Image:
    return attrs.evolve(image, guest=attrs.evolve(image.guest, **changes))


@pytest.mark.parametrize("name", CHANGES)
def test_where_a_world_would_not_be_the_same_none_is_begun(name: str) -> None:
    pair = next(pair for pair in begun() if Foresight(experiment=EXPERIMENT)._resumed(pair.plan, pair.begun))
    assert pair.begun is not None
    assert way_to(pair.begun.image, world_of) is not None
    assert way_to(CHANGES[name](pair.begun.image), world_of) is None


def test_what_is_replayed_was_said_before_so_such_a_run_begins_at_the_beginning() -> None:
    pair = next(pair for pairs in alike(EXPERIMENT, firsts()) for pair in pairs if isinstance(pair.second.do, Replay))
    assert Foresight(experiment=EXPERIMENT)._resumed(pair.plan, pair.begun) is None


def test_with_a_fence_every_run_begins_at_the_beginning() -> None:
    fenced = Experiment(spec=SPEC, fenced=True)
    assert all(pair.begun is None for pairs in alike(fenced, first_faults(fenced)[5::90]) for pair in pairs)


def test_if_it_were_another_world_the_check_would_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that nobody has looked for: the target has failed more often, and has fewer attempts left."""
    pairs = [pair for pair in begun() if isinstance(pair.second.do, Reset)]
    monkeypatch.setattr(futures, "way_to", lambda image, world_of: len(resuming.FAILED_FOR_NS) - 1)
    monkeypatch.setattr(futures, "CHECKED_OF", 1)
    foresight = Foresight(experiment=EXPERIMENT)
    found = [foresight.run(pair.plan, pair.begun).violations for pair in pairs[:40]]
    assert SAME_FUTURE in {violation.check for violations in found for violation in violations}
