"""Packed virtqueues (virtio 1.3, 2.8): one ring of descriptors, which driver and device write in turn.

Places in the ring are counted modulo twice its size: below the size the wrap counter is 1, from there on it is 0.
"""

from struct import Struct

from mem.atomics import py_fence
from virtio.ram import QueueError, Ram
from virtio.request import Request
from virtio.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Ring, Watch

AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, AT_DESCRIPTOR = range(3)  # flags of event suppression; they lie above the place, at bit 16
ID_AND_LENGTH = Struct("<IH")


class PackedRing(Ring):
    """The driver area says when it wants interrupts, the device area when we want notifications."""

    def __init__(self, ram: Ram, size: int, areas: tuple[int, int, int], event_index: bool, indirect: bool) -> None:
        super().__init__(ram, size, event_index, indirect)
        self.table = self.area(areas[0], 16 * size, 16)
        self.driver_events = self.area(areas[1], 4, 4) >> 2  # as an index of longs
        self.device_events = self.area(areas[2], 4, 4) >> 2
        self.next_avail = self.next_used = self.signalled = 0

    def _index(self, place: int) -> int:
        return place if place < self.size else place - self.size

    def _mark(self) -> int:
        """How the driver marks the next descriptor."""
        return AVAIL if self.next_avail < self.size else USED

    def _flags_if_available(self) -> int | None:
        """The flags of the next descriptor, if it is the driver's latest."""
        flags = self.ram.words[(self.table >> 1) + 8 * self._index(self.next_avail) + 7]
        return flags if flags & (AVAIL | USED) == self._mark() else None

    def pop(self, request: Request) -> bool:
        flags = self._flags_if_available()
        if flags is None:
            return False
        self.ordered()  # the flags are read before the rest of the descriptors that they promise
        free = self.size - (self.next_avail - self.next_used) % (2 * self.size)
        place = self.next_avail
        while request.slots < free:
            index = self._index(place)
            address, length, request.head, later = DESCRIPTOR.unpack_from(self.ram.memory, self.table + 16 * index)
            flags = later if request.slots else flags
            request.slots += 1
            place = (place + 1) % (2 * self.size)
            self._add(request, address, length, flags)
            if not flags & NEXT:
                self.next_avail = place
                return True
        raise QueueError(f"a chain of more descriptors than the {free} that are not in use")

    def _add(self, request: Request, address: int, length: int, flags: int) -> None:
        """A descriptor of the ring; one of an indirect table has no flag but WRITE, whatever is there."""
        if not flags & INDIRECT:
            request.add(address, length, flags)
            return
        if flags & NEXT or request.slots > 1:
            raise QueueError("an indirect table in a chain")
        table, count = self.table_at(address, length)
        for n in range(count):
            address, length, _, flags = DESCRIPTOR.unpack_from(self.ram.memory, table + 16 * n)
            request.add(address, length, flags)

    def push(self, batch: list[Request]) -> None:
        """Writes over the descriptors that come next in the ring, whatever was there."""
        shown = []
        for request in batch:
            place = self.table + 16 * self._index(self.next_used)
            ID_AND_LENGTH.pack_into(self.ram.memory, place + 8, request.written, request.head)
            flags = (AVAIL | USED if self.next_used < self.size else 0) | (WRITE if request.written else 0)
            shown.append((place, flags))
            self.next_used = (self.next_used + request.slots) % (2 * self.size)
            self.unsignalled += request.slots
        for place, flags in reversed(shown):  # the first comes last: a driver finds none without it
            self.ordered()  # length and id are written before the flags that show them
            self.ram.words[place + 14 >> 1] = flags
            self.ram.wrote(self.ram.base + place, 16)

    def arm(self) -> bool:
        event = ENABLE << 16
        if self.event_index:
            event = AT_DESCRIPTOR << 16 | self._index(self.next_avail) | (self.next_avail < self.size) << 15
        self.ram.longs[self.device_events] = event
        py_fence()  # the events are written before the descriptor is read; the driver does the opposite
        return self._flags_if_available() is None

    def is_empty(self) -> bool:
        return self._flags_if_available() is None

    def watch(self) -> Watch:
        place = self.ram.base + self.table + 16 * self._index(self.next_avail) + 14
        return Watch(place, AVAIL | USED, self._mark(), True)

    def disarm(self) -> None:
        if not self.event_index:
            self.ram.longs[self.device_events] = DISABLE << 16

    def wants_interrupt(self) -> bool:
        old, self.signalled, self.unsignalled = self.signalled, self.next_used, 0
        py_fence()  # the used descriptors are written before the events are read; the driver does the opposite
        event = self.ram.longs[self.driver_events]
        if not self.event_index or event >> 16 & 3 != AT_DESCRIPTOR:
            return event >> 16 & 3 != DISABLE
        place = (event & 0x7FFF) + (0 if event >> 15 & 1 else self.size)
        return (place - old) % (2 * self.size) < (self.next_used - old) % (2 * self.size)
