"""What must hold in every world, whatever went wrong in it: the audits know nothing of faults.

They watch the machine, not the engines: every start and stop of a guest, anywhere, passes through here.  The guest's
RAM holds how often the machine had been set going when it was last written, so an image of an earlier run gives itself
away.

    one runner          never are there two at a time; a machine that was set going has the state in which it stopped
    no stale image      nothing is resumed from an image that is older than the last run
    nothing lost        RAM, devices and console are, at every resume, what they were at the last stop
    time goes on        at every resume the guest's clocks show the time that has passed since the last stop
    ledger whole        what the program has done, by the count of whoever made it, is in its own records
    one in the end      once nodes and link are back and all is quiet, exactly one machine runs, where the journals say
    nothing forgotten   a source that runs again would send everything that a new target lacks
    once more           in the end one more migration, to the other node, gives the same machine
    nothing early       "failed" is published by a source only when its machine runs again
    runs without link   with a fence exactly one node runs the machine, though the link is never back
    its own disks       whoever sets the machine going holds the register of the shared storage, if there is one
    errors say where    every published error names the phase and the side
    at rest             nobody goes on for ever, nobody waits for a word (a debt to who knows already may stay), and no
                        task and no connection of a living process is left
    full speed          the guest that runs in the end is not kept asleep by anybody
    no bug              nothing is raised that is not raised on purpose
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import attrs

from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding
from migrate.errors import HandoffInDoubt, MigrationError, PeerFailed
from migrate.protocol.conversation import Phase
from migrate.protocol.messages import Role
from migrate.simulation.machines import USED_BYTES, Facts, content_pages, lost_of_ledger, note_run, run_number
from migrate.simulation.scheduler import NS_PER_S
from sim_vmm.clock import DEFAULT_GUEST_FREQ
from sim_vmm.dirty import DirtyPages
from sim_vmm.fence import Title
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from migrate.simulation.node import Life, Node

ONE_RUNNER: Final = "one runner"
STALE_IMAGE: Final = "no stale image"
NOTHING_LOST: Final = "nothing lost"
TIME_GOES_ON: Final = "time goes on"
LEDGER_WHOLE: Final = "ledger whole"
ONE_IN_THE_END: Final = "one in the end"
NOTHING_FORGOTTEN: Final = "nothing forgotten"
ONCE_MORE: Final = "once more"
NOTHING_EARLY: Final = "nothing early"
ERRORS_SAY_WHERE: Final = "errors say where"
RUNS_WITHOUT_LINK: Final = "runs without link"
ITS_OWN_DISKS: Final = "its own disks"
AT_REST: Final = "at rest"
FULL_SPEED: Final = "full speed"
NO_BUG: Final = "no bug"

PHASES: Final = frozenset(phase.value for phase in Phase) | {"pre-flight", "pause", "handoff"}
"""Those of a conversation, and those of an engine only."""

CHECKS: Final = (
    ONE_RUNNER,
    STALE_IMAGE,
    NOTHING_LOST,
    TIME_GOES_ON,
    LEDGER_WHOLE,
    ONE_IN_THE_END,
    NOTHING_FORGOTTEN,
    ONCE_MORE,
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


@attrs.frozen
class Clocks:
    """A guest's clocks at an instant of the world: ns since its boot, and ticks."""

    at_ns: int
    uptime_ns: int
    tsc: int

    @classmethod
    def of(cls, machine: Machine, now_ns: int) -> "Clocks":
        return cls(now_ns, machine.clock.uptime_ns(), machine.clock.tsc())

    def wrong(self, later: "Clocks", spread_ns: int) -> str | None:
        """What `later` shows that it should not.

        A new host knows how long the guest was away from the two wall clocks only: where those are up to `spread_ns`
        apart, it may be as much wrong, but never takes time back.
        """
        passed_ns = later.at_ns - self.at_ns
        for name, shown_ns, tick_ns in (
            ("the uptime", later.uptime_ns - self.uptime_ns, 0.0),
            ("the TSC", ((later.tsc - self.tsc) % (1 << 64)) * NS_PER_S / DEFAULT_GUEST_FREQ, 3.0),
        ):
            off_ns = shown_ns - passed_ns
            if not -min(spread_ns, passed_ns) - tick_ns <= off_ns <= spread_ns + tick_ns:
                return f"{name} has gone on by {shown_ns:.0f} ns in {passed_ns} ns"
        return None


