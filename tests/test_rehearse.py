"""Rehearsals and daemons as real processes: what they promise, and what is left when somebody ends them.

Tests follow what processes say.  A migration that has to be caught in the middle is slowed down by a bandwidth.
"""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from migrate.daemon.pair import DaemonDied, DaemonProcess
from migrate.daemon.pair import daemon as daemon_process
from tests.commands import EXAMPLE, MIGRATE, PATIENCE_S, end_of, fork_launcher, processes_with, running, start
from tests.corpus import FIXTURES

INJECTOR: Final = FIXTURES / "specs/valid/v1-test-suite-hyperv-file.json"
"""Its state cannot be imported the first time."""
UNABLE: Final = FIXTURES / "specs/valid/v3-vsock.json"
"""Its socket cannot migrate."""

SMALL: Final = ("--memory-mb", "16", "--on-stall", "force")
"""16 MiB, of which 5 MiB are not zero.  Whatever a busy host makes of the rounds: this is not about convergence."""
SLOW: Final = (*SMALL, "--bandwidth", "4M")
"""Takes a second and more."""
VERY_SLOW: Final = (*SMALL, "--bandwidth", "1M")
"""Nobody waits for its end."""
BRIEF: Final = ("--after-s", "0.1")

MARK: Final = "MIGRATE_TEST_REHEARSAL"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What every process of one test, and its children, can be found by."""
    monkeypatch.setenv(MARK, str(tmp_path))
    return str(tmp_path)


# What a rehearsal reports


def shape(value: Any) -> Any:
    """Names of keys and of types; a list is as its first entry."""
    match value:
        case dict():
            return {key: shape(entry) for key, entry in value.items()}
        case list():
            return [shape(entry) for entry in value[:1]]
        case _:
            return type(value).__name__


ROUND: Final = {
    "number": "int",
    "pages": "int",
    "zero_pages": "int",
    "bytes": "int",
    "duration_ms": "float",
    "dirtied_pages": "int",
    "throttle": "float",
    "receipt_ms": "float",
}
STEP: Final = {"side": "str", "step": "str", "start_ms": "float", "duration_ms": "float"}
ERROR: Final = {"class": "str", "message": "str", "side": "str"}
KEYS: Final = {
    "outcome",
    "owner",
    "attempts",
    "ram_bytes",
    "ram_bytes_sent",
    "guest",
    "audit",
    "faults_fired",
    "seed",
}


def test_a_rehearsal_that_migrates_reports_what_the_contract_promises(mark: str) -> None:
    said = start("rehearse", EXAMPLE, *SMALL, *BRIEF, "--seed", "7", "--json", program=MIGRATE)
    assert (said.code, said.err) == (0, "")
    document = said.document
    attempts = document.pop("attempts")
    payloads = attempts[0].pop("payloads")
    assert shape(document) == {
        "outcome": "str",
        "owner": "str",
        "ram_bytes": "int",
        "ram_bytes_sent": "int",
        "guest": {
            "blackout_ms": "float",
            "records_acknowledged": "int",
            "records_found": "int",
            "away_ms": {"clock": "float", "console": "float", "wire": "float"},
        },
        "audit": {"checks": ["str"], "violations": []},
        "faults_fired": [],
        "seed": "int",
    }
    assert shape(attempts) == [
        {
            "outcome": "str",
            "phase": "str",
            "error": "NoneType",
            "reasons": [],
            "spec_version": "int",
            "why_not_newer": [],
            "rounds": [ROUND],
            "precopy": {
                "predicted_downtime_ms": "float",
                "predicted_total_ms": "float",
                "downtime_ms": "float",
                "total_ms": "float",
                "forced": "bool",
                "guest_slowdown": "float",
                "throttle_max": "float",
            },
            "warnings": [],
            "ledger": {
                "total_ms": "float",
                "downtime_ms": "float",
                "steps": [STEP],
                "devices": {device: {"export_ms": "float", "import_ms": "float"} for device in payloads},
                "blackout": {"total_ms": "float", "parts": [{"step": "str", "ms": "float"}]},
                "clock": {"offset_ms": "float", "error_ms": "float"},
            },
        }
    ]
    assert (document["outcome"], document["owner"], document["seed"]) == ("migrated", "target", 7)
    assert document["ram_bytes"] == 16 << 20
    assert 4 << 20 <= document["ram_bytes_sent"] == sum(round_["bytes"] for round_ in attempts[0]["rounds"])
    assert document["guest"]["records_found"] == document["guest"]["records_acknowledged"]
    assert payloads["com1"] == {"uart-16550": 1}
    steps = {(step["side"], step["step"]) for step in attempts[0]["ledger"]["steps"]}
    assert {("source", "pause"), ("source", "last ram"), ("target", "devices"), ("target", "run")} <= steps
    assert processes_with(MARK, mark) == []


def test_a_rehearsal_that_is_refused_moves_nothing() -> None:
    said = start("rehearse", UNABLE, *SMALL, *BRIEF, "--json")
    assert (said.code, said.err) == (1, "")
    document = said.document
    (attempt,) = document["attempts"]
    assert set(document) == KEYS
    assert set(attempt) >= {"outcome", "phase", "error", "spec_version", "payloads", "rounds", "ledger"}
    assert {"component", "field", "have", "need", "message"} == set(attempt["reasons"][0])
    assert shape(attempt["error"]) == ERROR
    assert (document["outcome"], document["owner"]) == ("refused", "source")
    assert (attempt["outcome"], attempt["phase"], attempt["error"]["class"]) == ("refused", "verdict", "Refused")
    assert "vsock: type is virtio_socket" in attempt["error"]["message"]
    assert (attempt["rounds"], document["ram_bytes_sent"]) == ([], 0)
    assert document["guest"]["blackout_ms"] is None
    assert document["audit"]["violations"] == []


def test_a_rehearsal_that_fails_and_has_a_retry_migrates_in_the_end() -> None:
    said = start("rehearse", INJECTOR, *SMALL, *BRIEF, "--retries", "2", "--json")
    assert said.code == 0
    first, second = said.document["attempts"]
    assert (first["outcome"], first["phase"], second["outcome"]) == ("failed", "devices", "migrated")
    assert first["error"] == {
        "class": "DeviceStateError",
        "message": "device 'migration-failure': injected failure 1 of 1 on import",
        "side": "target",
    }
    assert (first["ledger"]["downtime_ms"], said.document["owner"]) == (None, "target")
    assert said.document["audit"]["violations"] == []


def test_a_rehearsal_that_fails_leaves_the_machine_with_the_source() -> None:
    said = start("rehearse", INJECTOR, *SMALL, *BRIEF)
    assert said.code == 1
    assert "failed in phase 'devices' on the target: device 'migration-failure': injected" in " ".join(said.out.split())
    assert re.search(r"^owner +source$", said.out, re.MULTILINE)
    assert re.search(r"^audit +12 checks, none violated", said.out, re.MULTILINE)
    assert "source: the machine runs on here" in said.err.splitlines()
    assert "Traceback" not in said.err


# On a terminal


def on_a_terminal(*arguments: str | Path, columns: int = 80) -> tuple[int, str]:
    """The exit code of a command on a terminal of its own, and everything that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [*MIGRATE, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            written += chunk
    except OSError:  # how the end of a terminal looks on Linux
        pass
    finally:
        os.close(ours)
    return process.wait(PATIENCE_S), written.decode()


def test_on_a_terminal_there_is_live_progress_and_then_a_summary_of_80_columns() -> None:
    code, written = on_a_terminal("rehearse", EXAMPLE, *SMALL, *BRIEF, "--bandwidth", "8M")
    assert code == 0
    progress, heading, summary = written.partition("web-server.json, r6 to r6: migrated")
    assert heading
    assert "\x1b[?25l" in progress, "the cursor is hidden while something is drawn over and over"
    assert progress.rindex("\x1b[?25h") > progress.rindex("\x1b[?25l"), "the cursor is back"
    assert re.search(r"source .*━.*round 0: \d\.\d MiB at \d+\.\d MiB/s", progress)
    assert "the target takes spec version 6" in progress
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in summary.splitlines()]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 2 * 24
    assert any(re.match(r"guest +away for \d+\.\d ms by its own clock", line) for line in lines)
    assert any(re.match(r"pause +0\.00 ", line) for line in lines)


