"""The control socket of a host and the commands that use it: strict, bounded, for this user only."""

import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.daemon.address import BadInput
from migrate.daemon.host.client import Controller, Denied, controlling
from migrate.daemon.host.control import Control, listen_for_control
from migrate.daemon.host.host import Ending
from migrate.daemon.host.requests import (
    LINE_MAX,
    REQUESTS,
    BadRequest,
    Boot,
    Cancel,
    Inspect,
    Limit,
    List,
    Offer,
    Request,
    Status,
    Stop,
    Take,
    Wait,
    read_request,
    request_json,
)
from migrate.daemon.host.sending import send_all
from migrate.specs.reading import parse_json
from tests.commands import EXAMPLE, call
from tests.hosts import HostUnderTest, hosting

AN_ID = UUID("5f2b6c1e-8f0a-4a57-9d6e-3f1c2b7a9e01")
BOOT = Boot(spec=parse_json(Path(EXAMPLE).read_bytes()), name="vm", count=3, guest="idle", memory_mb=2)

SAID: list[Request] = [
    Status(),
    List(),
    List(machine="a"),
    Boot(spec={"x": [1, None]}, name="a", count=2, guest="stamp", memory_mb=3, seed=4, api_version=6),
    Offer(machine="a", migration=AN_ID, retries=1),
    Take(source="127.0.0.1:1", migration=AN_ID),
    Wait(migration=AN_ID),
    Cancel(machine="a"),
    Limit(migrations_max=3, bandwidth=0),
    Inspect(machine="a"),
    Stop(how="abort"),
]

