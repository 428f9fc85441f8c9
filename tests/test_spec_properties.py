"""Laws that hold for every machine: conversions lose nothing or are refused, and digests tell specs apart."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from uuid import UUID

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate import cbor
from migrate.specs import BY_NUMBER, VERSIONS, SpecVersion
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant, Withheld, choose, offer, variants_of
from migrate.specs.reading import ParseError, parse_json
from migrate.specs.version import Kind, Loss
from sim_vmm.spec import Board, Cpuid, CpuidEntry, CpuVendor, PciPath, SmbiosType1, Spec, SpecError, SpecKey, build_spec
from sim_vmm.spec.components import (
    CrucibleStorageBackend,
    FileStorageBackend,
    NvmeDisk,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
    VirtioSocket,
)
from tests.corpus import VALID_NAMES, spec_named
from tests.generators import PLAIN, as_json, other_value, specs

FEW = settings(max_examples=50)
NUMBERS = [version.number for version in VERSIONS]


def obstacles(spec: Spec, number: int) -> set[tuple[str, str]]:
    """What version `number` cannot carry of `spec`, from the table of instance-specs §7 and not from our converters."""
    found = set()
    for key, component in spec.components.items():
        if isinstance(component, NvmeDisk) and not component.has_write_cache and number < 6:
            found.add((str(key), "has_write_cache"))
        if isinstance(component, VirtioSocket) and number < 3:
            found.add((str(key), "type"))
    if spec.smbios is not None and number < 2:
        found.add(("smbios", "smbios"))
    return found


# Conversions


@FEW
@given(specs())
def test_an_offer_carries_every_version_that_loses_nothing_and_names_what_the_others_would(spec: Spec) -> None:
    entries = list(offer(spec))
    assert [entry.version for entry in entries] == [6, 3, 2, 1]
    for entry in entries:
        expected = obstacles(spec, entry.version)
        if isinstance(entry, Variant):
            assert expected == set()
        else:
            assert [(reason.component, reason.field) for reason in entry.reasons] == list(
                dict.fromkeys((reason.component, reason.field) for reason in entry.reasons)
            )
            assert {(reason.component, reason.field) for reason in entry.reasons} == expected


@FEW
@given(specs())
def test_what_is_offered_decodes_to_the_same_machine_from_bytes_and_from_json(spec: Spec) -> None:
    for variant in variants_of(offer(spec)):
        version = BY_NUMBER[variant.version]
        assert version.decode(cbor.decode(variant.document)) == spec
        assert version.decode(parse_json(as_json(version.encode(spec)))) == spec


@FEW
@given(specs())
def test_encoding_is_canonical_whatever_the_order_of_the_map(spec: Spec) -> None:
    shuffled = build_spec(spec.board, dict(reversed(list(spec.components.items()))), spec.smbios)
    assert shuffled == spec
    assert list(offer(shuffled)) == list(offer(spec))


@FEW
@given(specs(), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
def test_going_up_and_down_again_changes_no_byte(spec: Spec, first: int, second: int) -> None:
    older, newer = BY_NUMBER[min(first, second)], BY_NUMBER[max(first, second)]
    if obstacles(spec, older.number):
        return
    document = cbor.encode(older.encode(spec))
    up = newer.encode(older.decode(cbor.decode(document)))
    assert cbor.encode(older.encode(newer.decode(up))) == document


@settings(max_examples=300)
@given(st.sampled_from(VALID_NAMES), st.sampled_from(NUMBERS), st.data())
def test_a_document_with_anything_anywhere_is_read_or_refused_and_never_crashes(
    name: str, number: int, data: st.DataObject
) -> None:
    plain = json.loads(json.dumps(BY_NUMBER[number].encode(spec_named(name))))
    place = plain
    while isinstance(place, dict | list) and place:
        steps = sorted(place) if isinstance(place, dict) else range(len(place))
        step = data.draw(st.sampled_from(steps))
        if data.draw(st.booleans()) or not isinstance(place[step], dict | list):
            place[step] = data.draw(PLAIN)
            break
        place = place[step]
    text = as_json(plain)
    try:
        spec = BY_NUMBER[number].decode(parse_json(text))
    except (ParseError, SpecError) as error:
        refusal = str(error)
    else:
        assert BY_NUMBER[number].decode(BY_NUMBER[number].encode(spec)) == spec
        return
    assert refusal
    assert "\n" not in refusal


# Choice


class Untouchable:
    """Stands for bytes of a version from the future: whoever looks at them has broken the rule."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a variant of an unknown version was read ({name})")


