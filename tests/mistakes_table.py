"""Looks for the plan that finds each mistake, as explore would, and writes down what it found.

    python -m tests.mistakes_table [word ...]     all mistakes, or those whose name contains a word

Writes `tests/mistakes_found.json` and the table in docs/simulation.md.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import attrs
import pytest

from migrate.faults.explore import Experiment, first_faults, pairs_after, shrink, single_plans
from migrate.faults.plan import Plan, Replay, Reset
from migrate.faults.toml import read_plan, write_plan
from migrate.faults.words import fault_words
from migrate.simulation import remembering
from tests.mistakes import MISTAKES, Mistake, Where
from tests.worlds import SPEC

FOUND: Final = Path(__file__).parent / "mistakes_found.json"
PAGE: Final = Path(__file__).parents[1] / "docs" / "simulation.md"
START, END = "<!-- generated: mistakes -->", "<!-- end: mistakes -->"
UNDISTURBED: Final = Plan(faults=())
SEED: Final = 0


@attrs.frozen
class Finding:
    """After how many plans, with which checks violated; and the smallest plan that violates one of those."""

    schedules: int
    checks: tuple[str, ...]
    plan: Plan


def experiment_of(where: Where) -> Experiment:
    streams = 2 if where in (Where.STREAMS, Where.STREAM_REPLAYS) else 1
    return Experiment(spec=SPEC, fenced=where is Where.FENCED, streams=streams)


@cache
def plans_of(where: Where) -> tuple[Plan, ...]:
    """Undisturbed first, then in a fixed, mixed order: else what comes late in a migration is found late."""
    experiment = experiment_of(where)
    replays = where in (Where.REPLAYS, Where.STREAM_REPLAYS)
    plans = list(_replays(experiment) if replays else single_plans(experiment))
    Random(SEED).shuffle(plans)
    return (UNDISTURBED, *plans)


def _replays(experiment: Experiment) -> Iterator[Plan]:
    for first in first_faults(experiment):
        if isinstance(first.do, Reset):
            yield from (plan for plan in pairs_after(experiment, first) if isinstance(plan.faults[-1].do, Replay))


def find(mistake: Mistake) -> Finding | None:
    """None: it survives."""
    experiment, plans = experiment_of(mistake.where), plans_of(mistake.where)

    def checks_of(plan: Plan) -> set[str]:
        return {violation.check for violation in experiment.run(plan).violations}

    with applied(mistake):
        for number, plan in enumerate(plans, 1):
            if checks_of(plan):
                smallest = shrink(plan, lambda plan: bool(checks_of(plan)))
                return Finding(number, tuple(sorted(checks_of(smallest))), smallest)
    return None


class applied:  # noqa: N801  # a context manager, named as what it does
    """The mistake is made inside the block; nothing that was remembered without it is used, or left behind."""

    def __init__(self, mistake: Mistake) -> None:
        self.mistake = mistake
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        remembering.forget()
        self.mistake.apply(self.patch)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()
        remembering.forget()


def load() -> dict[str, Finding]:
    return {
        name: Finding(entry["schedules"], tuple(entry["checks"]), read_plan(entry["plan"]))
        for name, entry in json.loads(FOUND.read_text()).items()
    }


def save(found: dict[str, Finding]) -> None:
    document = {
        name: {"schedules": it.schedules, "checks": list(it.checks), "plan": write_plan(it.plan)}
        for name, it in found.items()
    }
    FOUND.write_text(json.dumps(document, indent=1) + "\n")


def table(found: dict[str, Finding]) -> str:
    rows = ["| mistake | schedules | found by | smallest plan |", "|---|---|---|---|"]
    for mistake in MISTAKES:
        it = found[mistake.name]
        rows.append(f"| {mistake.name} | {it.schedules} | {', '.join(it.checks)} | {in_words(it.plan)} |")
    return "\n".join([START, *rows, END])


def in_words(plan: Plan) -> str:
    return "; ".join(map(fault_words, plan.faults)) or "none"


def write_page(found: dict[str, Finding]) -> None:
    text = PAGE.read_text()
    before, after = text[: text.index(START)], text[text.index(END) + len(END) :]
    PAGE.write_text(before + table(found) + after)


def main(words: list[str]) -> int:
    found = load() if FOUND.exists() else {}
    survivors = []
    with remembering.remembering():
        for mistake in MISTAKES:
            if words and not any(word in mistake.name for word in words):
                continue
            it = find(mistake)
            if it is None:
                survivors.append(mistake.name)
                print(f"SURVIVES: {mistake.name}", flush=True)
            else:
                found[mistake.name] = it
                print(f"{it.schedules:5} {mistake.name}: {', '.join(it.checks)}: {in_words(it.plan)}", flush=True)
    found = {mistake.name: found[mistake.name] for mistake in MISTAKES if mistake.name in found}
    save(found)
    if not survivors and len(found) == len(MISTAKES):
        write_page(found)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
