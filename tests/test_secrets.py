"""What must not be told: requests of Crucible backends (they hold keys), blobs, ids of migrations.

A marker is planted wherever such a thing may be, right or wrong, and looked for in everything that is said: standard
output and error, JSON, events, reports, traces, `repr`, and what a peer is told.
"""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import attrs
import pytest

from migrate import cbor
from migrate.daemon.state import KnownMachine
from migrate.engine.negotiation import preamble_of
from migrate.errors import RemoteProtocolError
from migrate.payloads import PayloadError, decode_payload, encode_payload
from migrate.protocol import frames
from migrate.protocol.messages import MESSAGES, DeviceState, Payload
from migrate.releases import builtin_releases
from migrate.specs.files import read_spec_file
from migrate.specs.offer import offer
from sim_vmm.machine import Machine
from sim_vmm.payloads import Schema
from tests.commands import call, start
from tests.corpus import FIXTURES
from tests.daemons import make_machine
from tests.specimens import SPECIMENS

CONTROL_PLANE: Final = FIXTURES / "specs/valid/v1-control-plane-crucible.json"
MARK: Final = "Q7sEcReTx2"
#: Every form in which the marker may come out: as it is, and as the bytes and base64 of it.
FORMS: Final = (MARK, base64.b64encode(MARK.encode()).decode().rstrip("="), MARK.encode().hex())

Capsys = pytest.CaptureFixture[str]
Spoil = Callable[[dict[str, Any]], None]


def document() -> dict[str, Any]:
    """A machine with a secret request and a secret blob, small enough to boot."""
    spec: dict[str, Any] = json.loads(CONTROL_PLANE.read_text())
    spec["board"]["memory_mb"] = 16
    for component in backends(spec, "crucible_storage_backend"):
        request = json.loads(component["request_json"])
        request["sub_volumes"][0]["opts"]["key"] = MARK
        component["request_json"] = json.dumps(request)
    for component in backends(spec, "blob_storage_backend"):
        component["base64"] = base64.b64encode(MARK.encode().ljust(1024, b"\0")).decode()
    return spec


def backends(spec: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    found = [component["component"] for component in spec["components"].values() if component["type"] == kind]
    assert found, f"the fixture has a {kind}"
    yield from found


def first(spec: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(backends(spec, kind))


def in_request(value: Any) -> Spoil:
    def spoil(spec: dict[str, Any]) -> None:
        first(spec, "crucible_storage_backend")["request_json"] = value

    return spoil


def in_blob(value: Any) -> Spoil:
    def spoil(spec: dict[str, Any]) -> None:
        first(spec, "blob_storage_backend")["base64"] = value

    return spoil


def as_component(value: Any) -> Spoil:
    def spoil(spec: dict[str, Any]) -> None:
        spec["components"]["another"] = value

    return spoil


#: Mistakes that people make with secrets at hand.
SPOILT: Final[dict[str, Spoil]] = {
    "a request that is no text": in_request({"type": "volume", "key": MARK}),
    "a request that is no JSON": in_request(MARK),
    "a request that is JSON and no request": in_request(json.dumps([MARK])),
    "a request of half a character": in_request(MARK + "\ud800"),
    "a blob that is no text": in_blob([MARK]),
    "a blob that is not base64": in_blob(MARK + "!"),
    "a blob without its padding": in_blob(base64.b64encode(MARK.encode() + b"1").decode().rstrip("=")),
    "a blob of half a character": in_blob(MARK + "\udfff"),
    "a component that is a text": as_component("crucible " + MARK + " and more of it"),
    "a component that is a list": as_component([{"request_json": MARK}]),
    "a component whose content is a text": as_component(
        {"type": "crucible_storage_backend", "component": json.dumps({"request_json": MARK, "readonly": False})}
    ),
    "a request in the place of another field": as_component(
        {"type": "crucible_storage_backend", "component": {"request_json": "{}", "readonly": {"key": MARK}}}
    ),
    "a field too many": as_component(
        {"type": "crucible_storage_backend", "component": {"request_json": MARK, "readonly": True, "more": MARK}}
    ),
    "components that are a list": lambda spec: spec.update(components=[spec["components"]]),
}


def assert_untold(*texts: str) -> None:
    for text in texts:
        for form in FORMS:
            assert form not in text, f"{form} in {text[max(text.find(form) - 200, 0) : text.find(form) + 60]}"


@pytest.mark.parametrize("spoil", [*SPOILT.values(), lambda _: None], ids=[*SPOILT, "nothing is wrong"])
@pytest.mark.parametrize(
    "command",
    [
        ("spec", "validate"),
        ("spec", "validate", "--json"),
        ("spec", "validate", "--api-version", "6"),
        ("spec", "offer"),
        ("spec", "offer", "--json"),
        ("check", "--from", "r6", "--to", "r1"),
        ("check", "--json"),
        ("matrix", "--json"),
    ],
    ids=" ".join,
)
def test_commands_tell_what_is_wrong_and_no_secret(
    tmp_path: Path, capsys: Capsys, command: tuple[str, ...], spoil: Spoil
) -> None:
    spec = document()
    spoil(spec)
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    said = call(capsys, *command, file)
    assert said.out + said.err, "something is said"
    assert_untold(said.out, said.err)


@pytest.mark.parametrize("command", [("spec", "show"), ("spec", "convert", "--to", "6")], ids=" ".join)
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_command_whose_result_is_the_document_tells_nothing_of_one_that_is_wrong(
    tmp_path: Path, capsys: Capsys, command: tuple[str, ...], spoil: Spoil
) -> None:
    spec = document()
    spoil(spec)
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    said = call(capsys, *command, file)
    assert_untold(said.err)
    if said.code:
        assert_untold(said.out)


@pytest.mark.parametrize("text", [f'{{"a": "{MARK}', f'{{"{MARK}": 1}} x', f"{MARK}", f'["{MARK}"]', f'"{MARK}"'])
def test_a_file_that_is_no_spec_is_not_repeated(tmp_path: Path, capsys: Capsys, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    for command in (("spec", "validate"), ("spec", "show"), ("source",), ("rehearse",), ("explore",)):
        said = call(capsys, *command, file)
        assert said.code == 2
        assert_untold(said.out, said.err)


@pytest.mark.parametrize(
    "replacement",
    [
        {"component": "CrucibleStorageBackend", "spec": MARK},
        {"component": "CrucibleStorageBackend", "spec": {"request_json": [MARK], "readonly": False}},
        {"component": "CrucibleStorageBackend", "spec": {"request_json": MARK, "readonly": MARK + MARK}},
        [MARK],
    ],
)
def test_a_file_of_replacements_is_not_repeated(tmp_path: Path, capsys: Capsys, replacement: Any) -> None:
    file = tmp_path / "replace.json"
    file.write_text(json.dumps({"disk": replacement}))
    said = call(capsys, "target", "127.0.0.1:1", "--replace", file)
    assert said.code == 2
    assert_untold(said.out, said.err)


def test_a_whole_rehearsal_tells_no_secret_anywhere(tmp_path: Path) -> None:
    """Over TLS, with a migration id, with everything written down that can be."""
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document()))
    with TemporaryDirectory() as short:  # a wire's path must be
        said = start(
            "rehearse", file, "--guest", "stamp", "--tls", "--json", "--report", tmp_path / "report.html",
            "--trace", tmp_path / "trace.json", TMPDIR=short,
        )  # fmt: skip
    assert said.document["outcome"] == "migrated", said.err
    written = [path.read_text(errors="replace") for path in tmp_path.iterdir() if path != file]
    assert len(written) == 2
    assert_untold(said.out, said.err, *written)


def test_a_refusal_by_a_build_that_knows_little_tells_no_secret(tmp_path: Path) -> None:
    """Of everything it says why it cannot be carried."""
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document()))
    said = start("rehearse", file, "--guest", "stamp", "--from", "r6", "--to", "r1", "--json")
    assert said.document["attempts"], said.err
    assert_untold(said.out, said.err)


