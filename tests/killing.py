"""Two daemons that are killed, restarted and judged: the play of tests/test_kills.py.

A *play* is one machine on shared disks and a network, a source and a target as processes of their own, which are forked
(`migrate.cli.zygote`), and whatever happens to them.  Everything is done when an event says so.

A daemon dies by its own hand, at exactly the point that it was told (`--die-at`), or is killed from outside when it
cannot reach that point any more because the other has died before.  The judgement is that of migrate/rehearsal/case.py.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import attrs
import trio

from migrate.cli.specs import read
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.launching import ForkLauncher
from migrate.daemon.lives import SIDES, Life, Side, begin_life, other
from migrate.daemon.wire import WireObserver, WireRecord, sender_of
from migrate.engine.handoff import Holding
from migrate.rehearsal.case import Case, promises_broken
from migrate.rehearsal.leftovers import Leftovers

PATIENCE_S: Final = 30
"""No test waits that long unless it fails."""
FRAMES_TO_SHOW_LIFE: Final = 3

SMALL_MACHINE: Final = {
    "board": {"cpus": 1, "memory_mb": 4, "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}}},
    "components": {
        "com1": {"type": "serial_port", "component": {"num": "com1"}},
        "data": {
            "type": "virtio_disk",
            "component": {"backend_id": "disk", "pci_path": {"bus": 0, "device": 16, "function": 0}},
        },
        "disk": {
            "type": "file_storage_backend",
            "component": {"path": "/disk", "readonly": False, "block_size": 512, "workers": None},
        },
        "nic": {
            "type": "virtio_nic",
            "component": {
                "backend_id": "net",
                "interface_id": "2f6f4f9a-6f0b-4a3e-9a6d-0d3b8a8f2c55",
                "pci_path": {"bus": 0, "device": 8, "function": 0},
            },
        },
        "net": {"type": "virtio_network_backend", "component": {"vnic_name": "opte0"}},
    },
}


def own_loopback() -> str:
    """An address of this process alone: nobody else takes a port while the daemon that had it is dead.

    Who connects to it comes from 127.0.0.1, so that none can meet itself at a port where nobody listens.
    """
    pid = os.getpid()
    return f"127.{1 + (pid >> 16) % 254}.{pid >> 8 & 0xFF}.{pid & 0xFF}"


# The play


@attrs.frozen
class Kill:
    """`point` is a name, or `NAME#2` for the second time that it is passed."""

    side: Side
    point: str

    def __str__(self) -> str:
        return f"{self.side} {self.point}"


@attrs.define(eq=False)
class Play:
    """See the module; use `playing`."""

    directory: Path
    launcher: ForkLauncher
    nursery: trio.Nursery
    options: tuple[str, ...] = ()
    source_options: tuple[str, ...] = ()
    lives: list[Life] = attrs.field(factory=list)
    heard: list[WireRecord] = attrs.field(factory=list)
    promises: list[str] = attrs.field(factory=list)
    state_of: dict[Side, Path] = attrs.field(factory=dict)
    through: str | None = None
    _waiting: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.spec.write_text(json.dumps(SMALL_MACHINE))
        for side in SIDES:
            self.state_of.setdefault(side, self.directory / side)

    @property
    def spec(self) -> Path:
        return self.directory / "machine.json"

    @property
    def storage(self) -> Path:
        return self.directory / "disks"

    @property
    def left(self) -> Path:
        return self.directory / "left"

    @property
    def wire(self) -> Path:
        return self.directory / "w"

    def news(self) -> None:
        self._waiting.set()
        self._waiting = trio.Event()

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Return when something that was told, or an end, has made it so."""
        with trio.move_on_after(PATIENCE_S):
            while not is_so():
                await self._waiting.wait()
            return
        raise AssertionError(f"nothing more happens:\n{self.story()}")

    def story(self) -> str:
        """Everything that happened, for a person who wonders."""
        told = [(event["at_ns"], life, event) for life in self.lives for event in life.events]
        lines = []
        for at_ns, life, event in sorted(told, key=lambda item: item[0]):
            if event["event"] in ("round", "ram", "image"):
                continue
            facts = {
                k: v for k, v in event.items() if k not in ("event", "side", "at_ns", "guest", "payloads", "steps")
            }
            lines.append(
                f"{(at_ns - self.lives[0].began_ns) / 1e6:9.1f} ms {life.side} {life.pid} {event['event']} {facts}"[
                    :230
                ]
            )
        for life in self.lives:
            lines.append(
                f"{life.side} {life.pid}: {'lives' if life.status is None else life.exit_code} {life.complaints[-3:]}"
            )
        return "\n".join(lines)

    # Processes

    def heard_frame(self, record: WireRecord) -> None:
        self.heard.append(record)
        self.news()

    async def start(self, side: Side, *arguments: str, die_at: str | None = None, halt_at: str | None = None) -> Life:
        """A process for `side`: with all that it must be told the first time, else with its state directory alone."""
        before = [life for life in self.lives if life.side == side]
        places = ["--state-dir", str(self.state_of[side]), "--wire", str(self.wire), "--artefacts", str(self.left)]
        places += ["--storage", str(self.storage)]
        command: list[str] = [side, *arguments, *places, *self.options]
        if side == "source":
            command += self.source_options
            if not any(life.told("listening") for life in before):
                command += [str(self.spec), "--listen", f"{own_loopback()}:0", "--guest", "ledger"]
        elif not any("after set fact" in life.points() for life in before):
            command.append(self.through or self.address)
        if die_at is not None:
            command += ["--die-at", die_at]
        if halt_at is not None:
            command += ["--halt-at", halt_at]
        life = await begin_life(self.launcher, self.nursery, command, self.news)
        self.lives.append(life)
        return life

    @property
    def address(self) -> str:
        told = [life.told("listening") for life in self.lives if life.side == "source"]
        return next(str(event["address"]) for event in reversed(told) if event is not None)

    def now(self, side: Side) -> Life | None:
        """The last life of a side."""
        return next((life for life in reversed(self.lives) if life.side == side), None)

    def runners(self) -> list[Life]:
        return [life for life in self.lives if life.status is None and life.is_running_a_guest]

    async def death_of(self, life: Life) -> None:
        """Return when a killed process is gone and what it owed the guest has been looked up."""
        await self.until(lambda: life.is_over)
        has_been_booted_again = any(one.told("started again") for one in self.lives)
        if (life.told("guest runs") or "after write R" in life.points()) and not has_been_booted_again:
            self.promises += promises_broken(self.state_of[life.side] / "ram", self.case.leftovers, self.case.spec)

    def settled(self) -> bool:
        """One runs, and the other has nothing left to do."""
        last = [life for side in SIDES if (life := self.now(side)) is not None]
        assert not all(life.is_over for life in last), f"nobody runs the machine:\n{self.story()}"
        return len(self.runners()) == 1 and sum(life.is_over for life in last) == len(last) - 1

    # The judgement

    async def end(self) -> list[str]:
        """Both are asked to end; what there is to object to then."""
        await self.end_all()
        return [*self.objections()]

    async def end_all(self) -> None:
        if self.runners():
            await self.shows_life()
        for life in self.lives:
            life.end()
        await self.until(lambda: all(life.is_over for life in self.lives))

    async def shows_life(self) -> None:
        """Return when the machine that runs has been heard on the network."""
        count, runners = len(self.heard), {life.pid for life in self.runners()}
        await self.until(
            lambda: sum(sender_of(record) in runners for record in self.heard[count:]) >= FRAMES_TO_SHOW_LIFE
        )

    def objections(self) -> Iterator[str]:
        return self.case.objections()

    def grave_objections(self) -> Iterator[str]:
        return self.case.grave_objections()

    def ran_to_the_end(self) -> list[Life]:
        return self.case.ran_to_the_end()

    def holding(self, side: Side) -> Holding | None:
        return self.case.holding(side)

    @property
    def case(self) -> Case:
        return Case(
            lives=tuple(self.lives),
            heard=tuple(self.heard),
            promises=tuple(self.promises),
            states=self.state_of,
            leftovers=Leftovers(left=self.left, storage=self.storage, wire=None),
            wire=self.wire,
            spec=read(self.spec, None).spec,
        )


