"""Split virtqueues in guest RAM (virtio 1.2, 2.7): all ring ordering, and all trust in the guest, is decided here.

A back-end writes `for request in queue:`.  Descriptors are read once into Python values and checked; what does
not hold is a `QueueError`, and the transport then asks the driver for a reset.
"""

import platform
from collections.abc import Callable, Iterator
from struct import Struct

from mem import regions
from mem.atomics import py_fence
from mem.memmap import RAM_BASE
from mem.reservation import Reservations, dma_wrote

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_NOTIFY = NO_INTERRUPT = 1
MAX_SIZE = 1024  # of a queue, and of an indirect table
DESCRIPTOR = Struct("<QIHH")
ELEMENT = Struct("<II")


class QueueError(Exception):
    """The driver broke the rules; the text says how."""


class Ram:
    """Guest RAM by physical address: the only way from a guest's address to host memory."""

    def __init__(self, memory: memoryview, base: int = RAM_BASE) -> None:
        self.memory, self.base, self.size = memory, base, len(memory)
        self.words = memory.cast("H")  # a store or load of one is a single access, never two bytes
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


class Request:
    """A descriptor chain: what the driver offers, until `done` gives it back."""

    def __init__(self, queue: "Queue", head: int) -> None:
        self.queue, self.head, self.life = queue, head, queue.life
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.ranges: list[tuple[int, int]] = []  # addresses and sizes of what is writable
        self.nested = False

    def read(self, count: int) -> bytes:
        """Take up to `count` bytes off the front of `readable`."""
        return b"".join(bytes(part) for part in take(self.readable, count))

    def write(self, data: bytes) -> int:
        """Fill `writable` from its front; gives how much of the data fitted and takes the room away."""
        at = 0
        for part in take(self.writable, len(data)):
            part[:] = data[at : at + len(part)]
            at += len(part)
        return at

    def last(self) -> memoryview:
        """Take the last writable byte, where many devices put a status."""
        if not self.writable:
            raise QueueError("a request has no room for its status")
        part = self.writable.pop()
        if len(part) > 1:
            self.writable.append(part[:-1])
        return part[-1:]

    def done(self, written: int) -> None:
        """Give the chain back: `written` bytes from the front of the writable part are valid."""
        self.queue.finish([(self, written)])


def size_of(parts: list[memoryview]) -> int:
    """Bytes in all parts."""
    return sum(map(len, parts))


def take(parts: list[memoryview], count: int) -> list[memoryview]:
    """Cut up to `count` bytes off the front of the list."""
    taken = []
    while parts and count:
        part = parts[0]
        if len(part) > count:
            taken.append(part[:count])
            parts[0] = part[count:]
            break
        taken.append(parts.pop(0))
        count -= len(part)
    return taken


def _nothing() -> None:
    pass


