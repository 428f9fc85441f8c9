"""A 16550 serial port, its FIFOs one byte deep (device-payloads §6).

What the guest transmits goes to `sink` at once, so the transmitter is always ready for more.

Derived, and rebuilt on import: the interrupt pin, from the enabled and pending causes.
"""

from collections.abc import Callable
from typing import ClassVar, Final

from sim_vmm.devices.base import Arrived, Device, InterruptPin, refusal
from sim_vmm.payloads import Payload, Schema, Uart16550V1
from sim_vmm.platform import Platform

FIFO_DEPTH: Final = 1

#: Registers by their distance from the first port.
REGISTER_DATA: Final = 0
REGISTER_INTERRUPT_ENABLE: Final = 1
REGISTER_INTERRUPT_CAUSE: Final = 2
REGISTER_LINE_CONTROL: Final = 3
REGISTER_MODEM_CONTROL: Final = 4
REGISTER_LINE_STATUS: Final = 5
REGISTER_MODEM_STATUS: Final = 6
REGISTER_SCRATCH: Final = 7

ENABLE_RECEIVED: Final = 1 << 0
ENABLE_TRANSMITTER_EMPTY: Final = 1 << 1
ENABLE_KNOWN: Final = 0x0F

STATUS_DATA_READY: Final = 1 << 0
STATUS_OVERRUN: Final = 1 << 1
STATUS_TRANSMITTER_READY: Final = 0x60

#: Interrupt identification: bit 0 set means none is pending.
NO_CAUSE: Final = 0x01
CAUSE_TRANSMITTER_EMPTY: Final = 0x02
CAUSE_RECEIVED: Final = 0x04

LINE_8N1: Final = 0x03
LINE_DIVISOR_LATCH: Final = 1 << 7
MODEM_DTR_RTS_OUT2: Final = 0x0B
MODEM_STATUS_CONNECTED: Final = 0xB0