@asynccontextmanager
async def playing(asked: socket.socket, **what: Any) -> AsyncIterator[Play]:
    """A play; whatever still lives when the block is left is killed."""
    with TemporaryDirectory(prefix="kill-") as directory:
        async with trio.open_nursery() as nursery:
            launcher = ForkLauncher(nursery, asked)
            play = Play(Path(directory), launcher, nursery, **what)
            await nursery.start(WireObserver(play.wire, play.heard_frame).serve)
            try:
                yield play
            finally:
                with trio.CancelScope(shield=True):
                    for life in play.lives:
                        life.kill()
                    await play.until(lambda: all(life.is_over for life in play.lives))
                    for life in play.lives:
                        life.close()
                nursery.cancel_scope.cancel()


# What may happen in it


@attrs.frozen
class Scenario:
    """`kills` come first, at most one a side; the dead are back, `first` before the other, and `again` are killed.

    With `loses_image` the RAM files of those who died first are gone when they come back.  With `reclaims` a source
    that loses its target takes the machine back by the fence, and nobody is killed from outside.
    """

    kills: tuple[Kill, ...] = ()
    again: tuple[Kill, ...] = ()
    first: Side = "source"
    fenced: bool = True
    loses_image: bool = False
    reclaims: bool = False

    def __str__(self) -> str:
        dead = " and ".join(map(str, self.kills)) + (" (image lost)" if self.loses_image else "")
        again = f", then {' and '.join(map(str, self.again))}" if self.again else ""
        order = f", {self.first} back first" if len(self.kills) > 1 else ""
        return f"{dead}{again}{order}{'' if self.fenced else ', no fence'}"

    def die_at(self, side: Side, kills: Sequence[Kill]) -> str | None:
        return next((kill.point for kill in kills if kill.side == side), None)


