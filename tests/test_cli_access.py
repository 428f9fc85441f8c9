"""`migrate certs`, and daemons that are started with what it says."""

import shlex
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from migrate.daemon.pair import PairOptions, run_pair
from tests.commands import EXAMPLE, call, start

Capsys = pytest.CaptureFixture[str]
SMALL = ("--memory-mb", "16", "--guest", "stamp")


def ignore(_: object) -> None:
    """Nobody watches."""


def test_certificates_are_made_once_and_the_commands_to_use_them_are_told(tmp_path: Path, capsys: Capsys) -> None:
    place = tmp_path / "new certificates"
    said = call(capsys, "certs", place)
    assert (said.code, said.err) == (0, "")
    commands = [shlex.split(line) for line in said.out.splitlines() if line.startswith("  migrate ")]
    assert [command[:2] for command in commands] == [["migrate", "source"], ["migrate", "target"]]
    for command in commands:
        files = [word for word in command if word.startswith(str(place))]
        assert len(files) == 3
        assert all(Path(file).is_file() for file in files)
    again = call(capsys, "certs", place)
    assert (again.code, again.out) == (2, "")
    assert f"{place / 'ca.pem'} is there already" in again.complaint


async def test_what_is_told_to_programs_starts_a_pair_that_migrates(tmp_path: Path, capsys: Capsys) -> None:
    made = call(capsys, "certs", tmp_path / "made", "--json", "--days", "0.5").document
    assert made["authority"] == str(tmp_path / "made" / "ca.pem")
    assert made["days"] == 0.5
    sides = made["sides"]
    assert {role: side["name"] for role, side in sides.items()} == {"source": "source", "target": "target"}
    options = PairOptions(
        source_arguments=(EXAMPLE, *SMALL, "--audited", "--listen", "127.0.0.1:0", *sides["source"]["arguments"]),
        target_arguments=("--audited", *sides["target"]["arguments"]),
        after_s=0,
    )
    with trio.fail_after(60):
        pair = await run_pair(options, ignore)
    assert [event["outcome"] for event in pair.target if event["event"] == "attempt ended"] == ["migrated"]


def test_a_rehearsal_over_tls_leaves_no_certificate_behind() -> None:
    with TemporaryDirectory() as short:  # a wire's path must be
        said = start("rehearse", EXAMPLE, "--memory-mb", "32", "--tls", "--json", TMPDIR=short)
        left = list(Path(short).iterdir())
    assert said.code == 0, said.err
    assert said.document["outcome"] == "migrated"
    assert said.document["audit"]["violations"] == []
    assert left == []


def test_a_daemon_that_remembers_an_address_off_loopback_needs_leave_to_use_it_again(tmp_path: Path) -> None:
    """What was allowed once, by TLS or by --insecure, is not allowed for ever."""
    state = tmp_path / "state"
    first = start("target", "192.0.2.1:4600", "--state-dir", state, "--insecure", "--limits", "connect_s=0.1")
    assert first.code == 1, first.err
    again = start("target", "--state-dir", state)
    assert again.code == 2
    assert "192.0.2.1:4600 is not on loopback" in again.err


def test_tls_is_offered_wherever_somebody_connects(capsys: Capsys) -> None:
    for command in ("source", "target", "resolve"):
        text = call(capsys, command, "--help").out
        for option in ("--tls-cert", "--tls-key", "--tls-ca", "--peer", "--insecure"):
            assert option in text, command
        assert "--limits" not in text
    assert "--tls" in call(capsys, "rehearse", "--help").out


def test_events_name_no_file_of_a_key(tmp_path: Path, capsys: Capsys) -> None:
    call(capsys, "certs", tmp_path / "c", "--json")
    shutil.copy(tmp_path / "c" / "target.key", tmp_path / "c" / "source.key")
    said = start(
        "source", EXAMPLE, "--tls-cert", tmp_path / "c" / "source.pem", "--tls-key", tmp_path / "c" / "source.key",
        "--tls-ca", tmp_path / "c" / "ca.pem", "--peer", "target", "--json",
    )  # fmt: skip
    assert (said.code, said.out) == (2, "")
    assert "the key is not that of the certificate" in said.complaint
    assert (tmp_path / "c" / "source.key").read_text().splitlines()[1] not in said.err
