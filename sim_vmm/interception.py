"""Somebody who is told when the state of a machine's devices is about to leave it, or to come, and may object."""

from collections.abc import Callable, Iterable, Iterator

from sim_vmm.machine import Choose, DeviceState, Machine, newest


def intercept(machine: Machine, exporting: Callable[[], None], importing: Callable[[], None]) -> None:
    """Call these before every export and import of this one machine; what they raise, it raises.

    A pre-flight is a rehearsal in which no fault is injected: nobody is told of it.
    """
    export, import_ = machine.exports, machine.import_devices

    def exports(choose: Choose = newest) -> Iterator[DeviceState]:
        exporting()
        return export(choose)

    def import_devices(states: Iterable[DeviceState]) -> None:
        importing()
        import_(states)

    machine.exports = exports  # type: ignore[method-assign]  # of this one machine only
    machine.import_devices = import_devices  # type: ignore[method-assign]