@FEW
@given(specs(), st.sets(st.sampled_from(NUMBERS)), st.data())
def test_a_variant_of_an_unknown_version_changes_no_choice_and_is_never_read(
    spec: Spec, known: set[int], data: st.DataObject
) -> None:
    variants = list(variants_of(offer(spec)))
    chosen = choose(variants, known)
    assert (None if chosen is None else chosen.version) == max(
        (variant.version for variant in variants if variant.version in known), default=None
    )
    for number in data.draw(st.lists(st.integers(7, 2**32), min_size=1, max_size=3)):
        unknown = Variant(version=number, document=cast("bytes", Untouchable()))
        variants.insert(data.draw(st.integers(0, len(variants))), unknown)
    assert choose(variants, known) is chosen


@FEW
@given(specs(), st.binary(max_size=64))
def test_garbage_in_an_unknown_variant_does_not_disturb_the_others(spec: Spec, garbage: bytes) -> None:
    variants = (Variant(version=7, document=garbage), *variants_of(offer(spec)))
    chosen = choose(variants, BY_NUMBER)
    assert chosen is not None
    assert BY_NUMBER[chosen.version].decode(cbor.decode(chosen.document)) == spec


# Lossy converters never get on the wire


def key(text: str) -> SpecKey:
    return SpecKey.parse(text)


def machine() -> Spec:
    """A machine with something to lose in every part."""
    return build_spec(
        Board(
            cpus=2,
            memory_mb=512,
            enable_pcie=True,
            hyper_v=frozenset(),
            cpuid=Cpuid.checked(CpuVendor.AMD, [CpuidEntry(0, None, 1, 2, 3, 4), CpuidEntry(7, 0, 1, 2, 3, 4)]),
        ),
        {
            key("disk"): NvmeDisk(key("disk-backend"), PciPath(0, 16, 0), bytes(20), True),
            key("disk-backend"): FileStorageBackend("/disk", False, 512, None),
            key("net"): VirtioNic(key("net-backend"), UUID(int=1), PciPath(0, 8, 0)),
            key("net-backend"): VirtioNetworkBackend("vnic0"),
        },
        SmbiosType1(manufacturer="m", product_name="p", serial_number="s", version=1),
    )


