"""What a document may say, rule by rule (instance-specs §2-§5)."""

import json
from typing import Any

import pytest

from migrate.specs import BY_NUMBER, SpecVersion
from migrate.specs.reading import ParseError, ignored, parse_json
from sim_vmm.spec import (
    HyperVFeature,
    errors,
)
from tests.documents import (
    CANONICAL,
    NEAR_MISSES,
    PATH,
    SPELLINGS,
    V1,
    V6,
    board,
    component,
    document,
    each_version,
    refused,
    refused_text,
    tolerant_versions,
)

# Strictness, level by level

KEY, FLAG, TEXT, BYTE, INT32, INT64 = "disk0", True, "text", 1, 2, 3

#: Every component kind with a valid body, in version 6; `V3_BODIES` below differs in the NVMe disk.
BODIES: dict[str, dict[str, Any]] = {
    "virtio_disk": {"backend_id": KEY, "pci_path": PATH},
    "nvme_disk": {"backend_id": KEY, "pci_path": PATH, "serial_number": [0] * 20, "has_write_cache": FLAG},
    "virtio_nic": {"backend_id": KEY, "interface_id": CANONICAL, "pci_path": PATH},
    "serial_port": {"num": "com1"},
    "pci_pci_bridge": {"downstream_bus": BYTE, "pci_path": PATH},
    "qemu_pvpanic": {"enable_isa": FLAG},
    "boot_settings": {"order": [{"id": KEY}]},
    "virtio_socket": {"guest_cid": INT64, "pci_path": PATH},
    "soft_npu_pci_port": {"pci_path": PATH},
    "soft_npu_port": {"link_name": TEXT, "backend_id": KEY},
    "soft_npu_p9": {"pci_path": PATH},
    "p9fs": {"source": TEXT, "target": TEXT, "chunk_size": INT32, "pci_path": PATH},
    "migration_failure_injector": {"fail_exports": INT32, "fail_imports": INT32},
    "crucible_storage_backend": {"request_json": TEXT, "readonly": FLAG},
    "file_storage_backend": {"path": TEXT, "readonly": FLAG, "block_size": INT32, "workers": None},
    "blob_storage_backend": {"base64": TEXT, "readonly": FLAG},
    "virtio_network_backend": {"vnic_name": TEXT},
    "dlpi_network_backend": {"vnic_name": TEXT},
}
OPTIONAL = {("file_storage_backend", "workers")}


def kinds_of(number: int) -> dict[str, dict[str, Any]]:
    """The kinds of a version with a valid body each, from the table of instance-specs §3."""
    bodies = {tag: dict(body) for tag, body in BODIES.items()}
    if number < 6:
        del bodies["nvme_disk"]["has_write_cache"]
    if number < 3:
        del bodies["virtio_socket"]
    return bodies


EACH_KIND = [
    pytest.param(BY_NUMBER[n], tag, kinds_of(n)[tag], id=f"v{n}-{tag}") for n in BY_NUMBER for tag in kinds_of(n)
]
each_kind = pytest.mark.parametrize(("version", "tag", "body"), EACH_KIND)


@pytest.mark.parametrize(("number", "count"), [(1, 17), (2, 17), (3, 18), (6, 18)])
def test_a_version_has_exactly_its_published_kinds(number: int, count: int) -> None:
    assert sorted(BY_NUMBER[number].kinds) == sorted(kinds_of(number))
    assert len(BY_NUMBER[number].kinds) == count


@each_kind
def test_every_kind_is_read_and_written_back(version: SpecVersion, tag: str, body: dict[str, Any]) -> None:
    read = version.read(component(tag, body))
    written = version.converter.unstructure(read, version.document)
    assert written["components"]["x"] == {"type": tag, "component": body}


@each_kind
def test_every_kind_refuses_an_unknown_field(version: SpecVersion, tag: str, body: dict[str, Any]) -> None:
    refusal = refused(version, component(tag, {**body, "surprise": 1}))
    assert (refusal.error, refusal.component, refusal.field) == ("UnknownField", "x", "surprise")