# Somebody ends it


async def marked_daemons(mark: str, rehearsal: int) -> set[int]:
    return set(processes_with(MARK, mark)) - {rehearsal}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
async def test_no_daemon_outlives_its_rehearsal(number: signal.Signals, mark: str) -> None:
    async with running("rehearse", EXAMPLE, *VERY_SLOW, executed=True) as rehearsal:
        await rehearsal.says("source: phase ram")
        daemons = await marked_daemons(mark, rehearsal.process.pid)
        assert len(daemons) == 3, "both, and the one that has forked them"
        rehearsal.process.send_signal(number)
        code = await rehearsal.process.wait()
        if number is signal.SIGINT:
            await rehearsal.ends()
            assert (code, rehearsal.lines[-1]) == (130, "migrate: interrupted; both daemons have ended")
            assert not any("Traceback" in line for line in rehearsal.lines)
        for daemon_ in daemons:
            await end_of(daemon_)
    assert processes_with(MARK, mark) == []


def ignore(_: object) -> None:
    """Tests look at events when they want to."""


@asynccontextmanager
async def daemon(side: str, *arguments: str) -> AsyncIterator[DaemonProcess]:
    async with fork_launcher() as launcher, daemon_process(side, arguments, ignore, launcher) as child:
        yield child


async def told(child: DaemonProcess, *names: str) -> dict[str, Any]:
    with trio.fail_after(PATIENCE_S):
        event = await child.until(*names)
    assert event is not None, f"the {child.side} ended without {names}: {child.events[-3:]} {child.complaints}"
    return event


