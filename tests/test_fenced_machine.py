"""A machine whose disks belong to another session is stopped, whatever it is doing, and its guest is not told."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
import pytest

from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.nvme.layout import Register
from sim_vmm.devices.pci import mmio_base
from sim_vmm.drivers import driver_area, driver_vector
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.fence import Fence, FencedOff
from sim_vmm.guest import LedgerGuest
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec.components import Component
from sim_vmm.spec.components import NvmeDisk as NvmeComponent
from sim_vmm.storage import Storage
from tests.ledgers import BLOCKS, NVME, VIRTIO
from tests.machines import make_spec
from tests.other_process import title

UNCACHED: Final[Mapping[str, Component]] = {
    key: attrs.evolve(component, has_write_cache=False) if isinstance(component, NvmeComponent) else component
    for key, component in NVME.items()
}
DISKS: Final = {"virtio": VIRTIO, "nvme": NVME, "nvme without a cache": UNCACHED}
AREA: Final = driver_area(0)
DISK_BYTES: Final = BLOCKS * 512


@attrs.frozen
class Fenced:
    """A running machine that holds the title, and the fence of the next session."""

    machine: Machine
    next_session: Fence
    disk: Path

    def lose_the_disks(self) -> None:
        self.next_session.take(title(1), title(2, "there"))

    @property
    def is_virtio(self) -> bool:
        return not isinstance(self.machine.devices["data"], Nvme)

    def probe(self) -> None:
        driver = VirtioBlkDriver if self.is_virtio else NvmeDriver
        driver(self.machine, AREA).probe(self.machine.pci_paths["data"], vector=driver_vector(0))

    def submit(self, content: bytes, block: int = 0, *, flush: bool = False) -> None:
        """The guest writes one block or flushes, and rings the doorbell."""
        if self.is_virtio:
            driver = VirtioBlkDriver(self.machine, AREA)
            assert driver.submit_flush() if flush else driver.submit_write(block, content * 512)
            return
        nvme = NvmeDriver(self.machine, AREA)
        self.machine.memory.write(nvme.data.start, content * nvme.block_size)
        assert (nvme.submit_flush() if flush else nvme.submit_write(block, 1, nvme.data.start)) is not None

    def answers(self) -> int:
        """How many requests the guest has had an answer to since it last looked."""
        if self.is_virtio:
            return len(VirtioBlkDriver(self.machine, AREA).poll())
        return len(NvmeDriver(self.machine, AREA).completions())

    def ring_late(self) -> None:
        """What the guest submits from now on waits for a poll."""
        device = self.machine.devices["data"]
        if isinstance(device, Nvme):
            device.commands_per_turn = 0

    def poll(self) -> None:
        device = self.machine.devices["data"]
        if isinstance(device, Nvme):
            device.commands_per_turn = 8
        self.machine.poll()


@pytest.fixture(params=DISKS)
def fenced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fenced]:
    fence, next_session = Fence(tmp_path), Fence(tmp_path)
    fence.take(None, title(1))
    machine = Machine.create(
        make_spec(DISKS[request.param]),
        host_clock=ManualClock(monotonic=10**9, wall=1_700_000_000 * 10**9),
        counters=InjectionCounters(),
        storage=Storage(tmp_path, {"disk": DISK_BYTES}, fence),
    )
    with machine:
        yield Fenced(machine, next_session, tmp_path / "disk.disk")
    next_session.close()


def stops(fenced: Fenced, before: bytes) -> None:
    """The machine can end, and no byte has reached the disk, not even while it ends."""
    fenced.machine.fail("fenced off")
    fenced.machine.close()
    assert fenced.disk.read_bytes() == before


def test_a_machine_that_holds_the_title_uses_its_disk(fenced: Fenced) -> None:
    fenced.machine.start()
    fenced.probe()
    fenced.submit(b"x")
    fenced.submit(b"", flush=True)
    assert fenced.answers() == 2
    assert fenced.disk.read_bytes().startswith(b"x" * 512)


@pytest.mark.parametrize("flush", [False, True], ids=["write", "flush"])
def test_a_doorbell_stops_the_machine(fenced: Fenced, flush: bool) -> None:
    fenced.machine.start()
    fenced.probe()
    before = fenced.disk.read_bytes()
    fenced.lose_the_disks()
    with pytest.raises(FencedOff):
        fenced.submit(b"x", flush=flush)
    assert fenced.answers() == 0
    stops(fenced, before)


def test_a_poll_stops_the_machine(fenced: Fenced) -> None:
    fenced.machine.start()
    fenced.probe()
    before = fenced.disk.read_bytes()
    if fenced.is_virtio:
        VirtioBlkDriver(fenced.machine, AREA).submit_write(0, b"x" * 512, notify=False)
    else:
        fenced.ring_late()
        fenced.submit(b"x")
    fenced.lose_the_disks()
    with pytest.raises(FencedOff):
        fenced.poll()
    assert fenced.answers() == 0
    stops(fenced, before)


@pytest.mark.parametrize("fenced", ["nvme"], indirect=True)
def test_a_pause_that_cannot_write_the_cache_back_stops_the_machine(fenced: Fenced) -> None:
    fenced.machine.start()
    fenced.probe()
    fenced.submit(b"x")
    fenced.submit(b"y", block=1)
    assert fenced.answers() == 2
    before = fenced.disk.read_bytes()
    assert b"y" not in before
    fenced.lose_the_disks()
    with pytest.raises(FencedOff):
        fenced.machine.pause()
    assert fenced.machine.state is MachineState.PAUSED
    stops(fenced, before)


@pytest.mark.parametrize("fenced", ["nvme"], indirect=True)
def test_a_shutdown_that_cannot_write_the_cache_back_stops_the_machine(fenced: Fenced) -> None:
    fenced.machine.start()
    fenced.probe()
    fenced.submit(b"x")
    fenced.submit(b"y", block=1)
    before = fenced.disk.read_bytes()
    fenced.lose_the_disks()
    registers = mmio_base(fenced.machine.pci_paths["data"])
    configured = fenced.machine.bus.read(registers + Register.CC, 4)
    with pytest.raises(FencedOff):
        fenced.machine.bus.write(registers + Register.CC, 4, configured | 1 << 14)
    stops(fenced, before)


@pytest.mark.parametrize("fenced", ["virtio", "nvme without a cache"], indirect=True)
def test_a_pause_without_io_is_none_of_the_fences_business(fenced: Fenced) -> None:
    fenced.machine.start()
    fenced.probe()
    fenced.submit(b"x")
    fenced.lose_the_disks()
    fenced.machine.pause()
    assert fenced.machine.export_devices()


def test_a_step_of_the_guest_stops_the_machine(fenced: Fenced) -> None:
    guest = LedgerGuest()
    guest.boot(fenced.machine)
    fenced.machine.start()
    for _ in range(20):
        guest.step(fenced.machine)
        fenced.machine.poll()
    before = fenced.disk.read_bytes()
    fenced.lose_the_disks()
    with pytest.raises(FencedOff):  # noqa: PT012  # which of the two does I/O is the guest's choice
        for _ in range(20):
            guest.step(fenced.machine)
            fenced.machine.poll()
    stops(fenced, before)
