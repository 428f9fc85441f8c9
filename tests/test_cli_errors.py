"""Bad input and bad luck: one clear line on standard error, the promised exit code, and nothing left running."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.commands import EXAMPLE, MIGRATE, Said, call, processes_with, start
from tests.corpus import FIXTURES

Capsys = pytest.CaptureFixture[str]

NO_BACKEND = str(FIXTURES / "specs/invalid/i01-storage-backend-missing.json")
CRUCIBLE = str(FIXTURES / "specs/valid/v1-control-plane-crucible.json")
MARK = "MIGRATE_TEST_ERRORS"

#: Command lines that are refused before anything starts, and what the complaint must say: what, where, what instead.
REFUSED: list[tuple[list[str], list[str]]] = [
    # Specs
    (["spec", "show", "{tmp}/none.json"], ["none.json: cannot be read: No such file or directory"]),
    (["spec", "show", "{tmp}"], ["{tmp}: cannot be read: Is a directory"]),
    (["spec", "show", "{tmp}/binary"], ["binary: not JSON: byte 0 is not UTF-8"]),
    (["spec", "show", "{tmp}/empty"], ["empty: not JSON: line 1, column 1"]),
    (["spec", "show", "{tmp}/half"], ["half: not JSON: line 1, column"]),
    (["spec", "show", "{tmp}/array"], ["array: ", "object"]),
    (["spec", "show", NO_BACKEND], ["i01-storage-backend-missing.json: ", "'disk0'", "'disk0-bakend'", "add one"]),
    (["spec", "offer", "{tmp}/none.json"], ["cannot be read"]),
    (["spec", "convert", "{tmp}/none.json", "--to", "1"], ["cannot be read"]),
    (["check", "{tmp}/none.json"], ["cannot be read"]),
    (["source", "{tmp}/none.json"], ["cannot be read"]),
    (["rehearse", "{tmp}/none.json"], ["cannot be read"]),
    (["rehearse", NO_BACKEND], ["'disk0-bakend'"]),
    (["spec", "show", EXAMPLE, "--api-version", "1"], ["web-server.json: ", "has_write_cache"]),
    (["spec", "show", EXAMPLE, "--api-version", "7"], ["no API version 7; there are 1, 2, 3, 4, 5, 6"]),
    (["spec", "validate", EXAMPLE, "--api-version", "0"], ["no API version 0"]),
    (["spec", "convert", EXAMPLE, "--to", "9"], ["no spec version 9; there are 1, 2, 3, 6"]),
    # Names
    (["check", EXAMPLE, "--from", "r9"], ["no release 'r9'; there are r1, r2, r3, r6"]),
    (["check", EXAMPLE, "--to", "r9"], ["no release 'r9'"]),
    (["rehearse", EXAMPLE, "--from", "r9"], ["no release 'r9'"]),
    (["rehearse", EXAMPLE, "--to", "r9"], ["no release 'r9'"]),
    (["source", EXAMPLE, "--from", "r9"], ["no release 'r9'"]),
    (["target", "127.0.0.1:1", "--to", "r9"], ["no release 'r9'"]),
    (["check", EXAMPLE, "--guest", "windows"], ["'windows'", "idle", "stamp"]),
    (["rehearse", EXAMPLE, "--guest", "windows"], ["'windows'", "idle", "stamp"]),
    (["source", EXAMPLE, "--guest", "windows"], ["'windows'", "idle", "stamp"]),
    (["source", EXAMPLE, "--on-stall", "maybe"], ["maybe", "refuse", "force"]),
    # The command line itself
    (["nonsense"], ["nonsense", "rehearse", " and others; see migrate --help"]),
    (["spec", "nonsense"], ["nonsense", "convert", "see migrate spec --help"]),
    (["check", EXAMPLE, "--frm", "r1"], ["--frm", "--from", "see migrate check --help"]),
    (["rehearse", EXAMPLE, "--fast"], ["--fast", "see migrate rehearse --help"]),
    (["rehearse"], ["SPEC is missing; see migrate rehearse --help"]),
    (["spec", "show"], ["SPEC is missing; see migrate spec show --help"]),
    (["spec", "validate"], ["SPEC is missing; see migrate spec validate --help"]),
    (["spec", "convert", EXAMPLE], ["--to is missing; see migrate spec convert --help"]),
    (["target"], ["SOURCE is missing", "--state-dir", "see migrate target --help"]),
    (["spec", "show", EXAMPLE, EXAMPLE], ["too many arguments", "web-server.json"]),
    (["spec", "show", EXAMPLE, "--api-version", "new"], ["--api-version", "new"]),
    (["rehearse", EXAMPLE, "--memory-mb", "much"], ["--memory-mb", "much"]),
    # Quantities
    (["rehearse", EXAMPLE, "--memory-mb", "0"], ["0 MiB", "expected 1 to"]),
    (["source", EXAMPLE, "--memory-mb", "-5"], ["-5 MiB", "expected 1 to"]),
    (["rehearse", EXAMPLE, "--memory-mb", "99999999"], ["99999999 MiB", "expected 1 to"]),
    (["rehearse", EXAMPLE, "--bandwidth", "fast"], ["--bandwidth 'fast'", "100M"]),
    (["source", EXAMPLE, "--bandwidth", "0"], ["--bandwidth '0'", "at least 64Ki"]),
    (["target", "127.0.0.1:1", "--bandwidth", "-1M"], ["--bandwidth"]),
    (["source", EXAMPLE, "--bandwidth", "12X"], ["--bandwidth '12X'"]),
    (["rehearse", EXAMPLE, "--downtime-limit-ms", "0"], ["--downtime-limit-ms 0", "more than 0"]),
    (["source", EXAMPLE, "--downtime-limit-ms", "nan"], ["--downtime-limit-ms nan", "more than 0"]),
    (["target", "127.0.0.1:1", "--downtime-limit-ms", "-3"], ["--downtime-limit-ms -3", "more than 0"]),
    (["rehearse", EXAMPLE, "--rounds-max", "0"], ["--rounds-max 0", "1 or more"]),
    (["source", EXAMPLE, "--precopy-time-max-s", "0"], ["--precopy-time-max-s 0", "more than 0"]),
    (["target", "127.0.0.1:1", "--precopy-time-max-s", "nan"], ["--precopy-time-max-s nan", "more than 0"]),
    (["rehearse", EXAMPLE, "--retries", "-1"], ["--retries -1", "0 or more"]),
    (["target", "127.0.0.1:1", "--retries", "-1"], ["--retries -1", "0 or more"]),
    (["rehearse", EXAMPLE, "--seed", "-1"], ["--seed -1", "0 or more"]),
    (["source", EXAMPLE, "--seed", "-1"], ["--seed -1", "0 or more"]),
    (["rehearse", EXAMPLE, "--after-s", "-1"], ["--after-s -1", "0 or more"]),
    (["rehearse", EXAMPLE, "--after-s", "nan"], ["--after-s nan", "0 or more"]),
    # Directories
    *[
        ([*command, "--ram-dir", "/dev/shm"], ["--ram-dir is for guest RAM that survives its daemon; give --state-dir"])
        for command in (["rehearse", EXAMPLE], ["source", EXAMPLE], ["target", "127.0.0.1:1"])
    ],
    (
        ["rehearse", EXAMPLE, "--state-dir", "s", "--ram-dir", "nowhere"],
        ["--ram-dir nowhere is no directory", "/dev/shm"],
    ),
    # Addresses
    *[
        ([command, *spec, *option, address], [f"{address!r} is no address", "HOST:PORT"])
        for command, spec, option in (("source", [EXAMPLE], ["--listen"]), ("target", [], []))
        for address in ("nowhere", "127.0.0.1", "127.0.0.1:", ":4600", "127.0.0.1:http", "127.0.0.1:65536", "", "[]:1")
    ],
    *[
        (["source", EXAMPLE, "--listen", f"{host}:4600"], [f"{host}:4600 is not on loopback", "--insecure"])
        for host in ("0.0.0.0", "192.0.2.1", "example.com", "[::]", "localhost.example.com")
    ],
    (["target", "192.0.2.1:4600"], ["192.0.2.1:4600 is not on loopback", "--tls-cert", "--insecure"]),
    (["source", EXAMPLE, "--peer", "target"], ["--tls-cert, --tls-key, --tls-ca missing beside --peer", "all four"]),
    (["target", "127.0.0.1:1", "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"], ["--peer missing beside"]),
    (
        ["target", "127.0.0.1:1", "--tls-cert", "{tmp}/none", "--tls-key", "k", "--tls-ca", "a", "--peer", "p"],
        ["{tmp}/none: cannot be read: No such file"],
    ),
    (["source", EXAMPLE, "--limits", "opening_s=soon"], ["--limits 'opening_s=soon'", "opening_s=1"]),
    (["source", EXAMPLE, "--limits", "patience_s=1"], ["--limits 'patience_s=1'", "opening_s=1"]),
    (["certs", "{tmp}/new", "--days", "0"], ["--days 0", "more than 0"]),
    (["certs", "{tmp}/new", "--days", "nan"], ["--days nan", "more than 0"]),
    (["certs", "{tmp}/new", "--days", "9999"], ["--days 9999", "3650 at most"]),
    (["certs", "{tmp}/half"], ["{tmp}/half", "cannot be written"]),
    (["certs"], ["DIRECTORY is missing; see migrate certs --help"]),
    (["target", "127.0.0.1:1", "--listen", "0.0.0.0:1"], ["0.0.0.0:1 is not on loopback", "--insecure"]),
    # Files of options
    (["target", "127.0.0.1:1", "--replace", "{tmp}/none.json"], ["none.json: cannot be read: No such file"]),
    (["target", "127.0.0.1:1", "--replace", "{tmp}"], ["{tmp}: cannot be read: Is a directory"]),
    (["rehearse", EXAMPLE, "--replace", "{tmp}/half"], ["half: not JSON"]),
    (["rehearse", EXAMPLE, "--replace", "{tmp}/array"], ["array: "]),
    (["target", "127.0.0.1:1", "--replace", "{tmp}/disk"], ["disk: ", "'VirtioDisk' cannot be replaced; what can"]),
    (["source", EXAMPLE, "--events", "{tmp}/none/events"], ["none/events: cannot be written: No such file"]),
    (["target", "127.0.0.1:1", "--events", "{tmp}"], ["{tmp}: cannot be written: Is a directory"]),
    (["source", EXAMPLE, "--events", "-", "--json"], ["--json and --events -", "write the events to a file"]),
]


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    for name, content in {
        "binary": b"\xff\x00\x01",
        "empty": b"",
        "half": b'{"board": {',
        "array": b"[1, 2]",
        "disk": json.dumps({"d": {"component": "VirtioDisk", "spec": {}}}).encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda case: " ".join(case)[-60:] or "empty")
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], words: list[str], bad_files: Path, capsys: Capsys
) -> None:
    tmp = str(bad_files)
    said = call(capsys, *(argument.replace("{tmp}", tmp) for argument in arguments))
    assert (said.code, said.out) == (2, "")
    assert said.complaint.startswith("migrate: ")
    for word in words:
        assert word.replace("{tmp}", tmp) in said.complaint


@pytest.mark.parametrize("arguments", [["check", EXAMPLE, "--to", "r9"], ["rehearse", EXAMPLE, "--memory-mb", "0"]])
def test_bad_input_is_complained_about_in_the_same_words_with_json(arguments: list[str], capsys: Capsys) -> None:
    assert call(capsys, *arguments, "--json") == call(capsys, *arguments)


def test_a_command_is_imported_when_it_is_asked_for() -> None:
    there = "import sys; print(*(name for name in sys.modules if name.startswith('migrate.cli.')))"
    command = [sys.executable, "-c", f"import migrate.cli.app; {there}"]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert set(imported) == {"migrate.cli.app", "migrate.cli.output"}


def test_help_is_no_error(capsys: Capsys) -> None:
    for arguments in ([], ["--help"], ["spec"], ["spec", "convert", "--help"], ["rehearse", "--help"], ["--version"]):
        said = call(capsys, *arguments)
        assert (said.code, said.err) == (0, "")
        assert all(len(line) <= 80 for line in said.out.splitlines())


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*MIGRATE, "spec", "show", EXAMPLE], stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_while_the_program_is_still_being_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "cyclopts.py").write_text("raise KeyboardInterrupt")
    assert start("releases", PYTHONPATH=str(tmp_path)) == Said(130, "", "")


# What only shows once a daemon runs


def assert_ended_badly(said: Said, code: int, *words: str) -> None:
    """The last line says it all; before it there may be lines of progress."""
    assert said.code == code
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    for word in words:
        assert word in last


@contextmanager
def listening_socket() -> Iterator[tuple[socket.socket, str]]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


def free_address() -> str:
    """An address where nobody listens."""
    with listening_socket() as (_, address):
        return address


class _Website(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: a test reads what the command says."""