class Uart(Device):
    kind: ClassVar[str] = "serial_port"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((Uart16550V1.SCHEMA,),)

    def __init__(self, key: str, sink: Callable[[bytes], None], ports: range = range(0x3F8, 0x400)) -> None:
        super().__init__(key)
        self.ports = (ports,)
        self.pin = InterruptPin()
        self._is_attached = False
        self._sink = sink
        self._intr_enable = 0
        self._line_ctrl = 0
        self._line_status = STATUS_TRANSMITTER_READY
        self._modem_ctrl = 0
        self._modem_status = MODEM_STATUS_CONNECTED
        self._scratch = 0
        self._divisor = (1, 0)  # 115200 baud: low byte, high byte
        self._thre_state = False
        self._rx_fifo = b""
        self._tx_fifo = b""

    def attach(self, platform: Platform) -> None:
        super().attach(platform)
        self._is_attached = True

    def port_read(self, port: int, size: int) -> int:
        """The guest reads the register at `port`; with the divisor latch open, the first two are the divisor."""
        register = port - self.ports[0].start
        if self._line_ctrl & LINE_DIVISOR_LATCH and register <= REGISTER_INTERRUPT_ENABLE:
            return self._divisor[register]
        match register:
            case 0:
                return self.read_received()
            case 1:
                return self._intr_enable
            case 2:
                return self.read_cause()
            case 3:
                return self._line_ctrl
            case 4:
                return self._modem_ctrl
            case 5:
                status = self._line_status
                self._line_status &= ~STATUS_OVERRUN
                return status
            case 6:
                return self._modem_status
            case _:
                return self._scratch

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest writes the register at `port`; the two status registers are not writable."""
        register, byte = port - self.ports[0].start, value & 0xFF
        if self._line_ctrl & LINE_DIVISOR_LATCH and register <= REGISTER_INTERRUPT_ENABLE:
            low, high = self._divisor
            self._divisor = (byte, high) if register == REGISTER_DATA else (low, byte)
            return
        match register:
            case 0:
                self.transmit(bytes([byte]))
            case 1:
                self.enable_interrupts(byte)
            case 3:
                self._line_ctrl = byte
            case 4:
                self._modem_ctrl = byte
            case 7:
                self._scratch = byte
            case _:
                pass

    def enable_interrupts(self, causes: int) -> None:
        """The guest writes the interrupt enable register; enabling "transmitter empty" raises that at once."""
        if causes & ENABLE_TRANSMITTER_EMPTY and not self._intr_enable & ENABLE_TRANSMITTER_EMPTY:
            self._thre_state = True
        self._intr_enable = causes & ENABLE_KNOWN
        self._derive()

    def transmit(self, data: bytes) -> None:
        """The guest writes `data`, byte after byte, to the transmit register."""
        if not data:
            return
        self._sink(data)
        self._thre_state = True
        self._derive()

    def receive(self, byte: int) -> None:
        """A byte comes in on the line; if the guest has not read the last one, it is lost and the guest is told."""
        if self._rx_fifo:
            self._line_status |= STATUS_OVERRUN
            return
        self._rx_fifo = bytes([byte])
        self._line_status |= STATUS_DATA_READY
        self._derive()

    def read_received(self) -> int:
        """The guest reads the receive register: the byte, or 0 if there is none."""
        byte = self._rx_fifo[0] if self._rx_fifo else 0
        self._rx_fifo = b""
        self._line_status &= ~STATUS_DATA_READY
        self._derive()
        return byte

    def read_cause(self) -> int:
        """The guest reads the interrupt identification register, which settles a "transmitter empty"."""
        cause = self._cause()
        if cause == CAUSE_TRANSMITTER_EMPTY:
            self._thre_state = False
            self._derive()
        return cause

    def _cause(self) -> int:
        if self._intr_enable & ENABLE_RECEIVED and self._line_status & STATUS_DATA_READY:
            return CAUSE_RECEIVED
        if self._intr_enable & ENABLE_TRANSMITTER_EMPTY and self._thre_state:
            return CAUSE_TRANSMITTER_EMPTY
        return NO_CAUSE

    def _derive(self) -> None:
        self.pin.asserted = self._cause() != NO_CAUSE
        if self._is_attached:
            self.platform.interrupts.set_line(self.key, self.pin.asserted)

    def _payloads(self) -> tuple[Payload, ...]:
        return (
            Uart16550V1(
                intr_enable=self._intr_enable,
                intr_status=self._cause(),
                line_ctrl=self._line_ctrl,
                line_status=self._line_status,
                modem_ctrl=self._modem_ctrl,
                modem_status=self._modem_status,
                scratch=self._scratch,
                div_low=self._divisor[0],
                div_high=self._divisor[1],
                thre_state=self._thre_state,
                rx_fifo=self._rx_fifo,
                tx_fifo=self._tx_fifo,
            ),
        )

    def _take(self, arrived: Arrived) -> None:
        payload = arrived.of(Uart16550V1)
        refuse = refusal(self.key, payload.SCHEMA)
        for field, fifo in (("rx_fifo", payload.rx_fifo), ("tx_fifo", payload.tx_fifo)):
            if len(fifo) > FIFO_DEPTH:
                raise refuse(field, f"{len(fifo)} bytes; this port's FIFO holds {FIFO_DEPTH}")
        enabled = {
            NO_CAUSE: True,
            CAUSE_RECEIVED: payload.intr_enable & ENABLE_RECEIVED and payload.line_status & STATUS_DATA_READY,
            CAUSE_TRANSMITTER_EMPTY: payload.intr_enable & ENABLE_TRANSMITTER_EMPTY and payload.thre_state,
        }
        if not enabled.get(payload.intr_status):
            raise refuse("intr_status", f"{payload.intr_status:#x}, which the other registers do not give rise to")
        self._intr_enable = payload.intr_enable
        self._line_ctrl = payload.line_ctrl
        self._line_status = payload.line_status
        self._modem_ctrl = payload.modem_ctrl
        self._modem_status = payload.modem_status
        self._scratch = payload.scratch
        self._divisor = (payload.div_low, payload.div_high)
        self._thre_state = payload.thre_state
        self._rx_fifo = payload.rx_fifo
        self._tx_fifo = payload.tx_fifo
        self._derive()
