"""Preamble and verdict: everything that stands in the way is said at once, and nothing unknown is read."""

from collections.abc import Callable, Iterator
from uuid import UUID

import attrs
import pytest

from migrate import cbor
from migrate.engine.negotiation import (
    Acceptable,
    judge,
    preamble_of,
    why_not_newer,
)
from migrate.engine.payload_choice import NoCommonPayload, chooser, common_versions, not_representable
from migrate.protocol.messages import DeviceExports, Extent, KindExports, KindVersions, MachineBirth, Preamble
from migrate.reasons import Reason
from migrate.releases import Release, builtin_releases
from migrate.specs import BY_NUMBER
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant, Withheld, offer, variants_of, withheld_of
from migrate.specs.replacements import Replacements
from sim_vmm.birth import Interface
from sim_vmm.devices.errors import StateNotRepresentable
from sim_vmm.guest import StampGuest
from sim_vmm.machine import Machine
from sim_vmm.payloads import Schema
from sim_vmm.spec import PciPath, Spec, SpecKey
from sim_vmm.spec.components import (
    Component,
    CrucibleStorageBackend,
    NvmeDisk,
    SerialNumber,
    SerialPort,
    VirtioDisk,
    VirtioNetworkBackend,
)
from tests.machines import COM1, EVERY_DEVICE, MIB, make_machine, make_spec

VM_ID = UUID(int=0x5EED)
R1, R2, R3, R6 = (builtin_releases()[name] for name in ("r1", "r2", "r3", "r6"))

CRUCIBLE: dict[str, Component] = {
    **COM1,
    "disk": VirtioDisk(SpecKey.parse("disk-backend"), PciPath(0, 16, 0)),
    "disk-backend": CrucibleStorageBackend('{"type": "volume", "generation": 1}', False),
}
MOVED = CrucibleStorageBackend('{"type": "volume", "generation": 2}', False)


def preamble_for(spec: Spec, *, memory_mb: int | None = None) -> Preamble:
    """What a source with the newest release would say of a machine of `spec` that has no device state."""
    entries = tuple(offer(spec))
    length = (spec.board.memory_mb if memory_mb is None else memory_mb) * MIB
    return Preamble(
        machine="m",
        birth=MachineBirth(release="r6", vm_id=VM_ID.bytes, shows=tuple(sorted(Interface))),
        spec_digest=spec_digest(spec),
        variants=variants_of(entries),
        withheld=withheld_of(entries),
        obstacles=(),
        exports=(),
        ram=(Extent(gpa=0, length=length),),
    )


SPEC = make_spec(EVERY_DEVICE)
PREAMBLE = preamble_for(SPEC)


def accepted(preamble: Preamble, release: Release = R6, replacements: Replacements | None = None) -> Acceptable:
    verdict = judge(preamble, release, replacements or {})
    assert isinstance(verdict, Acceptable), verdict
    return verdict


def reasons(preamble: Preamble, release: Release = R6, replacements: Replacements | None = None) -> list[str]:
    verdict = judge(preamble, release, replacements or {})
    assert not isinstance(verdict, Acceptable)
    return [f"{reason.component}: {reason.field}" for reason in verdict]


def messages(preamble: Preamble, release: Release = R6, replacements: Replacements | None = None) -> list[str]:
    verdict = judge(preamble, release, replacements or {})
    assert not isinstance(verdict, Acceptable)
    return [reason.message for reason in verdict]


# The preamble

VCPU = ["bhyve-x86-vcpu-runstate", "bhyve-x86-vcpu-gpregs", "bhyve-x86-lapic"]


def kinds_of(preamble: Preamble) -> dict[tuple[str, str], KindExports]:
    """What is offered for each payload, by device and kind."""
    return {(device.device, kind.kind): kind for device in preamble.exports for kind in device.payloads}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with make_machine() as machine:
        yield machine


