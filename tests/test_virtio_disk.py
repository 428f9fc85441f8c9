"""The virtio disk, driven by the guest's driver: what it answers, and that requests in flight survive a move."""

from collections.abc import Iterator

import pytest

from sim_vmm.devices.blob import BlobBackend
from sim_vmm.devices.errors import ImportFailed
from sim_vmm.devices.pci import PciFunction
from sim_vmm.devices.virtio import VirtioTransport
from sim_vmm.devices.virtio_disk import (
    REQUEST_HEADER,
    REQUESTS_AT_ONCE,
    STATUS_IO_ERROR,
    STATUS_OK,
    STATUS_UNSUPPORTED,
    TYPE_FLUSH,
    TYPE_GET_ID,
    TYPE_IN,
    TYPE_OUT,
    VirtioDisk,
)
from sim_vmm.drivers import DriverFailed, driver_area
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.platform import BlockBackend
from sim_vmm.spec import PciPath
from sim_vmm.storage import VolatileDisk
from sim_vmm.virtqueue import Segment
from tests.bench import Bench

PATH = PciPath(0, 16, 0)
AREA = driver_area(0)
VECTOR = 0x40
SECTORS = 2048

#: The two ways to drive a disk, with and without MSI-X; a disk born on an old build has the legacy one only.
WAYS = {
    "modern": {"legacy": False, "vector": VECTOR},
    "modern, pin": {"legacy": False, "vector": None},
    "legacy": {"legacy": True, "vector": VECTOR},
    "legacy, pin": {"legacy": True, "vector": None},
}
each_way = pytest.mark.parametrize("way", WAYS)


def backend(*, readonly: bool = False, block_size: int = 512) -> VolatileDisk:
    return VolatileDisk(size=SECTORS * 512, readonly=readonly, block_size=block_size)


def bench_with(disk: BlockBackend, *, legacy_only: bool = False) -> Bench:
    return Bench(VirtioDisk("disk", PATH, disk, legacy_only=legacy_only))


def disk_of(bench: Bench) -> VirtioDisk:
    disk = bench.devices[0]
    assert isinstance(disk, VirtioDisk)
    return disk


def probed(bench: Bench, way: str = "modern") -> VirtioBlkDriver:
    driver = VirtioBlkDriver(bench, AREA)
    driver.probe(PATH, **WAYS[way])  # type: ignore[arg-type]  # the table holds both keywords
    return driver


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_with(backend()) as made:
        yield made


@each_way
def test_what_was_written_is_read_again(bench: Bench, way: str) -> None:
    driver = probed(bench, way)
    assert (driver.sectors, driver.block_size, driver.is_read_only) == (SECTORS, 512, False)
    assert driver.pci.is_modern == way.startswith("modern")
    assert driver.submit_write(3, b"w" * 1024, token=1)
    assert driver.submit_read(4, 512, token=2)
    write, read = driver.poll()
    assert (write.kind, write.token, write.status) == (TYPE_OUT, 1, STATUS_OK)
    assert (read.kind, read.token, read.status, read.data) == (TYPE_IN, 2, STATUS_OK, b"w" * 512)
    assert disk_of(bench).backend.read(3 * 512, 1024) == b"w" * 1024


@each_way
def test_an_interrupt_comes_once_and_is_gone_when_it_is_taken(bench: Bench, way: str) -> None:
    driver = probed(bench, way)
    assert not driver.poll()
    driver.submit_flush(7)
    assert bench.vcpus[0].pending() == [0x2B if "pin" in way else VECTOR + 1]
    assert [(done.kind, done.token) for done in driver.poll()] == [(TYPE_FLUSH, 7)]
    assert bench.vcpus[0].pending() == []
    assert not driver.poll()


ANSWERS: dict[str, tuple[int, int, int, int]] = {
    "a read of the last sector": (TYPE_IN, SECTORS - 1, 512, STATUS_OK),
    "a read beyond the end": (TYPE_IN, SECTORS, 512, STATUS_IO_ERROR),
    "a read over the end": (TYPE_IN, SECTORS - 1, 1024, STATUS_IO_ERROR),
    "a read far beyond": (TYPE_IN, 2**64 - 1, 512, STATUS_IO_ERROR),
    "a read of half a sector": (TYPE_IN, 0, 256, STATUS_IO_ERROR),
    "a write beyond the end": (TYPE_OUT, SECTORS, 512, STATUS_IO_ERROR),
    "a write of half a sector": (TYPE_OUT, 0, 256, STATUS_IO_ERROR),
    "an unknown request": (11, 0, 0, STATUS_UNSUPPORTED),
}


