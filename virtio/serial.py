"""Between the UART's rings (mem/uart.py) and its host end."""

from typing import Any

from mem import regions
from mem.atomics import py_load32, py_store32
from mem.uart import RING, Uart, uart_rx_ready, uart_tx_drained
from virtio.chardev import Chardev

TX_HEAD = regions.UART + Uart.offset("tx_head")
TX_TAIL = regions.UART + Uart.offset("tx_tail")
RX_HEAD = regions.UART + Uart.offset("rx_head")
RX_TAIL = regions.UART + Uart.offset("rx_tail")


class Serial:
    """The I/O process's side of the rings; heads and tails run freely modulo 2**32."""

    def __init__(self, host: Chardev) -> None:
        uart: Any = Uart.at(regions.UART)
        self.host = host
        self.tx, self.rx = memoryview(uart.tx).cast("B"), memoryview(uart.rx).cast("B")

    def waiting(self) -> int:
        """Bytes that harts have sent and nobody has taken."""
        return (py_load32(TX_HEAD) - py_load32(TX_TAIL)) & 0xFFFF_FFFF

    def drain(self) -> bool:
        """Pass output on while the host's end has room; True when there was some."""
        count = min(self.waiting(), RING)
        if count == 0 or not self.host.has_room():
            return False
        tail = py_load32(TX_TAIL)
        start = tail % RING
        data = bytes(self.tx[start : start + count]) + bytes(self.tx[: max(0, start + count - RING)])
        py_store32(TX_TAIL, tail + count)  # release: the bytes are read before a hart may overwrite them
        uart_tx_drained()
        self.host.write(data)
        return True

    def feed(self) -> bool:
        """Pass input on while the ring has room; True when there was some."""
        if not self.host.input:
            return False
        head = py_load32(RX_HEAD)
        data = self.host.read(RING - ((head - py_load32(RX_TAIL)) & 0xFFFF_FFFF))
        if not data:
            return False
        start = head % RING
        first = min(len(data), RING - start)
        self.rx[start : start + first] = data[:first]
        self.rx[: len(data) - first] = data[first:]
        py_store32(RX_HEAD, head + len(data))  # release: the bytes come before the index that shows them
        uart_rx_ready()
        return True
