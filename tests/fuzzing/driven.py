"""A machine whose devices a guest has driven, so that their states are worth damaging, and receivers for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import attrs
import numpy as np

from migrate.engine.image import PauseImage
from migrate.payloads import encode_payload
from migrate.protocol.messages import DeviceState as StateMessage
from migrate.protocol.messages import Payload as PayloadMessage
from migrate.protocol.messages import ServerState, TimeOfDay
from sim_vmm.guest import StampGuest
from sim_vmm.machine import DeviceState, Machine
from sim_vmm.payloads import Payload, Schema
from sim_vmm.payloads.conversions import downgrade, versions_of
from sim_vmm.snapshot import nonzero_pages
from sim_vmm.spec import Spec
from sim_vmm.spec.components import MigrationFailureInjector
from tests.fuzzing.conversations import make_machine
from tests.machines import EVERY_DEVICE, make_spec

SPEC: Final[Spec] = make_spec({**EVERY_DEVICE, "injector": MigrationFailureInjector(0, 0)}, cpus=1)
STEPS: Final = 6


@attrs.define(slots=False)
class Driven:
    """Made once; what is taken from it never changes it."""

    @cached_property
    def _machine(self) -> Machine:
        machine = make_machine(SPEC)
        machine.start()
        program = StampGuest(steps_per_record=2)
        program.boot(machine)
        for _ in range(STEPS):
            machine.poll()
            program.step(machine)
        machine.pause()
        return machine

    @cached_property
    def states(self) -> tuple[DeviceState, ...]:
        return self._machine.export_devices()

    @cached_property
    def _content(self) -> tuple[Any, Any]:
        """What drivers and devices have in RAM: the first two thirds; the rest is the guest's own."""
        memory = self._machine.memory
        pages = np.flatnonzero(nonzero_pages(memory.pages[: 2 * memory.page_count // 3]))
        return pages, self._machine.memory.pages[pages].copy()

    def payloads(self) -> Iterator[Payload]:
        """One of every schema, older versions as near to the state as they can say it."""
        seen: set[Schema] = set()
        for state in self.states:
            for payload in state.payloads:
                for schema in versions_of(payload.SCHEMA):
                    if schema not in seen:
                        seen.add(schema)
                        yield downgrade(payload, schema)

    def states_with(self, replacing: Payload) -> list[DeviceState]:
        """The state of every device, with a payload in place of the first of its kind, or else at the end."""
        states, kind, replaced = [], replacing.SCHEMA.kind, False
        for state in self.states:
            payloads = []
            for payload in state.payloads:
                is_it = payload.SCHEMA.kind == kind and not replaced
                payloads.append(replacing if is_it else payload)
                replaced = replaced or is_it
            states.append(attrs.evolve(state, payloads=tuple(payloads)))
        if not replaced:
            states.append(attrs.evolve(states[-1], payloads=(replacing,)))
        return states

    def image(self) -> PauseImage:
        return PauseImage(
            time=TimeOfDay(**attrs.asdict(self._machine.clock.export())),
            devices=tuple(
                StateMessage(
                    device=state.key,
                    payloads=tuple(
                        PayloadMessage(kind=one.SCHEMA.kind, version=one.SCHEMA.version, data=encode_payload(one))
                        for one in state.payloads
                    ),
                )
                for state in self.states
            ),
            server=ServerState(**attrs.asdict(self._machine.console.export())),
        )

    @contextmanager
    def receiver(self) -> Iterator[Machine]:
        """A machine of the same spec with the same RAM, ready to be filled."""
        with make_machine(SPEC) as machine:
            pages, content = self._content
            machine.memory.pages[pages] = content
            machine.receive()
            yield machine


DRIVEN: Final = Driven()
