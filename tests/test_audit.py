"""The audit objects to what is wrong and to nothing else, and the result is laid out as the contract promises."""

import copy
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from migrate.daemon.pair import Event, PairResult
from migrate.rehearsal.audit import CHECKS, AuditResult, Evidence, audit
from migrate.rehearsal.ledger import LedgerAudit
from migrate.rehearsal.result import RehearsalResult, assemble
from tests.commands import EXAMPLE, Said, start
from tests.corpus import FIXTURES

INJECTOR = FIXTURES / "specs/valid/v1-test-suite-hyperv-file.json"
MIB = 1 << 20
MS = 1_000_000


# A clean rehearsal, as both daemons would tell it


def told(at_ms: float, event: str, **facts: Any) -> Event:
    return {"event": event, "at_ns": int(at_ms * MS), **facts}


def step(side: str, name: str, start_ms: float, duration_ms: float) -> dict[str, Any]:
    return {"side": side, "step": name, "start_ms": start_ms, "duration_ms": duration_ms}


def round_(number: int, size: int) -> dict[str, Any]:
    return {
        "number": number,
        "pages": size // 4096,
        "zero_pages": 0,
        "bytes": size,
        "duration_ms": 1.0,
        "dirtied_pages": 0,
    }


def view(at_ms: float, started_ms: float, **facts: Any) -> Event:
    """How one side saw an attempt end."""
    clean: Event = {
        "outcome": "migrated",
        "phase": "handoff",
        "error": None,
        "reasons": [],
        "started_ns": int(started_ms * MS),
        "spec_version": 6,
        "why_not_newer": [],
        "payloads": {"com1": {"uart-16550": 1}},
        "rounds": [],
        "steps": [],
        "warnings": [],
        "precopy": None,
        "committed": True,
    }
    return told(at_ms, "attempt ended", **(clean | facts))


def failed(at_ms: float, started_ms: float, kind: str, side: str, outcome: str = "failed", **facts: Any) -> Event:
    error = {"class": kind, "message": f"told by the {side}", "side": side}
    return view(at_ms, started_ms, outcome=outcome, phase="ram", error=error, committed=False, **facts)


def image(**changes: Any) -> dict[str, Any]:
    return {
        "spec": "5bec",
        "ram": "aa00",
        "ram_bytes": 16 * MIB,
        "devices": {"com1": "c1", "nic": "d1"},
        "console": {"total_bytes": 480, "digest": "e1"},
        "clock": {"boot_hrtime": 1_000_000_000, "guest_freq": 2_000_000_000},
    } | changes


def guest(**changes: Any) -> dict[str, Any]:
    """What a `stamp` guest left behind."""
    return {"program": "stamp", "sequence": 125, "stale_pages": [], "records": records()} | changes


def records(**changes: Any) -> dict[str, Any]:
    return {
        "acknowledged": 12,
        "found": 12,
        "lost": [],
        "repeated": [],
        "out_of_order": 0,
        "torn": 0,
        "largest_gap_ms": 60.0,
    } | changes


def ledger(**changes: Any) -> LedgerAudit:
    """What a reader makes of a whole ledger."""
    whole = LedgerAudit(
        acknowledged=40,
        found=40,
        violations=(),
        away_by_clock_ms=12.0,
        away_by_console_ms=12.5,
        away_by_wire_ms=None,
    )
    return attrs.evolve(whole, **changes)


def ended(at_ms: float, *, runs_here: bool, **changes: Any) -> Event:
    return told(at_ms, "ended", runs_here=runs_here, guest=guest(**changes))


SOURCE: list[Event] = [
    told(0, "listening", address="127.0.0.1:4600"),
    told(10, "attempt", number=1),
    told(40, "phase", phase="pause"),
    told(41, "phase", phase="last ram"),
    view(
        60,
        11,
        rounds=[round_(0, 5 * MIB), round_(1, MIB)],
        steps=[step("source", "pause", 29.0, 1.0), step("source", "commit", 35.0, 5.0)],
    ),
    told(70, "image", image=image()),
    ended(300, runs_here=False),
]
TARGET: list[Event] = [
    told(5, "attempt", number=1),
    told(50, "taken over", generation=2),
    view(61, 6, steps=[step("target", "run", 44.0, 2.0)]),
    told(62, "guest resumed", blackout_ms=12.5),
    told(71, "image", image=image()),
    ended(300, runs_here=True),
]


