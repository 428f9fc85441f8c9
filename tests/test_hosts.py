"""Hosts with many machines at one port: who is let in for which, in what order, within what limits."""

import gc
from pathlib import Path
from uuid import UUID, uuid4

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from migrate.daemon.events import Event, EventLog
from migrate.daemon.guests import STEP_EVERY_S
from migrate.daemon.host.host import NotPossible
from migrate.daemon.host.offers import Stage
from migrate.daemon.host.strays import Strays
from migrate.daemon.link import SocketLink, connect
from migrate.daemon.waiting_room import Caller
from migrate.engine.handoff import NEVER_HAD, Record
from migrate.engine.target import inquire
from migrate.errors import PeerFailed
from migrate.protocol.messages import Attach, Failure, Hello, HelloFor, Inquire, Refuse, Released, Role, Standing
from sim_vmm.guest import StampGuest
from tests.commands import call
from tests.daemons import PATIENT, open_files, until
from tests.hosts import SLOW, SPEC, HostUnderTest, begin, hosting, in_ram, over, send

NAMES = [f"vm-{number}" for number in range(8)]


def images(host: HostUnderTest) -> dict[str, dict[str, object]]:
    """Digests of all that each machine was, by its id."""
    return {event["vm_id"]: event["image"] for event in host.all("image")}


@pytest.mark.parametrize("keeps_state", [True, False], ids=["with state", "without"])
async def test_many_machines_move_at_once_and_are_what_they_were_and_nothing_is_left(
    tmp_path: Path, keeps_state: bool
) -> None:
    gc.collect()
    at = [tmp_path / "a", tmp_path / "b"] if keeps_state else [None, None]
    files_before = open_files()
    async with hosting(at[0]) as source, hosting(at[1]) as target:
        files, tasks = open_files(), trio.lowlevel.current_statistics().tasks_living
        machines = await source.boot(*NAMES)
        concluded = await send(source, target, *NAMES)
        assert [conclusion.outcome for conclusion in concluded] == ["migrated"] * 8
        await until(lambda: not source.host.all)
        assert target.names == NAMES
        given, ran = images(source), images(target)
        assert given.keys() == ran.keys() == {str(machine.vm_id) for machine in machines}
        for vm_id, image in given.items():
            assert {**image, "clock": None} == {**ran[vm_id], "clock": None}
        for hosted in target.host.machines.values():
            assert hosted.runner is not None
            assert StampGuest().stale_pages(hosted.runner.machine.memory) == []
        assert source.host.budget.used_mb == 0
        back = await send(target, source, *NAMES)
        assert {conclusion.outcome for conclusion in back} == {"migrated"}
        await until(lambda: not target.host.all)
        if keeps_state:
            records = {str(hosted.journal.record) for hosted in source.host.all if hosted.journal is not None}
            assert records == {"O(3)"}, "the machines came back to the records that they had left"
        for name in NAMES:
            await source.host.find(name).end()
        await until(lambda: open_files() == files and trio.lowlevel.current_statistics().tasks_living <= tasks + 8 * 4)
    assert open_files() == files_before


async def test_each_of_many_machines_has_its_own_further_connections_to_a_host() -> None:
    gc.collect()
    async with hosting() as source, hosting(streams=3) as target:
        source.host.events.tells_messages = True
        files = open_files()
        await source.boot(*NAMES)
        concluded = await send(source, target, *NAMES)
        assert [conclusion.outcome for conclusion in concluded] == ["migrated"] * 8
        await until(lambda: not source.host.all)
        given, ran = images(source), images(target)
        assert given.keys() == ran.keys()
        assert len(given) == 8
        for vm_id, image in given.items():
            assert {**image, "clock": None} == {**ran[vm_id], "clock": None}
        heard = [event for event in source.all("receives") if event["name"] == "Attach"]
        assert sorted(event["stream"] for event in heard) == [1] * 8 + [2] * 8
        for name in NAMES:
            await target.host.find(name).end()
        await until(lambda: open_files() == files)


class Awaited:
    """A machine whose migration may await a token."""

    def __init__(self) -> None:
        self.token: bytes | None = None
        self.came: list[object] = []

    def awaiting(self, token: bytes) -> "Awaited | None":
        return self if token == self.token else None

    async def receive(self, link: SocketLink, caller: Caller) -> None:
        self.came.append(link)


@attrs.define(eq=False)
class Opened:
    """A connection that has said this, and what it is told."""

    opening: Attach
    told: list[object] = attrs.field(factory=list)

    async def send(self, message: object) -> None:
        self.told.append(message)


