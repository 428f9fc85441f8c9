"""What must hold of a machine and its daemons, whatever happened to processes, links and disks: judged from outside.

The judgement believes no record of the daemons.  Who runs is taken from when guests ran, by events at their first and
after their last step, and a killed one ran until it was killed.  What the guest was promised is read from the RAM that
a killed process leaves and from the disk, before anybody starts again (`promises_broken`).  The network tells who
spoke.  At the end both daemons have been asked to end, and the artefacts of the machine are audited by the reader of
every rehearsal.
"""

import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations, groupby
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import attrs

from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.lives import SIDES, Life, Side
from migrate.daemon.state import MachineState, StateDirectory, StateError
from migrate.daemon.wire import WireRecord, ends_of, sender_of
from migrate.engine.handoff import Holding
from migrate.engine.ownership import IMAGE_HOLDERS
from migrate.rehearsal.ledger import LedgerAudit, NoLedger, read_program, read_record
from migrate.rehearsal.leftovers import Leftovers, audit_leftovers, disk_file
from sim_vmm.guest import LedgerGuest
from sim_vmm.spec import Spec

ENDS: Final = (*ExitCode, -signal.SIGKILL)


@attrs.frozen(kw_only=True)
class Case:
    """`promises` are those that were found broken when somebody died; `states` where each side keeps its state.

    `heard` is what the network at `wire` carried; `leftovers` says where the machine's artefacts and disks are.
    """

    lives: tuple[Life, ...]
    heard: tuple[WireRecord, ...]
    promises: tuple[str, ...]
    states: Mapping[Side, Path]
    leftovers: Leftovers
    wire: Path
    spec: Spec

    def objections(self) -> Iterator[str]:
        """Whatever happened to processes and links, this must not have."""
        yield from self.grave_objections()
        yield from self.leftover_objections()
        if self.ran_to_the_end():
            yield from self.ledger_objections()
        yield from self.ownership_objections()

    def ownership_objections(self) -> Iterator[str]:
        """At the end one runs the machine, and its journal says so."""
        owners = [side for side in SIDES if self.holding(side) is Holding.OWNER]
        if owners != [life.side for life in self.ran_to_the_end()]:
            yield f"at the end {owners} own the machine, and {self.ran_to_the_end()} ran it"

    def grave_objections(self) -> Iterator[str]:
        """Not even what happens to state directories may lead to this."""
        yield from self.promises
        yield from self.overlaps()
        yield from self.used_images()
        yield from self.wire_objections()
        yield from self.crashes()
        if len(self.ran_to_the_end()) > 1:
            yield "at the end two run the machine"

    def crashes(self) -> Iterator[str]:
        for life in self.lives:
            if any("Traceback" in line for line in life.complaints) or life.exit_code not in ENDS:
                yield f"the {life.side} crashed: {life.exit_code} {life.complaints[-3:]}"

    def ran_to_the_end(self) -> list[Life]:
        return [life for life in self.lives if (life.told("ended") or {"runs_here": False})["runs_here"]]

    def overlaps(self) -> Iterator[str]:
        runs = [(interval, life) for life in self.lives for interval in life.intervals()]
        for ((a, b), one), ((c, d), two) in combinations(runs, 2):
            if a < d and c < b:
                ms = (min(b, d) - max(a, c)) / 1e6
                yield f"two run at once: {one.side} {one.pid} and {two.side} {two.pid}, for {ms} ms"

    def used_images(self) -> Iterator[str]:
        """Who runs without having booted the guest has an image of it: nobody may have run since that was made.

        It was made when the guest rested; a guest that was killed while it ran left no image.
        """
        told = [(event["at_ns"], life, event["event"]) for life in self.lives for event in life.events]
        rested: Life | None = None
        booted: Life | None = None
        for _, life, event in sorted(told, key=lambda item: item[0]):
            match event:
                case "guest boots":
                    booted = life
                case "guest rests":
                    rested = life
                case "guest runs":
                    if booted is not life and rested is None:
                        yield f"{life.side} {life.pid} runs an image of a machine that has run since it was made"
                    booted = rested = None

    def wire_objections(self) -> Iterator[str]:
        """Each process that speaks for the machine's MAC does so once, without anybody between."""
        for mac in {record.source for record in self.heard}:
            speakers = [sender for sender, _ in groupby(self.heard_from(mac))]
            if len(speakers) != len(set(speakers)):
                yield f"the network heard {mac} from {speakers}"

    def heard_from(self, mac: str) -> list[int | None]:
        return [sender_of(record) for record in self.heard if record.source == mac and record.sender is not None]

    def leftover_objections(self) -> Iterator[str]:
        for side in SIDES:
            ram, holds_image = self.states[side] / "ram", self.holding(side) in IMAGE_HOLDERS
            if ram.exists() and len(names := sorted(path.name for path in ram.iterdir())) != holds_image:
                yield f"RAM is left on the {side}, which holds {self.holding(side)}: {names}"
        if self.ran_to_the_end():
            with suppress(FileNotFoundError):
                if names := sorted(path.name for path in ends_of(self.wire).iterdir()):
                    yield f"ends are left on the network: {names}"

    def ledger_objections(self) -> Iterator[str]:
        audit = self.ledger()
        if audit is None:
            if self.guest_program() == LedgerGuest.name:
                yield "nothing is left of the machine"
        else:
            yield from audit.violations

    def guest_program(self) -> str | None:
        """Of the machine that ran last; None if nothing is known of it."""
        ended = [life.told("ended") for life in self.ran_to_the_end()]
        guest = ended[-1]["guest"] if ended and ended[-1] is not None else None
        return None if guest is None else guest["program"]

    def ledger(self) -> LedgerAudit | None:
        """What a reader makes of what is left of the machine, and of what was heard since its guest was booted last."""
        with NamedTemporaryFile("w", suffix=".jsonl") as heard:
            heard.writelines(record.line() for record in self.last_run())
            heard.flush()
            return audit_leftovers(attrs.evolve(self.leftovers, wire=Path(heard.name)), self.spec)

    def last_run(self) -> tuple[WireRecord, ...]:
        """Since the guest was booted last: its first record has number 1."""
        boots = [index for index, record in enumerate(self.heard) if record.sequence == 1]
        return self.heard[boots[-1] if boots else 0 :]

    def kept(self, side: Side) -> MachineState | None:
        """What the state directory has of the machine; None if it is not there, or cannot be believed."""
        try:
            with StateDirectory.look(self.states[side]) as state:
                machines = state.machines()
        except StateError:
            return None
        return machines[-1] if machines else None

    def holding(self, side: Side) -> Holding | None:
        kept = self.kept(side)
        return None if kept is None else kept.record.holding


def promises_broken(ram_files: Path, leftovers: Leftovers, spec: Spec) -> Iterator[str]:
    """Of what a killed process had acknowledged to the guest's readers, what is not on the disk.

    A record may have been replaced by a newer one of the same run.
    """
    for file in ram_files.glob("*"):
        try:
            program = read_program(file.read_bytes())
        except NoLedger:
            continue
        disk = None if program.disk_slot is None else disk_file(leftovers, spec, program.disk_slot)
        if disk is None or not disk.exists():  # the contents of a blob died with the process
            continue
        with disk.open("rb") as blocks:
            for sequence in range(max(1, program.sequence - program.disk_blocks + 1), program.acknowledged + 1):
                blocks.seek(sequence % program.disk_blocks * program.block_size)
                found = read_record(blocks.read(program.block_size))
                is_there = found is not None and found.run == program.run and found.sequence >= sequence
                if not is_there:
                    yield f"record {sequence} was acknowledged, and its block holds {found}"
                    break