def evidence(
    source: list[Event] = SOURCE, target: list[Event] = TARGET, *, source_code: int = 0, target_code: int = 0
) -> Evidence:
    pair = PairResult(source=source, target=target, exit_codes={"source": source_code, "target": target_code})
    return Evidence(pair=pair, expected_spec="5bec")


def doctored(side: str, name: str, change: Callable[[Event], None]) -> Evidence:
    """Clean, but for what one side told last of this name."""
    source, target = copy.deepcopy(SOURCE), copy.deepcopy(TARGET)
    events = source if side == "source" else target
    change(next(event for event in reversed(events) if event["event"] == name))
    return evidence(source, target)


def with_image(**changes: Any) -> Evidence:
    return doctored("target", "image", lambda event: event["image"].update(changes))


def with_guest(**changes: Any) -> Evidence:
    return doctored("target", "ended", lambda event: event["guest"].update(changes))


def with_records(**changes: Any) -> Evidence:
    return with_guest(records=records(**changes))


def with_ledger(found: LedgerAudit | None) -> Evidence:
    """A `ledger` guest, of which a reader has found this."""
    return attrs.evolve(with_guest(program="ledger", records=None), ledger=found)


def runs(side: str, here: bool) -> Evidence:
    return doctored(side, "ended", lambda event: event.update(runs_here=here))


STAYED = ended(300, runs_here=True)
RESUMED_LATE = [
    SOURCE[1],
    SOURCE[2],
    failed(50, 11, "TransportLost", "source"),
    told(51, "rolled back", phase="ram"),
    STAYED,
]
RESUMED_FIRST = [SOURCE[1], SOURCE[2], told(49, "rolled back", phase="ram"), failed(50, 11, "X", "source"), STAYED]
NEVER_PAUSED = [SOURCE[1], failed(50, 11, "Refused", "target", "refused"), STAYED]
GIVEN_AWAY = [  # in doubt, and whoever asks meanwhile is refused: the machine is not to run here
    *SOURCE[1:4],
    failed(50, 11, "HandoffInDoubt", "source", "in doubt"),
    told(60, "attempt", number=2),
    failed(61, 60, "Refused", "source", "refused"),
    ended(300, runs_here=False),
]
NOTHING_MOVED = [failed(52, 6, "X", "source"), ended(300, runs_here=False)]


