"""Split virtqueues (virtio 1.3, 2.7): a table of descriptors, a ring of available heads and one of used ones."""

from struct import Struct

from mem.atomics import py_fence
from virtio.ram import QueueError, Ram
from virtio.request import Request
from virtio.ring import DESCRIPTOR, INDIRECT, NEXT, Ring, Watch

NO_NOTIFY = NO_INTERRUPT = 1
ELEMENT = Struct("<II")


class SplitRing(Ring):
    """Indices run freely modulo 2**16, as in the rings."""

    def __init__(self, ram: Ram, size: int, areas: tuple[int, int, int], event_index: bool, indirect: bool) -> None:
        super().__init__(ram, size, event_index, indirect)
        if size & (size - 1):
            raise QueueError(f"a queue of {size} entries: must be a power of two")
        self.table = self.area(areas[0], 16 * size, 16)
        self.avail = self.area(areas[1], 6 + 2 * size, 2) >> 1  # as an index of words
        self.used = self.area(areas[2], 6 + 8 * size, 4)
        self.next_avail = self.next_used = self.signalled = 0

    def pop(self, request: Request) -> bool:
        words = self.ram.words
        waiting = (words[self.avail + 1] - self.next_avail) & 0xFFFF
        if waiting == 0:
            return False
        if waiting > self.size:
            raise QueueError(f"avail.idx is {waiting} ahead in a queue of {self.size}")
        self.ordered()  # avail.idx is read before the entry that it promises
        request.head = words[self.avail + 2 + self.next_avail % self.size]
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self._walk(request)
        return True

    def push(self, batch: list[Request]) -> None:
        for request in batch:
            place = self.used + 4 + 8 * (self.next_used % self.size)
            ELEMENT.pack_into(self.ram.memory, place, request.head, request.written)
            self.ram.wrote(self.ram.base + place, 8)
            self.next_used = (self.next_used + 1) & 0xFFFF
        self.unsignalled += len(batch)
        self.ordered()  # the elements are written before the index that shows them
        self.ram.words[(self.used >> 1) + 1] = self.next_used
        self.ram.wrote(self.ram.base + self.used, 4)

    def arm(self) -> bool:
        words = self.ram.words
        if self.event_index:
            words[(self.used >> 1) + 2 + 4 * self.size] = self.next_avail  # avail_event
        else:
            words[self.used >> 1] = 0
        py_fence()  # avail_event is written before avail.idx is read; the driver does the opposite
        return words[self.avail + 1] == self.next_avail

    def is_empty(self) -> bool:
        return self.ram.words[self.avail + 1] == self.next_avail

    def watch(self) -> Watch:
        return Watch(self.ram.base + 2 * self.avail + 2, 0xFFFF, self.next_avail, False)

    def disarm(self) -> None:
        if not self.event_index:
            self.ram.words[self.used >> 1] = NO_NOTIFY

    def wants_interrupt(self) -> bool:
        old, self.signalled, self.unsignalled = self.signalled, self.next_used, 0
        py_fence()  # used.idx is written before used_event is read; the driver does the opposite
        words = self.ram.words
        if not self.event_index:
            return not words[self.avail] & NO_INTERRUPT
        event = words[self.avail + 2 + self.size]  # used_event: "when this element is used"
        return (self.next_used - event - 1) & 0xFFFF < (self.next_used - old) & 0xFFFF

    def _walk(self, request: Request) -> None:
        """Read a chain, which may end in an indirect table."""
        table, limit, index = self.table, self.size, request.head
        nested, steps = False, 0
        memory = self.ram.memory
        while True:
            if index >= limit:
                raise QueueError(f"descriptor {index} of {limit}")
            address, length, flags, index = DESCRIPTOR.unpack_from(memory, table + 16 * index)
            if flags & INDIRECT:
                if nested or flags & NEXT:
                    raise QueueError("an indirect table that lies in another, or has a next")
                table, limit = self.table_at(address, length)
                nested, steps, index = True, 0, 0
                continue
            steps += 1
            if steps > limit:
                raise QueueError(f"a chain of {steps} descriptors: a loop")
            request.add(address, length, flags)
            if not flags & NEXT:
                return