@attrs.frozen(kw_only=True)
class Verdict:
    """`points` are those that each side passed in an undisturbed run, or after the dead were back."""

    scenario: Scenario
    objections: list[str]
    killed: int
    settled_s: float
    points: dict[Side, list[str]]
    story: str


def knows_what_to_do(life: Life) -> bool:
    return life.is_over or bool(life.told(*READY))


READY: Final = ("listening", "attempt", "in doubt", "image lost", "running")
"""What a daemon tells when it has found out what there is for it to do."""
REACTIONS: Final = ("rolled back", "attempt ended", "still in doubt", "handed over", "running")
"""What a daemon tells when it has found out that the other is gone, or when there is nothing left to find out."""


async def act(asked: socket.socket, scenario: Scenario) -> Verdict:
    """Play a scenario to its end, and judge."""
    async with playing(asked, options=() if scenario.fenced else ("--unfenced",)) as play:
        await migrate(play, scenario)
        back_ns = 0
        if scenario.kills:
            if scenario.loses_image:
                for kill in scenario.kills:
                    for file in (play.state_of[kill.side] / "ram").iterdir():
                        file.unlink()
            back_ns = await bring_back(play, scenario.kills, scenario)
        if scenario.again:
            await dying(play, scenario.again)
            back_ns = await bring_back(play, scenario.again, scenario)
        await play.until(play.settled)
        settled_s = (time.monotonic_ns() - back_ns) / 1e9
        points: dict[Side, list[str]] = {
            side: [point for life in play.lives if life.side == side for point in life.points(back_ns)]
            for side in SIDES
        }
        objections = await play.end()
        return Verdict(
            scenario=scenario,
            objections=objections,
            killed=sum(life.was_killed for life in play.lives),
            settled_s=settled_s,
            points=points,
            story=play.story(),
        )