@pytest.mark.parametrize("comes", ["before it is announced", "after", "and others are announced", "and is crowded out"])
async def test_a_stream_waits_until_its_migration_has_announced_it(autojump_clock: MockClock, comes: str) -> None:
    awaited, told = Awaited(), list[Event]()
    strays = Strays(awaited.awaiting, PATIENT, EventLog("host", [told.append]))
    ours = bytes(16)
    link, caller = Opened(Attach(token=ours, number=1)), Caller(trio.SocketStream(trio.socket.socket()))
    if comes == "after":
        awaited.token = ours
    async with trio.open_nursery() as nursery:
        nursery.start_soon(strays.receive, link, caller)  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        assert bool(awaited.came) == (comes == "after")
        match comes:
            case "before it is announced":
                awaited.token = ours
                strays.look_again()
            case "and others are announced":
                awaited.token = b"another's"
                strays.look_again()
            case "and is crowded out":
                caller.hang_up()
    caller.stream.socket.close()
    if comes in ("before it is announced", "after"):
        assert awaited.came == [link]
        assert not link.told
        return
    assert not awaited.came
    (failure,) = link.told
    assert isinstance(failure, Failure)
    assert [event["event"] for event in told] == ["turned away"]
    waited_s = 0 if comes == "and is crowded out" else PATIENT.opening_s
    assert trio.current_time() == pytest.approx(waited_s)


@pytest.mark.parametrize("slots", [1, 3])
async def test_no_more_migrate_at_once_than_there_are_slots_and_they_have_their_turn_in_order(slots: int) -> None:
    async with hosting(migrations_max=slots) as source, hosting() as target:
        await source.boot(*NAMES)
        most = 0

        def count(_: object) -> None:
            nonlocal most
            most = max(most, sum(hosted.is_busy for hosted in source.host.all))

        for hosted in source.host.all:
            hosted.log.listeners.append(count)
        concluded = await send(source, target, *NAMES)
        assert {conclusion.outcome for conclusion in concluded} == {"migrated"}
        assert 1 <= most <= slots
        queued = [event["machine"] for event in source.all("queued")]
        offered = [event["machine"] for event in source.all("offered")]
        assert sorted(offered[slots:]) == sorted(queued)
        if slots == 1:  # of several, those that become free at once are taken up in any order
            assert offered[1:] == queued, "in the order in which they came to wait"
        assert [event["place"] for event in source.all("queued")] == list(range(1, len(NAMES) - slots + 1))


async def test_two_hosts_that_exchange_machines_never_wait_for_each_other_in_a_circle() -> None:
    async with hosting(migrations_max=1) as one, hosting(migrations_max=1) as other:
        await one.boot("a", "b", "c")
        await other.boot("d", "e", "f")
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, one, other, "a", "b", "c")
                nursery.start_soon(send, other, one, "d", "e", "f")
        await until(lambda: (one.names, other.names) == (["d", "e", "f"], ["a", "b", "c"]))


async def said_to(host: HostUnderTest, opening: Hello | HelloFor) -> str:
    """What a host answers to somebody who opens the conversation so."""
    stream = await connect(host.address.host, host.address.port, PATIENT)
    async with SocketLink(Role.TARGET, stream, PATIENT) as link:
        await link.send(opening)
        answer = await link.receive()
    assert isinstance(answer, Refuse)
    return answer.reasons[0].message


async def test_nobody_is_let_in_without_the_id_of_an_offer_or_twice_with_it() -> None:
    async with hosting() as source, hosting() as target:
        await source.boot("a", "b")
        hello = Hello(protocol_versions=(2, 1), node="n", release="r6")

        def hello_for(migration: UUID) -> HelloFor:
            return HelloFor(protocol_versions=(2, 1), node="n", release="r6", migration=migration.bytes)

        assert (await said_to(source, hello)).startswith("migration: id is missing")
        assert (await said_to(source, hello_for(uuid4()))).startswith("migration: id is another one")
        migration = await begin(source, target, "a")
        assert (await over(migration)).outcome == "migrated"
        assert (await said_to(source, hello_for(migration.migration))).startswith("migration: id is used already")
        with pytest.raises(NotPossible, match="used before"):
            await source.host.offer("b", migration.migration, 0)
        old = HelloFor(protocol_versions=(99,), node="n", release="r6", migration=uuid4().bytes)
        assert (await said_to(source, old)).startswith("protocol: version is 99")
        assert source.names == ["b"]


async def test_a_second_connection_for_an_id_is_refused_and_the_first_goes_on() -> None:
    async with hosting(bandwidth=SLOW) as source, hosting() as target:
        await source.boot("a")
        migration = await begin(source, target, "a")
        await in_ram(source)
        second = HelloFor(protocol_versions=(2, 1), node="n", release="r6", migration=migration.migration.bytes)
        assert (await said_to(source, second)).startswith("migration: id is in use on another connection")
        source.host.limit(None, 0)
        assert (await over(migration)).outcome == "migrated"


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.READY, Stage.IN_PROGRESS])
@pytest.mark.parametrize("by", ["machine", "migration"])
async def test_a_migration_can_be_cancelled_at_every_stage_and_the_machine_goes_another_time(
    stage: Stage, by: str
) -> None:
    async with hosting(migrations_max=1, bandwidth=SLOW) as source, hosting() as target:
        await source.boot("a", "b")
        first = await begin(source, target, "b") if stage is Stage.QUEUED else None
        migration_id = uuid4()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.host.offer, "a", migration_id, 0)
            await until(lambda: migration_id in source.host.migrations)
            migration = source.host.migration(migration_id)
            await until(lambda: migration.stage is Stage.READY or source.host.outgoing.waiting)
            if stage is Stage.IN_PROGRESS:
                target.host.take(source.address, migration_id, 0)
                await in_ram(source)
            assert migration.stage is stage
            assert source.host.cancel("a" if by == "machine" else str(migration_id)) == "cancelled"
            conclusion = await over(migration)
        assert conclusion.outcome == ("failed" if stage is Stage.IN_PROGRESS else "cancelled")
        assert source.host.find("a").runs
        source.host.limit(None, 0)
        if first is not None:
            assert (await over(first)).outcome == "migrated"
        (again,) = await send(source, target, "a")
        assert again.outcome == "migrated"
        assert source.host.outgoing.held == 0


