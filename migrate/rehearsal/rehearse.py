"""One rehearsal, from two command lines to a judged result."""

from collections.abc import Callable

import attrs

from migrate.daemon.launching import Launching
from migrate.daemon.pair import Event, PairOptions, run_pair
from migrate.faults.words import fault_words
from migrate.rehearsal.audit import AuditResult, Evidence, audit
from migrate.rehearsal.leftovers import Leftovers, audit_leftovers, frames_seen
from migrate.rehearsal.real import Played, checks_of
from migrate.rehearsal.result import RehearsalResult, assemble
from migrate.simulation.audits import AT_REST
from migrate.specs import BY_NUMBER
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant, offer
from migrate.specs.replacements import InstanceSpecsIncompatible, Replacements, replace
from sim_vmm.spec import Spec

MIB = 1 << 20


@attrs.frozen(kw_only=True)
class RehearsalOptions:
    """`spec` is the machine as it is born; `replacements` are those that the target will apply.

    The daemons of `pair` are told to use what `leftovers` says.
    """

    spec: Spec
    replacements: Replacements
    seed: int
    pair: PairOptions
    leftovers: Leftovers


async def run_rehearsal(
    options: RehearsalOptions, watch: Callable[[Event], None], launching: Launching
) -> RehearsalResult:
    """Run both daemons to their ends and judge what they told."""
    pair = await run_pair(options.pair, watch, launching)
    evidence = Evidence(
        pair=pair,
        expected_spec=expected_digest(options.spec, options.replacements),
        ledger=audit_leftovers(options.leftovers, options.spec),
        frames_ns=frames_seen(options.leftovers),
    )
    return assemble(evidence, audit(evidence), options.spec.board.memory_mb * MIB, options.seed)


def judge_faulty_rehearsal(options: RehearsalOptions, played: Played) -> RehearsalResult:
    """Those checks that hold whatever happened to processes and links, and what the attempts were."""
    tried = played.judged()
    evidence = Evidence(
        pair=played.pair(),
        expected_spec=expected_digest(options.spec, options.replacements),
        ledger=played.case.ledger(),
    )
    audited = AuditResult(
        checks=(*checks_of(played.case), AT_REST),
        violations=tuple((violation.check, violation.message) for violation in tried.violations),
    )
    ram_bytes = options.spec.board.memory_mb * MIB
    return assemble(evidence, audited, ram_bytes, options.seed, tuple(map(fault_words, tried.fired)))


def expected_digest(spec: Spec, replacements: Replacements) -> str:
    """The digest that the target's machine must have; the source's own if the replacements do not fit."""
    if not replacements:
        return spec_digest(spec).hex()
    version = next(BY_NUMBER[entry.version] for entry in offer(spec) if isinstance(entry, Variant))
    try:
        return spec_digest(version.build(replace(version.read(version.encode(spec)), replacements, version))).hex()
    except InstanceSpecsIncompatible:
        return spec_digest(spec).hex()
