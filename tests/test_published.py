"""The lock of published shapes notices every edit, and never rewrites what it holds."""

from collections.abc import Callable
from enum import StrEnum
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, ClassVar

import attrs
import cattrs
import pytest

from migrate import published
from migrate.plain import class_hook, make_converter
from migrate.published import GROUPS, ROOT, Files, add, check, describe, describe_class, describe_version, main
from migrate.specs import VERSIONS, SpecVersion, v1, v2, v3, v6
from migrate.specs.wire_types import SerialNumberBytes
from sim_vmm.integers import U8, U32, AtMost, Exactly
from sim_vmm.spec import PciPath, SpecKey

V6, V3, V2, V1 = VERSIONS
FROZEN_GROUPS = [name for name, (directory, _) in GROUPS.items() if (ROOT / directory).is_dir()]


@pytest.mark.parametrize("group", FROZEN_GROUPS)
def test_what_is_published_is_as_it_was_frozen(group: str) -> None:
    directory, wanted = GROUPS[group]
    assert list(check(directory, wanted())) == []


def test_spec_versions_and_documents_are_frozen() -> None:
    assert {"specs", "golden"} <= set(FROZEN_GROUPS)
    assert len(published.specs()) == 4
    # 13 in version 6, 12 in version 3, 9 in version 2 and 8 in version 1, with a text twin each
    assert len(published.golden()) == 2 * (13 + 12 + 9 + 8)


def test_every_payload_and_message_can_be_described() -> None:
    for files in (published.payloads(), published.messages()):
        assert all(content.endswith(b"\n") and b"migrate." not in content for content in files.values())


# Edits


@attrs.frozen(kw_only=True)
class NvmeDiskWithModel:
    backend_id: SpecKey
    pci_path: PciPath
    serial_number: SerialNumberBytes
    has_write_cache: bool
    model: str | None = None


@attrs.frozen(kw_only=True)
class DocumentWithTpm:
    board: v1.Board
    components: dict[SpecKey, v3.Component]
    smbios: v2.SmbiosType1Input | None = None
    tpm: bool = False


def with_kinds(version: SpecVersion, **changes: Any) -> SpecVersion:
    """A version with other kinds, read by a converter that knows them; None takes a kind away."""
    kinds = {tag: kind for tag, kind in {**version.kinds, **changes}.items() if kind is not None}
    component: Any = reduce(or_, (kind.wire for kind in kinds.values()))
    smbios: Any = v2.SmbiosType1Input | None
    fields = {
        "board": attrs.field(type=v1.Board),
        "components": attrs.field(type=dict[SpecKey, component]),
        "smbios": attrs.field(type=smbios, default=None),
    }
    document = attrs.make_class("Document", fields, frozen=True)
    converter = v2.document_converter(document, kinds, component)
    return attrs.evolve(version, kinds=kinds, document=document, converter=converter)


def strict_at_the_top() -> SpecVersion:
    return attrs.evolve(V6, converter=v1.document_converter(dict(V6.kinds), v6.Component))


def with_a_top_level_field() -> SpecVersion:
    return attrs.evolve(
        V3, document=DocumentWithTpm, converter=v2.document_converter(DocumentWithTpm, dict(V3.kinds), v3.Component)
    )


def with_another_implied_value() -> SpecVersion:
    nvme = attrs.evolve(V3.kinds["nvme_disk"], implied={"has_write_cache": False})
    return attrs.evolve(V3, kinds={**V3.kinds, "nvme_disk": nvme})


#: An edit of a published version, and lines of the difference that name it.
EDITS: list[tuple[str, Callable[[], SpecVersion], list[str]]] = [
    (
        "a field more",
        lambda: with_kinds(V6, nvme_disk=attrs.evolve(V6.kinds["nvme_disk"], wire=NvmeDiskWithModel)),
        ["+      model: text, or null (optional, null if missing)"],
    ),
    (
        "a field less",
        lambda: with_kinds(V6, nvme_disk=V3.kinds["nvme_disk"]),
        ["-      has_write_cache: true or false", "+nvme_disk: has_write_cache is always true"],
    ),
    ("a kind less", lambda: with_kinds(V6, p9fs=None), ["-    p9fs, unknown fields refused"]),
    ("a kind more", lambda: with_kinds(V2, virtio_socket=V3.kinds["virtio_socket"]), ["+    virtio_socket, unknown"]),
    (
        "a tolerant level made strict",
        strict_at_the_top,
        ["-object, unknown fields ignored", "+object"],
    ),
    ("a field at the top", with_a_top_level_field, ["+  tpm: true or false (optional, false if missing)"]),
    (
        "another meaning of what is not written",
        with_another_implied_value,
        ["-nvme_disk: has_write_cache is always true", "+nvme_disk: has_write_cache is always false"],
    ),
]


@pytest.mark.parametrize(("edited", "signs"), [edit[1:] for edit in EDITS], ids=[edit[0] for edit in EDITS])
def test_an_edit_of_a_spec_version_is_refused_and_shown(edited: Callable[[], SpecVersion], signs: list[str]) -> None:
    version = edited()
    wanted = {**published.specs(), f"published/specs/v{version.number}.txt": describe_version(version)}
    (problem,) = check("published/specs", wanted)
    assert problem.endswith(
        f"published published/specs/v{version.number}.txt changed: "
        "a published shape is never edited; add a new version instead"
    )
    for sign in signs:
        assert f"\n{sign}" in problem


