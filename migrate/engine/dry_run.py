"""Would this machine migrate?  Preamble and verdict of the real engines, on a machine in memory, with no daemon."""

from typing import Any, Final

import attrs

from migrate.engine.negotiation import (
    Acceptable,
    NoCommonPayload,
    chooser,
    judge,
    no_machine_reasons,
    payload_choice,
    preamble_of,
    why_not_newer,
)
from migrate.reasons import Reason
from migrate.releases import Release
from migrate.specs.crucible import unusable_requests
from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import GuestProgram
from sim_vmm.machine import Machine, MachineError
from sim_vmm.spec import Spec

MEMORY_MB: Final = 32
"""RAM of the machine that is tried out; how much there is decides nothing."""


@attrs.frozen(kw_only=True)
class Verdict:
    """`reasons` is empty exactly if the machine would migrate."""

    spec_version: int | None = None
    payloads: dict[str, dict[str, int]] = attrs.field(factory=dict)
    reasons: tuple[Reason, ...] = ()
    why_not_newer: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": "refused" if self.reasons else "ok",
            "spec_version": self.spec_version,
            "payloads": self.payloads,
            "reasons": [reason.as_json() for reason in self.reasons],
        }


def would_migrate(spec: Spec, source: Release, target: Release, guest: GuestProgram) -> Verdict:
    """Boot the machine in memory with `guest`, and judge it as a target of release `target` would."""
    if spec.board.memory_mb > MEMORY_MB:
        spec = attrs.evolve(spec, board=attrs.evolve(spec.board, memory_mb=MEMORY_MB))
    if reasons := tuple(unusable_requests(spec)):
        return Verdict(reasons=reasons)
    try:
        machine = Machine.create(spec, host_clock=ManualClock(), counters=InjectionCounters())
    except MachineError as error:
        return Verdict(reasons=tuple(no_machine_reasons(error.errors)))
    with machine:
        guest.boot(machine)
        return _judged(machine, source, target)


def _judged(machine: Machine, source: Release, target: Release) -> Verdict:
    preamble = preamble_of(machine, source, "dry run")
    verdict = judge(preamble, target, {})
    if not isinstance(verdict, Acceptable):
        return Verdict(reasons=verdict)
    choose = chooser(payload_choice(source, verdict.answer.imports))
    try:
        states = machine.preflight(choose)
    except NoCommonPayload as error:  # the verdict looked at kinds; this looks at the state
        return Verdict(
            reasons=(Reason(component="devices", field="payload", have=str(error), need="a common payload version"),)
        )
    version = verdict.answer.spec_version
    return Verdict(
        spec_version=version,
        payloads={
            state.key: {payload.SCHEMA.kind: payload.SCHEMA.version for payload in state.payloads} for state in states
        },
        why_not_newer=tuple(why_not_newer(preamble.withheld, preamble.variants, version, target.name)),
    )