async def migrate(play: Play, scenario: Scenario) -> None:
    """From the beginning until those who die first are dead, or to the end if nobody does."""
    kills = list(scenario.kills)
    spared = [kill for kill in scenario.again if kill.side not in {dead.side for dead in kills}]
    patience = ("--reclaim-after-s", "0.05") if scenario.reclaims else ()
    source = await play.start("source", *patience, die_at=scenario.die_at("source", [*kills, *spared]))
    await play.until(lambda: source.told("listening") or source.is_over)
    if source.is_over:  # before anybody could come
        await play.death_of(source)
        kills = [kill for kill in kills if kill.side != "source"]
        source = await play.start("source")
        await play.until(lambda: source.told("listening"))
    target = await play.start("target", die_at=scenario.die_at("target", [*kills, *spared]))
    if kills:
        await dying(play, kills, from_outside=not scenario.reclaims)
    else:
        await play.until(lambda: source.is_over and target.told("running"))


async def dying(play: Play, kills: Sequence[Kill], *, from_outside: bool = True) -> None:
    """Return when everybody of `kills` is dead; whoever cannot get to its point any more is killed then.

    How often a point is passed may be a matter of luck, as when a target asks again: nobody need die at a repetition.
    """
    lives = [life for kill in kills if (life := play.now(kill.side)) is not None]
    is_certain = not from_outside or any("#" not in kill.point for kill in kills)
    await play.until(lambda: any(life.is_over for life in lives) or (not is_certain and play.settled()))
    if not is_certain and not any(life.was_killed for life in lives):
        return
    first = next(life for life in lives if life.is_over)
    assert first.was_killed, f"the {first.side} ended before it came to its point:\n{play.story()}"
    for life in lives:
        await play.until(partial(is_to_be_killed, life, from_outside=from_outside))
        life.kill()
    for life in lives:
        await play.death_of(life)


def is_to_be_killed(life: Life, *, from_outside: bool) -> bool:
    return life.is_over or (from_outside and has_reacted(life))


def has_reacted(life: Life) -> bool:
    """It knows that the other is gone, or it has never known anybody."""
    return bool(life.told(*REACTIONS)) or (life.side == "source" and not life.told("attempt"))


async def bring_back(play: Play, dead: Sequence[Kill], scenario: Scenario) -> int:
    """Start what is dead; when the last was started, by the monotonic clock in ns."""
    sides = {kill.side for kill in dead}
    again = scenario.again if dead is scenario.kills else ()
    back_ns = time.monotonic_ns()
    for side in (scenario.first, other(scenario.first)):
        now = play.now(side)
        if side in sides and now is not None and now.is_over:
            back_ns = time.monotonic_ns()
            life = await play.start(side, die_at=scenario.die_at(side, again))
            await play.until(partial(knows_what_to_do, life))
    return back_ns


# A link that is gone for ever


@attrs.define(eq=False)
class Line:
    """What carries the connections of the target to `source`, until it is cut for good."""

    source: str
    address: str
    _carrying: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def cut(self) -> None:
        self._carrying.cancel()

    async def carry(self, listeners: list[trio.SocketListener]) -> None:
        with self._carrying:
            await trio.serve_listeners(self._connect, listeners)

    async def _connect(self, near: trio.SocketStream) -> None:
        host, port = self.source.split(":")
        with suppress(OSError, trio.BrokenResourceError):
            async with near, await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, near, far)
                nursery.start_soon(_pump, far, near)