@each_kind
def test_every_kind_refuses_a_missing_field(version: SpecVersion, tag: str, body: dict[str, Any]) -> None:
    for name in body:
        rest = {other: value for other, value in body.items() if other != name}
        if (tag, name) in OPTIONAL:
            assert version.read(component(tag, rest)) == version.read(component(tag, body))
        else:
            refusal = refused(version, component(tag, rest))
            assert (refusal.error, refusal.component, refusal.field) == ("MissingField", "x", name)


WRONG: dict[type, list[Any]] = {
    bool: [1, 0, "true", None, [], {}],
    int: [1.0, 4.0, "4", True, False, None, [], {}],
    str: [1, True, None, [], {}, 1.5],
    dict: ["0.4.0", 1, None, []],
    list: [None, "text", 1, {}],
    type(None): [1.0, "1", True, [], {}],
}


@each_kind
def test_every_field_refuses_a_value_of_another_type(version: SpecVersion, tag: str, body: dict[str, Any]) -> None:
    for name, value in body.items():
        for wrong in WRONG[type(value)]:
            refusal = refused(version, component(tag, {**body, name: wrong}))
            assert refusal.error in ("WrongType", "UnknownVariant"), f"{name} = {wrong!r}"
            assert (refusal.component, refusal.field) == ("x", name)


@each_kind
def test_every_kind_refuses_a_field_given_twice(version: SpecVersion, tag: str, body: dict[str, Any]) -> None:
    for name, value in body.items():
        member = f"{json.dumps(name)}: {json.dumps(value)}"
        rest = "".join(f", {json.dumps(other)}: {json.dumps(body[other])}" for other in body if other != name)
        text = json.dumps(component(tag, "BODY")).replace('"BODY"', f"{{{member}, {member}{rest}}}")
        refusal = refused_text(version, text)
        assert (refusal.error, refusal.component, refusal.field) == ("DuplicateField", "x", name)


@pytest.mark.parametrize(
    ("envelope", "error", "field"),
    [
        ({"component": {"num": "com1"}}, "MissingField", "type"),
        ({"type": "serial_port"}, "MissingField", "component"),
        ({"type": "serial_port", "component": {"num": "com1"}, "comment": ""}, "UnknownField", "comment"),
        ({"type": "SerialPort", "component": {"num": "com1"}}, "UnknownComponentType", "type"),
        ({"type": "serial_port ", "component": {"num": "com1"}}, "UnknownComponentType", "type"),
        ({"type": "\ud800", "component": {}}, "UnknownComponentType", "type"),
        ({"type": 1, "component": {"num": "com1"}}, "WrongType", "type"),
        ({"type": None, "component": {"num": "com1"}}, "WrongType", "type"),
        ({"type": ["serial_port"], "component": {"num": "com1"}}, "WrongType", "type"),
        ({"type": "serial_port", "component": None}, "WrongType", "component"),
        ({"type": "serial_port", "component": ["com1"]}, "WrongType", "component"),
        ({}, "MissingField", "type"),
        ([], "WrongType", None),
        (None, "WrongType", None),
        ("serial_port", "WrongType", None),
    ],
)
@each_version
def test_an_envelope_is_exactly_a_type_and_a_component(
    version: SpecVersion, envelope: Any, error: str, field: str | None
) -> None:
    refusal = refused(version, document({"x": envelope}))
    assert (refusal.error, refusal.component, refusal.field) == (error, "x", field)


def test_the_order_of_an_envelope_is_free_and_its_keys_come_once() -> None:
    swapped = document({"x": {"component": {"num": "com1"}, "type": "serial_port"}})
    assert V1.decode(swapped) == V1.decode(component("serial_port", {"num": "com1"}))
    text = json.dumps(swapped).replace('"type": "serial_port"', '"type": "serial_port", "type": "serial_port"')
    assert refused_text(V1, text).error == "DuplicateField"