@contextmanager
def http_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Website) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def peer_that_closes_at_once() -> Iterator[str]:
    with listening_socket() as (server, address):

        def answer() -> None:
            connection, _ = server.accept()
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield address
        finally:
            thread.join()


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_port_in_use_is_bad_input(options: list[str]) -> None:
    with listening_socket() as (_, address):
        for arguments in (["source", EXAMPLE, "--memory-mb", "16"], ["target", free_address()]):
            said = start(*arguments, "--listen", address, *options)
            assert (said.code, said.out) == (2, "")
            assert said.complaint == (
                f"migrate: cannot listen on {address}: Address already in use; choose another port, or 0 for any"
            )


def test_an_address_that_is_not_ours_is_bad_input() -> None:
    said = start("source", EXAMPLE, "--memory-mb", "16", "--listen", "192.0.2.1:0", "--insecure")
    assert (said.code, said.out) == (2, "")
    assert "cannot listen on 192.0.2.1:0: " in said.complaint


def test_an_unreachable_source_ends_the_target_with_exit_code_1() -> None:
    address = free_address()
    assert_ended_badly(start("target", address), 1, "cannot reach a source at", address, "refused")


def test_an_unreachable_source_is_one_document_with_json() -> None:
    said = start("target", free_address(), "--retries", "1", "--json")
    assert (said.code, said.err) == (1, "")
    assert (said.document["outcome"], said.document["runs_here"]) == ("failed", False)
    assert [attempt["error"]["class"] for attempt in said.document["attempts"]] == ["TransportLost"] * 2


