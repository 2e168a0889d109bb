"""Guest RAM as a device sees it: the only way from a guest's address to host memory."""

from mem import regions
from mem.memmap import RAM_BASE
from mem.reservation import Reservations, dma_wrote


class QueueError(Exception):
    """The driver broke the rules; the text says how."""


class Ram:
    """Guest RAM by physical address."""

    def __init__(self, memory: memoryview, base: int = RAM_BASE, fd: int = -1) -> None:
        self.memory, self.base, self.size = memory, base, len(memory)
        self.fd = fd  # of the same memory, for whoever else is to map it
        self.reservations = Reservations.at(regions.RESERVATIONS)

    def view(self, address: int, size: int) -> memoryview:
        """The bytes at an address, in place."""
        start = self.offset(address, size)
        return self.memory[start : start + size]

    def offset(self, address: int, size: int) -> int:
        """Where in `memory` the bytes lie."""
        start = address - self.base
        if start < 0 or start + size > self.size:
            raise QueueError(f"{size} bytes at {address:#x} are not in RAM")
        return start

    def wrote(self, address: int, size: int) -> None:
        """To be called after every write into guest RAM: harts' reservations there are gone."""
        if self.reservations.watched:
            dma_wrote(address, size)
