"""An exhaustive search of a small world: every state that can be reached, breadth first, and the way to each.

A world has one initial state, and each state has moves: a label in words, the state after it, and whether the move is
*fair*, which is to say that it happens by itself once nothing goes wrong any more.  Two kinds of claims are checked:

- safety: no move breaks a rule.  A move that does says which one, and the first found is on a shortest way;
- hope: from every state fair moves alone can lead to one where all is well.  For that the fair moves are walked
  backwards from all the states that are well; whatever is not met on the way is hopeless.

Worlds are finite because they bound what may go wrong.  Nothing is sampled, and nothing is left out.
"""

from array import array
from collections.abc import Iterable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import attrs

T = TypeVar("T")
State = tuple[int, ...]

HOPELESS: Final = "it can never end well any more"
TOO_MANY: Final = "more states than were asked for"


class Move(NamedTuple):
    label: str
    after: State
    is_fair: bool
    broken: str = ""
    """The rule that this move breaks."""


class World(Protocol):
    def initial(self) -> State: ...

    def moves(self, state: State) -> Iterable[Move]: ...

    def is_well(self, state: State) -> bool: ...

    def may_hope(self, state: State) -> bool:
        """Whether hope is claimed for this state at all."""


class Interned(Generic[T]):
    """Numbers for values, so that a state is a short row of small numbers."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        known = self._numbers.setdefault(value, len(self.values))
        if known == len(self.values):
            self.values.append(value)
        return known


@attrs.frozen(kw_only=True)
class Verdict:
    """`broken` is empty if every claim holds; else `trace` is a shortest way there, in words."""

    states: int
    moves: int
    broken: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = f"{self.states} states, {self.moves} moves"
        if not self.broken:
            return f"{size}: every claim holds"
        steps = "\n".join(f"  {number:2}. {label}" for number, label in enumerate(self.trace, 1))
        return f"{size}: {self.broken}, after {len(self.trace)} moves:\n{steps}"


def explore(world: World, *, hope: bool = True, states_max: int = 20_000_000) -> Verdict:
    """Check `world`, and without `hope` only for moves that break a rule."""
    search = _Search(world)
    return search.run(hope=hope, states_max=states_max)


class _Search:
    def __init__(self, world: World) -> None:
        self.world = world
        self.states: list[State] = [world.initial()]
        self.numbers: dict[State, int] = {self.states[0]: 0}
        self.parents = array("i", [-1])
        self.labels: list[str] = [""]
        self.fair_from, self.fair_to = array("i"), array("i")
        self.moves = 0

    def run(self, *, hope: bool, states_max: int) -> Verdict:
        at = 0
        while at < len(self.states):
            for move in self.world.moves(self.states[at]):
                self.moves += 1
                if move.broken:
                    return self.verdict(move.broken, at, move.label)
                there = self.number(move, at)
                if move.is_fair and hope:
                    self.fair_from.append(at)
                    self.fair_to.append(there)
            if len(self.states) > states_max:
                return self.verdict(TOO_MANY, at)
            at += 1
        hopeless = self.first_without_hope() if hope else None
        return self.verdict() if hopeless is None else self.verdict(HOPELESS, hopeless)

    def number(self, move: Move, at: int) -> int:
        there = self.numbers.setdefault(move.after, len(self.states))
        if there == len(self.states):
            self.states.append(move.after)
            self.parents.append(at)
            self.labels.append(move.label)
        return there

    def first_without_hope(self) -> int | None:
        backwards: list[list[int]] = [[] for _ in self.states]
        for before, after in zip(self.fair_from, self.fair_to, strict=True):
            backwards[after].append(before)
        has_hope = bytearray(len(self.states))
        todo = [number for number, state in enumerate(self.states) if self.world.is_well(state)]
        for number in todo:
            has_hope[number] = 1
        while todo:
            for before in backwards[todo.pop()]:
                if not has_hope[before]:
                    has_hope[before] = 1
                    todo.append(before)
        hopeless = (at for at, state in enumerate(self.states) if not has_hope[at] and self.world.may_hope(state))
        return next(hopeless, None)

    def verdict(self, broken: str = "", at: int = 0, *last: str) -> Verdict:
        trace = list(reversed(last))
        while broken and at > 0:
            trace.append(self.labels[at])
            at = self.parents[at]
        return Verdict(states=len(self.states), moves=self.moves, broken=broken, trace=tuple(reversed(trace)))