@each_version
def test_an_entry_of_a_boot_order_tolerates_unknown_keys(version: SpecVersion) -> None:
    plain = component("boot_settings", {"order": [{"id": "d", "timeout": 3}]})
    assert version.read(plain) == version.read(component("boot_settings", {"order": [{"id": "d"}]}))
    assert list(ignored(plain, frozenset({"board", "components"}))) == [
        "component 'x', order[0]: field 'timeout' is unknown and was ignored"
    ]


@pytest.mark.parametrize(
    ("order", "error", "field"),
    [
        ([{}], "MissingField", "order.0.id"),
        ([{"id": 1}], "WrongType", "order.0.id"),
        ([{"id": "d"}, "d"], "WrongType", "order.1"),
        ({"id": "d"}, "WrongType", "order"),
    ],
)
def test_a_boot_order_is_a_list_of_entries_with_an_id(order: Any, error: str, field: str) -> None:
    refusal = refused(V6, component("boot_settings", {"order": order}))
    assert (refusal.error, refusal.field) == (error, field)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("serial_number", [0] * 19, "InvalidLength"),
        ("serial_number", [0] * 21, "InvalidLength"),
        ("serial_number", [0] * 19 + [256], "OutOfRange"),
        ("serial_number", [0] * 19 + [-1], "OutOfRange"),
        ("serial_number", [0] * 19 + [True], "WrongType"),
        ("serial_number", "0" * 20, "WrongType"),
        ("serial_number", bytes(20), "WrongType"),
    ],
)
def test_a_serial_number_is_a_list_of_twenty_bytes(field: str, value: Any, error: str) -> None:
    assert refused(V6, component("nvme_disk", {**BODIES["nvme_disk"], field: value})).error == error


@pytest.mark.parametrize("text", [*NEAR_MISSES])
def test_an_interface_id_must_be_a_uuid(text: str) -> None:
    assert refused(V1, component("virtio_nic", {**BODIES["virtio_nic"], "interface_id": text})).error == "InvalidUuid"


@pytest.mark.parametrize("text", SPELLINGS)
def test_an_interface_id_may_be_spelled_like_a_key_and_is_written_canonically(text: str) -> None:
    read = V1.read(component("virtio_nic", {**BODIES["virtio_nic"], "interface_id": text}))
    written = V1.converter.unstructure(read, V1.document)["components"]["x"]["component"]
    assert written["interface_id"] == CANONICAL


#: Integers with their limits, beside the ones of PCI paths and serial numbers.
WIDTHS: list[tuple[str, str, int, int]] = [
    ("pci_pci_bridge", "downstream_bus", 0, 2**8 - 1),
    ("virtio_socket", "guest_cid", 0, 2**64 - 1),
    ("p9fs", "chunk_size", 0, 2**32 - 1),
    ("migration_failure_injector", "fail_exports", 0, 2**32 - 1),
    ("migration_failure_injector", "fail_imports", 0, 2**32 - 1),
    ("file_storage_backend", "block_size", 0, 2**32 - 1),
    ("file_storage_backend", "workers", 1, 2**64 - 1),
]


@pytest.mark.parametrize(("tag", "name", "low", "high"), WIDTHS)
def test_an_integer_has_its_width(tag: str, name: str, low: int, high: int) -> None:
    for fits in (low, high):
        assert V6.read(component(tag, {**BODIES[tag], name: fits}))
    for outside in (low - 1, high + 1, -(2**63), 10**400):
        refusal = refused(V6, component(tag, {**BODIES[tag], name: outside}))
        assert (refusal.error, refusal.field) == ("OutOfRange", name)
        assert len(str(refusal)) < 300


# The board

CHIPSET, HV = "board.chipset", "board.guest_hv_interface"


def chipset(**fields: Any) -> dict[str, Any]:
    return {"chipset": {"type": "i440_fx", **fields}}