@pytest.mark.parametrize(
    "clean",
    [
        evidence(),
        evidence(target_code=1),
        evidence(RESUMED_FIRST, NOTHING_MOVED, target_code=1),
        evidence(NEVER_PAUSED, NOTHING_MOVED, target_code=1),
        with_image(clock={"boot_hrtime": 1_015_000_000, "guest_freq": 2_000_000_000}),
        with_guest(program="idle", sequence=None, records=None),
        with_ledger(ledger()),
    ],
    ids=["migrated", "exit code 1", "failed", "refused", "a drift of 15 ms", "no records", "a ledger"],
)
def test_the_audit_of_a_clean_rehearsal_is_silent(clean: Evidence) -> None:
    assert audit(clean) == AuditResult(checks=tuple(CHECKS), violations=())


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        ("one runner at the end", runs("source", True), "at the end the machine runs on source and target"),
        ("one runner at the end", runs("target", False), "at the end the machine runs on neither side"),
        (
            "never two runners",
            doctored("target", "taken over", lambda event: event.update(at_ns=40 * MS)),
            "the target ran the machine before the source had paused it",
        ),
        (
            "never two runners",
            evidence([event for event in SOURCE if event["event"] != "phase"]),
            "the target ran the machine before the source had paused it",
        ),
        (
            "never two runners",
            evidence([told(5, "rolled back", phase="ram"), *SOURCE[:2], *SOURCE[4:]]),
            "the target ran the machine before the source had paused it",
        ),
        (
            "never two runners",
            evidence([*SOURCE, told(65, "rolled back", phase="handoff")]),
            "the source resumed the machine although the target runs it",
        ),
        ("spec", with_image(spec="bad"), "the target's spec has digest bad; expected 5bec"),
        ("RAM", with_image(ram="bb00"), "ram: aa00 on the source, bb00 on the target"),
        ("RAM", with_image(ram_bytes=MIB), "ram_bytes: 16777216 on the source, 1048576 on the target"),
        (
            "devices",
            with_image(devices={"com1": "c1", "nic": "d2"}),
            "the state of device 'nic' differs between source and target",
        ),
        (
            "devices",
            with_image(devices={"com1": "c1"}),
            "the state of device 'nic' differs between source and target",
        ),
        (
            "console history",
            with_image(console={"total_bytes": 440, "digest": "e1"}),
            "console history: {'total_bytes': 480, 'digest': 'e1'} on the source, "
            "{'total_bytes': 440, 'digest': 'e1'} on the target",
        ),
        (
            "clock",
            with_image(clock={"boot_hrtime": 900_000_000, "guest_freq": 2_000_000_000}),
            "the guest's boot time moved by 100.0 ms",
        ),
        (
            "clock",
            with_image(clock={"boot_hrtime": 1_000_000_000, "guest_freq": 1_999_000_000}),
            "the guest's TSC runs at 1999000000 Hz instead of 2000000000",
        ),
        ("guest records", with_records(lost=[3, 4], found=10), "console records lost: 3, 4"),
        (
            "guest records",
            with_records(lost=list(range(1, 13)), found=0),
            "console records lost: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more",
        ),
        ("guest records", with_records(found=11), "the last console records are lost: 11 of 12 are there"),
        ("guest records", with_records(repeated=[7], found=13), "console records repeated: 7"),
        ("guest records", with_records(out_of_order=2), "2 console records are out of order"),
        ("guest records", with_records(torn=1), "1 console records are torn"),
        (
            "ledger",
            with_ledger(ledger(violations=("the disk has lost record 3",))),
            "the disk has lost record 3",
        ),
        ("ledger", with_ledger(None), "the guest kept a ledger, and nothing is left of it to be read"),
        ("no stale page", with_guest(stale_pages=[900, 901]), "2 pages of guest RAM missed a write, the first is 900"),
        (
            "failed only after resume",
            evidence(RESUMED_LATE, NOTHING_MOVED),
            "an attempt was reported as failed before the source ran again",
        ),
        ("orderly end", evidence(source_code=-9), "the source daemon ended with exit code -9"),
        ("orderly end", evidence(target_code=3), "the target daemon ended with exit code 3"),
    ],
)
def test_the_audit_objects_to(check: str, wrong: Evidence, message: str) -> None:
    assert audit(wrong).violations == ((check, message),)


def test_no_check_is_without_a_case_that_it_objects_to() -> None:
    marks: Any = test_the_audit_objects_to
    (cases,) = (mark.args[1] for mark in marks.pytestmark)
    assert {case[0] for case in cases} == set(CHECKS)


def test_a_refusal_while_a_handoff_is_in_doubt_comes_with_no_resume() -> None:
    violations = audit(evidence(GIVEN_AWAY, NOTHING_MOVED)).violations
    assert violations == (("one runner at the end", "at the end the machine runs on neither side"),)


def test_every_violation_is_reported_not_the_first_one() -> None:
    wrong = with_image(ram="bb00", spec="bad", devices={})
    assert [check for check, _ in audit(wrong).violations] == ["spec", "RAM", "devices", "devices"]


# The result


def assembled(source: list[Event] = SOURCE, target: list[Event] = TARGET) -> RehearsalResult:
    found = evidence(source, target)
    return assemble(found, audit(found), 16 * MIB, 7)


