"""What a state directory says of a machine, in words: what is known, what is not, and what a person may do."""

import os
from typing import Any

import attrs

from migrate.daemon.state import MachineState, PauseImage, StateDirectory, current_boot_id
from migrate.daemon.state.directory import RAM
from migrate.engine.handoff import Holding, Record


@attrs.frozen(kw_only=True)
class Situation:
    """`known`, `unknown` and `advice` are sentences, `unknown` empty where nothing is in doubt."""

    known: str
    unknown: str
    advice: str

    @property
    def is_settled(self) -> bool:
        return not self.unknown


def situation_of(state: StateDirectory, machine: MachineState) -> Situation:
    """Of one machine, from the directory alone: nobody is asked."""
    record, directory = machine.record, state.path
    match record.holding:
        case Holding.OWNER:
            known = f"this node owns generation {record.generation}"
            if state.held_by not in (None, os.getpid()):
                return Situation(known=f"{known}, and a daemon runs it", unknown="", advice="")
            advice = (
                f"start it: migrate source --state-dir {directory}; it boots from its disks, as its RAM went with its "
                "process"
            )
            return Situation(known=f"{known}; no daemon runs it", unknown="", advice=advice)
        case Holding.COMMITTED:
            return Situation(
                known=f"this node gave generation {record.generation} to {record.peer}, and must not run the machine; "
                + image_in_words(state, machine.image),
                unknown=f"whether {record.peer} runs it",
                advice=(
                    f"migrate source --state-dir {directory} waits for that node and settles it (with --storage it can "
                    f"also ask the fence); {by_force(state, record)}"
                ),
            )
        case Holding.READY:
            return Situation(
                known=f"this node holds generation {record.generation} of {record.peer}, and must not run it unasked; "
                + image_in_words(state, machine.image),
                unknown=f"whether {record.peer} has given it away",
                advice=(
                    f"migrate target --state-dir {directory} asks that node and settles it; {by_force(state, record)}"
                ),
            )
        case Holding.NOT_OWNER:
            return _not_owner(state, machine)


def by_force(state: StateDirectory, record: Record) -> str:
    """What a person may decide who knows more than the journals."""
    return (
        f"if that node is gone for good and runs nothing: migrate resolve --state-dir {state.path} --force-own "
        f"{record.generation}; if it runs the machine: --force-abandon {record.generation}"
    )


def _not_owner(state: StateDirectory, machine: MachineState) -> Situation:
    record = machine.record
    went = f"went to {record.peer}" if record.owned and record.peer else "is not here"
    known = f"the machine {went}; every generation up to {record.generation} is dead here for ever"
    if not machine.debts:
        return Situation(known=known, unknown="", advice="")
    waiting = ", ".join(f"{debt.peer} (generation {debt.generation})" for debt in machine.debts)
    return Situation(
        known=f"{known}; {waiting} must still be told what became of it",
        unknown="whether that has been heard",
        advice=f"migrate resolve --state-dir {state.path} tells it",
    )


def image_in_words(state: StateDirectory, image: PauseImage | None) -> str:
    problem = why_unusable(state, image)
    return "its image is here, and can be resumed" if problem is None else f"its image cannot be resumed: {problem}"


def why_unusable(state: StateDirectory, image: PauseImage | None) -> str | None:
    """None if the image may be resumed as far as can be told without reading it."""
    if image is None:
        return "there is none"
    if image.boot_id != current_boot_id():
        return "the host has been booted since, and RAM was never on its medium"
    if not (state.path / RAM / image.ram).exists():
        return f"its RAM file {image.ram} is gone"
    return None


def machine_json(state: StateDirectory, machine: MachineState) -> dict[str, Any]:
    """One machine, for programs."""
    situation, known, image = situation_of(state, machine), machine.machine, machine.image
    return {
        "machine": None if known is None else known.name,
        "vm_id": str(machine.vm_id),
        "record": {**attrs.asdict(machine.record), "holding": machine.record.holding.value},
        "highest_generation": machine.highest,
        "release": None if known is None else known.release,
        "born_on": None if known is None else known.birth_release,
        "spec_version": None if known is None else known.spec_version,
        "guest": None if known is None else known.guest,
        "memory_bytes": None if known is None else known.memory_bytes,
        "image": None
        if image is None
        else {"generation": image.generation, "ram": image.ram, "unusable": why_unusable(state, image)},
        "debts": [attrs.asdict(debt) for debt in machine.debts],
        "settled": situation.is_settled and not machine.debts,
        **attrs.asdict(situation),
        "history": [attrs.asdict(attempt) for attempt in state.history(machine.vm_id)],
    }
