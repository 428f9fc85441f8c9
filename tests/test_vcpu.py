"""Processors: interrupts wait to be taken, wherever the machine is by then."""

import pytest

from sim_vmm.devices.errors import ImportFailed
from sim_vmm.devices.vcpu import PIN_VECTOR, InterruptController, Vcpu
from tests.devices import export, replaced


def test_interrupts_are_taken_highest_first_and_once() -> None:
    vcpu = Vcpu(0)
    for vector in (0x31, 0xFF, 0x31, 0x40):
        vcpu.request(vector)
    assert vcpu.pending() == [0xFF, 0x40, 0x31]
    assert [vcpu.take_interrupt() for _ in range(4)] == [0xFF, 0x40, 0x31, None]


def test_vectors_that_no_apic_takes_are_lost() -> None:
    vcpu = Vcpu(0)
    for vector in (0, 0xF, 0x100):
        vcpu.request(vector)
    assert vcpu.pending() == []


def test_a_handler_can_take_its_own_vector() -> None:
    vcpu = Vcpu(0)
    vcpu.request(0x31)
    vcpu.request(0x32)
    assert vcpu.take(0x31)
    assert not vcpu.take(0x31)
    assert vcpu.pending() == [0x32]


@pytest.mark.parametrize("cpu", [0, 1, 2])
def test_a_message_goes_to_the_processor_that_it_names(cpu: int) -> None:
    controller = InterruptController(3)
    controller.message(0xFEE0_0000 | cpu << 12, 0x4051)
    assert [vcpu.pending() for vcpu in controller.vcpus] == [[0x51] if number == cpu else [] for number in range(3)]


@pytest.mark.parametrize("address", [0xFEE0_3000, 0xFED0_0000, 0, 1 << 40 | 0xFEE0_0000])
def test_a_message_to_nobody_is_lost(address: int) -> None:
    controller = InterruptController(3)
    controller.message(address, 0x51)
    assert [vcpu.pending() for vcpu in controller.vcpus] == [[], [], []]


def test_a_pin_is_pending_as_long_as_any_device_holds_it() -> None:
    controller = InterruptController(2)
    controller.set_line("disk", True)
    controller.set_line("nic", True)
    assert controller.vcpus[0].take_interrupt() == PIN_VECTOR
    controller.set_line("disk", False)
    assert controller.vcpus[0].pending() == [PIN_VECTOR]
    controller.set_line("nic", False)
    assert controller.vcpus[0].pending() == []
    assert controller.vcpus[1].pending() == []


def test_registers_and_pending_interrupts_travel_and_lines_do_not() -> None:
    source = InterruptController(1)
    source.set_line("disk", True)
    source.vcpus[0].request(0x31)
    source.vcpus[0].request(0xFE)
    source.vcpus[0].registers["r12"] = 2**64 - 1
    target = InterruptController(1)
    target.vcpus[0].request(0x99)
    target.vcpus[0].import_(export(source.vcpus[0]))
    assert target.vcpus[0].registers["r12"] == 2**64 - 1
    assert target.vcpus[0].pending() == [0xFE, 0x31]


def test_a_processor_that_does_not_rebuild_its_requests_loses_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Vcpu(0), Vcpu(0)
    source.request(0x31)
    monkeypatch.setattr(Vcpu, "_derive", lambda _self: None)
    target.import_(export(source))
    assert target.take_interrupt() is None


REFUSED = [
    ("page.irr", (0,) * 7, "7 words; 256 vectors take 8"),
    ("page.irr[0]", 1, "there are no vectors below 16"),
    ("page.isr[3]", 1, "an interrupt is in service"),
    ("page.id", 1, "this processor's APIC has id 0"),
]


@pytest.mark.parametrize(("field", "value", "problem"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_state_that_no_processor_is_paused_in_is_refused(field: str, value: object, problem: str) -> None:
    run_state, registers, lapic = export(Vcpu(0))
    with pytest.raises(ImportFailed, match=problem):
        Vcpu(0).import_([run_state, registers, replaced(lapic, field, value)])
