"""`migrate spec …`: what the command-line contract promises of spec files, over the whole corpus."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import MIGRATE, MODULE, Said, call, start
from tests.corpus import CONVERSIONS, FIXTURES, INVALID, VALID, VALID_NAMES
from tests.documents import CANONICAL, PATH, board, document

Capsys = pytest.CaptureFixture[str]

each_valid = pytest.mark.parametrize("case", VALID, ids=VALID_NAMES)
each_fixture = pytest.mark.parametrize("case", VALID + INVALID, ids=lambda case: case["name"])

ERROR_KEYS = {"layer", "error", "component", "message"}
REASON_KEYS = {"component", "field", "have", "need", "message"}

NIC = {"type": "virtio_nic", "component": {"backend_id": "b", "interface_id": CANONICAL, "pci_path": PATH}}
NIC_BACKEND = {"type": "virtio_network_backend", "component": {"vnic_name": "opte0"}}
TWO_SPELLINGS = {
    "type": "virtio_nic",
    "component": {"backend_id": CANONICAL, "interface_id": CANONICAL, "pci_path": PATH},
}


def path_of(case: dict[str, Any]) -> Path:
    path: Path = FIXTURES / case["file"]
    return path


def written(path: Path, plain: Any) -> Path:
    path.write_text(plain if isinstance(plain, str) else json.dumps(plain))
    return path


def assert_for_people(text: str) -> None:
    """80 columns, nothing but printable characters and line ends: no colour, no cursor that moves."""
    assert text.endswith("\n")
    for line in text.splitlines():
        assert len(line) <= 80, line
        assert line.isprintable(), repr(line)


# validate


@each_fixture
def test_validate_gives_the_verdict_of_the_index_in_the_keys_of_the_contract(
    case: dict[str, Any], capsys: Capsys
) -> None:
    said = call(capsys, "spec", "validate", path_of(case), "--json", "--api-version", str(case["api_version"]))
    (result,) = said.document
    assert set(result) == {"file", "api_version", "valid", "errors"}
    assert (result["file"], result["api_version"]) == (str(path_of(case)), case["api_version"])
    assert result["valid"] is (case["expect"] == "valid")
    assert said.code == (0 if result["valid"] else 2)
    assert said.err == ""
    if result["valid"]:
        assert result["errors"] == []
    else:
        (error,) = result["errors"]
        assert set(error) == ERROR_KEYS
        assert (error["layer"], error["error"]) == (case["layer"], case["error"])
        assert error["message"]


def test_validate_judges_many_files_and_one_invalid_decides_the_exit_code(capsys: Capsys) -> None:
    files = [path_of(case) for case in [VALID[0], INVALID[0], VALID[1]]]
    said = call(capsys, "spec", "validate", *files, "--json")
    assert [result["file"] for result in said.document] == [str(file) for file in files]
    assert [result["valid"] for result in said.document] == [True, False, True]
    assert said.code == 2


def test_an_unreadable_file_is_invalid_and_hides_no_other(capsys: Capsys, tmp_path: Path) -> None:
    said = call(capsys, "spec", "validate", tmp_path / "missing.json", path_of(VALID[0]), "--json")
    missing, there = said.document
    assert (missing["api_version"], missing["valid"], there["valid"]) == (None, False, True)
    assert missing["errors"] == [
        {
            "layer": "parse",
            "error": "Unreadable",
            "component": None,
            "message": "cannot be read: No such file or directory",
        }
    ]


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("v1-cli-virtio-crucible", 6),
        ("v1-control-plane-crucible", 3),  # from here on an NVMe disk whose write cache version 6 would want to know
        ("v1-cpuid-amd-two-nics", 3),
        ("v1-test-suite-hyperv-file", 3),
        ("v2-smbios-bare", 3),
        ("v2-smbios-null", 3),
        ("v3-local-storage", 3),
        ("v3-vsock", 3),
        ("v5-vsock-smbios", 3),
        ("v6-all-defaults", 6),
        ("v6-kitchen-sink", 6),
        ("v6-local-no-write-cache", 6),
        ("v6-minimal", 6),
    ],
)
def test_a_file_is_read_as_the_newest_version_that_parses_it(name: str, version: int, capsys: Capsys) -> None:
    said = call(capsys, "spec", "validate", FIXTURES / f"specs/valid/{name}.json", "--json")
    assert [result["api_version"] for result in said.document] == [version]
    assert said.code == 0


def test_a_file_that_no_version_parses_is_told_what_each_has_against_it(capsys: Capsys, tmp_path: Path) -> None:
    file = written(tmp_path / "spec.json", document({"x": {"type": "floppy", "component": {}}}))
    (result,) = call(capsys, "spec", "validate", file, "--json").document
    assert result["api_version"] is None
    assert [error["message"].split(":")[0] for error in result["errors"]] == [f"as version {n}" for n in (6, 3, 2, 1)]
    assert {(error["error"], error["component"]) for error in result["errors"]} == {("UnknownComponentType", "x")}


def test_what_a_file_says_in_vain_is_told_on_standard_error(capsys: Capsys, tmp_path: Path) -> None:
    file = written(tmp_path / "spec.json", document(comment="mine"))
    for command in (("validate", "--json"), ("show",), ("offer", "--json"), ("convert", "--to", "6")):
        said = call(capsys, "spec", command[0], file, *command[1:])
        assert said.complaint == (
            f"migrate: {file}: note: top-level field 'comment' is unknown to this version and was ignored"
        )
        assert said.document


def test_a_component_key_given_twice_is_told_on_standard_error(capsys: Capsys, tmp_path: Path) -> None:
    backends = ", ".join(f'"{key}": {json.dumps(NIC_BACKEND)}' for key in (CANONICAL, CANONICAL.upper()))
    text = f'{{"board": {json.dumps(board())}, "components": {{"nic": {json.dumps(TWO_SPELLINGS)}, {backends}}}}}'
    said = call(capsys, "spec", "show", written(tmp_path / "spec.json", text))
    assert f"'{CANONICAL.upper()}' is given twice; the later one was taken" in said.complaint
    assert set(said.document["components"]) == {CANONICAL, "nic"}


# show


@each_valid
def test_the_canonical_form_is_its_own_canonical_form(case: dict[str, Any], capsys: Capsys, tmp_path: Path) -> None:
    for options in ((), ("--api-version", str(case["api_version"]))):
        once = call(capsys, "spec", "show", path_of(case), *options)
        twice = call(capsys, "spec", "show", written(tmp_path / "again.json", once.out), *options)
        assert (once.code, once.err) == (0, "")
        assert twice == once


def test_show_spells_keys_and_strings_the_same_in_every_locale(capsys: Capsys, tmp_path: Path) -> None:
    components = {"b": {"type": "virtio_network_backend", "component": {"vnic_name": "é世"}}, "nic": NIC}
    file = written(tmp_path / "spec.json", document(components))
    said = start("spec", "show", file, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (said.code, said.err) == (0, "")
    assert said.document["components"]["b"]["component"]["vnic_name"] == "é世"


# convert


@pytest.mark.parametrize("case", CONVERSIONS, ids=lambda case: f"{case['file'].split('/')[-1]} to v{case['to']}")
def test_convert_gives_a_valid_document_or_every_reason(case: dict[str, Any], capsys: Capsys, tmp_path: Path) -> None:
    wanted = str(case["to"])
    options = ("--api-version", str(case["from"]), "--to", wanted, "--json")
    said = call(capsys, "spec", "convert", path_of(case), *options)
    assert said.err == ""
    if case["result"] == "lossless":
        assert said.code == 0
        converted = written(tmp_path / "converted.json", said.out)
        assert call(capsys, "spec", "validate", converted, "--api-version", wanted).code == 0
        back = call(capsys, "spec", "convert", converted, "--api-version", wanted, "--to", str(case["from"]))
        shown = call(capsys, "spec", "show", path_of(case), "--api-version", str(case["from"]))
        assert back.document == shown.document
    else:
        assert said.code == 1
        assert set(said.document) == {"reasons"}
        for reason in said.document["reasons"]:
            assert set(reason) == REASON_KEYS
            assert reason["component"] in reason["message"]
            assert reason["field"] in reason["message"]


def test_without_json_a_conversion_that_would_lose_something_is_explained_to_people(capsys: Capsys) -> None:
    said = call(capsys, "spec", "convert", FIXTURES / "specs/valid/v3-vsock.json", "--to", "2")
    assert (said.code, said.out) == (1, "")
    summary, reason = said.err.splitlines()
    assert summary.endswith("v3-vsock.json cannot be expressed in version 2:")
    assert reason == "migrate:   vsock: type is virtio_socket; needed: spec version 3 or newer"


# offer


def test_an_offer_is_newest_first_and_says_why_a_version_is_withheld(capsys: Capsys) -> None:
    said = call(capsys, "spec", "offer", FIXTURES / "specs/valid/v2-smbios-bare.json", "--json")
    assert all(set(entry) == {"version", "bytes", "lossless", "reason"} for entry in said.document)
    assert [(entry["version"], entry["lossless"]) for entry in said.document] == [
        (6, True),
        (3, True),
        (2, True),
        (1, False),
    ]
    *offered, withheld = said.document
    assert all(entry["bytes"] > 0 and entry["reason"] is None for entry in offered)
    assert withheld["bytes"] is None
    assert "smbios: smbios is" in withheld["reason"]


# For people


def in_text(capsys: Capsys, name: str) -> list[Said]:
    file = FIXTURES / f"specs/valid/{name}.json"
    return [call(capsys, "spec", "validate", file), call(capsys, "spec", "offer", file)]


@pytest.mark.parametrize("name", VALID_NAMES)
def test_text_fits_80_columns_whatever_a_valid_spec_is_called(name: str, capsys: Capsys) -> None:
    for said in in_text(capsys, name):
        assert said.code == 0
        assert_for_people(said.out)


def test_text_fits_80_columns_for_every_invalid_spec_at_once(capsys: Capsys) -> None:
    said = call(capsys, "spec", "validate", *map(path_of, INVALID))
    assert said.code == 2
    assert_for_people(said.out)
    for case in INVALID:
        assert Path(case["file"]).name in said.out


def test_control_characters_in_a_spec_do_not_reach_the_terminal(capsys: Capsys, tmp_path: Path) -> None:
    file = written(tmp_path / "spec.json", document({"\x1b[31m\nred": {"type": "floppy", "component": {}}}))
    said = call(capsys, "spec", "validate", file)
    assert_for_people(said.out)
    assert call(capsys, "spec", "show", file).complaint.isprintable()


def test_output_that_is_no_terminal_has_no_colour_even_if_the_environment_wants_it() -> None:
    file = FIXTURES / "specs/valid/v6-kitchen-sink.json"
    wants = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "200", "TTY_COMPATIBLE": "1"}
    for arguments in (("spec", "offer"), ("spec", "validate"), ("check", "--to", "r1")):
        assert_for_people(start(*arguments, file, **wants).out)


# As processes


@pytest.mark.parametrize("program", [MODULE, MIGRATE, None], ids=["python -m migrate", "migrate", "forked"])
def test_a_process_says_what_a_call_says(program: tuple[str, ...] | None, capsys: Capsys) -> None:
    arguments = ("spec", "validate", path_of(VALID[0]), path_of(INVALID[0]), "--json")
    said = start(*arguments, program=program)
    assert said == call(capsys, *arguments)
    assert said.code == 2
