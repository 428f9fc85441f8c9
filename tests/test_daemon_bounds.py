"""What a peer announces costs little before it is checked: RAM, frames that are not its to send, crowds."""

from typing import Final

import attrs
import pytest
import trio

from migrate.cbor import encode
from migrate.daemon.outcome import Outcome
from migrate.daemon.waiting_room import WaitingRoom
from migrate.engine.negotiation import preamble_of
from migrate.errors import Refused
from migrate.protocol import frames
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import MESSAGES, Extent, Preamble, Refuse, Welcome
from migrate.specs import BY_NUMBER
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant
from sim_vmm.machine import MIB
from sim_vmm.memory import ram_layout
from tests.daemons import (
    LOOPBACK,
    PATIENT,
    RELEASES,
    Neighbourhood,
    Wire,
    assert_identical,
    connected,
    make_machine,
    until,
)
from tests.machines import EVERY_DEVICE, make_spec

#: MiB that no target has, up to the largest that a spec can say.
ABSURD: Final = [(1 << 22) + 1, 1 << 30, 1 << 36, (1 << 43) - 1, 1 << 43, (1 << 64) - 1]


def announcing(memory_mb: int) -> Preamble:
    """Everything is as it should be, down to the digest: the machine is merely that large."""
    spec = make_spec(EVERY_DEVICE)
    small = make_machine(spec)
    with small:
        honest = preamble_of(small, RELEASES["r6"], "vm")
    large = attrs.evolve(spec, board=attrs.evolve(spec.board, memory_mb=memory_mb))
    wanted = [region for region in ram_layout(memory_mb * MIB) if region.length < 1 << 64]
    return attrs.evolve(
        honest,
        spec_digest=spec_digest(large),
        variants=(Variant(version=6, document=encode(BY_NUMBER[6].encode(large))),),
        ram=tuple(Extent(gpa=region.gpa, length=region.length) for region in wanted),
    )


@pytest.mark.parametrize("memory_mb", ABSURD)
async def test_a_machine_larger_than_any_host_is_refused_before_anything_is_sized_by_it(
    neighbourhood: Neighbourhood, memory_mb: int
) -> None:
    heard: list[object] = []

    async def be_absurd(wire: Wire) -> None:
        await wire.hear()
        await wire.say(Welcome(protocol_version=1, node="scripted", release="r6"))
        await wire.say(announcing(memory_mb))
        heard.append(await wire.hear())

    target = neighbourhood.target(await neighbourhood.scripted_source(be_absurd))
    with trio.fail_after(10):
        assert await target.daemon.migrate_in() is None
    (attempt,) = target.daemon.attempts
    assert isinstance(attempt.error, Refused)
    assert attempt.outcome is Outcome.REFUSED
    assert "RAM" in str(attempt.error)
    assert target.hypervisor.kept == []
    await until(lambda: heard)
    assert isinstance(heard[0], Refuse)


async def test_an_operator_may_allow_less(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    target = neighbourhood.target(source.port)
    target.hypervisor.memory_mb_max = 1
    assert await target.daemon.migrate_in() is None
    assert "of guest RAM; at most 1 here" in str(target.daemon.attempts[0].error)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES.values() if kind.__name__ in ("Preamble", "DeviceState")])
async def test_a_frame_that_is_out_of_turn_is_refused_by_its_head(
    neighbourhood: Neighbourhood, kind: type[Preamble]
) -> None:
    """Megabytes are announced, none are sent, and none are waited for."""
    source = await neighbourhood.source(deadlines=Deadlines(frame_s=1e9, opening_s=1e9))
    wire = await connected(source.port)
    async with wire.stream:
        await wire.put(frames.PREFACE + frames.HEADER.pack(kind.TYPE, 0, kind.BODY_MAX, 0))
        with trio.fail_after(10):
            await until(lambda: source.told_of("turned away"))
    (told,) = source.told_of("turned away")
    assert f"sent {kind.__name__} from the target in phase 'hello', where only" in told.event["error"]


# Crowds


async def streams(count: int) -> tuple[list[trio.SocketStream], list[trio.SocketStream]]:
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener:
        port = listener.socket.getsockname()[1]
        theirs, ours = [], []
        for _ in range(count):
            theirs.append(await trio.open_tcp_stream(LOOPBACK, port))
            ours.append(await listener.accept())
    return theirs, ours


async def test_who_has_waited_longest_goes_when_there_is_no_seat_left() -> None:
    theirs, ours = await streams(5)
    room = WaitingRoom(seats=2)
    gone: list[int] = []

    async def wait(number: int) -> None:
        with room.caller(ours[number]) as caller:
            if number == 1:
                room.let_in(caller)
            assert await ours[number].receive_some() == b""
            assert caller.explain(ValueError()).startswith("crowded out")
            gone.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
        assert gone == [0, 2], "1 was let in, 3 and 4 have the seats"
        nursery.cancel_scope.cancel()
    for stream in (*theirs, *ours):
        await stream.aclose()


async def test_a_crowd_that_only_sits_there_keeps_no_target_out(neighbourhood: Neighbourhood) -> None:
    """Nobody's time is up: it is the crowd that goes."""
    source = await neighbourhood.source(deadlines=Deadlines(opening_s=1e9, farewell_s=1e9))
    crowd = [await trio.open_tcp_stream(LOOPBACK, source.port) for _ in range(200)]
    await until(lambda: len(source.told_of("turned away")) == 200 - 64)
    target = neighbourhood.target(source.port, deadlines=PATIENT)
    with trio.fail_after(20):
        assert await target.daemon.migrate_in() is not None
    for stranger in crowd:
        await trio.aclose_forcefully(stranger)
    await assert_identical(source, target)
