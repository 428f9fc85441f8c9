"""Every known mistake is found by the plan that is written down for it, and that plan is stood without the mistake."""

import pytest

from migrate.simulation.remembering import remembering
from tests.mistakes import MISTAKES, Mistake
from tests.mistakes_table import END, PAGE, START, applied, experiment_of, find, load, table

FOUND = load()
SOON = [mistake for mistake in MISTAKES if FOUND[mistake.name].schedules <= 3]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_found_by_its_plan(mistake: Mistake) -> None:
    experiment, found = experiment_of(mistake.where), FOUND[mistake.name]
    with applied(mistake):
        assert {violation.check for violation in experiment.run(found.plan).violations} == set(found.checks)
    assert experiment.run(found.plan).violations == ()


def test_a_search_finds_what_is_written_down() -> None:
    assert len(SOON) > 5
    with remembering():
        for mistake in SOON:
            assert find(mistake) == FOUND[mistake.name], mistake.name


def test_the_page_holds_the_table() -> None:
    page = PAGE.read_text()
    assert page[page.index(START) : page.index(END) + len(END)] == table(FOUND), "run python -m tests.mistakes_table"