def test_the_result_of_a_clean_rehearsal() -> None:
    document = assembled().document
    (attempt,) = document.pop("attempts")
    ledger = attempt.pop("ledger")
    assert document == {
        "outcome": "migrated",
        "owner": "target",
        "ram_bytes": 16 * MIB,
        "ram_bytes_sent": 6 * MIB,
        "guest": {"blackout_ms": 12.5, "records_acknowledged": 12, "records_found": 12, "away_ms": None},
        "audit": {"checks": list(CHECKS), "violations": []},
        "faults_fired": [],
        "seed": 7,
    }
    assert attempt == {
        "outcome": "migrated",
        "phase": "handoff",
        "error": None,
        "reasons": [],
        "spec_version": 6,
        "why_not_newer": [],
        "payloads": {"com1": {"uart-16550": 1}},
        "rounds": [round_(0, 5 * MIB), round_(1, MIB)],
        "warnings": [],
        "precopy": None,
    }
    # The target's attempt began 5 ms before the source's; on one axis its 44.0 is 39.0.
    assert ledger == {
        "total_ms": 41.0,
        "downtime_ms": 12.0,
        "steps": [
            step("source", "pause", 29.0, 1.0),
            step("source", "commit", 35.0, 5.0),
            step("target", "run", 39.0, 2.0),
        ],
        "devices": {},
        "blackout": None,
        "clock": None,
    }


def test_the_records_of_a_ledger_guest_are_those_that_its_reader_found() -> None:
    found = with_ledger(ledger(acknowledged=40, found=39))
    assert assemble(found, audit(found), 16 * MIB, 7).document["guest"] == {
        "blackout_ms": 12.5,
        "records_acknowledged": 40,
        "records_found": 39,
        "away_ms": {"clock": 12.0, "console": 12.5, "wire": None},
    }


LOST = "TransportLost"
DEVICE = "DeviceStateError"


@pytest.mark.parametrize(
    ("source", "target", "attempts"),
    [
        pytest.param(
            [failed(50, 11, LOST, "source")],
            [failed(51, 6, DEVICE, "target")],
            [("failed", DEVICE, "target")],
            id="the cause is believed before a lost link",
        ),
        pytest.param(
            [failed(50, 11, DEVICE, "source")],
            [failed(51, 6, LOST, "target")],
            [("failed", DEVICE, "source")],
            id="on either side",
        ),
        pytest.param(
            [failed(50, 11, LOST, "source")],
            [failed(51, 6, LOST, "target")],
            [("failed", LOST, "source")],
            id="two lost links are one attempt",
        ),
        pytest.param(
            [],
            [failed(51, 6, LOST, "target")],
            [("failed", LOST, "target")],
            id="the source never heard of it",
        ),
        pytest.param(
            [failed(50, 11, LOST, "source")],
            [],
            [("failed", LOST, "source")],
            id="the target did not live to tell",
        ),
        pytest.param(
            [failed(50, 11, DEVICE, "target"), view(90, 71)],
            [failed(51, 6, DEVICE, "target"), view(91, 66)],
            [("failed", DEVICE, "target"), ("migrated", None, None)],
            id="failed, then migrated",
        ),
        pytest.param(
            [view(90, 71)],
            [failed(51, 6, LOST, "target"), view(91, 66)],
            [("failed", LOST, "target"), ("migrated", None, None)],
            id="the source heard only of the second",
        ),
        pytest.param(
            [failed(50, 11, LOST, "source"), failed(90, 71, DEVICE, "source")],
            [failed(51, 6, DEVICE, "target")],
            [("failed", DEVICE, "target"), ("failed", DEVICE, "source")],
            id="settled over a second connection",
        ),
        pytest.param(
            [failed(5, 1, LOST, "source"), view(90, 71)],
            [view(91, 66)],
            [("failed", LOST, "source"), ("migrated", None, None)],
            id="somebody else came first",
        ),
        pytest.param([], [], [], id="nothing was tried"),
    ],
)
def test_both_views_of_an_attempt_are_laid_together(
    source: list[Event], target: list[Event], attempts: list[tuple[str, str | None, str | None]]
) -> None:
    result = assembled([*source, ended(300, runs_here=True)], [*target, ended(300, runs_here=False)])
    found = [
        (attempt["outcome"], (attempt["error"] or {}).get("class"), (attempt["error"] or {}).get("side"))
        for attempt in result.document["attempts"]
    ]
    assert found == attempts
    assert result.outcome == (attempts[-1][0] if attempts else "failed")


