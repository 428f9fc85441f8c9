"""The registers of a virtio device as a driver finds them: status, negotiation, queues, vectors, interrupt causes."""

from collections.abc import Iterator

import pytest

from sim_vmm.bus import config_address
from sim_vmm.devices.pci_config import DEVICE_ID, SUBSYSTEM_ID, VENDOR_ID
from sim_vmm.devices.virtio import (
    FEATURE_VERSION_1,
    MODE_MODERN,
    MODE_TRANSITIONAL,
    NO_VECTOR,
    STATUS_ACK,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    STATUS_READY,
    legacy,
    modern,
)
from sim_vmm.devices.virtio_disk import FEATURE_BLOCK_SIZE, FEATURE_FLUSH, FEATURE_READ_ONLY, VirtioDisk
from sim_vmm.drivers import driver_area
from sim_vmm.drivers.pci import PciSlot
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.spec import PciPath
from sim_vmm.storage import VolatileDisk
from tests.bench import MIB, Bench

PATH = PciPath(0, 16, 0)
OFFERED = FEATURE_VERSION_1 | FEATURE_BLOCK_SIZE | FEATURE_FLUSH
VECTOR = 0x40
RINGS = 0x10_0000


def new_bench(*, legacy_only: bool = False) -> Bench:
    disk = VolatileDisk(size=1 << 20, readonly=False, block_size=512)
    return Bench(VirtioDisk("disk", PATH, disk, legacy_only=legacy_only))


@pytest.fixture
def bench() -> Iterator[Bench]:
    """BARs placed and decoding, MSI-X on with two vectors; nobody has touched the virtio registers."""
    with new_bench() as made:
        PciSlot(made.bus, PATH).set_up(VECTOR, 2)
        yield made


def disk_of(bench: Bench) -> VirtioDisk:
    disk = bench.devices[0]
    assert isinstance(disk, VirtioDisk)
    return disk