@pytest.mark.parametrize(("kind", "sector", "length", "status"), ANSWERS.values(), ids=ANSWERS)
def test_the_status_says_what_became_of_a_request(
    bench: Bench, kind: int, sector: int, length: int, status: int
) -> None:
    driver = probed(bench)
    match kind:
        case 0:
            driver.submit_read(sector, length)
        case 1:
            driver.submit_write(sector, b"x" * length)
        case _:
            driver.submit_other(kind)
    assert [done.status for done in driver.poll()] == [status]
    assert not driver.pci.needs_reset


def test_the_id_of_a_disk_is_the_beginning_of_its_key() -> None:
    with Bench(VirtioDisk("a-disk-with-a-name-of-many-letters", PATH, backend())) as bench:
        driver = probed(bench)
        driver.submit_get_id(5)
        (done,) = driver.poll()
        assert (done.kind, done.status, done.data) == (TYPE_GET_ID, STATUS_OK, b"a-disk-with-a-name-o")


def test_a_read_only_disk_says_so_and_is_not_written() -> None:
    disk = BlobBackend("blob", b"b" * 1024, readonly=True)
    with bench_with(disk) as bench:
        driver = probed(bench)
        assert driver.is_read_only
        assert driver.sectors == 2
        driver.submit_write(0, b"x" * 512)
        driver.submit_read(0, 512)
        assert [(done.status, done.data[:1]) for done in driver.poll()] == [(STATUS_IO_ERROR, b""), (STATUS_OK, b"b")]


def test_requests_are_for_whole_blocks() -> None:
    with bench_with(backend(block_size=4096)) as bench:
        driver = probed(bench)
        assert driver.block_size == 4096
        driver.submit_read(8, 4096)
        driver.submit_read(1, 4096)
        driver.submit_read(8, 512)
        assert [done.status for done in driver.poll()] == [STATUS_OK, STATUS_IO_ERROR, STATUS_IO_ERROR]


