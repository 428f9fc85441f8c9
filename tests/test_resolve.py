"""`migrate status` and `migrate resolve`: what a state directory says, and what may be settled without a daemon.

The directories are written as daemons leave them; who answers are daemons of ours, or their scripts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import attrs
import pytest
import trio

from migrate import cbor
from migrate.daemon.events import EventLog
from migrate.daemon.node import LISTENS_AT, SOURCE_AT
from migrate.daemon.resolve import Force, Resolution, ResolveOptions, resolve
from migrate.daemon.state import Debt, KnownMachine, PauseImage, StateDirectory, current_boot_id
from migrate.engine.handoff import Holding, Record
from migrate.protocol.messages import (
    Abandon,
    Commit,
    Failure,
    Gone,
    Inquire,
    Message,
    Released,
    Role,
    Standing,
    Unknown,
)
from migrate.specs.offer import offer, variants_of
from sim_vmm.fence import Fence, Title
from tests.commands import EXAMPLE, call
from tests.daemons import LOOPBACK, PATIENT, RELEASES, Neighbourhood, Wire, port_of
from tests.machines import EVERY_DEVICE, make_spec

VM: Final = UUID(int=0xCAFE)
OTHER: Final = "rack-9-00000000000000ff"
O, C, R, N = Holding.OWNER, Holding.COMMITTED, Holding.READY, Holding.NOT_OWNER  # noqa: E741  # the design's letters


def machine() -> KnownMachine:
    variant = variants_of(offer(make_spec(EVERY_DEVICE)))[0]
    return KnownMachine(
        vm_id=VM,
        name="web-server",
        spec_version=variant.version,
        spec_document=variant.document,
        birth_release="r6",
        birth_shows=(),
        release="r6",
        guest="stamp",
        memory_bytes=4 << 20,
    )


def image(boot_id: str | None = None) -> PauseImage:
    return PauseImage(frames=b"frames", ram="ram-of-5", boot_id=boot_id or current_boot_id(), generation=5)


async def left_behind(
    path: Path,
    record: Record,
    *,
    kept: PauseImage | None = None,
    debt: Debt | None = None,
    facts: dict[str, str] | None = None,
) -> Path:
    """A state directory as a dead daemon leaves it."""
    with StateDirectory.open(path) as state:
        await state.journal(VM).write(record, machine=machine(), image=kept, debt=debt)
        for name, value in (facts or {}).items():
            await state.set_fact(name, value)
        (path / "ram" / "ram-of-5").touch()
    return path


def record_in(path: Path) -> str:
    found = StateDirectory.look(path).machine(VM)
    assert found is not None
    return str(found.record)


async def resolved(path: Path, **options: Any) -> Resolution:
    """Of the one machine there."""
    asked = ResolveOptions(state=path, release=RELEASES["r6"], deadlines=PATIENT, **options)
    (resolution,) = await resolve(asked, EventLog("resolve"))
    return resolution


# What is shown

SHOWN: list[tuple[Record, PauseImage | None, int, list[str]]] = [
    (Record(O, 5), None, 0, ["O(5)", "owns generation 5; no daemon runs it", "boots from its disks"]),
    (
        Record(C, 5, OTHER),
        image(),
        1,
        ["C(5)", f"gave generation 5 to {OTHER}", "its image is here, and can be resumed", "unknown", "--force-own 5"],
    ),
    (
        Record(C, 5, OTHER),
        image("another-boot"),
        1,
        ["its image cannot be resumed: the host has been booted since"],
    ),
    (
        Record(R, 5, OTHER),
        image(),
        1,
        ["R(5)", f"holds generation 5 of {OTHER}", "asks that node", "--force-abandon 5"],
    ),
    (Record(R, 5, OTHER), None, 1, ["its image cannot be resumed: there is none"]),
    (Record(N, 5, OTHER, owned=4), None, 0, ["N(5)", f"the machine went to {OTHER}", "dead here for ever"]),
]


@pytest.mark.parametrize(("record", "kept", "code", "words"), SHOWN, ids=lambda value: str(value)[:40])
def test_status_says_what_is_known_what_is_not_and_what_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record: Record,
    kept: PauseImage | None,
    code: int,
    words: list[str],
) -> None:
    trio.run(lambda: left_behind(tmp_path / "state", record, kept=kept))
    said = call(capsys, "status", "--state-dir", tmp_path / "state")
    assert said.code == code
    text = " ".join(said.out.split())
    for word in words:
        assert word in text
    assert max(map(len, said.out.splitlines())) <= 80
    document = call(capsys, "status", "--state-dir", tmp_path / "state", "--json").document
    (shown,) = document["machines"]
    assert shown["record"] == {**attrs.asdict(record), "holding": str(record.holding)}
    assert shown["settled"] is (code == 0)
    assert document["daemon_pid"] is None


def test_status_names_the_daemon_that_has_the_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StateDirectory.open(tmp_path / "state") as state:
        said = call(capsys, "status", "--state-dir", tmp_path / "state")
        assert f"node {state.node}, held by the daemon with pid" in " ".join(said.out.split())
        refused = call(capsys, "resolve", "--state-dir", tmp_path / "state")
    assert refused.code == 2
    assert str(tmp_path / "state") in refused.complaint


@pytest.mark.parametrize("command", ["status", "resolve"])
def test_a_directory_that_holds_no_state_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        said = call(capsys, command, "--state-dir", path)
        assert (said.code, said.out) == (2, "")
        assert "is not a state directory" in said.complaint
    assert list(tmp_path.iterdir()) == []


# A target's directory


@pytest.mark.parametrize(
    ("answer", "after", "words"),
    [
        (Abandon(generation=5), "N(5)", "the source has kept the machine"),
        (Gone(generation=5), "R(5)", "is over; the image must not be run"),
        (Unknown(generation=5), "R(5)", "the source knows nothing of generation 5"),
        (Commit(generation=5), "R(5)", "start it with migrate target"),
        (Abandon(generation=4), "R(5)", "the source has kept the machine"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_a_holder_of_an_image_asks_its_source_and_never_uses_the_image_up(
    tmp_path: Path, neighbourhood: Neighbourhood, answer: Message, after: str, words: str
) -> None:
    asked: list[Message | None] = []

    async def converse(wire: Wire) -> None:
        asked.append(await wire.hear())
        await wire.say(answer)
        asked.append(await wire.hear())

    port = await neighbourhood.scripted_source(converse)
    facts = {SOURCE_AT: f"{LOOPBACK}:{port}"}
    state = await left_behind(tmp_path / "state", Record(R, 5, OTHER), kept=image(), facts=facts)
    resolution = await resolved(state)
    first = asked[0]
    assert isinstance(first, Inquire)
    assert (first.machine, first.generation, first.standing, first.source) == (VM.bytes, 5, Standing.HOLDS, OTHER)
    assert (record_in(state), resolution.after) == (after, after)
    assert any(words in line for line in resolution.found)
    assert resolution.is_settled is (after == "N(5)")
    if isinstance(answer, Commit):
        assert isinstance(asked[1], Failure), "the source is told that nobody takes it now"


async def test_a_source_that_cannot_be_reached_leaves_everything_in_doubt(tmp_path: Path) -> None:
    state = await left_behind(tmp_path / "state", Record(R, 5, OTHER), kept=image(), facts={SOURCE_AT: "127.0.0.1:1"})
    resolution = await resolved(state)
    assert "cannot reach a source at 127.0.0.1:1" in resolution.found[0]
    assert not resolution.is_settled
    assert "--force-own 5" in resolution.situation.advice
    assert record_in(state) == "R(5)"


@pytest.mark.parametrize(
    ("record", "standing"),
    [
        (Record(O, 5, OTHER), Standing.OWNS),
        (Record(N, 5, OTHER), Standing.DECLINED),
        (Record(N, 6, "rack-11", owned=5), Standing.PASSED_ON),
    ],
    ids=str,
)
async def test_what_is_owed_is_told(
    tmp_path: Path, neighbourhood: Neighbourhood, record: Record, standing: Standing
) -> None:
    async def converse(wire: Wire) -> None:
        asked = await wire.hear()
        assert isinstance(asked, Inquire)
        assert (asked.standing, asked.generation) == (standing, 5)
        await wire.say(Released(generation=5))

    port = await neighbourhood.scripted_source(converse)
    debt = Debt(generation=5, peer=OTHER, address=f"{LOOPBACK}:{port}", owned=True)
    state = await left_behind(tmp_path / "state", record, debt=debt)
    resolution = await resolved(state)
    assert resolution.found == (f"{OTHER} at {LOOPBACK}:{port} has heard what became of generation 5",)
    found = StateDirectory.look(state).machine(VM)
    assert found is not None
    assert found.debts == ()


# A source's directory


async def comes_as(port: int, message: Callable[[str], Message], node: str) -> Message | None:
    """A target that connects as soon as somebody listens; what it is told."""
    while True:
        try:
            stream = await trio.open_tcp_stream(LOOPBACK, port)
        except OSError:
            await trio.lowlevel.checkpoint()
            continue
        async with stream:
            wire = Wire(Role.TARGET, stream)
            await wire.say(message(node))
            return await wire.hear()


async def free_port() -> int:
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = port_of(listeners)
    for listener in listeners:
        await listener.aclose()
    return port


@pytest.mark.parametrize(
    ("standing", "after", "words"),
    [
        (Standing.OWNS, "N(5)", "owns generation 5"),
        (Standing.PASSED_ON, "N(5)", "owns generation 5"),
        (Standing.HOLDS, "C(5)", "waits for this node's word"),
        (Standing.DECLINED, "C(5)", "goes on here from its image"),
    ],
)
async def test_a_source_that_gave_its_machine_away_hears_its_target(
    tmp_path: Path, nursery: trio.Nursery, standing: Standing, after: str, words: str
) -> None:
    port = await free_port()
    facts = {LISTENS_AT: f"{LOOPBACK}:{port}"}
    state = await left_behind(tmp_path / "state", Record(C, 5, OTHER), kept=image(), facts=facts)
    node = StateDirectory.look(state).node
    told: list[Message | None] = []

    async def target() -> None:
        def ask(source: str) -> Message:
            return Inquire(
                machine=VM.bytes, name="web-server", generation=5, standing=standing, node=OTHER, source=source
            )

        told.append(await comes_as(port, ask, node))

    nursery.start_soon(target)
    resolution = await resolved(state, wait_s=PATIENT.frame_s)
    assert any(words in line for line in resolution.found)
    assert (record_in(state), resolution.is_settled) == (after, after == "N(5)")
    assert isinstance(told[0], Released if after == "N(5)" else Failure)


async def test_a_source_whose_target_does_not_come_stays_in_doubt(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    facts = {LISTENS_AT: f"{LOOPBACK}:0"}
    state = await left_behind(tmp_path / "state", Record(C, 5, OTHER), kept=image(), facts=facts)
    resolution = await resolved(state, wait_s=60.0)
    assert resolution.found == (f"listened on {LOOPBACK}:0 for up to 60 s",)
    assert not resolution.is_settled
    assert record_in(state) == "C(5)"


@pytest.mark.parametrize(
    ("owner", "session", "after", "words"),
    [
        ("us", 7, "C(5)", "nobody has started the machine since"),
        (OTHER, 8, "C(5)", "the storage's register is held in session 8"),
        ("rack-12", 9, "N(6)", "the storage's register is held in session 9"),
    ],
)
async def test_the_fence_may_know_who_has_the_machine(
    tmp_path: Path, owner: str, session: int, after: str, words: str
) -> None:
    state = await left_behind(tmp_path / "state", Record(C, 5, OTHER, session=7), kept=image())
    node = StateDirectory.look(state).node
    holder, generation = node if owner == "us" else owner, 5 if owner == OTHER else 6
    write_register(tmp_path, Title(session=session, generation=generation, machine=VM, owner=holder))
    resolution = await resolved(state, storage=tmp_path, wait_s=0)
    assert any(words in line for line in resolution.found)
    assert record_in(state) == after


def write_register(directory: Path, title: Title) -> None:
    fence, before = Fence(directory), None
    for session in range(1, title.session):
        step = attrs.evolve(title, session=session)
        fence.swap(before, step)
        before = step
    fence.swap(before, title)
    fence.close()


def test_a_rehearsal_does_not_start_what_an_earlier_one_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trio.run(lambda: left_behind(tmp_path / "target", Record(O, 5)))
    said = call(capsys, "rehearse", EXAMPLE, "--state-dir", tmp_path)
    assert said.code == 2
    assert f"{tmp_path / 'target'} holds O(5) of a machine from before" in said.complaint


# By force


@pytest.mark.parametrize("record", [Record(C, 5, OTHER), Record(R, 5, OTHER), Record(N, 5, OTHER, owned=4)], ids=str)
async def test_force_own_writes_a_new_generation_and_the_image_is_not_used(tmp_path: Path, record: Record) -> None:
    kept = image() if record.holding is not N else None
    state = await left_behind(tmp_path / "state", record, kept=kept)
    resolution = await resolved(state, force=Force.OWN, generation=5)
    assert resolution.after == record_in(state) == "O(6)"
    found = StateDirectory.look(state).machine(VM)
    assert found is not None
    assert (found.image, found.highest) == (None, 6)
    assert "boots from its disks" in resolution.situation.advice


async def test_force_own_takes_the_register_of_the_storage(tmp_path: Path) -> None:
    state = await left_behind(tmp_path / "state", Record(C, 5, OTHER, session=7), kept=image())
    write_register(tmp_path, Title(session=8, generation=5, machine=VM, owner=OTHER))
    await resolved(state, force=Force.OWN, generation=5, storage=tmp_path)
    fence = Fence(tmp_path)
    node = StateDirectory.look(state).node
    assert fence.read() == Title(session=9, generation=6, machine=VM, owner=node)
    fence.close()
    assert record_in(state) == "O(6)"


@pytest.mark.parametrize("record", [Record(C, 5, OTHER), Record(R, 5, OTHER), Record(O, 5)], ids=str)
async def test_force_abandon_writes_the_floor(tmp_path: Path, record: Record) -> None:
    state = await left_behind(tmp_path / "state", record)
    resolution = await resolved(state, force=Force.ABANDON, generation=5)
    assert resolution.after == record_in(state) == "N(5)"


def test_force_wants_the_generation_in_doubt_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trio.run(lambda: left_behind(tmp_path / "state", Record(C, 5, OTHER), kept=image()))
    state = ("--state-dir", tmp_path / "state")
    for arguments, words in (
        (("--force-own", "4"), "the record of 'web-server' is C(5)"),
        (("--force-abandon", "6"), "the record of 'web-server' is C(5)"),
        (("--force-own", "5", "--force-abandon", "5"), "contradict each other"),
        (("--storage", tmp_path / "nowhere"), "there is no such directory"),
        (("--wait-s", "-1"), "--wait-s -1"),
    ):
        said = call(capsys, "resolve", *state, *arguments)
        assert said.code == 2
        assert words in said.complaint
        assert record_in(tmp_path / "state") == "C(5)"


def test_a_journal_that_went_backwards_is_believed_only_when_a_person_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    trio.run(lambda: left_behind(state, Record(O, 4)))
    old = (state / "journal.sqlite").read_bytes()
    trio.run(lambda: left_behind(state, Record(C, 5, OTHER), kept=image()))
    (state / "journal.sqlite").write_bytes(old)
    for suffix in ("-wal", "-shm"):
        (state / f"journal.sqlite{suffix}").unlink(missing_ok=True)
    for command in ("status", "resolve"):
        said = call(capsys, command, "--state-dir", state)
        assert said.code == 2
        assert "backwards" in said.complaint
    said = call(capsys, "resolve", "--state-dir", state, "--accept-journal", "--json")
    assert said.code == 0
    assert said.document[0]["after"] == "O(4)"
    assert call(capsys, "status", "--state-dir", state).code == 0


def test_the_spec_that_is_kept_is_the_one_that_was_offered() -> None:
    known = machine()
    assert cbor.decode(known.spec_document)["board"]["memory_mb"] == make_spec(EVERY_DEVICE).board.memory_mb
