"""`--report` and `--trace`: what commands leave to look at, and nothing of what a spec keeps to itself."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from migrate.cli.app import app
from migrate.faults.campaign import Campaign, Kind, Order
from migrate.faults.plan import AtMessage, Fault, FlipBit, Kill, Plan
from migrate.faults.toml import write_plan
from migrate.protocol.messages import Role
from migrate.reports.words import milliseconds
from tests.commands import EXAMPLE, call, start
from tests.mistakes import MISTAKES
from tests.pages import Page
from tests.traces import objections

Capsys = pytest.CaptureFixture[str]

PLAN: Final = Plan(
    faults=(
        Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Kill(side=Role.TARGET)),
        Fault(when=AtMessage(message="Gone", side=Role.SOURCE), do=FlipBit(bit=70)),
    )
)
SMALL: Final = ("--memory-mb", "16", "--on-stall", "force", "--after-s", "0.1")
HOSTILE: Final = "<b>&'x.json"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A spec whose name is no markup, with a Crucible request and a blob inside."""
    return Path(shutil.copy(EXAMPLE, tmp_path / HOSTILE))


def secrets() -> set[str]:
    """Every longer word of what the example's backends keep: requests with keys and addresses, contents of disks."""
    components = json.loads(Path(EXAMPLE).read_text())["components"].values()
    requests = [entry["component"]["request_json"] for entry in components if "request_json" in entry["component"]]
    blobs = [entry["component"]["base64"] for entry in components if "base64" in entry["component"]]
    assert requests
    assert blobs
    words = set(re.findall(r"[\w.:+/=-]{9,}", " ".join(requests))) - {"blocks_per_extent", "block_size", "sub_volumes"}
    return words | {blob[:24] for blob in blobs}


