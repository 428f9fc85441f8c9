"""Split virtqueues: both sides over the same RAM agree on order and content; what no device can follow is refused."""

import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_vmm.memory import GuestMemory
from sim_vmm.virtqueue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR,
    Chain,
    DeviceQueue,
    DriverQueue,
    QueueAddresses,
    QueueBroken,
    Segment,
    legacy_addresses,
)

RING = 0x1000
STATE = 0x800
DATA = 0x8000
RAM = 0x2_0000


@contextmanager
def queue_of(size: int, index: int = 0) -> Iterator[tuple[GuestMemory, DriverQueue, DeviceQueue]]:
    """A queue whose indices all stand at `index`."""
    with GuestMemory.create(RAM) as memory:
        where = legacy_addresses(RING, size)
        driver = DriverQueue(memory, where, STATE)
        driver.reset()
        memory.write(where.available + 2, struct.pack("<H", index))
        memory.write(where.used + 2, struct.pack("<H", index))
        memory.write(STATE, struct.pack("<HHH", 0, size, index))
        yield memory, driver, DeviceQueue(memory, where, index, index)


def test_the_legacy_layout_puts_the_used_ring_on_the_next_page() -> None:
    assert legacy_addresses(0x10000, 256) == QueueAddresses(256, 0x10000, 0x11000, 0x12000)
    assert legacy_addresses(0x10000, 8) == QueueAddresses(8, 0x10000, 0x10080, 0x11000)


def test_a_buffer_goes_to_the_device_and_comes_back_filled() -> None:
    with queue_of(8) as (memory, driver, device):
        memory.write(DATA, b"question")
        head = driver.add(
            [Segment(DATA, 4), Segment(DATA + 4, 4)], [Segment(DATA + 0x100, 3), Segment(DATA + 0x200, 5)]
        )
        assert driver.free == 4
        chain = device.pop()
        assert chain is not None
        assert chain.head == head
        assert device.read(chain) == b"question"
        assert device.write(chain, b"an answer", offset=1) == 7
        device.push(chain, 8)
        assert driver.take_used() == (head, 8)
        assert driver.take_used() is None
        assert driver.free == 8
        assert memory.read(DATA + 0x100, 3) == b"\0an"
        assert memory.read(DATA + 0x200, 5) == b" answ"


def test_a_full_queue_takes_no_more() -> None:
    with queue_of(4) as (_, driver, _):
        assert driver.add([Segment(DATA, 1)] * 3, []) is not None
        assert driver.add([Segment(DATA, 1)], [Segment(DATA, 1)]) is None
        assert driver.add([Segment(DATA, 1)], []) is not None
        assert driver.add([], []) is None


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.sampled_from(["pop", "push", "take"]), st.just(0), st.integers(0, 7)),
        st.just(("rebuild", 0, 0)),
    ),
    max_size=60,
)


@given(size=st.sampled_from([1, 2, 8, 64]), index=st.sampled_from([0, 65_530, 65_535]), actions=ACTIONS)
@settings(max_examples=200)
def test_any_interleaving_keeps_order_and_content(size: int, index: int, actions: list[tuple[str, int, int]]) -> None:
    """The model: three queues of buffers, added, popped and used, and a count of free descriptors."""
    with queue_of(size, index) as (memory, driver, device):
        added: deque[tuple[int, bytes, int]] = deque()
        popped: list[tuple[Chain, int]] = []
        used: deque[tuple[int, int, int]] = deque()
        free, serial = size, 0
        for action, first, second in actions:
            if action == "add":
                serial += 1
                content = serial.to_bytes(8, "little") * first
                place = DATA + serial % 64 * 0x100
                memory.write(place, content)
                readable = [Segment(place + 8 * part, 8) for part in range(first)]
                head = driver.add(readable, [Segment(place + 0x80 + 8 * part, 8) for part in range(second)])
                fits = 0 < first + second <= free
                assert (head is not None) == fits
                if head is not None:
                    free -= first + second
                    added.append((head, content, first + second))
            elif action == "pop":
                chain = device.pop()
                assert (chain is not None) == bool(added)
                if chain is not None:
                    head, content, descriptors = added.popleft()
                    assert (chain.head, device.read(chain)) == (head, content)
                    assert chain.writable_bytes == 8 * (descriptors - len(chain.readable))
                    popped.append((chain, descriptors))
            elif action == "push" and popped:
                chain, descriptors = popped.pop(second % len(popped))  # devices may finish in any order
                device.push(chain, chain.writable_bytes)
                used.append((chain.head, chain.writable_bytes, descriptors))
            elif action == "take":
                taken = driver.take_used()
                assert taken == (used[0][:2] if used else None)
                if used:
                    free += used.popleft()[2]
            elif action == "rebuild":  # both sides in a new process, from RAM and two registers
                device = DeviceQueue(memory, device.addresses, device.available_index, device.used_index)
                driver = DriverQueue(memory, driver.addresses, driver.state)
            assert driver.free == free