def test_a_preamble_holds_everything_that_the_target_has_to_know(machine: Machine) -> None:
    preamble = preamble_of(machine, R6, "web-server")
    assert preamble.machine == "web-server"
    assert preamble.spec_digest == spec_digest(machine.spec)
    assert [variant.version for variant in preamble.variants] == [6, 3, 2, 1]
    assert (preamble.withheld, preamble.obstacles) == ((), ())
    assert preamble.ram == (Extent(gpa=0, length=4 * MIB),)
    assert {device.device: [kind.kind for kind in device.payloads] for device in preamble.exports} == {
        "boot": ["nvme-ctrl", "pci-device"],
        "cloud-init": ["pci-virtio", "pci-device"],
        "cloud-init-backend": ["in-memory-block-backend"],
        "com1": ["uart-16550"],
        "com2": ["uart-16550"],
        "nic": ["pci-virtio", "pci-device", "pci-virtio-viona"],
        "pci-piix3-lpc": ["bhyve-rtc"],
        "qemu-fwcfg": ["qemu-fwcfg"],
        "vcpu-0": VCPU,
        "vcpu-1": VCPU,
    }


def test_every_version_that_carries_the_state_is_offered_and_what_others_would_lose_is_said(machine: Machine) -> None:
    fresh = kinds_of(preamble_of(machine, R6, "m"))
    assert fresh["nic", "pci-virtio"] == KindExports(kind="pci-virtio", versions=(3, 2, 1), withheld=())
    assert fresh["nic", "pci-virtio-viona"] == KindExports(kind="pci-virtio-viona", versions=(1, 0), withheld=())
    StampGuest().boot(machine)
    used = kinds_of(preamble_of(machine, R6, "m"))["nic", "pci-virtio"]
    assert used.versions == (3, 2)
    assert [(why.version, [(reason.component, reason.field) for reason in why.reasons]) for why in used.withheld] == [
        (1, [("nic", "pci-virtio.device.negotiated_features")])
    ]


@pytest.mark.parametrize("release", [R1, R2, R3, R6], ids=["r1", "r2", "r3", "r6"])
def test_what_a_machine_shows_its_guest_travels_in_the_preamble(release: Release) -> None:
    birth = release.birth(VM_ID)
    with make_machine(birth=birth) as machine:
        preamble = preamble_of(machine, R6, "m")
    assert accepted(preamble).birth == birth


def test_a_release_offers_only_versions_that_it_knows(machine: Machine) -> None:
    assert [variant.version for variant in preamble_of(machine, R2, "m").variants] == [2, 1]


def test_a_payload_that_the_source_itself_cannot_write_is_an_obstacle(machine: Machine) -> None:
    mute = attrs.evolve(R6, name="mute", payloads={**R6.payloads, "uart-16550": (), "nvme-ctrl": (1,)})
    StampGuest().boot(machine)
    preamble = preamble_of(machine, mute, "m")
    assert [reason.message for reason in preamble.obstacles] == [
        "boot: nvme-ctrl.dbbuf_shadow is 0x105000; needed: nvme-ctrl version 2 or newer",
        "com1: uart-16550 is payload version none; needed: a version that both sides know; "
        "release mute, which exports it, knows no version",
        "com2: uart-16550 is payload version none; needed: a version that both sides know; "
        "release mute, which exports it, knows no version",
    ]
    assert judge(preamble, R6, {}) == preamble.obstacles, "each is said once"


def test_a_key_that_no_message_can_carry_is_an_obstacle_and_is_not_exported() -> None:
    with make_machine({**COM1, "x" * 129: SerialPort(SerialNumber.COM2)}) as machine:
        preamble = preamble_of(machine, R6, "m")
    assert [(reason.field, reason.have, reason.need) for reason in preamble.obstacles] == [
        ("key", "129 characters long", "a component key of at most 128 characters")
    ]
    assert [device.device for device in preamble.exports] == ["com1", "pci-piix3-lpc", "qemu-fwcfg", "vcpu-0", "vcpu-1"]


# A verdict that is yes


@pytest.mark.parametrize(("release", "version"), [(R6, 6), (R3, 3), (R2, 2), (R1, 1)], ids=["r6", "r3", "r2", "r1"])
def test_the_newest_version_that_both_know_is_taken(release: Release, version: int) -> None:
    verdict = accepted(PREAMBLE, release)
    assert verdict.answer.spec_version == version
    assert verdict.spec == SPEC
    assert verdict.answer.imports == tuple(
        KindVersions(kind=kind, versions=versions) for kind, versions in sorted(release.payloads.items())
    )