@attrs.define
class Audits:
    """`runs` counts how often the machine was set going, anywhere; `reasons` are those of the failures published.

    `steps` is what its guest has done since it booted, which it has in RAM if it `keeps_ledger`.

    `time` gives the world's clock and by how much the nodes' wall clocks have ever been apart, both in ns.
    """

    time: Callable[[], tuple[int, int]]
    keeps_ledger: bool = True
    violations: list[Violation] = attrs.field(factory=list)
    runs: int = 0
    steps: int = 0
    published: list[str] = attrs.field(factory=list)
    reasons: list[str] = attrs.field(factory=list)
    _running: dict[str, Machine] = attrs.field(factory=dict)
    _last: Facts | None = None
    _last_clocks: Clocks | None = None

    @property
    def remembered(self) -> tuple[object, ...]:
        """What they compare the next start and stop with."""
        return self._running, self._last, self._last_clocks

    @property
    def last_clocks(self) -> Clocks | None:
        """What the guest's clocks showed at its last stop, if it has not been set going since."""
        return self._last_clocks

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
            self.steps = 0
        self._last = self._last_clocks = None
        self.runs += 1
        note_run(machine, self.runs)
        self._running[node] = machine

    def _check_image(self, node: str, machine: Machine) -> None:
        run = run_number(machine)
        if run != self.runs:
            self.violate(STALE_IMAGE, f"{node} resumes an image of run {run}, and there have been {self.runs} since")
            return
        if self._last is not None:
            lost = self._last.differences(Facts.of(machine))
            if lost:
                self.violate(NOTHING_LOST, f"{node} resumes a machine that is not the one that stopped: {lost}")
        if self._last_clocks is not None:
            now_ns, spread_ns = self.time()
            wrong = self._last_clocks.wrong(Clocks.of(machine, now_ns), spread_ns)
            if wrong is not None:
                self.violate(TIME_GOES_ON, f"{node} resumes a machine whose clocks are wrong: {wrong}")
        self._check_ledger(node, machine)

    def _check_ledger(self, node: str, machine: Machine) -> None:
        lost = lost_of_ledger(machine, self.steps) if self.keeps_ledger else []
        if lost:
            self.violate(LEDGER_WHOLE, f"the program on {node} has lost something: {'; '.join(lost)}")

    @property
    def runner(self) -> str | None:
        """Which node runs the machine, if exactly one does."""
        running = [name for name, machine in self._running.items() if machine.state is MachineState.RUNNING]
        return running[0] if len(running) == 1 else None

    def before_it_goes_on(self, node: str, machine: Machine) -> None:
        """A guest that was left alone for a while is about to go on, and to write over what may have been forgotten."""
        dirty = machine.memory.dirty
        if self._running.get(node) is machine and isinstance(dirty, DirtyPages):
            missing = sorted(set(content_pages(machine.memory)).difference(dirty.covered_pages().tolist()))
            if missing:
                self.violate(NOTHING_FORGOTTEN, f"{node} runs a machine that would not send pages {missing}")

    def stopped(self, node: str, machine: Machine) -> None:
        """It executes no more, or its process is dead."""
        if self._running.get(node) is machine:
            del self._running[node]
            self._last = Facts.of(machine)
            self._last_clocks = Clocks.of(machine, self.time()[0])

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
        if phase not in PHASES or side not in tuple(Role) or not str(error):
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
        if self.runner is None:
            self.violate(RUNS_WITHOUT_LINK, f"with a fence and without a link, it runs on {list(self._running)}")

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
                self._check_ledger(node.name, self._running[node.name])
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
        memory.dirty.restore()
        if missing:
            yield Violation(NOTHING_FORGOTTEN, f"{node.name} runs a machine that would not send pages {missing}")
