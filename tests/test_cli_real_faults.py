"""`migrate replay --real` and `migrate rehearse --faults`, as a person uses them, and a failpoint that nobody minds."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from migrate.faults.plan import Action, AtMessage, AtWrite, Fault, Kill, Plan, PowerLoss, Reset, Trigger
from migrate.faults.toml import write_plan
from migrate.protocol.messages import Role
from tests.commands import EXAMPLE, call, start_within
from tests.killing import SMALL_MACHINE

Capsys = pytest.CaptureFixture[str]
SEVERAL_PROCESSES_S: Final = 120.0
"""Three interpreters and more, one after the other, on a host that is busy with other tests."""
AT_COMMIT: Final = AtMessage(message="Commit", side=Role.SOURCE)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL_MACHINE))
    return file


def written(directory: Path, when: Trigger, do: Action, spec: str = "") -> Path:
    file = directory / "plan.toml"
    file.write_text(write_plan(Plan(faults=(Fault(when=when, do=do),), spec=spec)))
    return file


def test_a_rehearsal_under_a_plan_says_what_struck_and_is_audited(tmp_path: Path, machine: Path) -> None:
    plan = written(tmp_path, AT_COMMIT, Kill(side=Role.SOURCE, restart_s=0.0))
    events, report = tmp_path / "events.jsonl", tmp_path / "report.html"
    looked_at = ("--events", events, "--report", report)
    said = start_within(SEVERAL_PROCESSES_S, "rehearse", machine, "--faults", plan, "--json", *looked_at)
    assert said.code == 0, said.err
    document: dict[str, Any] = said.document
    assert (document["outcome"], document["owner"]) == ("migrated", "target")
    assert document["faults_fired"] == ["kill source, restart_s 0 – before Commit 1, source"]
    assert document["audit"]["violations"] == []
    assert {"one runner", "nothing lost", "identical machine", "nothing left"} <= set(document["audit"]["checks"])
    assert document["guest"]["records_found"] == document["guest"]["records_acknowledged"] > 0
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["fault"] for event in told if event["event"] == "fault"] == document["faults_fired"]
    assert "kill source, restart_s 0" in report.read_text()


def test_a_plan_is_replayed_on_real_daemons(tmp_path: Path, machine: Path) -> None:
    plan = written(tmp_path, AT_COMMIT, Reset(), spec=str(machine))
    said = start_within(SEVERAL_PROCESSES_S, "replay", plan, "--real", "--json")
    assert said.code == 0, said.err
    assert set(said.document) == {"owner", "outcome", "published", "faults_fired", "violations", "trace"}
    assert said.document["outcome"] == "target has it; target: migrated"
    assert (said.document["faults_fired"], said.document["violations"]) == (1, [])
    assert any("fault: reset – before Commit 1, source" in line for line in said.document["trace"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("rehearse", EXAMPLE, "--faults", "PLAN"), "fault 1: power-loss cannot be done to a real host"),
        (("replay", "PLAN", "--spec", EXAMPLE, "--real"), "fault 1: power-loss cannot be done to a real host"),
        (("rehearse", EXAMPLE, "--faults", "missing.toml"), "missing.toml: cannot be read: No such file or directory"),
        (("rehearse", EXAMPLE, "--faults", "PLAN", "--wire", "w"), "--faults brings a network of its own"),
        (("replay", "PLAN", "--spec", EXAMPLE, "--real", "--pace", "0"), "--pace 0: expected more than 0"),
        (("replay", "PLAN", "--spec", EXAMPLE, "--real", "--report", "r"), "are those of migrate rehearse --faults"),
        (("source", EXAMPLE, "--listen", "127.0.0.1:0", "--failpoints", "nobody"), "nobody: nobody answers there"),
        (("source", EXAMPLE, "--listen", "127.0.0.1:0", "--pace", "-1"), "--pace -1: expected more than 0"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_in_one_line(
    capsys: Capsys, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    plan = written(tmp_path, AtWrite(side=Role.SOURCE), PowerLoss(side=Role.SOURCE))
    said = call(capsys, *(str(plan) if argument == "PLAN" else argument for argument in arguments))
    assert said.code == 2
    assert complaint in said.complaint


def test_a_source_that_cannot_begin_says_why(tmp_path: Path, machine: Path) -> None:
    plan = written(tmp_path, AT_COMMIT, Reset(), spec=str(machine))
    said = start_within(SEVERAL_PROCESSES_S, "rehearse", machine, "--memory-mb", "2", "--faults", plan)
    assert said.code == 2
    assert "does not fit this machine" in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