async def test_an_offer_that_nobody_comes_for_gives_its_slot_back() -> None:
    async with hosting(migrations_max=1, offer_s=0.05) as source, hosting() as target:
        await source.boot("a", "b")
        waited = await source.host.offer("a", uuid4(), 0)
        (went,) = await send(source, target, "b")
        assert went.outcome == "migrated"
        conclusion = await over(waited)
        assert conclusion.outcome == "failed"
        assert conclusion.error is not None
        assert conclusion.error["message"] == "no target came within 0.05 s"
        assert source.names == ["a"]


async def test_what_a_host_has_no_room_for_is_refused_with_the_reason() -> None:
    async with (
        hosting(memory_total_mb=8, machines_max=3) as source,
        hosting(memory_max_mb=3) as small,
        hosting(machines_max=1) as full,
    ):
        await source.boot("a", "b")
        with pytest.raises(NotPossible, match="4 MiB of guest RAM; 0 of 8 are left on this host"):
            await source.boot("c")
        assert len(source.host.all) == 2
        with pytest.raises(NotPossible, match="'a' is here already"):
            await source.boot("a")
        (refused,) = await send(source, small, "a")
        assert refused.outcome == "refused"
        assert "4 MiB of guest RAM; at most 3 here" in refused.reasons[0]["message"]
        assert source.names == ["a", "b"]
        await full.boot("x")
        with pytest.raises(NotPossible, match="1 machines are here or come; --machines-max allows no more"):
            full.host.take(source.address, uuid4(), 0)


async def test_a_machine_that_is_here_or_comes_already_is_not_let_in_a_second_time() -> None:
    async with hosting() as source, hosting() as target:
        (machine,) = await source.boot("a")
        (here,) = await target.boot("b")
        assert machine.vm_id is not None
        target.host.machines[machine.vm_id] = here
        (conclusion,) = await send(source, target, "a")
        assert conclusion.error is not None
        assert "this machine is here already" in conclusion.error["message"]
        del target.host.machines[machine.vm_id]
        assert source.names == ["a"]


async def test_a_host_finds_its_machines_again_after_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with hosting(tmp_path / "a") as source, hosting(tmp_path / "b") as target:
        await source.boot(*NAMES[:3])
        await send(source, target, NAMES[0])
        await until(lambda: len(source.host.all) == 2)
    said = call(capsys, "status", "--state-dir", tmp_path / "a", "--json").document
    assert sorted(machine["machine"] for machine in said["machines"]) == NAMES[1:3]
    async with hosting(tmp_path / "a") as source, hosting(tmp_path / "b") as target:
        await until(lambda: (source.names, target.names) == (NAMES[1:3], NAMES[:1]))
        assert {conclusion.outcome for conclusion in await send(target, source, NAMES[0])} == {"migrated"}
        await until(lambda: source.names == NAMES[:3])


async def test_a_target_that_comes_back_about_a_machine_long_gone_is_answered_by_its_record(tmp_path: Path) -> None:
    async with hosting(tmp_path / "a") as source, hosting(tmp_path / "b") as target:
        (machine,) = await source.boot("a")
        assert machine.vm_id is not None
        await send(source, target, "a")
        await until(lambda: not source.host.all)

        async def asks(vm_id: UUID) -> object:
            stream = await connect(source.address.host, source.address.port, PATIENT)
            async with SocketLink(Role.TARGET, stream, PATIENT) as link:
                record = Record(NEVER_HAD.holding, 2, peer=source.host.name)
                return await inquire(link, target.host.name, vm_id, "a", record, Standing.OWNS)

        assert await asks(machine.vm_id) == Released(generation=2)
        with pytest.raises(PeerFailed, match="never here"):
            await asks(uuid4())
        assert not source.host.all
        assert Inquire.TYPE, "what it asked with"


async def test_the_guests_of_a_host_share_the_steps_of_one() -> None:
    async with hosting() as host:
        await host.boot("a")
        assert host.host.step_every_s() == STEP_EVERY_S
        await host.boot("b", "c", "d")
        assert host.host.step_every_s() == 4 * STEP_EVERY_S
        await host.host.find("b").end()
        assert host.host.step_every_s() == 3 * STEP_EVERY_S
        assert SPEC.board.memory_mb == 4