@pytest.mark.parametrize(
    ("source", "target", "owner"),
    [(True, False, "source"), (False, True, "target"), (False, False, "nobody")],
)
def test_the_owner_is_who_ran_the_machine_at_the_end(source: bool, target: bool, owner: str) -> None:
    result = assembled([ended(300, runs_here=source)], [ended(300, runs_here=target)])
    assert result.document["owner"] == owner


def test_an_attempt_that_only_the_target_saw_has_no_axis_to_lay_steps_on() -> None:
    result = assembled([], [view(61, 6, steps=[step("target", "run", 44.0, 2.0)])])
    assert result.document["attempts"][0]["ledger"] == {
        "total_ms": None,
        "downtime_ms": None,
        "steps": [],
        "devices": {},
        "blackout": None,
        "clock": None,
    }


def test_bytes_sent_are_summed_over_all_attempts() -> None:
    source = [failed(50, 11, DEVICE, "target", rounds=[round_(0, 3 * MIB)]), view(90, 71, rounds=[round_(0, 4 * MIB)])]
    assert assembled(source, [failed(51, 6, DEVICE, "target"), view(91, 66)]).document["ram_bytes_sent"] == 7 * MIB


def test_an_attempt_that_ended_in_doubt_is_a_failed_rehearsal() -> None:
    assert assembled(GIVEN_AWAY, NOTHING_MOVED).document["attempts"][0]["outcome"] == "in doubt"
    assert assembled(GIVEN_AWAY[:-3], []).outcome == "failed"


def test_people_are_told_more_than_programs_are_promised() -> None:
    refused = failed(50, 11, "Refused", "target", "refused", reasons=[{"message": "vsock: no"}], warnings=["late"])
    result = assembled([refused, STAYED], [])
    (attempt,) = result.document["attempts"]
    assert (attempt["reasons"], attempt["warnings"]) == ([{"message": "vsock: no"}], ["late"])


# Sabotage, end to end: both daemons run with a bug in them

SABOTAGED = {
    "a page is dropped": """
        from migrate.engine.ram import RamReceiver
        take = RamReceiver.take

        async def take_and_drop_one(self, batch):
            await take(self, batch)
            if batch.round == 0:
                self.memory.write(self.memory.gpa_of(3000), bytes(4096))  # of the system that looks booted

        RamReceiver.take = take_and_drop_one
        """,
    "pages of a failed attempt are forgotten": """
        from sim_vmm.dirty import DirtyPages
        DirtyPages.restore = lambda self: None
        """,
    "a line of the console is lost": """
        from sim_vmm.console import ConsoleHistory
        import attrs
        export = ConsoleHistory.export

        def export_less(self):
            state = export(self)
            beginning = state.beginning[:-len(state.beginning.splitlines(True)[-1])]
            return attrs.evolve(state, beginning=beginning, total_bytes=len(beginning))

        ConsoleHistory.export = export_less
        """,
}


def rehearse_with(bug: str, where: Path, *arguments: str | Path) -> Said:
    """A rehearsal in which every process has the bug."""
    (where / "sitecustomize.py").write_text(textwrap.dedent(bug))
    options = ("--memory-mb", "16", "--after-s", "0", "--on-stall", "force", "--json")
    path = os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH")]))
    return start("rehearse", *arguments, *options, PYTHONPATH=path)


@pytest.mark.parametrize(
    ("bug", "arguments", "objecting"),
    [
        ("a page is dropped", (EXAMPLE,), "RAM"),
        ("pages of a failed attempt are forgotten", (INJECTOR, "--retries", "1"), "RAM"),
        ("a line of the console is lost", (EXAMPLE, "--guest", "stamp"), "guest records"),
        ("a line of the console is lost", (EXAMPLE, "--guest", "ledger"), "ledger"),
    ],
)
def test_a_rehearsal_of_a_bug_ends_with_a_violation(
    bug: str, arguments: tuple[str | Path, ...], objecting: str, tmp_path: Path
) -> None:
    said = rehearse_with(SABOTAGED[bug], tmp_path, *arguments)
    assert said.code == 3, said.err
    assert said.document["outcome"] == "migrated"
    assert objecting in [violation["check"] for violation in said.document["audit"]["violations"]]