def test_a_web_server_is_no_source() -> None:
    with http_server() as address:
        said = start("target", address)
    assert_ended_badly(said, 1, "failed in phase 'hello'", "does not speak this protocol")


def test_a_peer_that_closes_at_once_is_a_lost_connection() -> None:
    with peer_that_closes_at_once() as address:
        said = start("target", address)
    assert_ended_badly(said, 1, "failed in phase 'hello'", "connection")


def test_a_machine_that_cannot_be_made_is_bad_input_to_a_rehearsal_too(tmp_path: Path) -> None:
    """The daemon is the one to find out; it leaves no process, and its words are the only ones."""
    text = Path(CRUCIBLE).read_text()
    document = json.loads(text)
    for component in document["components"].values():
        if component["type"] == "crucible_storage_backend":
            component["component"]["request_json"] = "[]"
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(document))
    checked = start("check", str(spec), "--json")
    assert (checked.code, checked.document["reasons"][0]["field"]) == (1, "request_json")
    mark = tmp_path.name
    source, rehearse = ["source", str(spec), "--listen", "127.0.0.1:0"], ["rehearse", str(spec)]
    for command, environment in ((source, {}), (rehearse, {MARK: mark})):  # which alone starts others
        for options in ([], ["--json"]):
            said = start(*command, *options, "--memory-mb", "16", **environment)
            assert (said.code, said.out) == (2, "")
            assert said.complaint.startswith("migrate: this machine cannot be made: ")
            assert "request_json" in said.complaint
    assert processes_with(MARK, mark) == []