async def exit_code(child: DaemonProcess) -> int:
    with trio.fail_after(PATIENCE_S):
        await told(child, "ended")
        return await child.process.wait()


def interrupt(child: DaemonProcess) -> None:
    child.process.send_signal(signal.SIGINT)


@asynccontextmanager
async def source_daemon(*options: str) -> AsyncIterator[tuple[DaemonProcess, str]]:
    async with daemon("source", EXAMPLE, "--listen", "127.0.0.1:0", *options) as source:
        yield source, (await told(source, "listening"))["address"]


def assert_whole(ended: dict[str, Any]) -> None:
    """The guest runs here, and no record or page of it was lost on the way."""
    guest = ended["guest"]
    assert ended["runs_here"]
    records = guest["records"]
    assert records["found"] == records["acknowledged"]
    assert (records["lost"], records["repeated"], guest["stale_pages"]) == ([], [], [])
    assert (records["torn"], records["out_of_order"]) == (0, 0)


async def assert_another_target_succeeds(source: DaemonProcess, address: str) -> None:
    async with daemon("target", address) as target:
        await told(target, "running")
        assert await exit_code(source) == 0
        target.ask_to_end()
        assert await exit_code(target) == 0
        assert_whole(await told(target, "ended"))
    assert (await told(source, "ended"))["runs_here"] is False


async def test_ctrl_c_on_the_source_ends_the_attempt_and_not_the_machine() -> None:
    async with source_daemon(*SLOW) as (source, address):
        async with daemon("target", address) as target:
            await told(source, "ram")
            interrupt(source)
            assert await exit_code(target) == 1
            error = (await told(target, "attempt ended"))["error"]
            assert (error["class"], error["side"]) == ("MigrationCancelled", "source")
        names = [event["event"] for event in source.events]
        await told(source, "attempt ended")
        assert names.index("rolled back") > names.index("interrupt")
        await assert_another_target_succeeds(source, address)


