"""Further connections for guest RAM: what they carry, and that a lost one is a lost link."""

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from migrate.daemon.access import Access
from migrate.daemon.outcome import Outcome
from migrate.engine.handoff import Holding
from migrate.protocol.conversation import Phase
from migrate.protocol.messages import STREAMS_MAX, Accept, Attach, Failure, Hello, RamPages, Role, RoundEnd, Streams
from sim_vmm.lifecycle import MachineState
from tests.certificates import Holders
from tests.daemons import (
    ALL_PAYLOADS,
    Ending,
    Fault,
    Neighbourhood,
    Source,
    Target,
    assert_identical,
    connected,
    everything,
    half,
    open_files,
    play_target,
    time_passes,
    until,
)

TOKEN = bytes(range(16))


async def assert_undone(neighbourhood: Neighbourhood, source: Source, target: Target) -> None:
    """Nothing is left of the attempt, and a retry over three connections moves the machine whole."""
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.FAILED]
    await until(lambda: source.daemon.attempts and source.machine.state is MachineState.RUNNING)
    assert source.journal.record.holding is Holding.OWNER
    retry = neighbourhood.target(source.port, owner="retry", streams=3)
    assert await retry.daemon.migrate_in() is not None
    await assert_identical(source, retry)


@pytest.mark.parametrize("streams", [1, 2, 3, STREAMS_MAX])
async def test_a_machine_arrives_whole_over_several_connections(neighbourhood: Neighbourhood, streams: int) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port)
    target = neighbourhood.target(tap.port, streams=streams)
    assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)
    said = Counter(tap.heard)
    assert said[Role.TARGET, Hello] == 1
    assert said[Role.TARGET, Attach] == streams - 1
    await until(lambda: source.daemon.attempts)
    assert said[Role.SOURCE, RoundEnd] == streams * len(source.daemon.attempts[0].attempt.rounds)


async def test_a_machine_arrives_whole_over_several_connections_with_tls(
    neighbourhood: Neighbourhood, holders: Holders
) -> None:
    source = await neighbourhood.source(access=Access(tls=holders.source.tls("target")))
    target = neighbourhood.target(source.port, streams=3, access=Access(tls=holders.target.tls("source")))
    assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)


@pytest.mark.parametrize("passes", [half, everything])
@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET])
@pytest.mark.parametrize(("sender", "kind"), [(Role.TARGET, Attach), (Role.SOURCE, RamPages), (Role.SOURCE, RoundEnd)])
async def test_a_lost_stream_is_a_lost_link(
    neighbourhood: Neighbourhood, sender: Role, kind: type, ending: Ending, passes: object
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, passes, ending, 1))  # type: ignore[arg-type]
    files_before = open_files()
    target = neighbourhood.target(tap.port, streams=3)
    assert await target.daemon.migrate_in() is None
    assert tap.faults[0].fired
    await until(lambda: open_files() == files_before)
    told = source.daemon.attempts[0].as_json()["error"]["class"]  # what the target says of itself, if it was heard
    assert told in ("PeerFailed", "TransportLost"), source.daemon.attempts[0].as_json()["error"]
    await assert_undone(neighbourhood, source, target)


async def test_a_silent_stream_ends_by_deadline(
    neighbourhood: Neighbourhood, nursery: trio.Nursery, clock: MockClock
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(Role.TARGET, Attach, half, Ending.SILENCE, 1))
    target = neighbourhood.target(tap.port, streams=2)
    nursery.start_soon(target.daemon.migrate_in)
    await until(lambda: tap.faults[0].fired)
    await time_passes(clock, lambda: target.daemon.attempts and source.daemon.attempts)
    assert source.daemon.attempts[0].as_json()["error"]["class"] in ("DeadlineExpired", "PeerFailed")
    await assert_undone(neighbourhood, source, target)


async def test_a_stream_that_belongs_to_no_migration_is_refused(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    stranger = await connected(source.port)
    await stranger.say(Attach(token=TOKEN, number=1))
    last = await stranger.last_words()
    await stranger.stream.aclose()
    assert isinstance(last, Failure)
    assert "no migration is in progress that this stream could belong to" in last.message


async def test_a_strangers_stream_does_not_disturb_a_migration(neighbourhood: Neighbourhood) -> None:
    """It comes while the source waits for the verdict; its token was never said."""
    source = await neighbourhood.source()
    wire = await connected(source.port)
    await play_target(wire, Phase.VERDICT)
    stranger = await connected(source.port)
    await stranger.say(Attach(token=TOKEN, number=1))
    await play_target(wire, Phase.READY)
    await wire.stream.aclose()
    assert await stranger.last_words() is None
    await stranger.stream.aclose()
    await until(lambda: source.daemon.attempts and source.machine.state is MachineState.RUNNING)


async def test_strangers_streams_take_no_place_of_those_that_are_awaited(neighbourhood: Neighbourhood) -> None:
    """They come first, more of them than anybody may have, before it is known which token is the right one."""
    source = await neighbourhood.source()
    wire = await connected(source.port)
    await play_target(wire, Phase.VERDICT)
    strangers = [await connected(source.port) for _ in range(STREAMS_MAX + 4)]
    for number, stranger in enumerate(strangers):
        await stranger.say(Attach(token=bytes([number]) * 16, number=1))
    await wire.say(Streams(token=TOKEN, count=1))
    await until(lambda: source.daemon._current is not None and source.daemon._current.streams.rules._announced)
    awaited = await connected(source.port)
    await awaited.say(Attach(token=TOKEN, number=1))
    late = await connected(source.port)
    await late.say(Attach(token=TOKEN, number=2))
    last = await late.last_words()
    assert isinstance(last, Failure)
    assert "stream 2 is none of those that were announced" in last.message
    await wire.say(Accept(spec_version=6, imports=ALL_PAYLOADS))
    assert isinstance(await awaited.hear(), RamPages)
    for one in (wire, awaited, late, *strangers):
        await one.stream.aclose()
    await until(lambda: source.daemon.attempts and source.machine.state is MachineState.RUNNING)


@pytest.mark.parametrize("count", [0, STREAMS_MAX + 1, 0xFFFF])
async def test_more_streams_than_anybody_may_have_are_refused(neighbourhood: Neighbourhood, count: int) -> None:
    source = await neighbourhood.source()
    wire = await connected(source.port)
    await play_target(wire, Phase.VERDICT)
    await wire.say(Streams(token=TOKEN, count=count))
    last = await wire.last_words()
    await wire.stream.aclose()
    assert isinstance(last, Failure)
    assert f"{count} further connections announced; 1 to {STREAMS_MAX} may be, once" in last.message