def hyper_v(**fields: Any) -> dict[str, Any]:
    return {"guest_hv_interface": {"type": "hyper_v", **fields}}


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"cpus": 256}, "OutOfRange", "board.cpus"),
        ({"cpus": -1}, "OutOfRange", "board.cpus"),
        ({"cpus": 4.0}, "WrongType", "board.cpus"),
        ({"cpus": "4"}, "WrongType", "board.cpus"),
        ({"cpus": True}, "WrongType", "board.cpus"),
        ({"memory_mb": 2**64}, "OutOfRange", "board.memory_mb"),
        ({"memory_mb": None}, "WrongType", "board.memory_mb"),
        ({"sockets": 1}, "UnknownField", "board.sockets"),
        ({"chipset": None}, "WrongType", CHIPSET),
        ({"chipset": {"type": "q35", "value": {}}}, "UnknownVariant", f"{CHIPSET}.type"),
        (chipset(), "MissingField", f"{CHIPSET}.value"),
        (chipset(value={}), "MissingField", f"{CHIPSET}.value.enable_pcie"),
        (chipset(value={"enable_pcie": 1}), "WrongType", f"{CHIPSET}.value.enable_pcie"),
        (chipset(value={"enable_pcie": True, "x": 1}), "UnknownField", f"{CHIPSET}.value.x"),
        (chipset(value={"enable_pcie": True}, x=1), "UnknownField", f"{CHIPSET}.x"),
        ({"guest_hv_interface": None}, "WrongType", HV),
        ({"guest_hv_interface": "bhyve"}, "WrongType", HV),
        ({"guest_hv_interface": {"type": "kvm"}}, "UnknownVariant", f"{HV}.type"),
        ({"guest_hv_interface": {"type": "bhyve", "value": {}}}, "UnknownField", f"{HV}.value"),
        (hyper_v(), "MissingField", f"{HV}.value"),
        (hyper_v(value={}), "MissingField", f"{HV}.value.features"),
        (hyper_v(value={"features": ["tlb"]}), "UnknownVariant", f"{HV}.value.features.0"),
        (hyper_v(value={"features": "reference_tsc"}), "WrongType", f"{HV}.value.features"),
        ({"cpuid": {"entries": []}}, "MissingField", "board.cpuid.vendor"),
        ({"cpuid": {"vendor": "amd"}}, "MissingField", "board.cpuid.entries"),
        ({"cpuid": {"entries": [], "vendor": "via"}}, "UnknownVariant", "board.cpuid.vendor"),
        ({"cpuid": {"entries": [], "vendor": "AMD"}}, "UnknownVariant", "board.cpuid.vendor"),
        ({"cpuid": {"entries": {}, "vendor": "amd"}}, "WrongType", "board.cpuid.entries"),
        ({"cpuid": {"entries": [], "vendor": "amd", "x": 1}}, "UnknownField", "board.cpuid.x"),
    ],
)
@each_version
def test_the_board_is_strict_at_every_level(
    version: SpecVersion, changes: dict[str, Any], error: str, field: str
) -> None:
    refusal = refused(version, document(board=board(**changes)))
    assert (refusal.error, refusal.component, refusal.field) == (error, None, field)


@pytest.mark.parametrize("name", ["cpus", "memory_mb", "chipset"])
def test_the_board_needs_its_fields(name: str) -> None:
    plain = board()
    del plain[name]
    refusal = refused(V6, document(board=plain))
    assert (refusal.error, refusal.field) == ("MissingField", f"board.{name}")


@each_version
def test_the_default_interface_and_absent_cpuid_are_left_out_when_written(version: SpecVersion) -> None:
    explicit = document(board=board(guest_hv_interface={"type": "bhyve"}, cpuid=None))
    spec = version.decode(explicit)
    assert spec == version.decode(document())
    assert (spec.board.hyper_v, spec.board.cpuid) == (None, None)
    assert version.encode(spec)["board"] == board()


