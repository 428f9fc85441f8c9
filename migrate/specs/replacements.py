"""Components that a migration target puts in place of the source's: spec-validation §4.

They are applied to the received document before it is validated, in key order, whole bodies at a time.  Devices, board,
CPUID, SMBIOS and boot order cannot be replaced; a backend cannot change its kind.
"""

from collections.abc import Mapping
from typing import Any, Final

import attrs

from migrate.plain import JsonObject, Misfit, quote, structure, wrong_type
from migrate.specs import v1
from migrate.specs.reading import ParseError, parse_json
from migrate.specs.version import SpecVersion
from migrate.specs.wire_types import spec_converter
from sim_vmm.spec import BUILD_FEATURES, SpecKey
from sim_vmm.spec.components import NEEDS_FEATURE, Component, Feature

#: Replaceable kinds under the names of the control API, which are not the tags of specs.
TAGS: Final = {
    "CrucibleStorageBackend": "crucible_storage_backend",
    "VirtioNetworkBackend": "virtio_network_backend",
    "MigrationFailureInjector": "migration_failure_injector",
}

Replacements = Mapping[SpecKey, Component]


@attrs.frozen(kw_only=True, str=False)
class InstanceSpecsIncompatible(Exception):
    """A replacement does not fit the source's spec: what it is, and what would do."""

    component: str
    have: str
    need: str

    def __str__(self) -> str:
        return f"replacement of {quote(self.component)} is {self.have}; needed: {self.need}"


@attrs.frozen(kw_only=True)
class _Entry:
    component: str
    spec: dict[str, Any]


def read_replacements(text: str | bytes) -> dict[SpecKey, Component]:
    """A JSON map of component key to `{"component": kind, "spec": {fields}}`, in key order.

    Raises:
        ParseError: not such a map; the body of each kind is as strict as in a spec.
    """
    plain = parse_json(text)
    try:
        entries = structure(_CONVERTER, plain, dict[SpecKey, _Entry])
        return {key: _component(str(key), entry) for key, entry in sorted(entries.items())}
    except Misfit as misfit:
        path = ("components", *misfit.path)
        raise ParseError.from_misfit(attrs.evolve(misfit, path=path)) from None


def _component(key: str, entry: _Entry) -> Component:
    if entry.component not in TAGS:
        message = f"{quote(entry.component)} cannot be replaced; what can: {', '.join(sorted(TAGS))}"
        raise Misfit(error="UnknownVariant", message=message, path=(key, "component"))
    kind = v1.KINDS[TAGS[entry.component]]
    try:
        component: Component = kind.from_wire(structure(_CONVERTER, entry.spec, kind.wire))
    except Misfit as misfit:
        raise attrs.evolve(misfit, path=(key, "spec", *misfit.path)) from None
    return component


def replace(
    document: Any,
    replacements: Replacements,
    version: SpecVersion,
    features: frozenset[Feature] = BUILD_FEATURES,
) -> Any:
    """`document` (of `version`, as `SpecVersion.read` gives it) with the replacements in place.

    Raises:
        InstanceSpecsIncompatible: a key that the document lacks, a component of another kind, or a build without the
            feature that the component needs.
    """
    components = dict(document.components)
    for key, replacement in sorted(replacements.items()):
        feature = NEEDS_FEATURE.get(type(replacement))
        if feature is not None and feature not in features:
            raise InstanceSpecsIncompatible(
                component=str(key), have=f"a {replacement.KIND}", need=f"a build with the feature {feature.value!r}"
            )
        if key not in components:
            raise InstanceSpecsIncompatible(
                component=str(key), have=f"a {replacement.KIND}", need="the key of a component of the source's spec"
            )
        wire = version.wire_form(replacement)
        if type(components[key]) is not type(wire):
            found = version.tag_of(components[key])
            raise InstanceSpecsIncompatible(
                component=str(key),
                have=f"a {replacement.KIND}",
                need=f"a {found}, as the source's is one and kinds cannot change",
            )
        components[key] = wire
    return attrs.evolve(document, components=components)


_CONVERTER = spec_converter()
_CONVERTER.register_structure_hook_func(lambda kind: kind == dict[str, Any], lambda value, _: _object(value))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(value, "an object")
    return value if isinstance(value, JsonObject) else JsonObject(list(value.items()))