class FailingDisk(VolatileDisk):
    def write(self, offset: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_a_backend_that_fails_is_an_io_error_for_the_guest() -> None:
    with bench_with(FailingDisk(size=1 << 20, readonly=False, block_size=512)) as bench:
        driver = probed(bench)
        driver.submit_write(0, b"x" * 512)
        assert [done.status for done in driver.poll()] == [STATUS_IO_ERROR]


def test_a_buffer_that_is_no_request_breaks_the_device_until_it_is_reset(bench: Bench) -> None:
    driver = probed(bench)
    where = driver.pci.buffers.start
    for readable, writable in ((8, 1), (REQUEST_HEADER.size, 0)):
        driver.pci.queue(0).add([Segment(where, readable)], [Segment(where + 0x60, 1)] if writable else [])
        driver.notify()
        assert driver.pci.needs_reset
        assert driver.pci.take_config_interrupt()
        assert not driver.submit_flush() or not driver.poll()
        driver = probed(bench)
        driver.submit_flush()
        assert [done.status for done in driver.poll()] == [STATUS_OK]


def test_a_data_buffer_outside_ram_breaks_the_device_and_is_not_given_back(bench: Bench) -> None:
    driver = probed(bench)
    where = driver.pci.buffers.start
    bench.memory.write(where + 0x40, REQUEST_HEADER.pack(TYPE_IN, 0, 0))
    driver.pci.queue(0).add([Segment(where + 0x40, 16)], [Segment(1 << 40, 512), Segment(where + 0x60, 1)])
    driver.notify()
    assert driver.pci.needs_reset
    assert driver.pci.queue(0).take_used() is None


def test_a_driver_that_finds_no_disk_says_so(bench: Bench) -> None:
    with pytest.raises(DriverFailed, match=r"there is no virtio device at 0\.17\.0"):
        VirtioBlkDriver(bench, AREA).probe(PciPath(0, 17, 0))


def test_a_disk_that_was_born_legacy_shows_nothing_else() -> None:
    with bench_with(backend(), legacy_only=True) as bench:
        driver = probed(bench, "modern")
        assert not driver.pci.is_modern
        driver.submit_write(0, b"x" * 512)
        assert [done.status for done in driver.poll()] == [STATUS_OK]
        payload = disk_of(bench).virtio.export()
        assert payload.device.mode == 0
        with bench_with(backend()) as other, pytest.raises(ImportFailed, match="born with the modern interface too"):
            bench.move_to(other)


# Requests in flight, and what a move carries


def test_a_notification_does_some_requests_and_a_poll_goes_on(bench: Bench) -> None:
    driver = probed(bench)
    for token in range(12):
        assert driver.submit_read(0, 512, token, notify=False)
    driver.notify()
    assert [done.token for done in driver.poll()] == list(range(REQUESTS_AT_ONCE))
    assert driver.outstanding == (8, 9, 10, 11)
    bench.poll()
    assert [done.token for done in driver.poll()] == [8, 9, 10, 11]


@each_way
def test_requests_in_flight_are_carried_and_done_once(bench: Bench, way: str) -> None:
    """Some are done before the move, some taken back by the driver only after it, some not begun."""
    driver = probed(bench, way)
    for sector in range(14):
        assert driver.submit_write(sector, bytes([sector + 1]) * 512, token=sector, notify=False)
    driver.notify()
    with bench_with(disk_of(bench).backend) as there:
        bench.move_to(there)
        assert there.export() == bench.export()
        driver = VirtioBlkDriver(there, AREA)
        done = [completion.token for completion in driver.poll()]
        assert done == list(range(REQUESTS_AT_ONCE))
        there.poll()
        done += [completion.token for completion in driver.poll()]
        assert done == list(range(14))
        written = disk_of(there).backend.read(0, 14 * 512)
        assert written == b"".join(bytes([sector + 1]) * 512 for sector in range(14))
        driver.submit_read(13, 512, token=99)
        assert [(completion.token, completion.data[:1]) for completion in driver.poll()] == [(99, b"\x0e")]


@each_way
def test_a_disk_moves_again_and_again_past_the_wrap_around_of_its_rings(bench: Bench, way: str) -> None:
    """Indices stand just below 65,536 to begin with: both sides and both rings."""
    driver = probed(bench, way)
    queue = driver.pci.queue(0)
    disk_of(bench).virtio.set_ring_indices(0, 65_530, 65_530)
    for area in (queue.addresses.available, queue.addresses.used):
        bench.memory.write(area + 2, (65_530).to_bytes(2, "little"))
    bench.memory.write(queue.state + 4, (65_530).to_bytes(2, "little"))
    here = bench
    for token in range(12):
        driver.submit_write(token, bytes([token]) * 512, token)
        there = bench_with(disk_of(here).backend)
        here.move_to(there)
        driver = VirtioBlkDriver(there, AREA)
        assert [(done.token, done.status) for done in driver.poll()] == [(token, STATUS_OK)]
        if here is not bench:
            here.memory.close()
        here = there
    assert disk_of(here).virtio.queues[0].used_idx == 6
    here.memory.close()


# What an import must rebuild: each of these fails if it is not


def moved_after_a_flush(bench: Bench, there: Bench, way: str) -> tuple[VirtioBlkDriver, list[int]]:
    """A move with an interrupt pending; the driver there, and the tokens of the requests that it finds completed."""
    driver = probed(bench, way)
    driver.submit_flush(1)
    bench.move_to(there)
    driver = VirtioBlkDriver(there, AREA)
    tokens = [done.token for done in driver.poll()]
    driver.submit_flush(2)
    return driver, tokens + [done.token for done in driver.poll()]


@each_way
def test_a_moved_disk_goes_on_as_if_nothing_had_happened(bench: Bench, way: str) -> None:
    with bench_with(backend()) as there:
        assert moved_after_a_flush(bench, there, way)[1] == [1, 2]


REBUILT: dict[str, tuple[type, str, str, list[int]]] = {
    "the device's side of the queues, and the hooks": (VirtioTransport, "_derive", "modern", [1]),
    "where the BARs answer": (PciFunction, "_derive", "modern", [1]),
    "the interrupt line (#727)": (VirtioTransport, "_set_pin", "modern, pin", []),
}


@pytest.mark.parametrize(("owner", "method", "way", "found"), REBUILT.values(), ids=REBUILT)
def test_a_disk_whose_derived_state_is_not_rebuilt_is_noticed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, way: str, found: list[int]
) -> None:
    """The mutation: the rebuilding is taken away while the state arrives.  An export shows nothing of it."""
    with bench_with(backend()) as there:
        driver = probed(bench, way)
        driver.submit_flush(1)
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, lambda _self: None)
            bench.move_to(there)
        assert there.export() == bench.export()
        driver = VirtioBlkDriver(there, AREA)
        tokens = [done.token for done in driver.poll()]
        if method != "_set_pin":
            driver.submit_flush(2)
            tokens += [done.token for done in driver.poll()]
        assert tokens == found