@pytest.mark.parametrize(
    ("features", "read", "written"),
    [
        ([], frozenset(), []),
        (["reference_tsc"], frozenset({HyperVFeature.REFERENCE_TSC}), ["reference_tsc"]),
        (["reference_tsc", "reference_tsc"], frozenset({HyperVFeature.REFERENCE_TSC}), ["reference_tsc"]),
    ],
)
def test_hyper_v_features_are_a_set(features: list[str], read: frozenset[HyperVFeature], written: list[str]) -> None:
    spec = V1.decode(document(board=board(guest_hv_interface={"type": "hyper_v", "value": {"features": features}})))
    assert spec.board.hyper_v == read
    assert V1.encode(spec)["board"]["guest_hv_interface"] == {"type": "hyper_v", "value": {"features": written}}


def test_hyper_v_without_features_is_not_bhyve() -> None:
    hyper_v = V1.decode(document(board=board(guest_hv_interface={"type": "hyper_v", "value": {"features": []}})))
    assert hyper_v != V1.decode(document())


# CPUID


def leaf(number: int, subleaf: int | None = None) -> dict[str, Any]:
    return {"leaf": number, "subleaf": subleaf, "eax": 1, "ebx": 2, "ecx": 3, "edx": 0xFFFF_FFFF}


def with_cpuid(*entries: dict[str, Any]) -> dict[str, Any]:
    return document(board=board(cpuid={"vendor": "intel", "entries": list(entries)}))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [leaf(0), leaf(0xFFFF), leaf(0x8000_0000), leaf(0x8000_FFFF)],
        [leaf(7, 0)],
        [leaf(0xD, 2), leaf(0xD, 0), leaf(0xD, 0xFFFF_FFFF)],
        [leaf(0x8000_0001), leaf(1)],
    ],
)
@each_version
def test_leaves_come_back_sorted_with_the_subleaf_always_written(
    version: SpecVersion, entries: list[dict[str, Any]]
) -> None:
    written = version.encode(version.decode(with_cpuid(*entries)))["board"]["cpuid"]
    in_order = sorted(entries, key=lambda entry: (entry["leaf"], entry["subleaf"] is not None, entry["subleaf"] or 0))
    assert written == {"vendor": "intel", "entries": in_order}


def test_a_missing_subleaf_is_none() -> None:
    entry = {name: value for name, value in leaf(1).items() if name != "subleaf"}
    assert V1.decode(with_cpuid(entry)) == V1.decode(with_cpuid(leaf(1)))


@pytest.mark.parametrize(
    ("entries", "cause", "at"),
    [
        ([leaf(0x1_0000)], "LeafOutOfRange", (0x1_0000, None)),
        ([leaf(0x4000_0000)], "LeafOutOfRange", (0x4000_0000, None)),
        ([leaf(0x7FFF_FFFF)], "LeafOutOfRange", (0x7FFF_FFFF, None)),
        ([leaf(0x8001_0000)], "LeafOutOfRange", (0x8001_0000, None)),
        ([leaf(1), leaf(2), leaf(1)], "DuplicateLeaf", (1, None)),
        ([leaf(4, 1), leaf(4, 0), leaf(4, 1)], "DuplicateLeaf", (4, 1)),
        ([leaf(7, 0), leaf(7)], "SubleavesAlreadyPresent", (7, None)),
        ([leaf(7), leaf(7, 0)], "SubleavesAlreadyAbsent", (7, 0)),
        ([leaf(0x1_0000), leaf(1), leaf(1)], "LeafOutOfRange", (0x1_0000, None)),
    ],
)
def test_the_cpuid_rules_are_checked_in_the_order_given(
    entries: list[dict[str, Any]], cause: str, at: tuple[int, int | None]
) -> None:
    with pytest.raises(errors.CpuidEntriesInvalid) as caught:
        V1.decode(with_cpuid(*entries))
    assert (caught.value.cause, (caught.value.leaf, caught.value.subleaf)) == (cause, at)
    assert caught.value.component == "board"
    assert cause in str(caught.value)


