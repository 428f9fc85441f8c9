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


def test_several_connections_are_explored_and_a_plan_of_them_is_for_so_many(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "campaign.json"
    arguments = ("explore", EXAMPLE, "--random", "20", "--workers", "1", "--campaign", file, "--json")
    said = call(capsys, *arguments, "--streams", "2")
    assert (said.code, said.document["schedules"], said.document["violations"]) == (0, 20, [])
    other = call(capsys, *arguments, "--streams", "3")
    assert (other.code, other.complaint) == (
        2,
        f"migrate: {file} holds another campaign (random); give another file, or remove it",
    )
    mistake = next(mistake for mistake in MISTAKES if mistake.name == "streams stay open when all is over")
    mistake.apply(monkeypatch)
    out = tmp_path / "out"
    said = call(capsys, "explore", EXAMPLE, "--random", "2", "--streams", "2", "--workers", "1", "--out", out, "--json")
    assert (said.code, {violation["check"] for violation in said.document["violations"]}) == (3, {"at rest"})
    plan = Path(said.document["violations"][0]["plan"])
    assert read_plan(plan.read_text()).streams == 2
    assert call(capsys, "replay", plan, "--json").document["violations"][0]["check"] == "at rest"
    monkeypatch.undo()
    assert call(capsys, "replay", plan, "--json").code == 0


def test_of_several_connections_the_seed_decides_which_order_single_faults_meet(capsys: Capsys, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    traces = []
    for seed in (0, 1, 0):
        plan.write_text(write_plan(Plan(faults=(), seed=seed)))
        said = call(capsys, "replay", plan, "--spec", EXAMPLE, "--streams", "2", "--json")
        traces.append(said.document["trace"])
    assert traces[0] == traces[2] != traces[1]


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
        (("explore", EXAMPLE, "--streams", "0"), "--streams is 0; it must be 1 to 16"),
        (("replay", "README.md", "--streams", "17"), "--streams is 17; it must be 1 to 16"),
        (("explore", EXAMPLE, "--campaign", "README.md"), "README.md is no campaign file: "),
        (("replay", "no.toml"), "no.toml: cannot be read: No such file or directory"),
        (("replay", "README.md"), "README.md: this is no TOML: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys: Capsys, arguments: tuple[str, ...], complaint: str) -> None:
    said = call(capsys, *arguments)
    assert said.code == 2
    assert said.complaint.startswith(f"migrate: {complaint}")


@pytest.mark.parametrize("real", [(), ("--real",)], ids=["simulated", "real"])
def test_a_plan_that_strikes_a_stream_that_there_is_not_is_refused(
    capsys: Capsys, tmp_path: Path, real: tuple[str, ...]
) -> None:
    plan = tmp_path / "plan.toml"
    fault = Fault(when=AtMessage(message="RamPages", side=Role.SOURCE, stream=2), do=Kill(side=Role.SOURCE))
    plan.write_text(write_plan(Plan(faults=(fault,))))
    said = call(capsys, "replay", plan, "--spec", EXAMPLE, "--streams", "2", *real)
    assert (said.code, said.complaint) == (
        2,
        f"migrate: {plan}: fault 1: stream is 2, and the last is stream 1; say streams = 3 in the plan, or --streams 3",
    )


def test_a_plan_without_a_spec_asks_for_one(capsys: Capsys, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(write_plan(KILLED))
    said = call(capsys, "replay", plan)
    assert said.code == 2
    assert said.complaint.endswith("names no spec; say --spec FILE")