class DropsAComponent(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        rest = {name: part for name, part in spec.components.items() if not str(name).startswith("net")}
        return super().encode(attrs.evolve(spec, components=rest))


class DropsOneOfAPair(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        rest = {name: part for name, part in spec.components.items() if str(name) != "net"}
        return super().encode(attrs.evolve(spec, components=rest))


class AddsAComponent(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        plain = super().encode(spec)
        plain["components"]["panic"] = {"type": "qemu_pvpanic", "component": {"enable_isa": True}}
        return plain


class ClearsSmbios(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        return {**super().encode(spec), "smbios": None}


class ForgetsCpuid(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        return super().encode(attrs.evolve(spec, board=attrs.evolve(spec.board, cpuid=None)))


class RenamesKeys(SpecVersion):
    def decode(self, plain: Any) -> Spec:
        spec = super().decode(plain)
        renamed = {key(f"{name}".upper()): part for name, part in spec.components.items()}
        return attrs.evolve(spec, components=renamed)


class RepairsWhatEncodingLost(SpecVersion):
    """Writes no worker count, and reads 8 where there is none, as a server would choose: a repair, but a change."""

    def decode(self, plain: Any) -> Spec:
        spec = super().decode(plain)
        repaired = {
            name: attrs.evolve(part, workers=8) if isinstance(part, FileStorageBackend) else part
            for name, part in spec.components.items()
        }
        return attrs.evolve(spec, components=repaired)


class WritesFloats(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        plain = super().encode(spec)
        plain["board"]["memory_mb"] = float(plain["board"]["memory_mb"])
        return plain


class ReturnsNothing(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        return cast("dict[str, Any]", None)


class CannotWrite(SpecVersion):
    def encode(self, spec: Spec) -> dict[str, Any]:
        raise KeyError("components")


class DeniesLosses(SpecVersion):
    """Declares itself lossless: the claim counts for nothing."""

    def losses(self, spec: Spec) -> Iterator[Loss]:
        return iter(())


def remade(kind: type[SpecVersion], version: SpecVersion) -> SpecVersion:
    return kind(
        number=version.number,
        document=version.document,
        kinds=version.kinds,
        board=version.board,
        converter=version.converter,
    )


V6, V3, V2, V1 = VERSIONS


def with_kind(version: SpecVersion, tag: str, **changes: Any) -> SpecVersion:
    return attrs.evolve(version, kinds={**version.kinds, tag: attrs.evolve(version.kinds[tag], **changes)})


def reshaping(tag: str, field: str, to_wire: Callable[[Any], Any], from_wire: Callable[[Any], Any]) -> SpecVersion:
    return with_kind(V6, tag, reshaped={field: (to_wire, from_wire)})


def same(value: Any) -> Any:
    return value


def negated(value: bool) -> bool:
    return not value


def first_letters(text: str) -> str:
    return text[:3]


def fails(_: Any) -> Any:
    raise RuntimeError("converter is broken")


def without_hyper_v(board: Board) -> Any:
    return V6.board[0](attrs.evolve(board, hyper_v=None))


def without_nics(kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    return {tag: kind for tag, kind in kinds.items() if tag != "virtio_nic"}


IMPLIES_NO_CACHE = with_kind(V3, "nvme_disk", implied={"has_write_cache": False})
LAST_CHECK = ("spec", "document")

#: A lossy converter, and the component and field that the reason names: `LAST_CHECK` where only the check of the very
#: bytes that would travel can see it.
LOSSY: list[tuple[str, SpecVersion, tuple[str, str]]] = [
    (
        "changes a field",
        reshaping("virtio_network_backend", "vnic_name", first_letters, same),
        ("net-backend", "vnic_name"),
    ),
    (
        "changes a field on reading",
        reshaping("file_storage_backend", "readonly", same, negated),
        ("disk-backend", "readonly"),
    ),
    ("implies another value", IMPLIES_NO_CACHE, ("disk", "has_write_cache")),
    ("implies nothing for a field it lacks", with_kind(V3, "nvme_disk", implied={}), ("disk", "type")),
    ("raises in one field", reshaping("virtio_nic", "interface_id", fails, same), ("net", "type")),
    ("raises on reading one field", reshaping("virtio_nic", "interface_id", same, fails), ("net", "type")),
    ("raises in the board", attrs.evolve(V6, board=(fails, V6.board[1])), ("board", "type")),
    ("forgets a part of the board", attrs.evolve(V6, board=(without_hyper_v, V6.board[1])), ("board", "hyper_v")),
    ("lacks a kind", attrs.evolve(V6, kinds=without_nics(V6.kinds)), ("net", "type")),
    ("drops components", remade(DropsAComponent, V6), LAST_CHECK),
    ("drops one of a pair", remade(DropsOneOfAPair, V6), LAST_CHECK),
    ("adds a component", remade(AddsAComponent, V6), LAST_CHECK),
    ("reorders nothing but clears smbios", remade(ClearsSmbios, V2), LAST_CHECK),
    ("forgets cpuid", remade(ForgetsCpuid, V6), LAST_CHECK),
    ("renames keys", remade(RenamesKeys, V6), LAST_CHECK),
    ("repairs what it lost", remade(RepairsWhatEncodingLost, V6), LAST_CHECK),
    ("writes floats", remade(WritesFloats, V6), LAST_CHECK),
    ("returns nothing", remade(ReturnsNothing, V6), LAST_CHECK),
    ("cannot write", remade(CannotWrite, V6), LAST_CHECK),
    ("denies that smbios is lost", remade(DeniesLosses, V1), LAST_CHECK),
    ("denies that a field changes", remade(DeniesLosses, IMPLIES_NO_CACHE), LAST_CHECK),
]


@pytest.mark.parametrize(("version", "obstacle"), [case[1:] for case in LOSSY], ids=[case[0] for case in LOSSY])
def test_a_lossy_converter_never_gets_on_the_wire(version: SpecVersion, obstacle: tuple[str, str]) -> None:
    (entry,) = offer(machine(), [version])
    assert isinstance(entry, Withheld)
    assert obstacle in [(reason.component, reason.field) for reason in entry.reasons]
    assert all(reason.have and reason.need for reason in entry.reasons)


@pytest.mark.parametrize(("version", "obstacle"), [case[1:] for case in LOSSY], ids=[case[0] for case in LOSSY])
def test_a_lossy_converter_keeps_no_other_version_from_the_offer(
    version: SpecVersion, obstacle: tuple[str, str]
) -> None:
    del obstacle
    others = [other for other in VERSIONS if other.number != version.number]
    entries = list(offer(machine(), [version, *others]))
    assert [entry for entry in entries[1:] if isinstance(entry, Variant)] == [
        variant for variant in variants_of(offer(machine())) if variant.version != version.number
    ]


def test_the_machine_of_the_lossy_cases_can_be_offered_by_honest_converters() -> None:
    assert [variant.version for variant in variants_of(offer(machine()))] == [6, 3, 2]


def test_a_converter_wrong_in_both_directions_is_unmasked_by_the_digest() -> None:
    """Such a one passes its own check on the source; the published reader on the target then sees another machine."""
    swapped = reshaping("nvme_disk", "has_write_cache", negated, negated)
    (entry,) = offer(machine(), [swapped])
    assert isinstance(entry, Variant)
    assert spec_digest(V6.decode(cbor.decode(entry.document))) != spec_digest(machine())


# Digest


@FEW
@given(specs())
def test_the_digest_is_the_same_through_every_version(spec: Spec) -> None:
    digest = spec_digest(spec)
    assert len(digest) == 32
    for variant in variants_of(offer(spec)):
        assert spec_digest(BY_NUMBER[variant.version].decode(cbor.decode(variant.document))) == digest


def with_one_change(part: Any) -> Iterator[Any]:
    """`part` with one field changed, for each field."""
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        if value is None:
            value = {"hyper_v": frozenset(), "workers": 7, "subleaf": 0, "cpuid": EMPTY_CPUID}[field.name]
            yield attrs.evolve(part, **{field.name: value})
            continue
        if field.name in ("hyper_v", "workers", "subleaf", "cpuid"):
            yield attrs.evolve(part, **{field.name: None})
        if isinstance(value, Cpuid | CpuidEntry):
            yield from (attrs.evolve(part, **{field.name: other}) for other in with_one_change(value))
        elif field.name == "entries":
            yield from _entries_changed(part)
        else:
            yield attrs.evolve(part, **{field.name: other_value(value)})


def _entries_changed(cpuid: Cpuid) -> Iterator[Cpuid]:
    for index, entry in enumerate(cpuid.entries):
        for other in (None, *with_one_change(entry)):
            changed = () if other is None else (other,)
            yield attrs.evolve(cpuid, entries=(*cpuid.entries[:index], *changed, *cpuid.entries[index + 1 :]))


EMPTY_CPUID = Cpuid(CpuVendor.AMD, ())


def neighbours(spec: Spec) -> Iterator[Spec]:
    """Every spec that differs from `spec` in one place; not all of them would pass the builder."""
    yield from (attrs.evolve(spec, board=board) for board in with_one_change(spec.board))
    for name, component in spec.components.items():
        others = {other: part for other, part in spec.components.items() if other != name}
        yield attrs.evolve(spec, components=others)
        yield attrs.evolve(spec, components={**others, key(f"{name}-renamed"): component})
        for changed in with_one_change(component):
            yield attrs.evolve(spec, components={**spec.components, name: changed})
    if spec.smbios is not None:
        yield attrs.evolve(spec, smbios=None)
        yield from (attrs.evolve(spec, smbios=smbios) for smbios in with_one_change(spec.smbios))
    else:
        yield attrs.evolve(spec, smbios=SmbiosType1(manufacturer="", product_name="", serial_number="", version=0))


@FEW
@given(specs())
def test_any_single_change_changes_the_digest_and_no_two_changes_the_same_way(spec: Spec) -> None:
    changed = list(neighbours(spec))
    assert all(other != spec for other in changed)
    digests = {spec_digest(other) for other in changed}
    assert spec_digest(spec) not in digests
    assert len(digests) == sum(1 for index, other in enumerate(changed) if other not in changed[:index])


@pytest.mark.parametrize("name", VALID_NAMES)
def test_any_single_change_of_a_fixture_changes_the_digest(name: str) -> None:
    spec = spec_named(name)
    assert spec_digest(spec) not in {spec_digest(other) for other in neighbours(spec)}


def test_a_device_of_another_kind_with_the_same_fields_has_another_digest() -> None:
    def disk(backend: FileStorageBackend | CrucibleStorageBackend, kind: type[VirtioDisk] = VirtioDisk) -> Spec:
        components = {key("a"): kind(key("b"), PciPath(0, 4, 0)), key("b"): backend}
        return build_spec(Board(cpus=1, memory_mb=1, enable_pcie=False), components)

    crucible = disk(CrucibleStorageBackend("x", False))
    assert spec_digest(crucible) != spec_digest(disk(FileStorageBackend("x", False, 512, None)))


#: Frozen: both sides of a migration compute these, today and with every later release.
DIGESTS = {
    "v1-control-plane-crucible": "3be428cfc59cda9f5a5c2a094f58dfaf0643eb77ad94f7ee0e8cdef9b1c556d7",
    "v1-cli-virtio-crucible": "532f188de292a91e5dcf6bc23c7c7e180b156abd0e092900cdb3cc2207c3a25c",
    "v1-test-suite-hyperv-file": "4b4a1bd9c6ef2d64e6c9345941ab4e55cc852c20c44670e45ae6c15a30c32141",
    "v1-cpuid-amd-two-nics": "7a0eaa4cc7b5e7bb74e08163acf28e75f32845f33bff81c6c6cd3448b7b3fd02",
    "v2-smbios-bare": "99ab5e582f8ce2001bc4c160660e14e4e8e5dd10a161cea57e57afabca02662d",
    "v2-smbios-null": "665030810f503130be3d1469ead6fc82d8ab3a5c1142df93bd50cca58f92c7ce",
    "v3-vsock": "170fe6522834c7d6f056d4e992d6bae95e0153d2baff09d6aa47c8a11e3e1205",
    "v3-local-storage": "98d3273e1f5a13aaa4cb313eefb25522be1a33d1248d80fb92799fc5adf506a9",
    "v5-vsock-smbios": "429812a6af7a2eaa132b4771806263b7bfe009d6ba5e6228b81075059c228faf",
    "v6-local-no-write-cache": "212a08b95ac430220d154d64e37a0dc7751e1db8645b4261f8b81f6e397aedbe",
    "v6-all-defaults": "3be428cfc59cda9f5a5c2a094f58dfaf0643eb77ad94f7ee0e8cdef9b1c556d7",
    "v6-kitchen-sink": "3b563beb6900e9fef9f5eb91a0752f297964223390d2fcc2fcd1ca157eabd488",
    "v6-minimal": "a899d047c02f1f03945f74e23c755db760257b8961e4302d80fba1c6fe5541dd",
}


@pytest.mark.parametrize("name", VALID_NAMES)
def test_the_digest_of_a_fixture_is_frozen(name: str) -> None:
    assert spec_digest(spec_named(name)).hex() == DIGESTS[name]


def test_the_digest_is_sha256_over_the_canonical_form() -> None:
    """The form written out as bytes by hand: what a second implementation would have to produce."""
    board = bytes.fromhex("65 626f617264 a3 64 63707573 01 69 6d656d6f72795f6d62 02 6b 656e61626c655f70636965 f4")
    components = bytes.fromhex(
        "6a 636f6d706f6e656e7473 a1 61 63 a2 63 6e756d 64 636f6d31 64 6b696e64 6b 73657269616c5f706f7274"
    )
    document = {
        "board": {"cpus": 1, "memory_mb": 2, "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}}},
        "components": {"c": {"type": "serial_port", "component": {"num": "com1"}}},
    }
    assert spec_digest(V1.decode(document)) == hashlib.sha256(b"\xa2" + board + components).digest()


def test_a_kind_converts_there_and_back_field_by_field() -> None:
    kind: Kind = V3.kinds["nvme_disk"]
    disk = NvmeDisk(key("b"), PciPath(0, 1, 0), bytes(20), False)
    assert kind.there_and_back(disk) == attrs.evolve(disk, has_write_cache=True)