@pytest.mark.parametrize("field", ["leaf", "subleaf", "eax", "ebx", "ecx", "edx"])
@pytest.mark.parametrize(
    ("value", "error"), [(2**32, "OutOfRange"), (-1, "OutOfRange"), ("0x1", "WrongType"), (1.0, "WrongType")]
)
def test_a_register_is_a_32_bit_number(field: str, value: Any, error: str) -> None:
    refusal = refused(V1, with_cpuid({**leaf(1), field: value}))
    assert (refusal.error, refusal.field) == (error, f"board.cpuid.entries.0.{field}")


# The top level

SMBIOS = {"manufacturer": "Oxide", "product_name": "OxVM", "serial_number": "s", "version": 2**64 - 1}


def test_version_1_writes_no_smbios_and_refuses_even_null() -> None:
    assert sorted(V1.encode(V1.decode(document()))) == ["board", "components"]
    refusal = refused(V1, document(smbios=None))
    assert (refusal.error, refusal.field) == ("UnknownField", "smbios")


@tolerant_versions
def test_smbios_null_or_missing_is_unset_and_written_as_null(version: SpecVersion) -> None:
    spec = version.decode(document(smbios=None))
    assert spec == version.decode(document())
    assert version.encode(spec) == document(smbios=None)


@tolerant_versions
def test_smbios_comes_back(version: SpecVersion) -> None:
    assert version.encode(version.decode(document(smbios=SMBIOS)))["smbios"] == SMBIOS


@pytest.mark.parametrize(
    ("smbios", "error", "field"),
    [
        ({**SMBIOS, "family": None}, "UnknownField", "smbios.family"),
        ({"manufacturer": "Oxide"}, "MissingField", "smbios.product_name"),
        ({**SMBIOS, "version": 2**64}, "OutOfRange", "smbios.version"),
        ({**SMBIOS, "version": "1"}, "WrongType", "smbios.version"),
        ({**SMBIOS, "serial_number": None}, "WrongType", "smbios.serial_number"),
        ([], "WrongType", "smbios"),
    ],
)
@tolerant_versions
def test_smbios_is_strict(version: SpecVersion, smbios: Any, error: str, field: str) -> None:
    refusal = refused(version, document(smbios=smbios))
    assert (refusal.error, refusal.field) == (error, field)


@tolerant_versions
def test_an_unknown_field_at_the_top_is_ignored_and_reported(version: SpecVersion) -> None:
    plain = document(tpm={"version": 2}, smbios=None)
    assert version.decode(plain) == version.decode(document())
    assert list(ignored(plain, frozenset({"board", "components", "smbios"}))) == [
        "top-level field 'tpm' is unknown to this version and was ignored"
    ]


def test_version_1_refuses_an_unknown_field_at_the_top() -> None:
    refusal = refused(V1, document(tpm={}))
    assert (refusal.error, refusal.field) == ("UnknownField", "tpm")


@each_version
def test_board_and_components_are_required_and_come_once(version: SpecVersion) -> None:
    for name in ("board", "components"):
        plain = document()
        del plain[name]
        assert refused(version, plain).error == "MissingField"
        text = json.dumps(document())
        twice = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(document()[name])}}}"
        assert refused_text(version, twice).error == "DuplicateField"


@tolerant_versions
def test_an_ignored_field_may_even_come_twice(version: SpecVersion) -> None:
    text = json.dumps(document())[:-1] + ', "tpm": 1, "tpm": 2}'
    assert version.read(parse_json(text))


@each_version
@pytest.mark.parametrize("plain", [None, [], "{}", 1, True])
def test_a_document_is_an_object(version: SpecVersion, plain: Any) -> None:
    assert refused(version, plain).error == "WrongType"
    assert refused(version, {"board": board(), "components": plain}).field == "components"


# Not JSON

