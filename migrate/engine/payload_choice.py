"""Which version each payload travels in: what the source can export, what the target imports, and the choice.  Pure.

A version may be used only if it gives the device's state of the moment back unchanged (`sim_vmm.devices.places`).  So
the answer can change while the guest runs, and is looked for three times: for the preamble, so that most refusals cost
nothing; before the pause, so that none costs downtime; and at export, where the choice is final.

On the wire, version 0 of a kind stands for leaving the payload out, which is a choice for optional ones.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from migrate.protocol.messages import NAME_MAX, DeviceExports, KindExports, KindVersions
from migrate.reasons import Reason
from migrate.releases import Release
from migrate.specs.offer import Withheld
from sim_vmm.devices.errors import DeviceStateError, StateNotRepresentable
from sim_vmm.devices.places import Place
from sim_vmm.machine import Choose, Machine
from sim_vmm.payloads import Schema

LEFT_OUT: Final = 0

#: Versions that both sides know, newest first, by kind.
Common = Mapping[str, tuple[int, ...]]


class NoCommonPayload(DeviceStateError):
    """A payload has no version that both sides know."""

    def __init__(self, place: Place) -> None:
        self.device, self.kind = place.device, place.kind

    @property
    def message(self) -> str:
        return f"no version of {self.kind} is known to both sides"


# What a source says


def device_exports(machine: Machine, release: Release) -> Iterator[DeviceExports]:
    """What a source of this release can export of each device, as it is now."""
    for key, device in machine.devices.items():
        if device.not_migratable is None and len(key) <= NAME_MAX:  # those are obstacles by themselves
            kinds = tuple(_kind_exports(place, release.payloads.get(place.kind, ())) for place in device.places())
            if kinds:
                yield DeviceExports(device=key, payloads=kinds)


def _kind_exports(place: Place, known: Sequence[int]) -> KindExports:
    carrying, withheld = [], []
    for schema in _candidates(place, known):
        version = LEFT_OUT if schema is None else schema.version
        problem = place.problem(schema)
        if problem is None:
            carrying.append(version)
        else:
            withheld.append(Withheld(version=version, reasons=(reason_of(problem),)))
    return KindExports(kind=place.kind, versions=tuple(carrying), withheld=tuple(withheld))


def _candidates(place: Place, known: Sequence[int]) -> Iterator[Schema | None]:
    """What could stand in this place as far as the known versions go, best first."""
    yield from (schema for schema in place.schemas if schema.version in known)
    if place.optional:
        yield None


def reason_of(problem: StateNotRepresentable) -> Reason:
    return Reason(
        component=problem.device, field=f"{problem.kind}.{problem.field}", have=problem.have, need=problem.need
    )


def not_exportable(exports: Iterable[DeviceExports], release: Release) -> Iterator[Reason]:
    """The payloads that a source of this release cannot export at all, as they are now."""
    for device in exports:
        for offered in device.payloads:
            if not offered.versions:
                known = release.payloads.get(offered.kind, ())
                yield _no_version(device.device, offered, known, f"release {release.name}, which exports it,")


# What a target says


def not_importable(exports: Iterable[DeviceExports], release: Release, obstacles: Iterable[Reason]) -> Iterator[Reason]:
    """The payloads of which a target of this release can import no version that carries their state.

    Those that `obstacles`, the source's own, name already are not named again.
    """
    explained = {(obstacle.component, obstacle.field.partition(".")[0]) for obstacle in obstacles}
    for device in exports:
        for offered in device.payloads:
            known = release.payloads.get(offered.kind, ())
            is_explained = not offered.versions and (device.device, offered.kind) in explained
            if not is_explained and not {*known, LEFT_OUT} & set(offered.versions):
                yield _no_version(device.device, offered, known, f"the target ({release.name})")


def _no_version(device: str, offered: KindExports, known: Sequence[int], who: str) -> Reason:
    """Names the field that the best known version would lose, or the kind if none is known."""
    for withheld in offered.withheld:
        if withheld.version in {*known, LEFT_OUT} and withheld.reasons:
            return withheld.reasons[0]
    have = ", ".join(map(str, offered.versions)) or "none"
    knows = f"versions {', '.join(map(str, known))}" if known else "no version"
    return Reason(
        component=device,
        field=offered.kind,
        have=f"payload version {have}",
        need=f"a version that both sides know; {who} knows {knows}",
    )


# The choice


def common_versions(release: Release, imports: Iterable[KindVersions]) -> Common:
    """Versions that the source, of this release, and the target, which imports these, both know."""
    return {
        theirs.kind: tuple(sorted(set(theirs.versions) & set(release.payloads.get(theirs.kind, ())), reverse=True))
        for theirs in imports
    }


def chooser(common: Common) -> Choose:
    """Picks, for each place, the newest version that both sides know and that carries the state of this moment."""

    def choose(place: Place) -> Schema | None:
        first: StateNotRepresentable | None = None
        for schema in _candidates(place, common.get(place.kind, ())):
            problem = place.problem(schema)
            if problem is None:
                return schema
            first = first or problem
        raise first or NoCommonPayload(place)

    return choose


def not_representable(machine: Machine, common: Common) -> Iterator[Reason]:
    """Every payload of `machine` that cannot be exported in any of these versions, as it is now."""
    choose = chooser(common)
    for device in machine.devices.values():
        for place in device.places():
            try:
                choose(place)
            except StateNotRepresentable as problem:
                yield reason_of(problem)
            except NoCommonPayload as problem:
                have, need = "no common payload version", f"a target that knows {place.schemas[0]}"
                yield Reason(component=problem.device, field=problem.kind, have=have, need=need)