GARBAGE: list[bytes] = [b"", b"\xff" * 100, b"\xc1\x00", b"\x9f" * 20, cbor.encode({"board": None}), bytes(100_000)]


@pytest.mark.parametrize("document", GARBAGE, ids=lambda document: f"{len(document)}-{document[:3].hex()}")
def test_a_variant_of_an_unknown_version_is_never_read(document: bytes) -> None:
    newer = Variant(version=7, document=document)
    older = Variant(version=1, document=document)
    preamble = attrs.evolve(PREAMBLE, variants=(newer, *PREAMBLE.variants[:3], older))
    assert accepted(preamble).answer.spec_version == 6
    assert accepted(preamble, R2).answer.spec_version == 2


def test_replacements_are_in_the_machine_that_is_made_and_not_in_the_digest() -> None:
    spec = make_spec(CRUCIBLE)
    verdict = accepted(preamble_for(spec), replacements={SpecKey.parse("disk-backend"): MOVED})
    assert verdict.spec == make_spec({**CRUCIBLE, "disk-backend": MOVED})


# A verdict that is no


def with_exports(*kinds: tuple[str, tuple[int, ...]]) -> tuple[DeviceExports, ...]:
    return tuple(
        DeviceExports(device=f"device-{index}", payloads=(KindExports(kind=kind, versions=versions, withheld=()),))
        for index, (kind, versions) in enumerate(kinds)
    )


OBSTACLE = Reason(component="vsock", field="type", have="virtio_socket", need="a machine without it")
NINE_QUEUES = Reason(
    component="nic", field="pci-virtio.queues.ring", have="packed", need="pci-virtio version 9 or newer"
)

REFUSALS: list[tuple[str, Callable[[], Preamble], Replacements, list[str]]] = [
    (
        "an obstacle of the source's",
        lambda: attrs.evolve(PREAMBLE, obstacles=(OBSTACLE,)),
        {},
        ["vsock: type is virtio_socket; needed: a machine without it"],
    ),
    (
        "a payload kind that the target has never heard of",
        lambda: attrs.evolve(PREAMBLE, exports=with_exports(("gpu-state", (2, 1)))),
        {},
        [
            "device-0: gpu-state is payload version 2, 1; needed: a version that both sides know; the target (r6) "
            "knows no version"
        ],
    ),
    (
        "a payload version that the target does not know",
        lambda: attrs.evolve(PREAMBLE, exports=with_exports(("pci-virtio", (9,)), ("uart-16550", (1,)))),
        {},
        [
            "device-0: pci-virtio is payload version 9; needed: a version that both sides know; the target (r6) knows "
            "versions 3, 2, 1"
        ],
    ),
    (
        "a payload in no version at all",
        lambda: attrs.evolve(PREAMBLE, exports=with_exports(("pci-virtio", ()))),
        {},
        [
            "device-0: pci-virtio is payload version none; needed: a version that both sides know; the target (r6) "
            "knows versions 3, 2, 1"
        ],
    ),
    (
        "a payload in versions too new, while the target's lose something",
        lambda: attrs.evolve(
            PREAMBLE,
            exports=(
                DeviceExports(
                    device="nic",
                    payloads=(
                        KindExports(
                            kind="pci-virtio",
                            versions=(9,),
                            withheld=(
                                Withheld(version=8, reasons=(OBSTACLE,)),
                                Withheld(version=3, reasons=(NINE_QUEUES,)),
                                Withheld(version=2, reasons=(OBSTACLE,)),
                            ),
                        ),
                    ),
                ),
            ),
        ),
        {},
        [NINE_QUEUES.message],
    ),
    (
        "a machine that shows its guest what the target cannot show",
        lambda: attrs.evolve(
            PREAMBLE, birth=attrs.evolve(PREAMBLE.birth, release="r9", shows=("modern-virtio", "telepathy"))
        ),
        {},
        [
            "machine: birth is 'telepathy', shown to the guest since it was born on release 'r9'; needed: a target "
            "that can show it too"
        ],
    ),
    (
        "no variant",
        lambda: attrs.evolve(PREAMBLE, variants=()),
        {},
        [
            "release: specs is r6, which knows spec versions 6, 3, 2, 1; needed: a release that knows one of those "
            "offered: none"
        ],
    ),
    (
        "only variants that the target does not know",
        lambda: attrs.evolve(PREAMBLE, variants=(Variant(version=9, document=b""), Variant(version=8, document=b""))),
        {},
        [
            "release: specs is r6, which knows spec versions 6, 3, 2, 1; needed: a release that knows one of those "
            "offered: 9, 8"
        ],
    ),
    (
        "a document that is no CBOR",
        lambda: attrs.evolve(PREAMBLE, variants=(Variant(version=6, document=b"\xff"),)),
        {},
        [
            "spec: document is at byte 0: only false, true and null are allowed, no floats or other simple values; "
            "needed: a valid spec"
        ],
    ),
    (
        "a digest of another machine",
        lambda: attrs.evolve(PREAMBLE, spec_digest=bytes(32)),
        {},
        [f"spec: digest is {spec_digest(SPEC).hex()}; needed: {bytes(32).hex()}, the digest of what was sent"],
    ),
    (
        "RAM of another size",
        lambda: preamble_for(SPEC, memory_mb=8),
        {},
        ["board: memory_mb is RAM at [(0, 8388608)]; needed: RAM at [(0, 4194304)]"],
    ),
    (
        "a replacement of what is not there",
        lambda: PREAMBLE,
        {SpecKey.parse("disk-backend"): MOVED},
        [
            "disk-backend: replacement is a crucible_storage_backend; needed: the key of a component of the source's "
            "spec"
        ],
    ),
    (
        "a replacement by another kind",
        lambda: preamble_for(make_spec(CRUCIBLE)),
        {SpecKey.parse("disk-backend"): VirtioNetworkBackend("vnic0")},
        [
            "disk-backend: replacement is a virtio_network_backend; needed: a crucible_storage_backend, as the "
            "source's is one and kinds cannot change"
        ],
    ),
]


