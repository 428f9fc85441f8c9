"""What else may come to a source's port, or be found where a target looks for a source, while real migrations go on."""

from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from migrate.daemon.outcome import Outcome
from migrate.errors import Refused
from migrate.protocol import frames
from migrate.protocol.conversation import Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Paused, Refuse, Role
from sim_vmm.lifecycle import MachineState
from tests.daemons import (
    ENDLESS,
    LOOPBACK,
    PATIENT,
    Ending,
    Fault,
    Neighbourhood,
    Source,
    Target,
    assert_identical,
    connected,
    play_target,
    port_of,
    reset_on_close,
    until,
)
from tests.specimens import SPECIMENS

CLIENT_HELLO: Final = bytes.fromhex("16030100c8010000c40303") + bytes(range(194))

#: What a stranger says first.
STRANGERS: Final[dict[str, bytes]] = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "TLS ClientHello": CLIENT_HELLO,
    "SSH": b"SSH-2.0-OpenSSH_9.7\r\n",
    "one byte": b"\x00",
    "random bytes": bytes((17 * n * n + 91) % 251 for n in range(4096)),
    "our preface, then random bytes": frames.PREFACE + bytes((29 * n + 5) % 249 for n in range(4096)),
    "a damaged preface": frames.PREFACE.replace(b"\r\n", b"\n"),
    "nothing": b"",
}
each_stranger = pytest.mark.parametrize("says", STRANGERS.values(), ids=STRANGERS)

#: Bytes per second at which a migration is in progress for as long as a test does not let time pass.
SLOWLY: Final = 100.0


async def migration_in_progress(neighbours: Neighbourhood, nursery: trio.Nursery) -> tuple[Source, Target]:
    source = await neighbours.source(bandwidth=SLOWLY, deadlines=ENDLESS)
    target = neighbours.target(source.port, deadlines=ENDLESS)
    nursery.start_soon(target.daemon.migrate_in)
    await until(lambda: any(event.get("phase") == "ram" for event in target.told))
    return source, target


async def assert_undisturbed(source: Source, target: Target, clock: MockClock) -> None:
    assert source.daemon.attempts == [], "the migration was to be still in progress"
    while not source.daemon.over.is_set():
        clock.jump(100_000)
        await trio.sleep(0.001)
    assert [attempt.outcome for attempt in source.daemon.attempts] == [Outcome.MIGRATED]
    await assert_identical(source, target)


async def visit(port: int, says: bytes) -> bytes:
    """Say something, hang up on our side, and return what comes back."""
    stream = await trio.open_tcp_stream(LOOPBACK, port)
    async with stream:
        answer = b""
        try:
            if says:
                await stream.send_all(says)
            await stream.send_eof()
            while data := await stream.receive_some():
                answer += data
        except trio.BrokenResourceError:
            pass  # it may reset us: it has nothing to say
    return answer


@each_stranger
async def test_a_stranger_is_turned_away_and_the_migration_alongside_is_undisturbed(
    neighbourhood: Neighbourhood, nursery: trio.Nursery, clock: MockClock, says: bytes
) -> None:
    source, target = await migration_in_progress(neighbourhood, nursery)
    with trio.fail_after(10):
        answer = await visit(source.port, says)
    if not says.startswith(frames.PREFACE):
        assert answer == b"", "what is not our protocol is not answered in it"
    await until(lambda: source.told_of("turned away"))
    await assert_undisturbed(source, target, clock)


@each_stranger
async def test_a_stranger_who_came_first_and_stays_keeps_no_target_out(
    neighbourhood: Neighbourhood, says: bytes
) -> None:
    source = await neighbourhood.source()
    stranger = await trio.open_tcp_stream(LOOPBACK, source.port)
    async with stranger:
        if says:
            await stranger.send_all(says)
        await trio.sleep(0.01)
        target = neighbourhood.target(source.port)
        assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)


async def test_strangers_that_reset_their_connections_are_survived(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    for says in STRANGERS.values():
        stream = await trio.open_tcp_stream(LOOPBACK, source.port)
        if says:
            await stream.send_all(says)
        reset_on_close(stream)
        await stream.aclose()
    await until(lambda: len(source.told_of("turned away")) == len(STRANGERS))
    target = neighbourhood.target(source.port)
    assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)


async def test_a_crowd_of_silent_connections_is_hung_up_on_in_time(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source(deadlines=Deadlines(opening_s=0.2, farewell_s=0.1))
    crowd = [await trio.open_tcp_stream(LOOPBACK, source.port) for _ in range(80)]
    with trio.fail_after(10):
        for stranger in crowd:
            async with stranger:
                assert await stranger.receive_some() == b""
    source.daemon.deadlines = PATIENT
    target = neighbourhood.target(source.port)
    assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)