async def test_ctrl_c_on_the_target_ends_it_and_leaves_the_machine_with_the_source() -> None:
    async with source_daemon(*SLOW) as (source, address):
        async with daemon("target", address, "--retries", "5") as target:
            await told(source, "ram")
            interrupt(target)
            assert await exit_code(target) == 130
            assert len(target.all("attempt")) == 1
            assert (await told(target, "ended"))["runs_here"] is False
        error = (await told(source, "attempt ended"))["error"]
        assert (error["class"], error["side"]) == ("MigrationCancelled", "target")
        await assert_another_target_succeeds(source, address)


async def test_a_second_ctrl_c_ends_the_source() -> None:
    async with source_daemon(*VERY_SLOW) as (source, address), daemon("target", address):
        await told(source, "ram")
        interrupt(source)
        await told(source, "attempt ended")
        interrupt(source)
        assert await exit_code(source) == 130
        assert_whole(await told(source, "ended"))


async def test_sigterm_ends_either_side_at_once_and_in_order() -> None:
    async with source_daemon(*VERY_SLOW) as (source, address), daemon("target", address) as target:
        await told(source, "ram")
        target.ask_to_end()
        assert await exit_code(target) == 130, "it was to migrate a machine in, and has not"
        await told(source, "attempt ended")
        source.ask_to_end()
        assert await exit_code(source) == 0
        assert_whole(await told(source, "ended"))


async def test_a_machine_goes_from_host_to_host_to_host() -> None:
    async with source_daemon(*SMALL) as (first, first_address):
        options = ("--listen", "127.0.0.1:0", "--on-stall", "force")
        async with daemon("target", first_address, *options) as second:
            second_address = (await told(second, "listening"))["address"]
            assert await exit_code(first) == 0
            async with daemon("target", second_address) as third:
                await told(third, "running")
                assert await exit_code(second) == 0
                third.ask_to_end()
                assert await exit_code(third) == 0
                assert_whole(await told(third, "ended"))
            assert [event["outcome"] for event in second.all("attempt ended")] == ["migrated"] * 2
            for child in (first, second):
                assert (await told(child, "ended"))["runs_here"] is False


@pytest.mark.parametrize(
    ("complaints", "words"),
    [
        ([], "it said nothing"),
        (["migrate: a/spec.json: no such file"], "migrate: a/spec.json: no such file"),
        (["  | Traceback (most recent call last):", "  | ValueError: 7", "    +----------------"], "ValueError: 7"),
    ],
)
def test_the_last_words_of_a_daemon_are_words(complaints: list[str], words: str) -> None:
    died = DaemonDied("source", 70, complaints)
    assert died.last_words == words
    assert str(died) == f"the source daemon ended too early (exit code 70): {words}"


# Somebody kills it


async def test_when_the_target_is_killed_the_source_says_so_and_runs_on() -> None:
    async with running("source", EXAMPLE, "--listen", "127.0.0.1:0", *SLOW) as source:
        address = (await source.says("ready to be migrated away")).split()[-1]
        async with daemon("target", address) as target:
            await source.says("source: phase ram")
            target.process.kill()
        assert "connection" in await source.says("failed in phase 'ram': ")
        assert "source: the machine runs on here" in source.lines
        async with running("target", address) as target_again:
            await target_again.says("runs here now")
            assert await source.ends() == 0
    assert not any("Traceback" in line for line in [*source.lines, *target_again.lines])


async def test_when_the_source_is_killed_the_target_says_so_and_ends() -> None:
    async with source_daemon(*VERY_SLOW) as (source, address), running("target", address) as target:
        await told(source, "ram")
        source.process.kill()
        assert await target.ends() == 1
        assert target.lines[-1].startswith("target: failed in phase 'ram': ")
        assert "connection" in target.lines[-1]
        assert not any("Traceback" in line for line in target.lines)