def test_rebuilding_a_version_from_its_own_kinds_is_no_edit() -> None:
    assert describe_version(with_kinds(V6)) == describe_version(V6)


# The three verdicts, and what `add` does about them


@pytest.fixture
def root(tmp_path: Path) -> Path:
    list(add({"locks/a.txt": b"one\ntwo\n", "locks/b.cbor": b"\x00"}, tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "problems"),
    [
        ({"locks/a.txt": b"one\ntwo\n", "locks/b.cbor": b"\x00"}, []),
        (
            {"locks/a.txt": b"one\ntwo\n", "locks/b.cbor": b"\x00", "locks/c.txt": b"new\n"},
            ["locks/c.txt: not frozen yet: run make golden"],
        ),
        (
            {"locks/a.txt": b"one\n2\n", "locks/b.cbor": b"\x00"},
            [
                "--- locks/a.txt (published)\n+++ locks/a.txt (now)\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
                "published locks/a.txt changed: a published shape is never edited; add a new version instead"
            ],
        ),
        (
            {"locks/a.txt": b"one\ntwo\n", "locks/b.cbor": b"\x01"},
            ["published locks/b.cbor changed: a published shape is never edited; add a new version instead"],
        ),
        (
            {"locks/b.cbor": b"\x00"},
            [
                "published locks/a.txt disappeared: what is published stays readable; "
                "a published shape is never edited; add a new version instead"
            ],
        ),
    ],
)
def test_check_tells_unchanged_new_edited_and_lost_apart(root: Path, wanted: Files, problems: list[str]) -> None:
    assert list(check("locks", wanted, root)) == problems


def test_add_writes_what_is_missing_and_rewrites_nothing(root: Path) -> None:
    edited = {"locks/a.txt": b"edited\n", "locks/b.cbor": b"\x00", "locks/c.txt": b"new\n"}
    assert list(add(edited, root)) == ["locks/c.txt"]
    assert (root / "locks/a.txt").read_bytes() == b"one\ntwo\n"
    assert (root / "locks/c.txt").read_bytes() == b"new\n"
    assert list(add(edited, root)) == []


def test_the_commands_freeze_and_check_in_any_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "specs"], tmp_path) == 1
    assert capsys.readouterr().out.count("not frozen yet: run make golden") == 4
    assert main(["add", "specs"], tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [f"frozen: published/specs/v{number}.txt" for number in (1, 2, 3, 6)]
    assert main(["check", "specs"], tmp_path) == 0
    lock = tmp_path / "published" / "specs" / "v6.txt"
    lock.write_text(lock.read_text().replace("has_write_cache: true or false", "has_write_cache: integer"))
    before = lock.read_bytes()
    assert main(["add", "specs"], tmp_path) == 0
    assert lock.read_bytes() == before
    capsys.readouterr()
    assert main(["check", "specs"], tmp_path) == 1
    assert "never edited" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["rewrite"], ["check", "everything"]])
def test_an_unknown_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "migrate.published check" in capsys.readouterr().out


# Descriptions


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Inner:
    flag: bool


@attrs.frozen
class Outer:
    SCHEMA: ClassVar[str] = "outer v1"
    __test__: ClassVar[bool] = False
    small: U8
    colour: Colour | None
    mac: Annotated[bytes, Exactly(6)]
    name: Annotated[str, AtMost(9)] = "x"
    inner: Annotated[tuple[Inner, ...], AtMost(3)] = ()
    by_name: dict[str, U32] = attrs.field(factory=dict)


def test_a_class_is_described_field_by_field() -> None:
    assert describe_class("payload outer v1", Outer).decode() == (
        "payload outer v1\n"
        "SCHEMA = outer v1\n"
        "\n"
        "object, unknown fields refused\n"
        "  small: integer 0 to 255\n"
        '  colour: one of "red", "blue", or null\n'
        "  mac: bytes, exactly 6\n"
        '  name: text, at most 9 (optional, "x" if missing)\n'
        "  inner: list of object, unknown fields refused, at most 3 (optional, [] if missing)\n"
        "    flag: true or false\n"
        "  by_name: map of text to integer 0 to 4294967295 (optional)\n"
    )


def test_tolerance_is_asked_of_the_reader() -> None:
    def described(converter: cattrs.Converter) -> str:
        return describe(Inner, converter)[0]

    tolerant = make_converter()
    tolerant.register_structure_hook(Inner, class_hook(Inner, tolerant, unknown_fields="ignored"))
    assert described(make_converter()) == "object, unknown fields refused"
    assert described(tolerant) == "object, unknown fields ignored"


@pytest.mark.parametrize("annotation", [int | str, tuple[int, str], float, Any])
def test_a_type_without_a_wire_form_cannot_be_published(annotation: Any) -> None:
    with pytest.raises((TypeError, cattrs.StructureHandlerNotFoundError)):
        describe(annotation, make_converter())
