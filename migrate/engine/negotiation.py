"""Preamble and verdict: what a source says of its machine, and what a target makes of it.  Pure.

The daemons and `migrate check` call the same functions, so what the check promises is what the migration does.  A
refusal names every reason at once, whichever side sees it: the source's obstacles travel in the preamble, and so does
what a payload version would lose of a device's state, in case that version is the best that the target knows.
"""

from collections.abc import Iterable, Iterator
from uuid import UUID

import attrs

from migrate import cbor
from migrate.engine.payload_choice import device_exports, not_exportable, not_importable
from migrate.plain import quote
from migrate.protocol.messages import NAME_MAX, Accept, Extent, KindVersions, MachineBirth, Preamble
from migrate.reasons import Reason
from migrate.releases import Release
from migrate.specs import BY_NUMBER
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant, Withheld, choose, offer, variants_of, withheld_of
from migrate.specs.reading import ParseError
from migrate.specs.replacements import InstanceSpecsIncompatible, Replacements, replace
from sim_vmm.birth import Birth, Interface
from sim_vmm.initialisation import InitialisationError, check_initialisation
from sim_vmm.machine import MIB, Machine
from sim_vmm.memory import ram_layout
from sim_vmm.spec import Spec, SpecError


def preamble_of(machine: Machine, release: Release, name: str) -> Preamble:
    """What the source's build, being `release`, says of `machine`, which it calls `name`."""
    entries = tuple(offer(machine.spec, release.versions))
    exports = tuple(device_exports(machine, release))
    return Preamble(
        machine=name,
        birth=MachineBirth(
            release=machine.birth.release, vm_id=machine.birth.vm_id.bytes, shows=tuple(sorted(machine.birth.shows))
        ),
        spec_digest=spec_digest(machine.spec),
        variants=variants_of(entries),
        withheld=withheld_of(entries),
        obstacles=(*obstacles_of(machine), *not_exportable(exports, release)),
        exports=exports,
        ram=tuple(Extent(gpa=region.gpa, length=region.length) for region in machine.memory.layout),
    )


def obstacles_of(machine: Machine) -> Iterator[Reason]:
    """What forbids a migration of `machine` as it is now, wherever it is to go."""
    for obstacle in machine.obstacles():
        yield Reason(
            component=obstacle.component,
            field="type",
            have=obstacle.kind,
            need=f"a machine without it, as it cannot migrate: {obstacle.reason}",
        )
    for key in machine.devices:
        if len(key) > NAME_MAX:
            have, need = f"{len(key)} characters long", f"a component key of at most {NAME_MAX} characters"
            yield Reason(component=key, field="key", have=have, need=need)


def _spec_reason(component: str | None, field: str, have: str, need: str) -> Reason:
    return Reason(component=component or "spec", field=field, have=have, need=need)


@attrs.frozen(kw_only=True)
class Acceptable:
    """The verdict is yes: `spec` and `birth` are the machine to make, replacements applied, `answer` says so."""

    spec: Spec
    birth: Birth
    answer: Accept


def judge(preamble: Preamble, release: Release, replacements: Replacements) -> Acceptable | tuple[Reason, ...]:
    """The verdict of a target whose build is `release`: the machine to make, or every reason why not."""
    birth = _birth_of(preamble)
    reasons = [*preamble.obstacles, *not_importable(preamble.exports, release, preamble.obstacles)]
    if isinstance(birth, Reason):
        reasons.append(birth)
    variant = choose(preamble.variants, release.specs)
    if variant is None:
        return (*_no_common_version(preamble, release), *reasons)
    outcome = _spec_of(variant, preamble, replacements)
    if isinstance(outcome, Spec) and isinstance(birth, Birth) and not reasons:
        answer = Accept(
            spec_version=variant.version,
            imports=tuple(
                KindVersions(kind=kind, versions=versions) for kind, versions in sorted(release.payloads.items())
            ),
        )
        return Acceptable(spec=outcome, birth=birth, answer=answer)
    return (*reasons, *(() if isinstance(outcome, Spec) else outcome))


def _no_common_version(preamble: Preamble, release: Release) -> Iterator[Reason]:
    """Why none of the versions that the target knows was offered: what the newest of them cannot carry.

    Older ones may lack more, but that would be no obstacle if only this were gone.
    """
    newest = next((withheld for withheld in preamble.withheld if withheld.version in release.specs), None)
    if newest is not None and newest.reasons:
        yield from newest.reasons
    else:
        offered = ", ".join(str(variant.version) for variant in preamble.variants) or "none"
        yield Reason(
            component="release",
            field="specs",
            have=f"{release.name}, which knows spec versions {', '.join(map(str, release.specs))}",
            need=f"a release that knows one of those offered: {offered}",
        )


def _birth_of(preamble: Preamble) -> Birth | Reason:
    """What the machine shows its guest, if all of it can be shown here."""
    born = preamble.birth
    known = {str(interface): interface for interface in Interface}
    unknown = [name for name in born.shows if name not in known]
    if unknown:
        return Reason(
            component="machine",
            field="birth",
            have=f"{quote(unknown[0])}, shown to the guest since it was born on release {quote(born.release)}",
            need="a target that can show it too",
        )
    return Birth(
        release=born.release, vm_id=UUID(bytes=born.vm_id), shows=frozenset(known[name] for name in born.shows)
    )


def _spec_of(variant: Variant, preamble: Preamble, replacements: Replacements) -> Spec | tuple[Reason, ...]:
    """Decode, check the digest, replace, build, and see whether it makes a machine."""
    version = BY_NUMBER[variant.version]
    try:
        document = version.read(cbor.decode(variant.document))
        sent = version.build(document)
    except (cbor.CborError, ParseError, SpecError) as error:
        return (_spec_reason(getattr(error, "component", None), "document", str(error), "a valid spec"),)
    if spec_digest(sent) != preamble.spec_digest:
        return (
            _spec_reason(
                None, "digest", spec_digest(sent).hex(), f"{preamble.spec_digest.hex()}, the digest of what was sent"
            ),
        )
    try:
        spec = version.build(replace(document, replacements, version))
    except InstanceSpecsIncompatible as error:
        return (_spec_reason(error.component, "replacement", error.have, error.need),)
    except SpecError as error:
        return (_spec_reason(error.component, "replacement", str(error), "a spec that is valid with it"),)
    problems = no_machine_reasons(check_initialisation(spec))
    announced = [(extent.gpa, extent.length) for extent in preamble.ram]
    wanted = [(region.gpa, region.length) for region in ram_layout(max(spec.board.memory_mb, 1) * MIB)]
    if announced != wanted:
        problems.append(_spec_reason("board", "memory_mb", f"RAM at {announced}", f"RAM at {wanted}"))
    return tuple(problems) or spec


def no_machine_reasons(errors: Iterable[InitialisationError]) -> list[Reason]:
    """Why a valid spec makes no machine; the errors say first what is there, then what instead."""
    reasons = []
    for error in errors:
        have, _, need = error.message.partition("; ")
        reasons.append(Reason(component=error.component, field=error.field, have=have, need=need or "another value"))
    return reasons


def why_not_newer(withheld: Iterable[Withheld], variants: Iterable[Variant], chosen: int, target: str) -> list[str]:
    """For people: why no version newer than `chosen` was taken."""
    lines = [
        f"version {entry.version} cannot carry this machine: {entry.reasons[0].message}"
        for entry in withheld
        if entry.version > chosen
    ]
    return lines + [
        f"version {variant.version} was offered, but the target ({target}) does not know it"
        for variant in variants
        if variant.version > chosen
    ]
