"""`migrate ledger`: what two daemons told of one migration, maybe by two clocks, laid on one axis."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from tests.commands import EXAMPLE, call, start

Capsys = pytest.CaptureFixture[str]
Event = dict[str, Any]

SMALL: Final = ("--memory-mb", "16", "--on-stall", "force", "--after-s", "0.1")
OFF_MS: Final = 72_000.0
AT_ODDS: Final = {"ready": {"sent_ms": 9e6, "heard_ms": 9e6}, "preamble": {"sent_ms": 0.0, "heard_ms": 0.0}}
"""What a target noted of some other migration, which took hours."""


@attrs.frozen
class Told:
    """A rehearsal: the file of its events, these, and the ledger in its result."""

    path: Path
    events: list[Event]
    ledger: dict[str, Any]

    def of(self, side: str) -> list[Event]:
        return [event for event in self.events if event["side"] == side]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    path = tmp_path_factory.mktemp("rehearsal") / "events.jsonl"
    said = start("rehearse", EXAMPLE, *SMALL, "--events", path, "--json")
    assert said.code == 0, said.err
    (attempt,) = said.document["attempts"]
    return Told(path, [json.loads(line) for line in path.read_text().splitlines()], attempt["ledger"])


def written(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def moved(event: Event) -> Event:
    """As a host tells it whose monotonic clock shows OFF_MS more."""
    ns = round(OFF_MS * 1e6)
    return {name: value + ns if name in ("at_ns", "started_ns", "first_ns") else value for name, value in event.items()}


def without_frame(ledger: dict[str, Any]) -> dict[str, Any]:
    """Only the observer of a wire has seen that."""
    return ledger | {"steps": [step for step in ledger["steps"] if step["step"] != "first frame"]}


def test_the_events_of_a_rehearsal_give_the_ledger_of_its_result(told: Told, capsys: Capsys) -> None:
    said = call(capsys, "ledger", told.path, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document == without_frame(told.ledger)
    assert said.document["clock"]["offset_ms"] == 0.0


def test_the_parts_of_the_blackout_add_up_to_the_guests_own(told: Told) -> None:
    (resumed,) = [event for event in told.events if event["event"] == "guest resumed"]
    blackout = told.ledger["blackout"]
    assert sum(part["ms"] for part in blackout["parts"]) == pytest.approx(blackout["total_ms"])
    # The guest reads its clock within its steps, the daemons theirs between them; a busy host may come between.
    assert blackout["total_ms"] == pytest.approx(resumed["blackout_ms"], abs=20.0)


def test_the_files_of_two_daemons_give_the_same_in_any_order(told: Told, tmp_path: Path, capsys: Capsys) -> None:
    source, target = (written(tmp_path / side, told.of(side)) for side in ("source", "target"))
    whole = without_frame(told.ledger)
    assert call(capsys, "ledger", source, target, "--json").document == whole
    assert call(capsys, "ledger", target, source, "--json").document == whole


def test_clocks_of_two_hosts_are_laid_together_within_the_error_that_is_told(
    told: Told, tmp_path: Path, capsys: Capsys
) -> None:
    source = written(tmp_path / "source", told.of("source"))
    target = written(tmp_path / "target", [moved(event) for event in told.of("target")])
    ledger = call(capsys, "ledger", source, target, "--json").document
    off_ms, error_ms = ledger["clock"]["offset_ms"], ledger["clock"]["error_ms"]
    assert off_ms == pytest.approx(OFF_MS, abs=error_ms + 1e-6)
    assert ledger["downtime_ms"] == pytest.approx(told.ledger["downtime_ms"], abs=error_ms + 1e-6)
    said = call(capsys, "ledger", source, target)
    assert f"the target's clock shows {off_ms:,.3f} ms more than the source's, within {error_ms:.3f} ms" in said.out


def test_people_are_shown_what_the_guest_waited_for(told: Told, capsys: Capsys) -> None:
    said = call(capsys, "ledger", told.path)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    for part in told.ledger["blackout"]["parts"][1:]:
        (line,) = [line for line in lines if line.startswith(part["step"] + " ")]
        assert line.split()[-1] == f"{part['ms']:.2f}"
    assert f"the guest waits for {told.ledger['blackout']['total_ms']:.1f} ms" in said.out


def test_what_an_older_build_told_is_laid_on_one_axis_as_far_as_it_goes(
    told: Told, tmp_path: Path, capsys: Capsys
) -> None:
    new = ("exchanges", "devices", "stopped_ms", "first_ns")
    older = [{name: event[name] for name in event if name not in new} for event in told.events]
    said = call(capsys, "ledger", written(tmp_path / "older", older))
    assert said.code == 0, said.err
    assert "an older build told this: that both clocks are one is taken for granted" in said.out


def torn(events: list[Event]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events) + '{"event": "att'


def test_a_last_line_that_is_still_being_written_is_left_out(told: Told, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "torn").write_text(torn(told.events))
    assert call(capsys, "ledger", tmp_path / "torn", "--json").document == without_frame(told.ledger)


def only_source(events: list[Event]) -> str:
    return torn([event for event in events if event["side"] == "source"])


def none_migrated(events: list[Event]) -> str:
    return torn([event | {"outcome": "failed"} if event["event"] == "attempt ended" else event for event in events])


def of_two_migrations(events: list[Event]) -> str:
    def told(event: Event) -> Event:
        is_answer = event["event"] == "attempt ended" and event["side"] == "target"
        return event | {"exchanges": AT_ODDS} if is_answer else event

    return torn([told(event) for event in events])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (only_source, "the target tells of no attempt; give the events of a target that migrated one"),
        (none_migrated, "the source tells of 1 attempts, none of which migrated a machine; give the events of"),
        (of_two_migrations, "source and target tell of two different migrations"),
        (lambda _: "README\n", "line 1: no JSON, so no event of a daemon"),
        (lambda _: "[1]\n", "line 1: no event of a daemon; give what --events of a daemon left"),
        (
            lambda _: '{"event": "attempt ended", "side": "source", "at_ns": 1}\n',
            "the source tells less of an attempt than daemons do; give what --events left",
        ),
        (lambda _: "\udcff\n", "no file that --events left"),
    ],
    ids=["one side", "none migrated", "two migrations", "no JSON", "no event", "no attempt", "no text"],
)
def test_files_that_give_no_ledger_are_bad_input_and_the_error_says_what_to_give(
    content: Callable[[list[Event]], str], complaint: str, told: Told, tmp_path: Path, capsys: Capsys
) -> None:
    path = tmp_path / "given"
    path.write_text(content(told.events), encoding="utf-8", errors="surrogateescape")
    said = call(capsys, "ledger", path)
    assert (said.code, said.out) == (2, "")
    assert str(path) in said.complaint
    assert complaint in said.complaint


def test_nothing_given_and_a_file_that_is_not_there_are_bad_input(tmp_path: Path, capsys: Capsys) -> None:
    assert "Give the files that --events of the source and of the target have left" in call(capsys, "ledger").complaint
    said = call(capsys, "ledger", tmp_path / "nothing")
    assert (said.code, said.complaint) == (2, f"migrate: {tmp_path}/nothing: cannot be read: No such file or directory")