def page_at(path: Path) -> Page:
    """A page that fetches nothing and gives nothing away."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetches() == []
    assert [secret for secret in secrets() if secret in text] == []
    return page


def trace_at(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    document = json.loads(text)
    assert objections(document) == []
    assert [secret for secret in secrets() if secret in text] == []
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


def test_a_rehearsal_leaves_a_page_a_trace_and_its_events(hostile: Path, tmp_path: Path) -> None:
    report, trace, events = tmp_path / "page.html", tmp_path / "trace.json", tmp_path / "events.jsonl"
    left = ("--report", report, "--trace", trace, "--events", events)
    said = start("rehearse", hostile, *SMALL, *left, "--json")
    assert said.code == 0, said.err
    document = said.document
    page = page_at(report)
    assert page.one("h1").words == f"{hostile}, r6 to r6"
    facts = page.one("dl", "facts").words
    assert f"{document['guest']['records_found']} found of" in facts
    assert "12 checks, none violated" in facts
    (attempt,) = document["attempts"]
    rounds = page.one("table", "rounds").words
    assert all(f"{round_['pages']:,}" in rounds for round_ in attempt["rounds"])
    steps = {row.words.split("\n")[0] for row in page.all("tr") if "table" in row.inside}
    assert all(any(row.startswith(step["step"]) for row in steps) for step in attempt["ledger"]["steps"])
    waits = page.one("table", "waits").words
    blackout = attempt["ledger"]["blackout"]
    assert all(f"{part['ms']:.2f}" in waits for part in blackout["parts"])
    assert f"over {milliseconds(blackout['total_ms'])}" in waits
    sent = [event for event in trace_at(trace) if event["ph"] == "X" and event["name"] == "send DeviceState"]
    assert len(sent) == len(attempt["payloads"])
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert {(event["side"], event["event"]) for event in told} >= {
        ("source", "sends"),
        ("target", "receives"),
        ("source", "attempt ended"),
        ("target", "ended"),
    }


def test_a_refused_rehearsal_leaves_a_page_that_says_why(tmp_path: Path) -> None:
    report = tmp_path / "page.html"
    said = start("rehearse", EXAMPLE, "--to", "r3", *SMALL, "--json", "--report", report)
    assert said.code == 1
    page = page_at(report)
    assert "not-done" in page.one("p", "lead").attributes["class"]
    for reason in said.document["attempts"][0]["reasons"]:
        assert reason["message"] in page.one("dl", "facts").words


def test_a_replay_leaves_a_page_and_a_trace(capsys: Capsys, hostile: Path, tmp_path: Path) -> None:
    plan, report, trace = tmp_path / "plan.toml", tmp_path / "page.html", tmp_path / "trace.json"
    plan.write_text(write_plan(PLAN))
    said = call(capsys, "replay", plan, "--spec", hostile, "--json", "--report", report, "--trace", trace)
    assert (said.code, said.document["faults_fired"]) == (0, 1)
    page = page_at(report)
    rows = [row.words for row in page.all("tr")]
    assert any(row.startswith("1kill target – before Ready 1, target") for row in rows)
    assert "flip-bit, bit 70 – before Gone 1, sourcedid not strike" in rows
    assert [text.words for text in page.all("text", "mark-number")] == ["1"]
    assert str(hostile) in page.one("dl", "facts").words
    assert [event["name"] for event in trace_at(trace) if event.get("cat") == "fault"] == [
        "kill target – before Ready 1, target"
    ]


def test_an_exploration_leaves_a_map_and_goes_on_with_it(capsys: Capsys, hostile: Path, tmp_path: Path) -> None:
    report, file = tmp_path / "page.html", tmp_path / "campaign.json"
    arguments = ("explore", hostile, "--random", "20", "--workers", "1", "--campaign", file, "--json")
    said = call(capsys, *arguments, "--report", report)
    assert said.code == 0
    page = page_at(report)
    assert page.one("p", "lead").words == "random plans from 0 on: 20 schedules, none violated"
    rows = [row.words for row in page.all("tr")]
    assert all(f"{name}{count}" in rows for name, count in said.document["outcomes"].items())
    assert page.one("table", "fault-map").words
    first = report.read_text()
    assert call(capsys, *arguments, "--report", report).code == 0  # nothing is left to do, and the map is kept
    assert report.read_text() == first
    assert Campaign.load(file, Order(kind=Kind.RANDOM, random=20)).tally is not None


def test_a_campaign_that_kept_nothing_cannot_be_mapped(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "campaign.json"
    arguments = ("explore", EXAMPLE, "--random", "5", "--workers", "1", "--campaign", file)
    assert call(capsys, *arguments).code == 0
    said = call(capsys, *arguments, "--report", tmp_path / "page.html")
    assert said.code == 2
    assert said.complaint == (
        f"migrate: {file} was begun without --report, and what came of its 5 schedules one by one was not kept; "
        "give another file"
    )


def test_a_violation_is_on_the_page(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == "the console is not taken over")
    mistake.apply(monkeypatch)  # the workers are made of this process
    out, report = tmp_path / "out", tmp_path / "page.html"
    said = call(capsys, "explore", EXAMPLE, "--random", "2", "--workers", "1", "--out", out, "--report", report)
    assert said.code == 3
    page = page_at(report)
    assert any("Violated: nothing lost" in found.words for found in page.all("div", "violation"))
    assert page.all("code")[0].words == f"migrate replay {out / 'violation-0001.toml'}"
    assert len(page.all("svg", "diagram")) == 1 + len(page.all("pre"))


@pytest.mark.parametrize(("path", "code"), [((), 0), (("--path", "r6,r6"), 0), (("--path", "r1,r6,r1"), 1)])
def test_a_matrix_leaves_a_map(capsys: Capsys, hostile: Path, tmp_path: Path, path: tuple[str, ...], code: int) -> None:
    report = tmp_path / "page.html"
    said = call(capsys, "matrix", hostile, *path, "--json", "--report", report)
    assert said.code == code
    page = page_at(report)
    assert page.one("figcaption").words == str(hostile)
    assert len(page.all("rect", "ok")) - 1 == sum(cell["verdict"] == "ok" for cell in said.document)
    assert len(page.all("rect", "refused")) - 1 == sum(cell["verdict"] == "refused" for cell in said.document)


@pytest.mark.parametrize(
    "arguments",
    [
        ("rehearse", EXAMPLE, "--report"),
        ("rehearse", EXAMPLE, "--trace"),
        ("rehearse", EXAMPLE, "--events"),
        ("explore", EXAMPLE, "--report"),
        ("matrix", EXAMPLE, "--report"),
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_written_is_said_before_anything_else(
    capsys: Capsys, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "no" / "such"
    said = call(capsys, *arguments, file)
    assert said.code == 2
    assert said.complaint == f"migrate: {arguments[-1]} {file}: cannot be written: No such file or directory"


def test_what_was_at_a_reports_place_stays_until_there_is_a_new_one(capsys: Capsys, tmp_path: Path) -> None:
    report = tmp_path / "page.html"
    report.write_text("before")
    assert call(capsys, "rehearse", EXAMPLE, "--guest", "nonsense", "--report", report).code == 2
    assert call(capsys, "explore", "no-such-spec.json", "--report", report).code == 2
    assert report.read_text() == "before"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_options_are_completed(shell: Literal["bash", "zsh", "fish"]) -> None:
    completion = app.generate_completion(shell=shell)
    for option in ("report", "trace", "executor"):
        assert option in completion
