"""What a source offers of its spec, and what a target takes of an offer.

Lossless by check, not by promise: a version is offered only if the very bytes that would travel decode to an equal
`Spec`, here and now.  Every other version is withheld, with each component and field that it cannot carry and the
oldest version that can (propolis issue #1136: the conversion down silently lost information).

A target takes the first variant whose version it knows and never looks at the others, so a new variant cannot break an
old target.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import attrs

from migrate import cbor
from migrate.reasons import Reason
from migrate.specs import VERSIONS
from migrate.specs.version import Loss, SpecVersion
from sim_vmm.integers import U32
from sim_vmm.spec import Spec


@attrs.frozen(kw_only=True)
class Variant:
    """The spec in one version: `document` is CBOR of the plain data that JSON would show."""

    version: U32
    document: bytes = attrs.field(repr=lambda document: f"<{len(document)} bytes>")


@attrs.frozen(kw_only=True)
class Withheld:
    """A version that cannot carry the spec, and why."""

    version: U32
    reasons: tuple[Reason, ...]


def offer(spec: Spec, versions: Sequence[SpecVersion] = VERSIONS) -> Iterator[Variant | Withheld]:
    """Judge each version in the given order, which is newest first."""
    for version in versions:
        losses = list(version.losses(spec))
        if losses:
            yield Withheld(version=version.number, reasons=tuple(explain(losses, version, spec)))
            continue
        problem, document = _encode_and_check(version, spec)
        if problem is None:
            yield Variant(version=version.number, document=document)
        else:
            reason = Reason(
                component="spec", field="document", have=problem, need=f"a lossless form in version {version.number}"
            )
            yield Withheld(version=version.number, reasons=(reason,))


def _encode_and_check(version: SpecVersion, spec: Spec) -> tuple[str | None, bytes]:
    """The bytes of `spec`, and what is wrong with them, if anything: the last gate before the wire."""
    try:
        document = cbor.encode(version.encode(spec))
        again = version.decode(cbor.decode(document))
    except Exception as error:  # a broken converter may fail in any way; none of them may reach the wire
        return f"not convertible ({type(error).__name__})", b""  # its text may hold what it failed at
    return (None if again == spec else "changed by the conversion and back"), document


def explain(losses: Iterable[Loss], version: SpecVersion, spec: Spec) -> Iterator[Reason]:
    """Each loss as a reason that names the oldest version without it."""
    for loss in losses:
        carriers = [
            other.number
            for other in VERSIONS
            if other.number > version.number
            and not any((other_loss.component, other_loss.field) == loss[:2] for other_loss in other.losses(spec))
        ]
        need = f"spec version {min(carriers)} or newer" if carriers else "a spec version that can carry it"
        yield Reason(component=loss.component, field=loss.field, have=loss.have, need=need)


def variants_of(entries: Iterable[Variant | Withheld]) -> tuple[Variant, ...]:
    return tuple(entry for entry in entries if isinstance(entry, Variant))


def withheld_of(entries: Iterable[Variant | Withheld]) -> tuple[Withheld, ...]:
    return tuple(entry for entry in entries if isinstance(entry, Withheld))


def choose(variants: Iterable[Variant], known: Collection[int]) -> Variant | None:
    """The first variant of a version in `known`; the documents of the others stay unread."""
    return next((variant for variant in variants if variant.version in known), None)
