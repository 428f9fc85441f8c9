"""The guest's serial driver: polled transmission, eight bits, no parity."""

from typing import Final

import attrs

from sim_vmm.bus import Bus
from sim_vmm.devices.uart import (
    ENABLE_RECEIVED,
    LINE_8N1,
    MODEM_DTR_RTS_OUT2,
    REGISTER_DATA,
    REGISTER_INTERRUPT_ENABLE,
    REGISTER_LINE_CONTROL,
    REGISTER_LINE_STATUS,
    REGISTER_MODEM_CONTROL,
    STATUS_DATA_READY,
    STATUS_TRANSMITTER_READY,
)
from sim_vmm.drivers import DriverFailed

COM1: Final = 0x3F8


@attrs.frozen
class UartDriver:
    """The port whose registers begin at `ports`."""

    bus: Bus
    ports: int = COM1

    def probe(self) -> None:
        """Set the line up, and let received bytes interrupt."""
        self._write(REGISTER_LINE_CONTROL, LINE_8N1)
        self._write(REGISTER_MODEM_CONTROL, MODEM_DTR_RTS_OUT2)
        self._write(REGISTER_INTERRUPT_ENABLE, ENABLE_RECEIVED)

    def write(self, data: bytes) -> None:
        """Transmit `data`, each byte as soon as the transmitter is ready; DriverFailed if it is not."""
        for byte in data:
            if not self._read(REGISTER_LINE_STATUS) & STATUS_TRANSMITTER_READY:
                raise DriverFailed("the serial port does not get ready to transmit")
            self._write(REGISTER_DATA, byte)

    def receive(self) -> int | None:
        """The byte that has come in, if any."""
        return self._read(REGISTER_DATA) if self._read(REGISTER_LINE_STATUS) & STATUS_DATA_READY else None

    def _read(self, register: int) -> int:
        return self.bus.port_read(self.ports + register, 1)

    def _write(self, register: int, value: int) -> None:
        self.bus.port_write(self.ports + register, 1, value)
