"""`migrate explore` and `migrate replay`: what they say, what they leave behind, and their exit codes."""

from pathlib import Path
from typing import Final

import pytest

from migrate.faults.plan import AtMessage, Fault, Kill, Plan
from migrate.faults.toml import read_plan, write_plan
from migrate.protocol.messages import Role
from tests.commands import EXAMPLE, call
from tests.mistakes import MISTAKES

Capsys = pytest.CaptureFixture[str]

KILLED: Final = Plan(faults=(Fault(when=AtMessage(message="Commit", side=Role.SOURCE), do=Kill(side=Role.SOURCE)),))


def test_random_plans_are_explored_and_the_campaign_is_kept(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "campaign.json"
    arguments = ("explore", EXAMPLE, "--random", "20", "--workers", "1", "--campaign", file, "--json")
    said = call(capsys, *arguments, "--out", tmp_path / "out")
    assert said.code == 0
    assert set(said.document) == {"schedules", "runs", "checked", "per_second", "outcomes", "violations"}
    assert (said.document["schedules"], said.document["violations"]) == (20, [])
    assert sum(said.document["outcomes"].values()) == 20
    assert "1 of 1 parts, 20 schedules" in said.complaint
    assert not (tmp_path / "out").exists()
    again = call(capsys, *arguments)
    assert (again.code, again.document["schedules"], again.document["per_second"]) == (0, 20, 0.0)


def test_a_violation_is_left_as_a_plan_that_replays_it(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == "the console is not taken over")
    mistake.apply(monkeypatch)  # the workers are made of this process
    said = call(capsys, "explore", EXAMPLE, "--random", "2", "--workers", "1", "--out", tmp_path / "out", "--json")
    assert said.code == 3
    violations = said.document["violations"]
    assert {violation["check"] for violation in violations} == {"ledger whole", "nothing lost"}
    assert all(set(violation) == {"plan", "check", "message"} for violation in violations)
    plan = Path(violations[0]["plan"])
    assert read_plan(plan.read_text()).faults == ()
    replayed = call(capsys, "replay", plan, "--json")
    assert replayed.code == 3
    assert replayed.document["violations"][0]["check"] == "nothing lost"
    monkeypatch.undo()
    assert call(capsys, "replay", plan, "--json").code == 0


def test_a_replay_tells_everything_that_happens(capsys: Capsys, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(write_plan(KILLED))
    said = call(capsys, "replay", plan, "--spec", EXAMPLE)
    assert said.code == 0
    assert "rack-3 is killed" in said.out
    assert "target has it; target: migrated; 1 of 1 faults struck" in said.out
    assert all(len(line) <= 80 for line in said.out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("explore", EXAMPLE, "--faults", "3"), "--faults is 3; it must be 1 or 2, or say --random for more at once"),
        (("explore", EXAMPLE, "--random", "-1"), "--random is -1; it must be 0 or more"),
        (("explore", EXAMPLE, "--workers", "0"), "--workers is 0; there must be at least one"),
        (("explore", EXAMPLE, "--campaign", "README.md"), "README.md is no campaign file: "),
        (("replay", "no.toml"), "no.toml: cannot be read: No such file or directory"),
        (("replay", "README.md"), "README.md: this is no TOML: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys: Capsys, arguments: tuple[str, ...], complaint: str) -> None:
    said = call(capsys, *arguments)
    assert said.code == 2
    assert said.complaint.startswith(f"migrate: {complaint}")


def test_a_plan_without_a_spec_asks_for_one(capsys: Capsys, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(write_plan(KILLED))
    said = call(capsys, "replay", plan)
    assert said.code == 2
    assert said.complaint.endswith("names no spec; say --spec FILE")