def test_indices_wrap_around_at_65536() -> None:
    with queue_of(2, 65_000) as (memory, driver, device):
        for number in range(541):
            memory.write(DATA, number.to_bytes(4, "little"))
            head = driver.add([Segment(DATA, 4)], [])
            chain = device.pop()
            assert chain is not None
            assert device.read(chain) == number.to_bytes(4, "little")
            device.push(chain, 0)
            assert driver.take_used() == (head, 0)
        assert (device.available_index, device.used_index) == (5, 5)


def _available(memory: GuestMemory, where: QueueAddresses, head: int, index: int = 1) -> None:
    memory.write(where.available, struct.pack("<HHH", 0, index, head))


def _descriptor(memory: GuestMemory, where: QueueAddresses, number: int, raw: tuple[int, int, int, int]) -> None:
    memory.write(where.descriptors + 16 * number, DESCRIPTOR.pack(*raw))


Spoil = Callable[[GuestMemory, QueueAddresses], None]
BROKEN: dict[str, tuple[Spoil, str]] = {
    "too many": (lambda m, w: _available(m, w, 0, index=9), "9 buffers are available in a queue of 8"),
    "head": (lambda m, w: _available(m, w, 8), "descriptor 8 of a queue of 8"),
    "link": (lambda m, w: _descriptor(m, w, 0, (DATA, 1, DESC_F_NEXT, 77)), "descriptor 77 of a queue of 8"),
    "loop": (lambda m, w: _descriptor(m, w, 0, (DATA, 1, DESC_F_NEXT, 0)), "the chain from descriptor 0 is a loop"),
    "indirect": (lambda m, w: _descriptor(m, w, 0, (DATA, 16, DESC_F_INDIRECT, 0)), "indirect, which was not"),
    "order": (
        lambda m, w: m.write(
            w.descriptors,
            DESCRIPTOR.pack(DATA, 1, DESC_F_NEXT | DESC_F_WRITE, 1) + DESCRIPTOR.pack(DATA, 1, 0, 0),
        ),
        "descriptor 1 is readable after a writable one",
    ),
}


@pytest.mark.parametrize(("spoil", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_ring_that_no_device_can_follow_is_broken(spoil: Spoil, problem: str) -> None:
    with queue_of(8) as (memory, _, device):
        _available(memory, device.addresses, 0)
        spoil(memory, device.addresses)
        with pytest.raises(QueueBroken, match=problem):
            device.pop()
        assert device.available_index == 0


def take_and_give_back(device: DeviceQueue) -> None:
    chain = device.pop()
    assert chain is not None
    device.push(chain, 0)


@pytest.mark.parametrize("area", ["descriptors", "available", "used"])
def test_a_ring_outside_ram_is_broken(area: str) -> None:
    with queue_of(8) as (memory, driver, device):
        driver.add([Segment(DATA, 1)], [])
        where = QueueAddresses(
            **{
                "size": 8,
                "descriptors": device.addresses.descriptors,
                "available": device.addresses.available,
                "used": device.addresses.used,
                area: RAM,
            }
        )
        moved = DeviceQueue(memory, where)
        with pytest.raises(QueueBroken, match="not RAM"):
            take_and_give_back(moved)


def test_a_buffer_outside_ram_is_broken_when_it_is_used() -> None:
    with queue_of(8) as (_, driver, device):
        driver.add([Segment(RAM, 4)], [Segment(RAM - 2, 4)])
        chain = device.pop()
        assert chain is not None
        with pytest.raises(QueueBroken, match="not RAM"):
            device.read(chain)
        with pytest.raises(QueueBroken, match="not RAM"):
            device.write(chain, b"abcd")


def test_a_driver_may_ask_for_no_interrupts() -> None:
    with queue_of(8) as (memory, _, device):
        assert device.wants_interrupt()
        memory.write(device.addresses.available, b"\1\0")
        assert not device.wants_interrupt()