@pytest.mark.parametrize(
    ("preamble", "replacements", "expected"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_a_refusal_names_component_and_field_what_is_there_and_what_would_do(
    preamble: Callable[[], Preamble], replacements: Replacements, expected: list[str]
) -> None:
    assert messages(preamble(), R6, replacements) == expected


def test_what_the_newest_version_known_to_the_target_cannot_carry_is_the_reason() -> None:
    cache = Reason(component="boot", field="has_write_cache", have="false", need="spec version 6 or newer")
    smbios = Reason(component="smbios", field="smbios", have="set", need="spec version 2 or newer")
    elsewhere = Reason(component="gpu", field="type", have="gpu", need="spec version 9 or newer")
    preamble = attrs.evolve(
        PREAMBLE,
        variants=PREAMBLE.variants[:1],
        withheld=(
            Withheld(version=8, reasons=(elsewhere,)),
            Withheld(version=3, reasons=(cache,)),
            Withheld(version=2, reasons=(cache,)),
            Withheld(version=1, reasons=(cache, smbios)),
        ),
    )
    assert judge(preamble, R3, {}) == (cache,)
    assert judge(preamble, R1, {}) == (cache, smbios)


def test_a_machine_that_uses_a_new_feature_is_refused_by_an_old_target_with_the_field_named() -> None:
    disk = EVERY_DEVICE["boot"]
    assert isinstance(disk, NvmeDisk)
    spec = make_spec({**EVERY_DEVICE, "boot": attrs.evolve(disk, has_write_cache=False)})
    assert messages(preamble_for(spec), R3) == [
        "boot: has_write_cache is false; needed: spec version 6 or newer",
    ]


def test_a_spec_that_makes_no_machine_is_refused_with_every_reason() -> None:
    spec = make_spec({"disk": EVERY_DEVICE["boot"], "boot-backend": EVERY_DEVICE["boot-backend"]}, cpus=40)
    assert reasons(preamble_for(spec)) == ["board: cpus", "board: components"]


def test_every_reason_is_listed_at_once() -> None:
    """From the source, from the payloads, from the spec, from the RAM layout: one refusal."""
    spec = make_spec(CRUCIBLE, cpus=40)
    preamble = attrs.evolve(
        preamble_for(spec, memory_mb=8),
        obstacles=(OBSTACLE,),
        exports=with_exports(("gpu-state", (1,)), ("pci-virtio", (9,))),
    )
    assert reasons(preamble) == [
        "vsock: type",
        "device-0: gpu-state",
        "device-1: pci-virtio",
        "board: cpus",
        "board: memory_mb",
    ]
    assert reasons(attrs.evolve(preamble, variants=())) == [
        "release: specs",
        "vsock: type",
        "device-0: gpu-state",
        "device-1: pci-virtio",
    ]
    assert reasons(attrs.evolve(preamble, spec_digest=bytes(32)))[-1] == "spec: digest"
    assert reasons(preamble, replacements={SpecKey.parse("gone"): MOVED})[-1] == "gone: replacement"


def test_a_document_that_has_been_tampered_with_never_makes_another_machine() -> None:
    """No change of a byte crashes the target either; some only hit a field that readers are told to ignore."""
    spec = make_spec(COM1)
    preamble = preamble_for(spec)
    document = preamble.variants[0].document
    for position in range(len(document)):
        for change in (0x01, 0x20, 0x80):
            damaged = bytearray(document)
            damaged[position] ^= change
            variants = (Variant(version=6, document=bytes(damaged)),)
            verdict = judge(attrs.evolve(preamble, variants=variants), R6, {})
            assert not isinstance(verdict, Acceptable) or verdict.spec == spec


# Payload versions


def test_the_newest_payload_version_that_both_know_is_exported(machine: Machine) -> None:
    ours = attrs.evolve(R6, payloads={"pci-virtio": (3, 2, 1), "nvme-ctrl": (2,)})
    theirs = (
        KindVersions(kind="pci-virtio", versions=(1, 2)),
        KindVersions(kind="nvme-ctrl", versions=(1,)),
        KindVersions(kind="gpu-state", versions=(5,)),
    )
    common = common_versions(ours, theirs)
    assert common == {"pci-virtio": (2, 1), "nvme-ctrl": (), "gpu-state": ()}
    choose = chooser(common)
    virtio, _, viona = machine.devices["nic"].places()
    assert choose(virtio) == Schema("pci-virtio", 2)
    assert choose(viona) is None, "an optional payload that says nothing is left out where nobody would know it"
    with pytest.raises(NoCommonPayload, match="device 'boot': no version of nvme-ctrl is known to both sides"):
        choose(machine.devices["boot"].places()[0])
    with pytest.raises(NoCommonPayload, match="no version of uart-16550"):
        choose(machine.devices["com1"].places()[0])


def test_state_that_no_common_version_carries_is_refused_with_all_of_it(machine: Machine) -> None:
    """What came about since the preamble: all places are looked at, whatever stands in the way of the first."""
    imports = (KindVersions(kind=kind, versions=versions) for kind, versions in R1.payloads.items())
    common = dict(common_versions(R6, imports))
    assert list(not_representable(machine, common)) == []
    StampGuest().boot(machine)
    assert [(reason.component, reason.field) for reason in not_representable(machine, common)] == [
        ("boot", "nvme-ctrl.dbbuf_shadow"),
        ("cloud-init", "pci-virtio.device.negotiated_features"),
        ("nic", "pci-virtio.device.negotiated_features"),
    ]
    with pytest.raises(StateNotRepresentable, match=r"nvme-ctrl version 2 or newer"):
        machine.preflight(chooser(common))
    del common["uart-16550"]
    assert "com1: uart-16550 is no common payload version; needed: a target that knows uart-16550 v1" in [
        reason.message for reason in not_representable(machine, common)
    ]


def test_people_are_told_why_no_newer_version_was_taken() -> None:
    cache = Reason(component="boot", field="has_write_cache", have="false", need="spec version 6 or newer")
    withheld = [Withheld(version=3, reasons=(cache,)), Withheld(version=1, reasons=(cache,))]
    variants = [Variant(version=6, document=b""), Variant(version=2, document=b"")]
    assert why_not_newer(withheld, variants, 2, "r2") == [
        "version 3 cannot carry this machine: boot: has_write_cache is false; needed: spec version 6 or newer",
        "version 6 was offered, but the target (r2) does not know it",
    ]
    assert why_not_newer(withheld, variants, 6, "r6") == []


def test_the_specs_of_this_page_are_what_every_version_knows() -> None:
    assert set(BY_NUMBER) == set(R6.specs)