NOT_JSON: list[tuple[str, str | bytes, str]] = [
    ("nothing", "", "line 1, column 1"),
    ("half an object", '{"board": ', "line 1, column 11"),
    ("a comment", "{\n  // no\n}", "line 2, column 3"),
    ("two documents", "{} {}", "line 1, column 4"),
    ("a trailing comma", '{"a": 1,}', "line 1"),
    ("single quotes", "{'a': 1}", "line 1"),
    ("NaN", '{"a": NaN}', "NaN is no JSON number"),
    ("Infinity", '{"a": Infinity}', "Infinity is no JSON number"),
    ("negative infinity", '{"a": -Infinity}', "-Infinity is no JSON number"),
    ("a leading zero", '{"a": 01}', "line 1"),
    ("a huge number", f'{{"a": {"9" * 5000}}}', "5000 digits"),
    ("deep nesting", "[" * 100_000, "nested too deeply"),
    ("deep nesting of objects", '{"a":' * 100_000, "nested too deeply"),
    ("a control character", '{"a": "\n"}', "line 1"),
    ("a byte order mark", "\ufeff{}", "BOM"),
    ("a byte order mark in bytes", b"\xef\xbb\xbf{}", "BOM"),
    ("Latin-1", '{"a": "é"}'.encode("latin-1"), "byte 7 is not UTF-8"),
    ("UTF-16", '{"a": 1}'.encode("utf-16"), "byte 0 is not UTF-8"),
    ("UTF-16 without a mark", '{"a": 1}'.encode("utf-16-le"), "line 1, column 2"),
    ("a surrogate in UTF-8", b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
]


@pytest.mark.parametrize(("text", "place"), [case[1:] for case in NOT_JSON], ids=[case[0] for case in NOT_JSON])
def test_what_is_not_json_is_refused_with_the_place(text: str | bytes, place: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_json(text)
    assert caught.value.error == "NotJson"
    assert place in str(caught.value)
    assert str(caught.value).startswith("not JSON: ")


def test_bytes_and_text_read_alike() -> None:
    text = json.dumps(component("virtio_network_backend", {"vnic_name": "é\U0001f600"}), ensure_ascii=False)
    assert V6.read(parse_json(text)) == V6.read(parse_json(text.encode()))


@pytest.mark.parametrize("depth", range(900, 1000, 3))
def test_nesting_at_the_edge_of_what_the_parser_allows_is_refused_not_crashed_on(depth: int) -> None:
    assert refused_text(V6, '{"board":' + "[" * depth + "]" * depth + "}").error in ("WrongType", "NotJson")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(component("virtio_network_backend", {"vnic_name": "\ud800"})),
        json.dumps(document({"\udfff": {"type": "serial_port", "component": {"num": "com1"}}})),
        json.dumps(document(smbios={**SMBIOS, "serial_number": "a\ud83d"})),
    ],
)
def test_half_a_surrogate_pair_is_no_text_anywhere(text: str) -> None:
    refusal = refused_text(V6, text)
    assert refusal.error == "InvalidString"
    assert str(refusal).encode(), "the message itself can be printed"


@pytest.mark.parametrize("number", ["1e2", "1.0", "-1", "1E400", "18446744073709551616", '"1"'])
def test_a_number_for_an_integer_is_an_integer_in_range(number: str) -> None:
    text = json.dumps(document()).replace('"memory_mb": 512', f'"memory_mb": {number}')
    refusal = refused_text(V6, text)
    assert refusal.error in ("WrongType", "OutOfRange")
    assert refusal.field == "board.memory_mb"


def test_a_refusal_repeats_no_more_than_a_line_of_the_document() -> None:
    refusal = refused(V6, document({"k" * 10_000: {"type": "t" * 10_000, "component": {"\n": 1}}}))
    assert len(str(refusal)) < 700
    assert "\n" not in str(refused(V6, document({"a\nb": {"type": "serial_port", "component": {"\n": 1}}})))