async def test_a_second_target_is_told_that_the_machine_is_busy_and_the_first_is_undisturbed(
    neighbourhood: Neighbourhood, nursery: trio.Nursery, clock: MockClock
) -> None:
    source, first = await migration_in_progress(neighbourhood, nursery)
    second = neighbourhood.target(source.port, owner="second", retries=3)
    assert await second.daemon.migrate_in() is None
    (attempt,) = second.daemon.attempts
    assert isinstance(attempt.error, Refused)
    assert [(reason.component, reason.field) for reason in attempt.error.reasons] == [("machine", "migration")]
    assert second.hypervisor.kept == []
    await assert_undisturbed(source, first, clock)


async def test_a_target_that_finds_the_source_busy_with_the_end_of_its_last_attempt_comes_again(
    neighbourhood: Neighbourhood, clock: MockClock
) -> None:
    source = await neighbourhood.source()
    told: list[str] = []

    def be_busy_then(event: dict[str, Any]) -> None:
        if event["event"] == "attempt ended" and told == []:
            told.append(event["outcome"])
            source.daemon._reclaiming = True  # as it is when it is at something else

    def be_free(event: dict[str, Any]) -> None:
        if event["event"] == "attempt ended" and event["outcome"] == "refused":
            source.daemon._reclaiming = False

    tap = await neighbourhood.tap(source.port, Fault(Role.SOURCE, Paused, lambda _: b"", Ending.RESET))
    target = neighbourhood.target(tap.port, retries=1)
    target.daemon.events.listeners += [be_busy_then, be_free]
    assert await target.daemon.migrate_in() is not None
    assert [attempt.outcome.value for attempt in target.daemon.attempts] == ["failed", "refused", "migrated"]
    await assert_identical(source, target)


async def test_a_target_whose_verdict_is_no_hears_its_reasons_repeated_by_the_source(
    neighbourhood: Neighbourhood,
) -> None:
    source = await neighbourhood.source()
    wire = await connected(source.port)
    async with wire.stream:
        await play_target(wire, Phase.VERDICT)
        await wire.say(SPECIMENS[Refuse])
        assert await wire.hear() is None
    await until(lambda: source.told_of("attempt ended"))
    (attempt,) = source.daemon.attempts
    assert isinstance(attempt.error, Refused)
    assert attempt.outcome is Outcome.REFUSED
    assert attempt.attempt.rounds == []
    assert attempt.attempt.steps == []
    assert source.machine.state is MachineState.RUNNING
    target = neighbourhood.target(source.port)
    assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)


#: What may listen where a target was told to find a source: what it says to whoever comes, and the error's class.
NOT_SOURCES: Final[dict[str, tuple[bytes, str]]] = {
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "NotOurProtocol"),
    "SSH": (b"SSH-2.0-OpenSSH_9.7\r\n", "NotOurProtocol"),
    "TLS alert": (bytes.fromhex("15030300020228"), "NotOurProtocol"),
    "hangs up": (b"", "TransportLost"),
}


@pytest.mark.parametrize(("says", "error"), NOT_SOURCES.values(), ids=NOT_SOURCES)
async def test_a_target_that_finds_something_else_says_so(
    neighbourhood: Neighbourhood, nursery: trio.Nursery, says: bytes, error: str
) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if says:
                await stream.send_all(says)

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    target = neighbourhood.target(port_of(listeners))
    assert await target.daemon.migrate_in() is None
    facts = target.daemon.attempts[0].as_json()
    assert (facts["phase"], facts["error"]["class"], facts["error"]["side"]) == ("hello", error, Role.TARGET)
    assert target.hypervisor.kept == []
    nursery.cancel_scope.cancel()


async def test_a_target_that_finds_nobody_says_where_it_looked(neighbourhood: Neighbourhood) -> None:
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = port_of(listeners)
    for listener in listeners:
        await listener.aclose()
    target = neighbourhood.target(port, retries=1)
    assert await target.daemon.migrate_in() is None
    assert len(target.daemon.attempts) == 2
    for attempt in target.daemon.attempts:
        assert f"127.0.0.1:{port}" in attempt.as_json()["error"]["message"]


async def test_a_target_meets_a_source_that_accepts_and_says_nothing(
    neighbourhood: Neighbourhood, nursery: trio.Nursery
) -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    nursery.start_soon(trio.serve_listeners, say_nothing, listeners)
    target = neighbourhood.target(port_of(listeners), deadlines=Deadlines(opening_s=0.1, farewell_s=0.1))
    with trio.fail_after(10):
        assert await target.daemon.migrate_in() is None
    assert target.daemon.attempts[0].as_json()["error"]["class"] == "DeadlineExpired"
    nursery.cancel_scope.cancel()
