"""Slots are given in the order of asking, never more than there are, and come back whatever befalls their holders."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from migrate.daemon.slots import NoMoreSlots, Slot, Slots


async def test_who_waits_is_served_in_the_order_of_coming() -> None:
    slots = Slots(2)
    served: list[int] = []
    places: list[int] = []
    held = [await slots.take(), await slots.take()]

    async def wait(number: int) -> None:
        slot = await slots.take(places.append)
        served.append(number)
        held.append(slot)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert places == [1, 2, 3, 4, 5]
        assert (slots.held, slots.waiting) == (2, 5)
        for done in range(5):
            held[done].release()
            await wait_all_tasks_blocked()
            assert served == list(range(done + 1))


async def test_nobody_comes_in_before_who_waits_already() -> None:
    slots = Slots(1)
    first = await slots.take()
    order: list[str] = []

    async def wait(name: str) -> None:
        slot = await slots.take()
        order.append(name)
        slot.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "waited")
        await wait_all_tasks_blocked()
        first.release()
        await wait("came later")
    assert order == ["waited", "came later"]


@given(st.lists(st.sampled_from(["take", "release", "cancel", "fewer", "more"]), max_size=60))
def test_there_are_never_more_holders_than_slots_and_none_is_lost(steps: list[str]) -> None:
    async def play() -> None:
        slots = Slots(3)
        held: list[Slot] = []
        waiting: list[trio.CancelScope] = []
        most = 3

        async def wait(scope: trio.CancelScope) -> None:
            with scope:
                held.append(await slots.take())
            waiting.remove(scope)

        async with trio.open_nursery() as nursery:
            for step in steps:
                if step == "take":
                    scope = trio.CancelScope()
                    waiting.append(scope)
                    nursery.start_soon(wait, scope)
                elif step == "release" and held:
                    held.pop(0).release()
                elif step == "cancel" and waiting:
                    waiting[0].cancel()
                elif step in ("fewer", "more"):
                    slots.set_limit(1 if step == "fewer" else 4)
                    most = max(most, slots.limit)
                await wait_all_tasks_blocked()
                assert slots.held == len(held) <= most
                assert slots.waiting == len(waiting)
                assert not waiting or slots.held >= slots.limit, "a free slot is not kept from whoever waits"
            nursery.cancel_scope.cancel()
        for slot in held:
            slot.release()
            slot.release()
        assert slots.held == 0

    trio.run(play)


async def test_when_they_are_closed_everybody_who_waits_is_told_and_nobody_is_served() -> None:
    slots = Slots(1)
    await slots.take()
    told: list[str] = []

    async def wait() -> None:
        with pytest.raises(NoMoreSlots, match="that is all") as raised:
            await slots.take()
        told.append(str(raised.value))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        slots.close("that is all")
    assert len(told) == 3
    assert slots.waiting == 0
    with pytest.raises(NoMoreSlots):
        await slots.take()
