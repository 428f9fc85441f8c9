"""Both engines against each other, in memory: what arrives, and in which order ownership moves."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import attrs
import pytest

from migrate.engine.handoff import Holding
from migrate.engine.policy import OnStall, PrecopyPolicy
from migrate.engine.source import SourceSettings
from migrate.engine.target import Arrived, ImageHeld, TargetSettings
from migrate.errors import (
    DeviceStateError,
    HandoffInDoubt,
    MachineCreationFailed,
    MigrationError,
    NotConverging,
    PeerFailed,
    Refused,
    RemoteProtocolError,
    StateRefused,
    TimeDataError,
)
from migrate.protocol.messages import (
    Accept,
    Commit,
    DevicesEnd,
    DeviceState,
    Failure,
    Gone,
    Hello,
    KindVersions,
    Message,
    Preamble,
    Prepare,
    RamBatch,
    RamContent,
    RamPages,
    Ready,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    TimeOfDay,
    Transcript,
    Welcome,
)
from migrate.releases import builtin_releases
from sim_vmm.birth import Birth
from sim_vmm.guest import StampGuest, audit_records
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec
from sim_vmm.spec.components import MigrationFailureInjector, SerialNumber, SerialPort
from tests.engine_world import MACHINE_NAME, RELEASE, VM_ID, DiskFull, Facts, MemoryLink, Tamper, Target, World
from tests.machines import COM1, make_spec


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def migrated(world: World) -> Target:
    """A target to which the machine has moved."""
    target = world.new_target()
    assert world.migrate(target) is None
    return target


# A migration that succeeds


def test_the_machine_arrives_as_it_left(world: World, migrated: Target) -> None:
    left, arrived = Facts.of(world.machine), Facts.of(migrated.made[0])
    assert arrived.ram == left.ram
    assert arrived.devices == left.devices
    assert arrived.console == left.console
    assert arrived.uptime_ns == left.uptime_ns
    assert arrived.tsc == left.tsc
    assert migrated.made[0].spec == world.machine.spec
    assert migrated.made[0].birth == world.machine.birth == RELEASE.birth(VM_ID)


def test_the_guest_ran_while_its_memory_was_copied_and_misses_no_write(world: World, migrated: Target) -> None:
    assert len(world.source_attempt.rounds) >= 3
    assert sum(round_.dirtied_pages for round_ in world.source_attempt.rounds) > 0
    (machine,) = migrated.made
    for _ in range(20):
        world.advance(1_000_000)
        world.guest.program.step(machine)
    assert StampGuest(steps_per_record=2).stale_pages(machine.memory) == []
    assert audit_records(machine.console.read(from_start=0).data).is_clean


def test_the_machine_runs_at_the_target_and_is_paused_at_the_source(world: World, migrated: Target) -> None:
    assert world.machine.state is MachineState.PAUSED
    assert migrated.made[0].state is MachineState.RUNNING
    assert migrated.result == Arrived(
        machine=migrated.made[0], machine_name=MACHINE_NAME, generation=2, source="rack-3", settled=True
    )
    assert str(world.journal.record) == "N(2)"
    assert str(migrated.journal.record) == "O(2)"


def test_each_record_is_written_before_the_message_that_tells_of_it(world: World, migrated: Target) -> None:
    blackout = world.events[world.events.index("source pauses") :]
    assert [event for event, _ in groupby(blackout)] == [
        "source pauses",
        "source sends Paused",
        "source sends RamPages",
        "source sends RoundEnd",
        "source sends TimeOfDay",
        "source sends DeviceState",
        "source sends DevicesEnd",
        "source sends ServerState",
        "source sends Transcript",
        "source sends Prepare(2)",
        "target writes R(2)",
        "target sends Ready(2)",
        "source writes C(2)",
        "source sends Commit(2)",
        "target writes O(2)",
        "target runs",
        "target sends Owned(2)",
        "source writes N(2)",
        "source sends Released(2)",
    ]


def test_all_content_is_dirty_on_the_new_host_so_that_the_machine_can_move_on(world: World, migrated: Target) -> None:
    memory = migrated.made[0].memory
    with_content = {page for page in range(memory.page_count) if any(memory.pages[page])}
    assert with_content <= set(memory.dirty.dirty_pages().tolist())
    assert world.machine.memory.dirty.count == 0


def test_nobody_may_cancel_once_the_image_is_promised(world: World, migrated: Target) -> None:
    assert [link.cancelling_forbidden for link in world.links.values()] == [True, True]


def test_both_sides_keep_a_ledger_of_the_blackout(world: World, migrated: Target) -> None:
    assert [step.step for step in world.source_attempt.steps] == [
        "pause",
        "last ram",
        "time data",
        "devices",
        "server state",
        "ready",
        "commit: journal",
        "commit",
    ]
    assert [step.step for step in world.target_attempt.steps] == [
        "last ram",
        "time data",
        "devices",
        "server state",
        "ready: journal",
        "ready",
        "commit",
        "own: journal",
        "own",
        "run",
    ]
    for attempt in (world.source_attempt, world.target_attempt):
        assert list(attempt.devices) == list(attempt.payloads)
        assert all(ns >= 0 for ns in attempt.devices.values())
        assert list(attempt.exchanges) == ["preamble", "ready"]
    assert world.source_attempt.committed
    assert world.target_attempt.committed
    assert world.source_attempt.spec_version == world.target_attempt.spec_version == 6
    assert world.source_attempt.payloads == world.target_attempt.payloads
    assert world.source_attempt.payloads["com2"] == {"uart-16550": 1}


def test_a_machine_that_has_moved_is_not_migrated_a_second_time(world: World) -> None:
    assert world.migrate(world.new_target()) is None
    refused = world.migrate(world.new_target())
    assert isinstance(refused, Refused)
    assert str(world.journal.record) == "N(2)"
    assert world.runners == 1


# A migration that does not happen


def assert_undone(world: World, target: Target, source_error: object) -> None:
    """The machine is where it was and runs, and nothing is left of it at the target."""
    assert isinstance(source_error, MigrationError)
    assert isinstance(target.result, MigrationError)
    assert world.source_runs
    assert world.runners == 1
    assert str(world.journal.record) == "O(1)"
    assert target.journal.record.holding is Holding.NOT_OWNER
    assert {machine.state for machine in target.made} <= {MachineState.STOPPED}


def test_a_refusal_comes_before_any_page_and_any_pause(world: World) -> None:
    target = world.new_target()
    error = world.migrate(
        target,
        settings=TargetSettings(node="old", release=attrs.evolve(RELEASE, name="old", payloads={"pci-virtio": (1,)})),
    )
    assert isinstance(error, Refused)
    assert error.reasons == target.result.reasons
    assert world.events == [
        "target sends Hello",
        "source sends Welcome",
        "source sends Preamble",
        "target sends Refuse",
    ]
    assert_undone(world, target, error)


def test_a_host_that_cannot_make_the_machine_refuses_with_its_reason(world: World) -> None:
    class FullHost(Target):
        async def create(self, spec: Spec, birth: Birth) -> Machine:
            raise MachineCreationFailed("no memory is left for 4 MiB of guest RAM")

    target = FullHost(world, world.new_target().journal, "rack-8")
    error = world.migrate(target)
    assert isinstance(error, Refused)
    assert [reason.message for reason in error.reasons] == [
        "host: machine is no memory is left for 4 MiB of guest RAM; needed: a host that can make it"
    ]
    assert_undone(world, target, error)


def test_an_older_target_takes_the_machine_in_the_newest_version_that_it_knows(world: World) -> None:
    old = builtin_releases()["r2"]
    target = world.new_target()
    assert world.migrate(target, settings=TargetSettings(node="old", release=old)) is None
    assert world.target_attempt.spec_version == 2
    assert target.made[0].spec == world.machine.spec
    assert world.source_attempt.why_not_newer == [
        "version 6 was offered, but the target (r2) does not know it",
        "version 3 was offered, but the target (r2) does not know it",
    ]


NEVER = PrecopyPolicy(downtime_limit_ms=0.0)


def test_a_guest_that_writes_faster_than_the_link_carries_is_not_paused() -> None:
    with World(steps=10_000, policy=NEVER) as world:
        target = world.new_target()
        error = world.migrate(target)
        assert isinstance(error, NotConverging)
        assert "the limit is 0 ms" in str(error)
        assert "source pauses" not in world.events
        assert target.result.error == "NotConverging"
        assert_undone(world, target, error)


def test_a_switchover_that_is_forced_happens_all_the_same() -> None:
    with World(steps=10_000, policy=attrs.evolve(NEVER, on_stall=OnStall.FORCE)) as world:
        target = world.new_target()
        assert world.migrate(target) is None
        assert Facts.of(target.made[0]).ram == Facts.of(world.machine).ram


def test_what_was_expected_is_told_before_it_happens_and_stays_with_the_attempt(world: World) -> None:
    assert world.migrate(world.new_target()) is None
    attempt = world.source_attempt
    told = [facts for event, facts in world.facts if event == "estimate"]
    assert [facts["round"] for facts in told] == [round_.number for round_ in attempt.rounds[:-1]]
    assert [facts["decision"] for facts in told][-1] == "pause"
    assert attempt.precopy is not None
    assert attempt.precopy.downtime_ms == told[-1]["downtime_ms"]
    precopy = attempt.as_json()["precopy"]
    assert precopy["total_ms"] > precopy["downtime_ms"] > 0
    assert precopy["predicted_total_ms"] > precopy["predicted_downtime_ms"] > 0
    assert not precopy["forced"]
    assert attempt.warnings == []
    assert world.target_attempt.as_json()["precopy"] is None


def test_a_switchover_that_was_forced_says_so() -> None:
    with World(steps=10_000, policy=attrs.evolve(NEVER, on_stall=OnStall.FORCE)) as world:
        assert world.migrate(world.new_target()) is None
        assert world.source_attempt.as_json()["precopy"]["forced"]
        (warning,) = world.source_attempt.warnings
        assert warning.startswith("the limit of 0 ms was not to be kept (the switchover is forced): ")


def test_a_guest_is_slowed_down_step_by_step_and_not_any_more_when_it_stays() -> None:
    with World(steps=10_000, policy=attrs.evolve(NEVER, on_stall=OnStall.THROTTLE)) as world:
        error = world.migrate(world.new_target())
        assert isinstance(error, NotConverging)
        assert "with the guest slowed by 99%" in str(error)
        assert world.guest.throttled == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.0]
        shares = [facts["share"] for event, facts in world.facts if event == "throttle"]
        assert shares == world.guest.throttled[:-1]


FAILS_ONCE = {
    "export": MigrationFailureInjector(fail_exports=1, fail_imports=0),
    "import": MigrationFailureInjector(fail_exports=0, fail_imports=1),
}


@pytest.mark.parametrize(("what", "side"), [("export", "source"), ("import", "target")])
def test_a_device_that_fails_is_reported_to_the_other_side_and_a_retry_works(what: str, side: str) -> None:
    with World(spec=make_spec({**COM1, "injector": FAILS_ONCE[what]})) as world:
        target = world.new_target()
        error = world.migrate(target)
        first, heard = (error, target.result) if side == "source" else (target.result, error)
        assert isinstance(first, DeviceStateError)
        assert isinstance(heard, PeerFailed)
        assert (heard.side, heard.phase, heard.error) == (side, "devices", "DeviceStateError")
        assert heard.message == str(first)
        assert_undone(world, target, error)
        retry = world.new_target()
        assert world.migrate(retry) is None
        assert Facts.of(retry.made[0]) == Facts.of(world.machine)
        assert str(retry.journal.record) == "O(3)"


def test_the_guest_runs_again_before_the_peer_hears_of_the_failure() -> None:
    with World(spec=make_spec({**COM1, "injector": FAILS_ONCE["export"]})) as world:
        world.migrate(world.new_target())
        assert world.events.index("source resumes") < world.events.index("source sends Failure")


def test_a_component_key_that_no_message_can_carry_is_an_obstacle() -> None:
    long = "k" * 129
    with World(spec=make_spec({**COM1, long: SerialPort(SerialNumber.COM2)})) as world:
        target = world.new_target()
        error = world.migrate(target)
        assert isinstance(error, Refused)
        assert [(reason.component, reason.field, reason.have) for reason in error.reasons] == [
            (long, "key", "129 characters long")
        ]
        assert_undone(world, target, error)


# A peer that keeps to the table and not to its word


async def _until_verdict(link: MemoryLink) -> None:
    await link.send(Hello(protocol_versions=(1,), node="hostile", release="r6"))
    await link.receive()
    await link.receive()


async def _accepts_what_was_not_offered(link: MemoryLink) -> None:
    await _until_verdict(link)
    await link.send(Accept(spec_version=99, imports=()))
    await link.receive()


async def _imports_nothing(link: MemoryLink) -> None:
    await _until_verdict(link)
    await link.send(Accept(spec_version=6, imports=(KindVersions(kind="uart-16550", versions=(9,)),)))
    await _store_rounds(link, 0)


async def _receipts_for_another_round(link: MemoryLink) -> None:
    await _until_verdict(link)
    await link.send(Accept(spec_version=6, imports=()))
    await _store_rounds(link, 7)


async def _knows_no_version_of_ours(link: MemoryLink) -> None:
    await link.send(Hello(protocol_versions=(4, 3), node="future", release="r9"))
    refusal = await link.receive()
    assert "protocol: version is 4, 3; needed: one of 2, 1" in str(refusal.reasons[0].message)  # type: ignore[union-attr]


async def _store_rounds(link: MemoryLink, skew: int) -> None:
    while True:
        message = await link.receive()
        if isinstance(message, RamContent):
            await link.receive_ram([memoryview(bytearray(message.content_bytes))])
        if isinstance(message, RoundEnd):
            await link.send(RoundStored(round=message.round + skew))


Peer = Callable[[MemoryLink], "object"]

PEERS = [
    (_accepts_what_was_not_offered, RemoteProtocolError, "accepted spec version 99, which was not offered"),
    (
        _imports_nothing,
        StateRefused,
        "com2: uart-16550 is no common payload version; needed: a target that knows uart-16550 v1",
    ),
    (_receipts_for_another_round, RemoteProtocolError, "a receipt for round 7 after round 0"),
    (_knows_no_version_of_ours, Refused, "needed: one of 2, 1"),
]


@pytest.mark.parametrize(("peer", "error", "reason"), PEERS, ids=[row[2] for row in PEERS])
def test_a_target_that_breaks_its_word_leaves_the_machine_running(
    world: World, peer: Peer, error: type[MigrationError], reason: str
) -> None:
    link = world.connect()
    failure, _ = world.converse(peer(link), link)  # type: ignore[arg-type]
    assert type(failure) is error
    assert reason in str(failure)
    assert world.source_runs
    assert str(world.journal.record) == "O(1)"


def test_state_that_cannot_be_represented_is_found_while_the_guest_still_runs(world: World) -> None:
    link = world.connect()
    world.converse(_imports_nothing(link), link)
    assert "source pauses" not in world.events


def test_an_answer_for_another_generation_is_no_promise(world: World) -> None:
    async def promises_another(link: MemoryLink) -> None:
        await _until_verdict(link)
        kinds = tuple(KindVersions(kind=kind, versions=versions) for kind, versions in RELEASE.payloads.items())
        await link.send(Accept(spec_version=6, imports=kinds))
        while True:
            message: Message = await link.receive()
            match message:
                case RoundEnd(round=number) if "source pauses" not in world.events:
                    await link.send(RoundStored(round=number))
                case RamPages() | RamBatch():
                    await link.receive_ram([memoryview(bytearray(message.content_bytes))])
                case _ if type(message).__name__ == "Prepare":
                    await link.send(Ready(generation=99))

    link = world.connect()
    failure, _ = world.converse(promises_another(link), link)
    assert isinstance(failure, RemoteProtocolError)
    assert "Ready(generation=99) does not answer generation 2" in str(failure)
    assert world.source_runs
    assert "source writes C(2)" not in world.events


def test_the_preamble_is_refused_by_the_source_itself_if_the_target_accepts_over_its_obstacles() -> None:
    with World(spec=make_spec({**COM1, "k" * 129: SerialPort(SerialNumber.COM2)})) as world:
        link = world.connect()

        async def accepts_anything() -> None:
            await link.send(Hello(protocol_versions=(1,), node="careless", release="r6"))
            await link.receive()
            preamble = await link.receive()
            assert isinstance(preamble, Preamble)
            assert preamble.obstacles
            await link.send(Accept(spec_version=6, imports=()))
            await link.receive()

        failure, _ = world.converse(accepts_anything(), link)
        assert isinstance(failure, Refused)
        assert world.source_runs


def test_a_failure_that_the_peer_reports_is_not_reported_back(world: World) -> None:
    async def fails() -> None:
        await _until_verdict(link)
        await link.send(Failure(phase="verdict", error="OutOfPaper", message="no paper"))

    link = world.connect()
    failure, _ = world.converse(fails(), link)
    assert isinstance(failure, PeerFailed)
    assert str(failure) == "the target failed in phase 'verdict': no paper (OutOfPaper)"
    assert "source sends Failure" not in world.events


def test_a_bandwidth_cap_is_kept_to() -> None:
    settings = SourceSettings(node="n", machine_name="m", release=RELEASE, bandwidth=1e6)
    with World(settings=settings, steps=0) as world:
        assert world.migrate(world.new_target()) is None
        first = world.source_attempt.rounds[0]
        assert first.duration_ns == pytest.approx(first.bytes / 1e6 * 1e9, rel=0.01)


def instead(kind: type[Message], *replaced: Callable[[Any], Message]) -> Tamper:
    """Put something else on the wire in place of the messages of a kind."""
    return lambda message: tuple(make(message) for make in replaced) if type(message) is kind else (message,)


def changed(**changes: Any) -> Callable[[Any], Message]:
    return lambda message: attrs.evolve(message, **changes)


def with_first_payload(**changes: Any) -> Callable[[Any], Message]:
    return lambda state: attrs.evolve(state, payloads=(attrs.evolve(state.payloads[0], **changes), *state.payloads[1:]))


def same(message: Any) -> Message:
    assert isinstance(message, Message)
    return message


#: What the source says instead, and what the target makes of it.
LIES: list[tuple[str, Tamper, type[MigrationError], str]] = [
    (
        "a version of the future",
        instead(Welcome, changed(protocol_version=7)),
        RemoteProtocolError,
        "version 7, not one",
    ),
    ("pages too few", instead(RoundEnd, changed(pages=1)), RemoteProtocolError, "says that round 0 had 1 pages"),
    ("a second of two seconds", instead(TimeOfDay, changed(hres_ns=2 * 10**9)), TimeDataError, "hres_ns is 2000000000"),
    ("time before birth", instead(TimeOfDay, changed(boot_hrtime=2**62)), TimeDataError, "a negative uptime"),
    ("a stranger", instead(DeviceState, changed(device="gpu")), DeviceStateError, "gpu"),
    ("garbage", instead(DeviceState, with_first_payload(data=b"\xff")), DeviceStateError, "at byte 0"),
    (
        "an unknown schema",
        instead(DeviceState, with_first_payload(version=99)),
        DeviceStateError,
        "nvme-ctrl v99 has arrived, and the target (r6) knows versions 2, 1 of it",
    ),
    ("half a device", instead(DeviceState, changed(payloads=())), DeviceStateError, "boot"),
    ("each device twice", instead(DeviceState, same, same), RemoteProtocolError, "more states than the machine's"),
    ("no device", instead(DeviceState), RemoteProtocolError, "sent 10 devices; 0 arrived"),
    ("a device too many", instead(DevicesEnd, changed(devices=11)), RemoteProtocolError, "sent 11 devices; 10 arrived"),
    (
        "less console than it says",
        instead(ServerState, changed(total_bytes=10**6)),
        RemoteProtocolError,
        "console history",
    ),
    ("a frame of another attempt", instead(Transcript, changed(digest=7)), RemoteProtocolError, "has not said what"),
    ("a transcript twice", instead(Transcript, same, same), RemoteProtocolError, "has not said what"),
    ("another clock", instead(TimeOfDay, changed(hrtime=86_400_000_000_001)), RemoteProtocolError, "has not said what"),
    ("a generation that is dead", instead(Prepare, changed(generation=0)), RemoteProtocolError, "0 is not above N(0)"),
]


@pytest.mark.parametrize(("lie", "error", "reason"), [row[1:] for row in LIES], ids=[row[0] for row in LIES])
def test_a_target_that_is_lied_to_says_so_and_keeps_nothing(
    world: World, lie: Tamper, error: type[MigrationError], reason: str
) -> None:
    target = world.new_target()
    world.tamper = lie
    heard = world.migrate(target)
    assert type(target.result) is error
    assert reason in str(target.result)
    assert isinstance(heard, PeerFailed)
    assert (heard.error, heard.message) == (error.__name__, str(target.result))
    assert_undone(world, target, heard)
    world.tamper = lambda message: (message,)
    assert world.migrate(world.new_target()) is None


def test_a_source_that_gives_no_transcript_is_believed(world: World) -> None:
    world.tamper = instead(Transcript)
    assert world.migrate(world.new_target()) is None


def test_a_commitment_to_another_generation_is_not_run(world: World) -> None:
    target = world.new_target()
    world.tamper = instead(Commit, changed(generation=3))
    error = world.migrate(target)
    assert isinstance(error, HandoffInDoubt)
    assert isinstance(target.result, ImageHeld)
    assert "Commit(generation=3) is not for generation 2" in str(target.result)
    assert world.runners == 0
    world.tamper = lambda message: (message,)
    assert world.settle(target) is None
    assert target.is_running


def test_an_acknowledgement_of_another_generation_settles_nothing(world: World) -> None:
    target = world.new_target()
    world.tamper = instead(Released, changed(generation=1))
    assert world.migrate(target) is None
    assert target.result.settled is False
    world.settle(target)
    assert target.result.settled is False
    world.tamper = lambda message: (message,)
    world.settle(target)
    assert target.result.settled is True


def test_a_target_that_is_told_gone_when_it_has_just_begun_leaves_it_to_whoever_can_stop_the_machine(
    world: World,
) -> None:
    target = world.new_target()
    world.tamper = instead(Released, lambda released: Gone(generation=released.generation))
    assert world.migrate(target) is None
    assert target.result.settled is False
    assert (str(target.journal.record), target.is_running) == ("O(2)", True)


def test_a_source_that_cannot_note_the_commitment_keeps_the_machine_and_says_so(world: World) -> None:
    target = world.new_target()
    world.journal.full_disk = True
    error = world.migrate(target)
    assert isinstance(error, DiskFull)
    assert isinstance(target.result, PeerFailed)
    assert str(target.journal.record) == "N(2)"
    assert_undone(world, target, error)
    world.journal.full_disk = False
    assert world.migrate(world.new_target()) is None
    assert str(world.journal.record) == "N(3)"


def test_a_target_that_cannot_note_its_promise_does_not_make_it(world: World) -> None:
    target = world.new_target()
    target.journal.full_disk = True
    error = world.migrate(target)
    assert isinstance(error, PeerFailed)
    assert error.message == "no space is left to note R(2)"
    assert "target sends Ready(2)" not in world.events
    assert_undone(world, target, error)


#: Events before and after which nobody may cancel, on each side.
BOUNDARY = {"source": "source writes C(2)", "target": "target writes R(2)"}


@pytest.mark.parametrize("role", list(Role))
def test_cancelling_is_forbidden_before_the_record_that_makes_it_impossible(world: World, role: Role) -> None:
    seen: list[bool] = []
    happened = world.happened

    def watch(event: str) -> None:
        if event == BOUNDARY[role]:
            seen.append(world.links[role].cancelling_forbidden)
        happened(event)

    world.happened = watch  # type: ignore[method-assign]
    world.migrate(world.new_target())
    assert seen == [True]
