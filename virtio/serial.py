"""Between the UART's rings (mem/uart.py) and its host end."""

import ctypes

from mem import regions
from mem.atomics import py_load32
from mem.uart import RING, Uart, uart_collect, uart_receive
from virtio.chardev import Chardev

TX_HEAD = regions.UART + Uart.offset("tx_head")
TX_TAIL = regions.UART + Uart.offset("tx_tail")
RX_HEAD = regions.UART + Uart.offset("rx_head")
RX_TAIL = regions.UART + Uart.offset("rx_tail")


class Serial:
    """The I/O process's side of the rings; heads and tails run freely modulo 2**32."""

    def __init__(self, host: Chardev) -> None:
        self.host = host
        self.buffer = ctypes.create_string_buffer(RING)
        self.place = ctypes.addressof(self.buffer)

    def waiting(self) -> int:
        """Bytes that harts have sent and nobody has taken."""
        return (py_load32(TX_HEAD) - py_load32(TX_TAIL)) & 0xFFFF_FFFF

    def room(self) -> int:
        """Bytes that the receive ring can take."""
        return RING - ((py_load32(RX_HEAD) - py_load32(RX_TAIL)) & 0xFFFF_FFFF)

    def has_work(self) -> bool:
        """Whether bytes can move; a hart kicks when it takes one out of a full ring or puts one into the other."""
        return bool((self.host.has_room() and self.waiting()) or (self.host.input and self.room()))

    def drain(self) -> bool:
        """Pass output on while the host's end has room; True when there was some."""
        if not self.host.has_room() or not self.waiting():
            return False
        count = uart_collect(self.place, RING)
        self.host.write(self.buffer.raw[:count])
        return True

    def feed(self) -> bool:
        """Pass input on while the ring has room; True when there was some."""
        if not self.host.input or not (room := self.room()):
            return False
        data = self.host.read(min(room, RING))
        ctypes.memmove(self.place, data, len(data))
        uart_receive(self.place, len(data))
        return True