# Values and messages


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document()))
    made = make_machine(read_spec_file(file, None).spec)
    yield made
    made.close()


def test_nothing_secret_is_in_the_repr_of_what_travels_or_is_kept(machine: Machine) -> None:
    release = builtin_releases()["r6"]
    states = [
        DeviceState(
            device=state.key,
            payloads=tuple(
                Payload(kind=payload.SCHEMA.kind, version=payload.SCHEMA.version, data=encode_payload(payload))
                for payload in state.payloads
            ),
        )
        for state in machine.preflight()
    ]
    variants = list(offer(machine.spec, release.versions))
    known = KnownMachine(
        vm_id=machine.birth.vm_id,
        name="m",
        spec_version=6,
        spec_document=MARK.encode(),
        birth_release="r6",
        birth_shows=(),
        release="r6",
        guest="stamp",
        memory_bytes=1,
    )
    values = [machine.spec, machine.preflight(), states, variants, known, preamble_of(machine, release, "m")]
    assert_untold(*map(repr, values), *map(str, values))


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: kind.__name__)
def test_byte_strings_of_messages_are_not_in_their_repr(kind: type[Any]) -> None:
    """Whatever they hold: a token, an id, a spec, a device's state."""
    told = {"spec_digest", "vm_id", "machine"}
    specimen = SPECIMENS[kind]
    for field in attrs.fields(kind):
        value = getattr(specimen, field.name)
        if isinstance(value, bytes) and len(value) > 1 and field.name not in told:
            assert repr(value)[2:-1] not in repr(specimen), field.name


def test_a_frame_that_is_guest_ram_in_truth_is_not_repeated() -> None:
    """After a lost byte, what is taken for a frame's head may be a page of a guest."""
    with pytest.raises(RemoteProtocolError) as caught:
        frames.decode_header(MARK.encode().ljust(16, b"!")[:16])
    assert_untold(str(caught.value))


def test_a_payload_in_which_something_else_stands_is_not_repeated() -> None:
    for value in (MARK * 3, [MARK], {MARK: MARK}):
        with pytest.raises(PayloadError) as caught:
            decode_payload(Schema("in-memory-block-backend", 1), cbor.encode({"bytes": value}))
        assert_untold(str(caught.value))
