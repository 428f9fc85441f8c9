"""What must hold in every world, whatever went wrong in it: the audits know nothing of faults.

They watch the machine, not the engines: every start and stop of a guest, anywhere, passes through here.  The guest's
RAM holds how often the machine had been set going when it was last written, so an image of an earlier run gives itself
away.

    one runner          never are there two at a time; a machine that was set going has the state in which it stopped
    no stale image      nothing is resumed from an image that is older than the last run
    nothing lost        RAM, devices and console are, at every resume, what they were at the last stop
    one in the end      once nodes and link are back and all is quiet, exactly one machine runs, where the journals say
    nothing forgotten   a source that runs again would send everything that a new target lacks
    nothing early       "failed" is published by a source only when its machine runs again
    runs without link   with a fence exactly one node runs the machine, though the link is never back
    its own disks       whoever sets the machine going holds the register of the shared storage, if there is one
    errors say where    every published error names the phase and the side
    at rest             nobody goes on for ever, and nobody waits for a word (a debt to who knows already may stay)
    full speed          the guest that runs in the end is not kept asleep by anybody
    no bug              nothing is raised that is not raised on purpose
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import attrs

from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding
from migrate.errors import HandoffInDoubt, MigrationError, PeerFailed
from migrate.protocol.messages import Role
from migrate.simulation.machines import USED_BYTES, Facts, content_pages, note_run, run_number
from sim_vmm.fence import Title
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from migrate.simulation.node import Life, Node

ONE_RUNNER: Final = "one runner"
STALE_IMAGE: Final = "no stale image"
NOTHING_LOST: Final = "nothing lost"
ONE_IN_THE_END: Final = "one in the end"
NOTHING_FORGOTTEN: Final = "nothing forgotten"
NOTHING_EARLY: Final = "nothing early"
ERRORS_SAY_WHERE: Final = "errors say where"
RUNS_WITHOUT_LINK: Final = "runs without link"
ITS_OWN_DISKS: Final = "its own disks"
AT_REST: Final = "at rest"
FULL_SPEED: Final = "full speed"
NO_BUG: Final = "no bug"

CHECKS: Final = (
    ONE_RUNNER,
    STALE_IMAGE,
    NOTHING_LOST,
    ONE_IN_THE_END,
    NOTHING_FORGOTTEN,
    NOTHING_EARLY,
    ERRORS_SAY_WHERE,
    RUNS_WITHOUT_LINK,
    ITS_OWN_DISKS,
    AT_REST,
    FULL_SPEED,
    NO_BUG,
)


@attrs.frozen
class Violation:
    """What a check has found."""

    check: str
    message: str


@attrs.define
class Audits:
    """`runs` counts how often the machine was set going, anywhere; `reasons` are those of the failures published."""

    violations: list[Violation] = attrs.field(factory=list)
    runs: int = 0
    cold_starts: int = 0
    published: list[str] = attrs.field(factory=list)
    reasons: list[str] = attrs.field(factory=list)
    _running: dict[str, Machine] = attrs.field(factory=dict)
    _last: Facts | None = None

    def violate(self, check: str, message: str) -> None:
        self.violations.append(Violation(check, message))

    # While it happens

    def started(self, node: str, machine: Machine, *, from_image: bool) -> None:
        """The guest of `machine` executes now on `node`: from where it was paused, or from its disks."""
        others = [other for other in self._running if other != node or self._running[other] is not machine]
        if others:
            self.violate(ONE_RUNNER, f"the machine is set going on {node} and runs on {', '.join(others)}")
        if from_image:
            self._check_image(node, machine)
        else:
            self.cold_starts += 1
        self.runs += 1
        note_run(machine, self.runs)
        self._running[node] = machine

    def _check_image(self, node: str, machine: Machine) -> None:
        run = run_number(machine)
        if run != self.runs:
            self.violate(STALE_IMAGE, f"{node} resumes an image of run {run}, and there have been {self.runs} since")
        elif self._last is not None:
            lost = self._last.differences(Facts.of(machine))
            if lost:
                self.violate(NOTHING_LOST, f"{node} resumes a machine that is not the one that stopped: {lost}")

    def stopped(self, node: str, machine: Machine) -> None:
        """It executes no more, or its process is dead."""
        if self._running.get(node) is machine:
            del self._running[node]
            self._last = Facts.of(machine)

    def note_outcome(self, life: "Life", attempt: Attempt, error: MigrationError | None) -> None:
        """A daemon publishes what came of an attempt."""
        outcome = "migrated" if error is None else type(error).__name__
        self.published.append(f"{attempt.side}: {outcome}")
        if error is None:
            return
        self.reasons.append(f"{attempt.side}: {error}")
        phase, side = attempt.phase, attempt.side.value
        if isinstance(error, PeerFailed):
            phase, side = error.phase, error.side
        if not phase or side not in tuple(Role) or not str(error):
            self.violate(ERRORS_SAY_WHERE, f"{outcome} of phase {phase!r} and side {side!r} says {str(error)!r}")
        holding = life.journal.record.holding
        is_open = isinstance(error, HandoffInDoubt) or holding is not Holding.OWNER
        if attempt.side is Role.SOURCE and not is_open and life.node.name not in self._running:
            self.violate(NOTHING_EARLY, f"{life.node.name} publishes {outcome}, and its machine does not run again")

    def check_title(self, node: str, held: Title | None, found: Title | None) -> None:
        """`node`, which has just set the machine going, holds `held` of the shared storage's register."""
        if held is None or held != found:
            self.violate(ITS_OWN_DISKS, f"{node} runs the machine as {held or 'nobody'}; its disks are of {found}")

    def expect_a_runner(self) -> None:
        """With a fence, nobody needs a link for that."""
        running = [name for name, machine in self._running.items() if machine.state is MachineState.RUNNING]
        if len(running) != 1:
            self.violate(RUNS_WITHOUT_LINK, f"with a fence and without a link, the machine runs on {running or 'none'}")

    # When all is quiet

    def conclude(self, nodes: "tuple[Node, ...]") -> None:
        self.violations += self._end_of(nodes)

    def _end_of(self, nodes: "tuple[Node, ...]") -> Iterator[Violation]:
        records = {node.name: node.disk.content.record for node in nodes}
        named = ", ".join(f"{name} has {record}" for name, record in records.items())
        owners = [name for name, record in records.items() if record.holding is Holding.OWNER]
        running = [name for name, machine in self._running.items() if machine.state is MachineState.RUNNING]
        if len(running) != 1 or owners != running:
            yield Violation(ONE_IN_THE_END, f"in the end the machine runs on {running or 'no node'}; {named}")
        for name, record in records.items():
            if record.holding in (Holding.COMMITTED, Holding.READY):
                yield Violation(AT_REST, f"in the end {name} still has {record}")
        for node in nodes:
            if node.name in running:
                yield from self._forgotten(node)
                if node.life is not None and node.life.guest is not None and node.life.guest.throttled:
                    yield Violation(FULL_SPEED, f"in the end the guest on {node.name} is still slowed down")

    def _forgotten(self, node: "Node") -> Iterator[Violation]:
        """Every page with content is dirty on whoever runs the machine, or the next attempt would not send it."""
        memory = self._running[node.name].memory
        content = content_pages(memory)
        if content and content[-1] * PAGE_SIZE >= USED_BYTES:
            yield Violation(NOTHING_LOST, f"{node.name} has content in page {content[-1]}, where no guest wrote any")
        memory.dirty.begin_round()
        missing = sorted(set(content) - set(memory.dirty.take(memory.page_count).tolist()))
        if missing:
            yield Violation(NOTHING_FORGOTTEN, f"{node.name} runs a machine that would not send pages {missing}")