class Queue:
    """One split virtqueue.  Addresses are guest physical; `interrupt` is called when the driver wants to know."""

    # Stores of one process appear in order to the others on x86; elsewhere they need the fence.
    ordered = staticmethod(_nothing if platform.machine() == "x86_64" else py_fence)

    def __init__(self, ram: Ram, maximum: int = 256, interrupt: Callable[[], None] = _nothing) -> None:
        self.ram, self.maximum, self.interrupt = ram, maximum, interrupt
        self.life = 0  # a request of an earlier one can't be given back any more
        self.reset()

    def reset(self) -> None:
        """As it is before the driver sets it up."""
        self.size = self.descriptors = self.driver = self.device = 0
        self.ready = self.event_index = self.indirect = False
        self.next_avail = self.next_used = 0
        self.life += 1

    def enable(self) -> None:
        """Check what the driver has set up and start from the rings' beginning."""
        size = self.size
        if not 0 < size <= self.maximum or size & (size - 1):
            raise QueueError(f"a queue of {size} entries: must be a power of two up to {self.maximum}")
        for address, align in ((self.descriptors, 16), (self.driver, 2), (self.device, 4)):
            if address % align:
                raise QueueError(f"ring address {address:#x} is not a multiple of {align}")
        self.table = self.ram.offset(self.descriptors, 16 * size)
        self.avail = self.ram.offset(self.driver, 6 + 2 * size) >> 1
        self.used = self.ram.offset(self.device, 6 + 8 * size)
        self.next_avail = self.next_used = 0
        self.ready = True

    def __iter__(self) -> Iterator[Request]:
        """All requests there are; notifications are on again when it ends."""
        while self.ready:
            request = self.pop()
            if request is not None:
                yield request
            elif self.arm():
                return

    def pop(self) -> Request | None:
        """The next request, or None when the ring is empty."""
        if not self.ready:
            return None
        waiting = (self.ram.words[self.avail + 1] - self.next_avail) & 0xFFFF
        if waiting == 0:
            return None
        if waiting > self.size:
            raise QueueError(f"avail.idx is {waiting} ahead in a queue of {self.size}")
        self.ordered()  # avail.idx is read before the entry that it promises
        head = self.ram.words[self.avail + 2 + self.next_avail % self.size]
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        return self._chain(head)

    def arm(self) -> bool:
        """Ask to be notified of the next request; False when one is there already."""
        if not self.ready:
            return True
        words = self.ram.words
        if self.event_index:
            words[(self.used >> 1) + 2 + 4 * self.size] = self.next_avail  # avail_event
        else:
            words[self.used >> 1] = 0
        py_fence()  # avail_event is written before avail.idx is read; the driver does the opposite
        return words[self.avail + 1] == self.next_avail

    def disarm(self) -> None:
        """Spare the driver its notifications until `arm`; with event indices it already sends none."""
        if self.ready and not self.event_index:
            self.ram.words[self.used >> 1] = NO_NOTIFY

    def finish(self, batch: list[tuple[Request, int]]) -> None:
        """Give chains back, with how much was written into each: the driver sees all of them at once, or none.

        A frame in several buffers needs that, and it is at most one interrupt.
        """
        valid = [(request, written) for request, written in batch if request.life == self.life]
        for request, _ in valid:
            for address, size in request.ranges:
                self.ram.wrote(address, size)
        if valid:
            self.push([(request.head, written) for request, written in valid])

    def push(self, used: list[tuple[int, int]]) -> None:
        """Publish used elements, and interrupt if the driver asks for it."""
        if not self.ready:  # reset meanwhile: the rings are the driver's again
            return
        old = self.next_used
        for head, written in used:
            place = self.used + 4 + 8 * (self.next_used % self.size)
            ELEMENT.pack_into(self.ram.memory, place, head, written)
            self.ram.wrote(self.ram.base + place, 8)
            self.next_used = (self.next_used + 1) & 0xFFFF
        self.ordered()  # the elements are written before the index that shows them
        self.ram.words[(self.used >> 1) + 1] = self.next_used
        self.ram.wrote(self.device, 4)
        py_fence()  # used.idx is written before used_event is read; the driver does the opposite
        if self._wants_interrupt(old):
            self.interrupt()

    def _wants_interrupt(self, old: int) -> bool:
        words = self.ram.words
        if not self.event_index:
            return not words[self.avail] & NO_INTERRUPT
        event = words[self.avail + 2 + self.size]  # used_event: "when this element is used"
        return (self.next_used - event - 1) & 0xFFFF < (self.next_used - old) & 0xFFFF

    def _chain(self, head: int) -> Request:
        """Walk a chain, which may end in an indirect table."""
        request = Request(self, head)
        table, limit, index = self.table, self.size, head
        total = steps = 0
        while True:
            if index >= limit:
                raise QueueError(f"descriptor {index} of {limit}")
            address, length, flags, index = DESCRIPTOR.unpack_from(self.ram.memory, table + 16 * index)
            if flags & INDIRECT:
                if request.nested or flags & NEXT or not self.indirect:
                    raise QueueError("an indirect table that lies in another, has a next or was not negotiated")
                table, limit, index = self._indirect(address, length)
                request.nested, steps = True, 0
                continue
            total, steps = total + length, steps + 1
            if steps > limit or total > 1 << 32:
                raise QueueError(f"a chain of {steps} descriptors and {total} bytes: a loop, or too long")
            self._add(request, address, length, flags)
            if not flags & NEXT:
                return request

    def _indirect(self, address: int, length: int) -> tuple[int, int, int]:
        """Where an indirect table lies, its length and its first index."""
        if length % 16 or not 0 < length <= 16 * MAX_SIZE:
            raise QueueError(f"an indirect table of {length} bytes")
        return self.ram.offset(address, length), length // 16, 0

    def _add(self, request: Request, address: int, length: int, flags: int) -> None:
        view = self.ram.view(address, length)
        if flags & WRITE:
            if length:
                request.writable.append(view)
                request.ranges.append((address, length))
        elif request.writable:
            raise QueueError("a descriptor to be read follows one to be written")
        elif length:
            request.readable.append(view)
