"""What split and packed rings have in common: where they lie, tables of descriptors, and the order of stores."""

import platform
from struct import Struct
from typing import NamedTuple

from mem.atomics import py_fence
from virtio.ram import QueueError, Ram
from virtio.request import Request

NEXT, WRITE, INDIRECT = 1, 2, 4
MAX_TABLE = 1024  # descriptors of an indirect table
DESCRIPTOR = Struct("<QIHH")


def _nothing() -> None:
    pass


class Watch(NamedTuple):
    """There is a request when 16 bits in RAM, masked, equal the value, or differ from it."""

    address: int
    mask: int
    value: int
    equal: bool


class Ring:
    """A queue's rings, from when the driver has made them ready; addresses are guest physical.

    What a driver writes is read once, checked and then believed.  A `QueueError` says what it did wrong.
    """

    # Loads of one process, and its stores, are seen in order on x86; elsewhere it takes a fence.
    ordered = staticmethod(_nothing if platform.machine() == "x86_64" else py_fence)

    def __init__(self, ram: Ram, size: int, event_index: bool, indirect: bool) -> None:
        self.ram, self.size, self.event_index, self.indirect = ram, size, event_index, indirect
        self.unsignalled = 0  # descriptors pushed since `wants_interrupt` was asked; at most twice the size

    def pop(self, request: Request) -> bool:
        """Fill in the next request; False when there is none."""
        raise NotImplementedError

    def push(self, batch: list[Request]) -> None:
        """Publish that requests are used, all of them at once."""
        raise NotImplementedError

    def arm(self) -> bool:
        """Ask to be notified of the next request; False when one is there already."""
        raise NotImplementedError

    def is_empty(self) -> bool:
        """Whether there is no request now."""
        raise NotImplementedError

    def watch(self) -> Watch:
        """What to look at for the next request."""
        raise NotImplementedError

    def disarm(self) -> None:
        """Spare the driver its notifications; with event indices it already sends none."""
        raise NotImplementedError

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to know of what was pushed since the last call."""
        raise NotImplementedError

    def area(self, address: int, size: int, align: int) -> int:
        """Where in RAM an area of the ring lies."""
        if address % align:
            raise QueueError(f"ring address {address:#x} is not a multiple of {align}")
        return self.ram.offset(address, size)

    def table_at(self, address: int, length: int) -> tuple[int, int]:
        """Where an indirect table lies, and how many descriptors it has."""
        if not self.indirect:
            raise QueueError("an indirect table, which was not negotiated")
        if length % 16 or not 0 < length <= 16 * MAX_TABLE:
            raise QueueError(f"an indirect table of {length} bytes")
        return self.ram.offset(address, length), length // 16