#: A line, and how it is refused.
REFUSED: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"hello", "not JSON"),
    "no object": (b"[1]", "a request is a JSON object"),
    "no id": (b'{"do": "status"}', "a request has an id"),
    "a negative id": (b'{"id": -1, "do": "status"}', "a request has an id"),
    "true for an id": (b'{"id": true, "do": "status"}', "a request has an id"),
    "nothing to do": (b'{"id": 1}', "do is none of status, list, boot"),
    "something else to do": (b'{"id": 1, "do": "format"}', "do is none of status, list, boot"),
    "a list of things to do": (b'{"id": 1, "do": ["status"]}', "do is none of status, list, boot"),
    "an unknown field": (b'{"id": 1, "do": "status", "x": 1}', "x: unknown field 'x'"),
    "a field twice": (b'{"id": 1, "do": "cancel", "machine": "a", "machine": "b"}', "'machine' is given twice"),
    "a missing field": (b'{"id": 1, "do": "cancel"}', "machine: required and missing"),
    "a number for a name": (b'{"id": 1, "do": "cancel", "machine": 7}', "machine: expected a string, got 7"),
    "too long a name": (b'{"id": 1, "do": "cancel", "machine": "%s"}' % (b"a" * 129), "machine: "),
    "no UUID": (b'{"id": 1, "do": "wait", "migration": "secret-secret"}', "migration: expected a UUID"),
    "text for a number": (b'{"id": 1, "do": "limit", "bandwidth": "1M"}', "bandwidth: expected an integer"),
    "a fraction": (b'{"id": 1, "do": "limit", "migrations_max": 1.5}', "migrations_max: expected an integer"),
    "too large a number": (b'{"id": 1, "do": "limit", "migrations_max": 1e400}', "migrations_max: "),
    "deep": (b'{"id": 1, "do": ' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("request_", SAID, ids=lambda request: str(request.DO))
def test_a_request_is_read_as_it_was_asked(request_: Request) -> None:
    line = json.dumps(request_json(7, request_)).encode()
    assert read_request(line) == (7, request_)


def test_every_request_is_among_those_that_were_asked() -> None:
    assert {request.DO for request in SAID} == set(REQUESTS)


@pytest.mark.parametrize(("line", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_with_what_is_wrong(line: bytes, why: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read_request(line)
    assert why in str(raised.value)
    assert "secret" not in str(raised.value)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=50) | (st.integers() | st.lists(st.none() | st.text(max_size=5), max_size=3)).map(json.dumps))
def test_nothing_else_ever_comes_of_a_line(line: bytes | str) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(BadRequest):
        read_request(data)


@asynccontextmanager
async def in_control(path: Path, host: HostUnderTest) -> AsyncIterator[Controller]:
    async def stop(how: Ending) -> dict[str, Any]:
        await host.host.end(how)
        return host.host.left()

    listener = listen_for_control(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Control(path, host.host, stop, lambda: {"tasks": 1}).serve, listener)
        async with controlling(path) as controller:
            yield controller
        nursery.cancel_scope.cancel()


async def test_a_control_plane_drives_two_hosts(tmp_path: Path) -> None:
    async with (
        hosting() as one,
        hosting() as other,
        in_control(tmp_path / "a", one) as source,
        in_control(tmp_path / "b", other) as target,
    ):
        booted = (await source.ask(BOOT))["machines"]
        assert [machine["machine"] for machine in booted] == ["vm-1", "vm-2", "vm-3"]
        sent = await send_all(source, target, ["vm-1", booted[1]["vm_id"], "vm-9"], retries=0)
        assert [document["outcome"] for document in sent] == ["migrated", "migrated", "failed"]
        assert sent[2]["error"]["class"] == "NoSuchMachine"
        assert other.names == ["vm-1", "vm-2"]
        assert (await target.ask(Status()))["moved"] == {"in": 2, "out": 0, "failed": 0}
        (machine,) = (await target.ask(List(machine="vm-1")))["machines"]
        assert (machine["runs"], machine["record"], machine["memory_mb"]) == (True, "O(2)", 2)
        assert (await target.ask(Inspect(machine="vm-1")))["facts"]["program"] == "idle"
        for request, kind in (
            (Cancel(machine="vm-7"), "NoSuchMachine"),
            (Wait(migration=AN_ID), "NoSuchMigration"),
            (Limit(migrations_max=0), "BadInput"),
            (Take(source="nowhere", migration=AN_ID), "BadInput"),
            (Take(source="192.0.2.1:1", migration=AN_ID), "BadInput"),
            (Boot(spec={}, name="x"), "BadInput"),
            (Boot(spec=BOOT.spec, name="x", guest="unicorn"), "BadInput"),
            (Boot(spec=BOOT.spec, name="x" * 128, count=2), "BadRequest"),
            (Stop(how="now"), "BadRequest"),
        ):
            with pytest.raises(Denied) as raised:
                await target.ask(request)
            assert raised.value.kind == kind, request
        left = await source.ask(Stop())
        assert [machine["machine"] for machine in left["left"]] == ["vm-3"]
        with pytest.raises(Denied) as raised:
            await source.ask(BOOT)
        assert raised.value.kind == "Ending"


async def test_answers_overtake_those_that_take_time_and_a_bad_line_ends_nothing(tmp_path: Path) -> None:
    async with hosting() as host, in_control(tmp_path / "a", host) as control:
        await control.ask(BOOT)
        async with trio.open_nursery() as nursery:
            await control.ask(Offer(machine="vm-1", migration=AN_ID))
            nursery.start_soon(control.ask, Wait(migration=AN_ID))
            assert (await control.ask(Status()))["machines"] == 3
            stream = await trio.open_unix_socket(str(tmp_path / "a"))
            async with stream:
                await stream.send_all(b'nonsense\n{"id": 5, "do": "status"}\n')
                said = b""
                while said.count(b"\n") < 2:
                    said += await stream.receive_some()
            refused, answered = (json.loads(line) for line in said.splitlines())
            assert refused["id"] is None
            assert refused["error"]["class"] == "BadRequest"
            assert answered["ok"]["machines"] == 3
            await control.ask(Cancel(machine=str(AN_ID)))


async def test_a_request_without_an_end_is_cut_off_at_its_bound(tmp_path: Path) -> None:
    async with hosting() as host, in_control(tmp_path / "a", host):
        stream = await trio.open_unix_socket(str(tmp_path / "a"))
        async with stream:
            sent = 0
            with suppress(trio.BrokenResourceError):
                while sent < 4 * LINE_MAX:
                    await stream.send_all(b"x" * (LINE_MAX // 8))
                    sent += LINE_MAX // 8
            assert LINE_MAX <= sent < 2 * LINE_MAX
        assert host.host.status()["machines"] == 0


def test_the_socket_is_for_this_user_only_and_a_dead_one_is_replaced_but_not_a_live_one(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def listen() -> None:
        listener = listen_for_control(path)
        with listener.socket:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(BadInput, match="a host is in control there"):
                listen_for_control(path)

    trio.run(listen)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be listened on"):
        listen_for_control(tmp_path / "file")


BAD_COMMANDS: dict[str, tuple[list[str], str]] = {
    "no host": (["host", "status", "--control", "nowhere"], "nowhere: no host is there (No such file or directory)"),
    "no control": (["host", "list"], "--control"),
    "nothing to send": (["host", "send", "--control", "a", "--to", "b"], "say which machines are to be sent, or --all"),
    "some and all": (["host", "send", "vm", "--all", "--control", "a", "--to", "b"], "or --all"),
    "drain and abort": (["host", "stop", "--drain", "--abort", "--control", "a"], "contradict each other"),
    "no machines": (["host", "boot", EXAMPLE, "--count", "0", "--control", "a"], "--count 0: expected 1 or more"),
    "no such guest": (["host", "boot", EXAMPLE, "--guest", "x", "--control", "a"], "unknown guest program 'x'"),
    "no such spec": (["host", "boot", "none.json", "--control", "a"], "none.json: cannot be read"),
    "no such rate": (["host", "limit", "--bandwidth", "fast", "--control", "a"], "--bandwidth 'fast'"),
    "no such address": (["host", "take", "here", str(AN_ID), "--control", "a"], "'here' is no address"),
    "no such id": (["host", "wait", "me", "--control", "a"], "me"),
    "a host without control": (["serve"], "--control is missing"),
    "no slots": (["serve", "--control", "a", "--migrations-max", "0"], "--migrations-max 0: expected 1 or more"),
    "off loopback": (["serve", "--control", "a", "--listen", "192.0.2.1:1"], "not on loopback"),
    "too many": (["serve", "--control", "a", "--machines-max", "99999999"], "raise the hard limit (ulimit -Hn"),
    "a crowd of none": (["crowd", EXAMPLE, "--machines", "0"], "--machines and --at-once are 1 or more"),
    "a crowd of ledgers": (["crowd", EXAMPLE, "--guest", "ledger"], "use --guest stamp"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path) if EXAMPLE not in arguments else None
    said = call(capsys, *arguments)
    assert says in said.complaint
    assert (said.code, said.out) == (2, "")