async def _pump(here: trio.SocketStream, there: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in here:
            await there.send_all(data)
        await there.send_eof()


@asynccontextmanager
async def line_to(source: str) -> AsyncIterator[Line]:
    listeners = await trio.open_tcp_listeners(0, host=own_loopback())
    host, port = listeners[0].socket.getsockname()
    line = Line(source, f"{host}:{port}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.carry, listeners)
        yield line
        nursery.cancel_scope.cancel()


@attrs.frozen
class Ending:
    """How it ended without the link: who ran, what each holds, and the source's last word of an attempt."""

    ran: list[Side]
    holdings: tuple[str, str]
    outcome: str | None
    objections: list[str]
    story: str


async def act_cut(asked: socket.socket, cut: Kill, *, fenced: bool) -> Ending:
    """Cut the line for good where `cut` says."""
    options = () if fenced else ("--unfenced",)
    async with playing(asked, options=options, source_options=("--reclaim-after-s", "0.2")) as play:
        halt_at = {cut.side: cut.point}
        source = await play.start("source", halt_at=halt_at.get("source"))
        await play.until(lambda: source.told("listening"))
        async with line_to(play.address) as line:
            play.through = line.address
            target = await play.start("target", halt_at=halt_at.get("target"))
            there = play.now(cut.side)
            assert there is not None
            await play.until(lambda: there.halted)
            line.cut()
            there.go_on()
            await play.until(lambda: is_quiet(source) and is_quiet(target) and (not fenced or play.runners()))
            objections = await play.end()
        ended = source.told("attempt ended")
        return Ending(
            ran=[life.side for life in play.ran_to_the_end()],
            holdings=(str(play.holding("source")), str(play.holding("target"))),
            outcome=None if ended is None else ended["outcome"],
            objections=objections,
            story=play.story(),
        )


def is_quiet(life: Life) -> bool:
    """Without a link it will do nothing more, but for taking the machine back by the fence."""
    return life.is_over or bool(life.told("attempt ended", "running", "still in doubt"))


# A state directory that is not what it was


def journal_files(state: Path) -> list[Path]:
    return sorted(state.glob("journal.sqlite*"))


def put_back(copy: Path, state: Path, pattern: str) -> None:
    for file in state.glob(pattern):
        if file.is_file():
            file.unlink()
    for file in copy.glob(pattern):
        shutil.copy(file, state)


def delete(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def flip(file: Path, random: Random) -> None:
    data = bytearray(file.read_bytes())
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        file.write_bytes(data)


def tear(file: Path, random: Random) -> None:
    os.truncate(file, random.randrange(max(1, file.stat().st_size)))


@attrs.frozen
class Damage:
    """What happens to a state directory while nobody uses it; `copy` is how it was earlier."""

    name: str
    do: Callable[[Path, Path, Random], object]

    def __str__(self) -> str:
        return self.name


DAMAGES: Final = (
    Damage("journal deleted", lambda state, copy, random: delete(journal_files(state))),
    Damage("witness deleted", lambda state, copy, random: delete([state / "seen"])),
    Damage("log deleted", lambda state, copy, random: delete([state / "journal.sqlite-wal"])),
    Damage("all deleted", lambda state, copy, random: shutil.rmtree(state)),
    Damage("journal rolled back", lambda state, copy, random: put_back(copy, state, "journal.sqlite*")),
    Damage("all rolled back", lambda state, copy, random: put_back(copy, state, "*")),
    Damage("byte of the journal flipped", lambda state, copy, random: flip(state / "journal.sqlite", random)),
    Damage("byte of the log flipped", lambda state, copy, random: flip(state / "journal.sqlite-wal", random)),
    Damage("byte of the witness flipped", lambda state, copy, random: flip(state / "seen", random)),
    Damage("journal torn", lambda state, copy, random: tear(state / "journal.sqlite", random)),
    Damage("log torn", lambda state, copy, random: tear(state / "journal.sqlite-wal", random)),
)


@attrs.frozen
class Relapse:
    """`side` dies at `dies_at`; a copy of its state directory was made when it passed `copied_at`."""

    side: Side
    copied_at: str
    dies_at: str

    def __str__(self) -> str:
        return f"{self.side} {self.dies_at}, copied {self.copied_at}"


@attrs.frozen
class Restart:
    """How a node started again over what was left of its state: `code` is None if it did not end by itself."""

    code: int | None
    complaint: str
    alarms: list[str]
    runners: int
    objections: list[str]
    story: str


async def act_damaged(asked: socket.socket, relapse: Relapse, damage: Damage, seed: int) -> Restart:
    """Damage a state directory between a kill and the restart."""
    async with playing(asked) as play:
        at = {relapse.side: relapse}
        lives = {}
        for side in SIDES:
            mine = at.get(side)
            arms = {} if mine is None else {"halt_at": mine.copied_at, "die_at": mine.dies_at}
            life = lives[side] = await play.start(side, **arms)
            if side == "source":
                await play.until(partial(life.told, "listening"))
        life, state, copy = lives[relapse.side], play.state_of[relapse.side], play.directory / "copy"
        await play.until(lambda: life.halted)
        shutil.copytree(state, copy, ignore=shutil.ignore_patterns("ram"))
        life.go_on()
        await play.death_of(life)
        damage.do(state, copy, Random(seed))
        again = await play.start(relapse.side)
        await play.until(lambda: again.is_over or again.told("still in doubt") or play.settled())
        code = again.exit_code if again.is_over else None
        await play.end_all()
        objections = [*(play.grave_objections() if code or again.told("still in doubt") else play.objections())]
        return Restart(
            code=code,
            complaint=" ".join(again.complaints[-1:]),
            alarms=[event["message"] for life in play.lives for event in life.events if event["event"] == "alarm"],
            runners=len(play.ran_to_the_end()),
            objections=objections,
            story=play.story(),
        )


async def act_stillborn(asked: socket.socket) -> Verdict:
    """A machine with too little RAM for its guest, then one with enough, over one state directory."""
    async with playing(asked) as play:
        small = await play.start("source", "--memory-mb", "2")
        await play.until(lambda: small.is_over)
        assert small.exit_code == ExitCode.BAD_INPUT, play.story()
        assert "does not fit this machine" in small.complaints[-1]
        await migrate(play, Scenario())
        objections = await play.end()
        return Verdict(scenario=Scenario(), objections=objections, killed=0, settled_s=0, points={}, story=play.story())


# A disk that is full


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A file system of a megabyte at `directory`.

    Raises:
        OSError: the host mounts nothing for us.
    """
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", os.fspath(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", os.fspath(directory)], check=True)


def fill(file: Path) -> None:
    """To the last byte."""
    with suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 12))


async def act_full(asked: socket.socket, full: Kill) -> Verdict:
    """The disk of a state directory is full at the write that `full` stands before, and has room again after that.

    Guest RAM is elsewhere: it is the journal that is to fail.
    """
    async with playing(asked) as play:
        state = play.state_of[full.side]
        (play.directory / "ram").mkdir()
        with small_disk(state):
            (state / "ram").symlink_to(play.directory / "ram")
            source = await play.start("source", halt_at=full.point if full.side == "source" else None)
            await play.until(lambda: source.told("listening") or source.halted)
            if source.halted and not source.told("listening"):
                await failing(play, source, state)
                source = await play.start("source") if source.is_over else source
                await play.until(lambda: source.told("listening"))
                await play.start("target")
            else:
                await play.start("target", halt_at=full.point if full.side == "target" else None)
                life = play.now(full.side)
                assert life is not None
                await play.until(lambda: life.halted)
                await failing(play, life, state)
            back_ns = time.monotonic_ns()
            await play.until(lambda: all(life.is_over for life in play.lives) or play.settled())
            if not play.runners():
                await play.start(full.side)
                await play.until(play.settled)
            settled_s = (time.monotonic_ns() - back_ns) / 1e9
            objections = await play.end()
            return Verdict(
                scenario=Scenario((full,)),
                objections=objections,
                killed=0,
                settled_s=settled_s,
                points={},
                story=play.story(),
            )


async def failing(play: Play, life: Life, state: Path) -> None:
    """Fill the disk of a daemon that is halted before a write, until it has found out."""
    filler, seen = state / "filler", len(life.events)
    fill(filler)
    life.go_on()
    await play.until(lambda: len(life.events) > seen or life.is_over)
    filler.unlink()


async def act_unsure(asked: socket.socket, write: Kill) -> tuple[Life, list[str]]:
    """The journal vanishes and its disk is full: nobody knows if `write` was written; and who was to write it."""
    async with playing(asked) as play:
        state = play.state_of[write.side]
        (play.directory / "ram").mkdir()
        with small_disk(state):
            (state / "ram").symlink_to(play.directory / "ram")
            source = await play.start("source", halt_at=write.point if write.side == "source" else None)
            await play.until(lambda: source.told("listening"))
            await play.start("target", halt_at=write.point if write.side == "target" else None)
            life = play.now(write.side)
            assert life is not None
            await play.until(lambda: life.halted)
            delete(journal_files(state))
            fill(state / "filler")
            life.go_on()
            await play.until(lambda: life.is_over)
            await play.end_all()
            return life, [*play.grave_objections()]
