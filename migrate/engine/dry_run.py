"""Would this machine migrate?  Preamble and verdict of the real engines, on a machine in memory, with no daemon.

A `Trial` is a machine that runs in this process: born on a release, its guest booted and run for a moment of its time,
so that its devices are in a state that this guest really brings about.  It can be judged against any target (`judged`),
and carried there (`carried`), as a migration would carry it: spec and device payloads through their bytes, RAM and
console as they are.  A machine that arrives runs on, so a chain of trials finds what pairs hide.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Self

import attrs

from migrate.engine.negotiation import Acceptable, judge, no_machine_reasons, preamble_of, why_not_newer
from migrate.engine.payload_choice import Common, chooser, common_versions, not_representable
from migrate.payloads import decode_payload, encode_payload
from migrate.protocol.messages import Preamble
from migrate.reasons import Reason, sentence
from migrate.releases import Release
from migrate.specs.crucible import unusable_requests
from sim_vmm.birth import NIL_UUID, Birth
from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import GuestDoesNotFit, GuestProgram
from sim_vmm.machine import DeviceState, Machine, MachineError
from sim_vmm.spec import Spec
from sim_vmm.spec.components import MigrationFailureInjector
from sim_vmm.storage import Lost, Storage

MEMORY_MB: Final = 32
"""RAM of the machine that is tried out; how much there is decides nothing."""

STEPS: Final = 20
STEP_NS: Final = 5_000_000
"""A moment of guest time, 100 ms: every program has used what it uses by then."""

NAME: Final = "dry run"


@attrs.frozen(kw_only=True)
class Verdict:
    """`reasons` is empty exactly if the machine would migrate."""

    spec_version: int | None = None
    payloads: dict[str, dict[str, int]] = attrs.field(factory=dict)
    reasons: tuple[Reason, ...] = ()
    why_not_newer: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        return "refused" if self.reasons else "ok"

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.word,
            "spec_version": self.spec_version,
            "payloads": self.payloads,
            "reasons": [reason.as_json() for reason in self.reasons],
        }


class SharedStorage(Storage):
    """The disks of one machine on every host that it comes to: all hosts are in this process, so nothing is lost."""

    def lost_on_migration(self) -> tuple[Lost, ...]:
        return ()

    def close(self) -> None:
        """A machine that has gone on closes its own; the next one has the same."""


class NoMachine(Exception):
    """The spec makes no machine; `reasons` are all that are in the way."""

    def __init__(self, reasons: Iterable[Reason]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(sentence(self.reasons))

    @classmethod
    def because_of(cls, error: MachineError) -> Self:
        return cls(no_machine_reasons(error.errors))


@attrs.define
class Trial:
    """A machine that runs on a build of `release`; close it, or use it as a context manager."""

    machine: Machine
    host_clock: ManualClock
    storage: SharedStorage
    release: Release = attrs.field(kw_only=True)
    guest: GuestProgram = attrs.field(kw_only=True)

    @classmethod
    def born(cls, spec: Spec, release: Release, guest: GuestProgram) -> Self:
        """A machine newly born, its guest booted and run for a moment; with little RAM, if the guest fits into that.

        Raises:
            NoMachine: the spec makes none.
            GuestDoesNotFit: not even into all the RAM that the spec gives it.
        """
        if reasons := tuple(unusable_requests(spec)):
            raise NoMachine(reasons)
        if spec.board.memory_mb > MEMORY_MB:
            small = attrs.evolve(spec, board=attrs.evolve(spec.board, memory_mb=MEMORY_MB))
            with suppress(GuestDoesNotFit):
                return cls._run_in(small, release, guest)
        return cls._run_in(spec, release, guest)

    @classmethod
    def _run_in(cls, spec: Spec, release: Release, guest: GuestProgram) -> Self:
        storage = SharedStorage()
        trial = cls(*_new_machine(spec, release.birth(NIL_UUID), storage), storage, release=release, guest=guest)
        try:
            guest.boot(trial.machine)
            trial.machine.start()
            trial.run()
        except BaseException:
            trial.close()
            raise
        return trial

    def run(self) -> None:
        """A moment passes for the guest."""
        for _ in range(STEPS):
            self.host_clock.advance(STEP_NS)
            self.machine.poll()
            self.guest.step(self.machine)

    def judged(self, target: Release) -> Verdict:
        """What a migration to a build of `target` would come to now."""
        preamble, verdict = self._asked(target)
        if not isinstance(verdict, Acceptable):
            return Verdict(reasons=verdict)
        common = common_versions(self.release, verdict.answer.imports)
        reasons = tuple(not_representable(self.machine, common))
        if reasons:
            return Verdict(reasons=reasons)
        version = verdict.answer.spec_version
        return Verdict(
            spec_version=version,
            payloads={
                state.key: {payload.SCHEMA.kind: payload.SCHEMA.version for payload in state.payloads}
                for state in self.machine.preflight(chooser(common))
            },
            why_not_newer=tuple(why_not_newer(preamble.withheld, preamble.variants, version, target.name)),
        )

    def carried(self, target: Release) -> "Trial":
        """The machine on a build of `target`, where its guest has run on; here it stays paused.

        Only for what `judged` finds ok.
        """
        _, verdict = self._asked(target)
        assert isinstance(verdict, Acceptable), "asked for what is refused"
        here = self.machine
        here.pause()
        states = _through_bytes(here, common_versions(self.release, verdict.answer.imports))
        machine, host_clock = _new_machine(verdict.spec, verdict.birth, self.storage)
        there = Trial(machine, host_clock, self.storage, release=target, guest=self.guest)
        try:
            machine.receive()
            for data in here.memory.data_ranges():
                machine.memory.view[data.start : data.stop] = here.memory.view[data.start : data.stop]
            machine.clock.import_(here.clock.export())
            machine.import_devices(states)
            machine.console.import_(here.console.export())
            machine.start()
            there.run()
        except BaseException:
            there.close()
            raise
        return there

    def _asked(self, target: Release) -> tuple[Preamble, Acceptable | tuple[Reason, ...]]:
        preamble = preamble_of(self.machine, self.release, NAME)
        return preamble, judge(preamble, target, {})

    def close(self) -> None:
        self.machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _new_machine(spec: Spec, birth: Birth, storage: Storage) -> tuple[Machine, ManualClock]:
    host_clock, counters = ManualClock(), spent(spec)
    try:
        machine = Machine.create(spec, host_clock=host_clock, counters=counters, birth=birth, storage=storage)
    except MachineError as error:
        raise NoMachine.because_of(error) from error
    return machine, host_clock


def spent(spec: Spec) -> InjectionCounters:
    """Counters of failure injectors that have done what they do: the verdict is about builds, not about one attempt."""
    counters = InjectionCounters()
    for key, injector in spec.of_kind(MigrationFailureInjector):
        counters.exports[str(key)] = injector.fail_exports
        counters.imports[str(key)] = injector.fail_imports
    return counters


def _through_bytes(machine: Machine, common: Common) -> tuple[DeviceState, ...]:
    return tuple(
        DeviceState(
            state.key, tuple(decode_payload(payload.SCHEMA, encode_payload(payload)) for payload in state.payloads)
        )
        for state in machine.export_devices(chooser(common))
    )


@contextmanager
def trial(spec: Spec, release: Release, guest: GuestProgram) -> Iterator[Trial | Verdict]:
    """A trial, or the verdict that the spec makes no machine."""
    try:
        born = Trial.born(spec, release, guest)
    except NoMachine as error:
        yield Verdict(reasons=error.reasons)
        return
    with born:
        yield born


def would_migrate(spec: Spec, source: Release, target: Release, guest: GuestProgram) -> Verdict:
    """Boot the machine in memory with `guest`, born on `source`, and judge it as a target of release `target` would."""
    with trial(spec, source, guest) as tried:
        return tried if isinstance(tried, Verdict) else tried.judged(target)
