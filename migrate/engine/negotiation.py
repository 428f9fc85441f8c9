"""Preamble and verdict: what a source says of its machine, and what a target makes of it.  Pure.

The daemons and `migrate check` call the same functions, so what the check promises is what the migration does.  A
refusal names every reason at once, whichever side sees it: the source's obstacles travel in the preamble.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from migrate import cbor
from migrate.protocol.messages import NAME_MAX, Accept, DeviceExports, Extent, KindVersions, Preamble
from migrate.reasons import Reason
from migrate.releases import Release
from migrate.specs import BY_NUMBER
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant, Withheld, choose, offer, variants_of, withheld_of
from migrate.specs.reading import ParseError
from migrate.specs.replacements import InstanceSpecsIncompatible, Replacements, replace
from sim_vmm.initialisation import InitialisationError, check_initialisation
from sim_vmm.machine import MIB, Choose, Machine
from sim_vmm.memory import ram_layout
from sim_vmm.payloads import Schema
from sim_vmm.spec import Spec, SpecError


def preamble_of(machine: Machine, release: Release, name: str) -> Preamble:
    """What the source's build, being `release`, says of `machine`, which it calls `name`."""
    entries = tuple(offer(machine.spec, release.versions))
    return Preamble(
        machine=name,
        spec_digest=spec_digest(machine.spec),
        variants=variants_of(entries),
        withheld=withheld_of(entries),
        obstacles=tuple(_obstacles(machine, release)),
        exports=tuple(_exports(machine, release)),
        ram=tuple(Extent(gpa=region.gpa, length=region.length) for region in machine.memory.layout),
    )


def _obstacles(machine: Machine, release: Release) -> Iterator[Reason]:
    for obstacle in machine.obstacles():
        yield Reason(
            component=obstacle.component,
            field="type",
            have=obstacle.kind,
            need=f"a machine without it, as it cannot migrate: {obstacle.reason}",
        )
    for key, device in machine.devices.items():
        if len(key) > NAME_MAX:
            have, need = f"{len(key)} characters long", f"a component key of at most {NAME_MAX} characters"
            yield Reason(component=key, field="key", have=have, need=need)
        for schemas in device.exports():
            if not any(release.knows(schema) for schema in schemas):
                versions = [schema.version for schema in schemas]
                yield _payload_reason(key, schemas[0].kind, versions, f"release {release.name}, which exports it,", ())


def _exports(machine: Machine, release: Release) -> Iterator[DeviceExports]:
    for key, device in machine.devices.items():
        kinds = []
        for schemas in device.exports():
            versions = tuple(schema.version for schema in schemas if release.knows(schema))
            if versions:
                kinds.append(KindVersions(kind=schemas[0].kind, versions=versions))
        if kinds and len(key) <= NAME_MAX:  # a longer one is an obstacle, and no message can carry it
            yield DeviceExports(device=key, payloads=tuple(kinds))


def _payload_reason(device: str, kind: str, versions: Sequence[int], who: str, known: Sequence[int]) -> Reason:
    have = ", ".join(map(str, versions)) or "none"
    knows = f"versions {', '.join(map(str, known))}" if known else "no version"
    return Reason(
        component=device,
        field=kind,
        have=f"payload version {have}",
        need=f"a version that both sides know; {who} knows {knows}",
    )


@attrs.frozen(kw_only=True)
class Acceptable:
    """The verdict is yes: `spec` is the machine to make, replacements applied, `answer` the message that says so."""

    spec: Spec
    answer: Accept


def judge(preamble: Preamble, release: Release, replacements: Replacements) -> Acceptable | tuple[Reason, ...]:
    """The verdict of a target whose build is `release`: the machine to make, or every reason why not."""
    reasons = [*preamble.obstacles, *_unknown_payloads(preamble, release)]
    variant = choose(preamble.variants, release.specs)
    if variant is None:
        return (*_no_common_version(preamble, release), *reasons)
    outcome = _spec_of(variant, preamble, replacements)
    if isinstance(outcome, Spec) and not reasons:
        answer = Accept(
            spec_version=variant.version,
            imports=tuple(
                KindVersions(kind=kind, versions=versions) for kind, versions in sorted(release.payloads.items())
            ),
        )
        return Acceptable(spec=outcome, answer=answer)
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


def _unknown_payloads(preamble: Preamble, release: Release) -> Iterator[Reason]:
    for device in preamble.exports:
        for offered in device.payloads:
            known = release.payloads.get(offered.kind, ())
            if not set(known) & set(offered.versions):
                who = f"the target ({release.name})"
                yield _payload_reason(device.device, offered.kind, offered.versions, who, known)


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


def _spec_reason(component: str | None, field: str, have: str, need: str) -> Reason:
    return Reason(component=component or "spec", field=field, have=have, need=need)


class NoCommonPayload(Exception):
    """A payload has no version that both sides know: the peers agreed to what cannot be."""


def payload_choice(release: Release, imports: Iterable[KindVersions]) -> Mapping[str, tuple[int, ...]]:
    """Versions that both sides know, newest first, by kind."""
    return {
        theirs.kind: tuple(sorted(set(theirs.versions) & set(release.payloads.get(theirs.kind, ())), reverse=True))
        for theirs in imports
    }


def chooser(common: Mapping[str, tuple[int, ...]]) -> Choose:
    """Picks, for each payload, the newest version that both sides know."""

    def choose_schema(device: str, schemas: tuple[Schema, ...]) -> Schema:
        for schema in schemas:
            if schema.version in common.get(schema.kind, ()):
                return schema
        raise NoCommonPayload(f"device {device!r}: no version of {schemas[0].kind} is known to both sides")

    return choose_schema


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