class Common:
    """The common configuration structure."""

    def __init__(self, bench: Bench) -> None:
        self._bus = bench.bus
        self._base = PciSlot(bench.bus, PATH).bar(modern.MODERN_BAR)

    def read(self, register: int, size: int) -> int:
        return self._bus.read(self._base + register, size)

    def write(self, register: int, size: int, value: int) -> None:
        self._bus.write(self._base + register, size, value)

    @property
    def status(self) -> int:
        return self.read(modern.DEVICE_STATUS, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write(modern.DEVICE_STATUS, 1, value)

    def accept(self, features: int) -> None:
        for window in (0, 1):
            self.write(modern.DRIVER_FEATURE_SELECT, 4, window)
            self.write(modern.DRIVER_FEATURE, 4, features >> 32 * window & 0xFFFF_FFFF)

    @property
    def accepted(self) -> int:
        value = 0
        for window in (0, 1):
            self.write(modern.DRIVER_FEATURE_SELECT, 4, window)
            value |= self.read(modern.DRIVER_FEATURE, 4) << 32 * window
        return value


@pytest.fixture
def common(bench: Bench) -> Common:
    return Common(bench)


# Finding the device


def test_a_disk_is_found_as_a_transitional_virtio_block_device(bench: Bench) -> None:
    config = config_address(PATH)
    found = [bench.bus.read(config + register, 2) for register in (VENDOR_ID, DEVICE_ID, SUBSYSTEM_ID)]
    assert found == [0x1AF4, 0x1001, 2]
    assert set(PciSlot(bench.bus, PATH).vendor_capabilities()) == {1, 2, 3, 4}


def test_a_disk_that_was_born_legacy_has_no_modern_registers() -> None:
    with new_bench(legacy_only=True) as bench:
        slot = PciSlot(bench.bus, PATH)
        slot.set_up(None, 0)
        assert slot.vendor_capabilities() == {}
        assert slot.bar(modern.MODERN_BAR) == 0
        assert bench.bus.port_read(slot.bar(legacy.PORT_BAR) + legacy.HOST_FEATURES, 4) == OFFERED & 0xFFFF_FFFF


def test_the_parts_of_the_modern_interface_do_not_overlap_and_fit_the_bar() -> None:
    regions = sorted((modern.COMMON, modern.ISR, modern.DEVICE, modern.NOTIFY))
    assert regions == [0, 0x1000, 0x2000, 0x3000]


# Features and status


def test_offered_features_are_seen_through_a_window(common: Common) -> None:
    seen = []
    for window in (0, 1, 2, 0xFFFF_FFFF):
        common.write(modern.DEVICE_FEATURE_SELECT, 4, window)
        assert common.read(modern.DEVICE_FEATURE_SELECT, 4) == window
        seen.append(common.read(modern.DEVICE_FEATURE, 4))
    assert seen == [OFFERED & 0xFFFF_FFFF, 1, 0, 0]


def test_features_that_are_not_offered_are_not_accepted(common: Common) -> None:
    common.accept(FEATURE_VERSION_1 | FEATURE_FLUSH | FEATURE_READ_ONLY)
    assert common.accepted == FEATURE_VERSION_1 | FEATURE_FLUSH


def test_a_modern_driver_without_version_1_is_refused(common: Common) -> None:
    common.status = STATUS_ACK | STATUS_DRIVER
    common.accept(FEATURE_FLUSH)
    common.status = STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES_OK
    assert common.status == STATUS_ACK | STATUS_DRIVER
    common.status = STATUS_READY & ~STATUS_FEATURES_OK
    assert common.status == STATUS_ACK | STATUS_DRIVER


def test_features_are_settled_by_features_ok(bench: Bench, common: Common) -> None:
    common.accept(OFFERED)
    common.status = STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES_OK
    common.accept(FEATURE_VERSION_1)
    assert common.accepted == OFFERED
    assert disk_of(bench).virtio.state.mode == MODE_MODERN


def test_status_bits_are_added_only_until_a_reset(bench: Bench, common: Common) -> None:
    common.accept(OFFERED)
    common.status = STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES_OK
    common.status = STATUS_DRIVER_OK
    assert common.status == STATUS_READY
    common.status = 0x30 | STATUS_NEEDS_RESET  # neither is the driver's to set
    assert common.status == STATUS_READY
    common.status = 0
    assert common.status == 0
    assert common.accepted == 0
    assert disk_of(bench).virtio.state.mode == MODE_TRANSITIONAL


def test_a_register_is_accessed_in_its_own_width(common: Common) -> None:
    common.write(modern.QUEUE_SELECT, 4, 7)
    assert common.read(modern.QUEUE_SELECT, 2) == 0
    assert common.read(modern.QUEUE_SIZE, 1) == 0
    assert common.read(modern.COMMON_BYTES, 4) == 0


# Queues


def test_queues_are_set_up_by_the_driver(bench: Bench, common: Common) -> None:
    assert common.read(modern.QUEUE_COUNT, 2) == 1
    assert [common.read(register, 2) for register in (modern.QUEUE_SIZE, modern.QUEUE_ENABLE)] == [256, 0]
    for size, kept in ((100, 256), (0, 256), (512, 256), (64, 64), (128, 128)):
        common.write(modern.QUEUE_SIZE, 2, size)
        assert common.read(modern.QUEUE_SIZE, 2) == kept
    common.write(modern.QUEUE_DESCRIPTORS, 4, RINGS)
    common.write(modern.QUEUE_DESCRIPTORS + 4, 4, 1)
    common.write(modern.QUEUE_USED, 8, RINGS + 0x3000)
    assert common.read(modern.QUEUE_DESCRIPTORS, 8) == 1 << 32 | RINGS
    assert common.read(modern.QUEUE_DESCRIPTORS + 4, 4) == 1
    common.write(modern.QUEUE_ENABLE, 2, 1)
    common.write(modern.QUEUE_DESCRIPTORS, 8, 0)
    common.write(modern.QUEUE_SIZE, 2, 32)
    common.write(modern.QUEUE_ENABLE, 2, 0)
    (queue,) = disk_of(bench).virtio.queues
    assert (queue.size, queue.descr_gpa, queue.used_gpa) == (128, 1 << 32 | RINGS, RINGS + 0x3000)
    assert (queue.enabled, queue.mapping_valid, queue.live) == (True, True, False)


def test_a_queue_that_there_is_not_reads_as_nothing(bench: Bench, common: Common) -> None:
    common.write(modern.QUEUE_SELECT, 2, 1)
    before = disk_of(bench).virtio.export()
    assert common.read(modern.QUEUE_SIZE, 2) == 0
    assert common.read(modern.QUEUE_VECTOR, 2) == NO_VECTOR
    assert common.read(modern.QUEUE_DESCRIPTORS, 8) == 0
    for register, size in ((modern.QUEUE_SIZE, 2), (modern.QUEUE_ENABLE, 2), (modern.QUEUE_VECTOR, 2)):
        common.write(register, size, 1)
    common.write(modern.QUEUE_USED, 8, RINGS)
    assert disk_of(bench).virtio.export() == before


def test_a_vector_that_there_is_not_becomes_none(common: Common) -> None:
    for register in (modern.CONFIG_VECTOR, modern.QUEUE_VECTOR):
        common.write(register, 2, 1)
        assert common.read(register, 2) == 1
        common.write(register, 2, 2)
        assert common.read(register, 2) == NO_VECTOR


def test_a_queue_is_live_from_driver_ok_to_reset(bench: Bench) -> None:
    driver = VirtioBlkDriver(bench, driver_area(0))
    driver.probe(PATH, vector=VECTOR)
    disk = disk_of(bench)
    assert disk.virtio.is_live(0)
    Common(bench).status = 0
    assert not disk.virtio.is_live(0)
    assert disk.virtio.queues[0].size == 256
    driver.submit_flush()
    assert driver.poll() == []


def test_a_legacy_driver_that_takes_the_page_away_stops_the_queue(bench: Bench) -> None:
    driver = VirtioBlkDriver(bench, driver_area(0))
    driver.probe(PATH, vector=VECTOR, legacy=True)
    ports = PciSlot(bench.bus, PATH).bar(legacy.PORT_BAR)
    assert bench.bus.port_read(ports + legacy.QUEUE_PFN, 4) == (driver_area(0) + 0x1000) >> 12
    bench.bus.port_write(ports + legacy.QUEUE_PFN, 4, 0)
    assert not disk_of(bench).virtio.is_live(0)
    assert bench.bus.port_read(ports + legacy.QUEUE_PFN, 4) == 0


def test_a_legacy_driver_can_move_a_queue(bench: Bench) -> None:
    driver = VirtioBlkDriver(bench, driver_area(0))
    driver.probe(PATH, vector=VECTOR, legacy=True)
    ports = PciSlot(bench.bus, PATH).bar(legacy.PORT_BAR)
    bench.bus.port_write(ports + legacy.QUEUE_PFN, 4, 0x300)
    driver.submit_flush()  # into the old ring, where nobody looks
    assert driver.poll() == []


# Interrupts


def test_a_change_of_the_configuration_makes_a_new_generation_once_it_was_seen(bench: Bench, common: Common) -> None:
    disk = disk_of(bench)
    common.write(modern.CONFIG_VECTOR, 2, 0)
    first = common.read(modern.CONFIG_GENERATION, 1)
    disk.virtio.change_config()
    disk.virtio.change_config()
    assert common.read(modern.CONFIG_GENERATION, 1) == first + 1
    assert bench.vcpus[0].pending() == [VECTOR]
    for _ in range(256):
        disk.virtio.change_config()
        common.read(modern.CONFIG_GENERATION, 1)
    assert common.read(modern.CONFIG_GENERATION, 1) == first + 1


@pytest.mark.parametrize("way", ["modern", "legacy"])
def test_reading_the_causes_clears_them_and_lowers_the_pin(way: str) -> None:
    with new_bench() as bench:
        slot = PciSlot(bench.bus, PATH)
        slot.set_up(None, 0)
        disk_of(bench).virtio.change_config()
        assert bench.interrupts.lines == {"disk": True}
        if way == "modern":
            causes = [bench.bus.read(slot.bar(modern.MODERN_BAR) + modern.ISR, 1) for _ in range(2)]
        else:
            causes = [bench.bus.port_read(slot.bar(legacy.PORT_BAR) + legacy.ISR, 1) for _ in range(2)]
        assert causes == [2, 0]
        assert bench.interrupts.lines == {"disk": False}


def test_an_interrupt_that_came_while_it_was_masked_comes_on_unmasking_here_or_there(bench: Bench) -> None:
    driver = VirtioBlkDriver(bench, driver_area(0))
    driver.probe(PATH, vector=VECTOR)
    driver.pci.mask_queues(PATH, masked=True)
    driver.submit_flush(1)
    assert driver.poll() == []
    with new_bench() as there:
        bench.move_to(there)
        for place in (bench, there):
            driver = VirtioBlkDriver(place, driver_area(0))
            assert driver.poll() == []
            driver.pci.mask_queues(PATH, masked=False)
            assert [done.token for done in driver.poll()] == [1]


def test_a_taken_back_interrupt_enable_is_respected(bench: Bench) -> None:
    driver = VirtioBlkDriver(bench, driver_area(0))
    driver.probe(PATH, vector=VECTOR)
    bench.memory.write(driver.pci.queue(0).addresses.available, b"\1\0")
    driver.submit_flush(1)
    assert bench.vcpus[0].pending() == []
    assert [done.token for done in driver.completions()] == [1]


def test_the_devices_own_configuration_is_the_same_over_both_interfaces(bench: Bench) -> None:
    slot = PciSlot(bench.bus, PATH)
    sectors = bench.bus.read(slot.bar(modern.MODERN_BAR) + modern.DEVICE, 8)
    ports = slot.bar(legacy.PORT_BAR)
    assert sectors == 2048
    assert bench.bus.port_read(ports + 24, 4) == sectors
    slot.set_up(None, 0)
    assert bench.bus.port_read(ports + 20, 4) == sectors


def test_ports_are_shared_out_among_all_buses() -> None:
    disks = [
        VirtioDisk(f"disk-{bus}", PciPath(bus, 16, 0), VolatileDisk(size=MIB, readonly=False, block_size=512))
        for bus in (0, 1, 255)
    ]
    with Bench(*disks) as bench:
        for index, disk in enumerate(disks):
            VirtioBlkDriver(bench, driver_area(index)).probe(disk.pci.path, legacy=True)
        ports = [disk.pci.answers()[legacy.PORT_BAR] for disk in disks]
        assert ports == [range(0x1000, 0x1200), range(0x1200, 0x1400), range(0x1400, 0x1600)]
