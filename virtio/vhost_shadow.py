"""Shadow virtqueues: requests go to a back-end through a ring of ours, whatever ring the driver has.

A ring can be handed over as it is (virtio/vhost_ledger.py) if it is split: what a back-end that died had taken is then
still in the table of descriptors.  In a packed ring used descriptors overwrite it, and IN_ORDER is more than back-ends
promise.  So for these the driver's ring is served here, and each request is laid out once more in a split ring, in
memory that the back-end gets beside the guest's.  What is outstanding is the queue's own list.
"""

import contextlib
import fcntl
import mmap
import os
from struct import Struct

from mem import regions
from mem.atomics import py_fence
from virtio.queue import Queue, QueueError, Request
from virtio.request import size_of
from virtio.ring import PARTS, READABLE, WRITABLE
from virtio.vhost_wire import BackendError

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
DESCRIPTOR = Struct("<QIHH")
NEXT, WRITE = 1, 2
LARGEST = 1024  # entries of a ring
AVAIL, USED, STRIDE = 16 * LARGEST, 24 * LARGEST, 36 * LARGEST  # places in a ring's memory, and its size
PAGE = 4096
Part = tuple[int, int, int]  # address, size, flags


class ShadowMemory:
    """The memory of a device's rings: shared with the back-end, and of a size that nobody can change."""

    def __init__(self, queues: int) -> None:
        self.fd = os.memfd_create("rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.size = -(-queues * STRIDE // PAGE) * PAGE
        os.ftruncate(self.fd, self.size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self.map = mmap.mmap(self.fd, self.size)

    def of(self, index: int) -> memoryview:
        """The memory of one queue's ring."""
        return memoryview(self.map)[index * STRIDE : (index + 1) * STRIDE]

    def close(self) -> None:
        """The mapping goes with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Shadow:
    """One queue: the driver's ring in `queue`, and the back-end's, which begins anew with each of them."""

    def __init__(self, queue: Queue, memory: ShadowMemory, index: int) -> None:
        self.queue, self.memory = queue, memory.of(index)
        self.size = 1 << (queue.maximum - 1).bit_length()
        self.base = self.place(memory, queue) + index * STRIDE
        self.parts: dict[int, list[Part]] = {}  # of what is outstanding, by head of the driver's ring
        self.held: Request | None = None  # for which there was no room
        self._begin()

    @staticmethod
    def place(memory: ShadowMemory, queue: Queue) -> int:
        """Where the back-end finds the rings' memory: after the guest's, where no driver's descriptor leads."""
        return -(-(queue.ram.base + queue.ram.size) // PAGE) * PAGE

    def _begin(self) -> None:
        self.memory[:] = bytes(len(self.memory))
        self.avail = self.memory[AVAIL : AVAIL + 4 + 2 * self.size].cast("H")
        self.used = self.memory[USED : USED + 4 + 8 * self.size]
        self.used_index = self.used[:4].cast("H")
        self.free = list(range(self.size))
        self.given: dict[int, tuple[Request, list[int]]] = {}  # by head of our ring
        self.added = self.seen = 0

    def areas(self) -> tuple[int, int, int]:
        """User addresses of descriptors, used and avail ring, as the front end counts them."""
        return tuple(regions.HOST + self.base + place for place in (0, USED, AVAIL))  # type: ignore[return-value]

    def again(self) -> int:
        """A back-end begins: offer it what the last one was not done with; gives where that begins in the avail ring.

        What the driver has put into its ring meanwhile comes with the next `collect`.
        """
        with contextlib.suppress(BackendError):
            self._take_used()
        self._begin()
        for head, request in self.queue.outstanding.items():
            if request is not self.held and request.written is None:
                self._lay_out(request, self.parts[head])
        return 0

    def look(self) -> bool:
        """Pass on what the driver has offered, as far as there is room; whether there was something."""
        before = self.added
        while request := self._next():
            parts = self.parts[request.head]
            if len(parts) > len(self.free):
                self.held = request
                break
            if parts:
                self._lay_out(request, parts)
            else:
                self._finish(request, 0)
        return self.added != before

    def _next(self) -> Request | None:
        """The next request of the driver's, whose parts are known from now on."""
        request, self.held = self.held, None
        while request is None:
            request = self.queue.pop()
            if request is not None:
                self.parts[request.head] = self._parts()
                if len(self.parts[request.head]) > self.size:
                    raise QueueError(f"a request in more than {self.size} pieces, the entries of its queue")
            elif self.queue.arm():
                return None
        return request

    def _parts(self) -> list[Part]:
        """Of the chain that was popped last."""
        words, base = self.queue.ring.words, self.queue.ram.base
        readable = words[READABLE]
        found = []
        for number in range(readable + words[WRITABLE]):
            start, end = words[PARTS + 2 * number], words[PARTS + 2 * number + 1]
            found.append((base + start, end - start, 0 if number < readable else WRITE))
        return found

    def _lay_out(self, request: Request, parts: list[Part]) -> None:
        slots, self.free = self.free[: len(parts)], self.free[len(parts) :]
        for slot, (address, size, flags), following in zip(slots, parts, [*slots[1:], None], strict=True):
            if following is None:
                DESCRIPTOR.pack_into(self.memory, 16 * slot, address, size, flags, 0)
            else:
                DESCRIPTOR.pack_into(self.memory, 16 * slot, address, size, flags | NEXT, following)
        self.given[slots[0]] = request, slots
        self.avail[2 + self.added % self.size] = slots[0]
        self.added = (self.added + 1) & 0xFFFF
        py_fence()  # descriptors and entry are written before avail.idx shows them
        self.avail[1] = self.added

    def collect(self) -> bool:
        """Give back to the driver what the back-end is done with, and go on with what has waited for room."""
        self._take_used()
        return self.look()

    def _take_used(self) -> None:
        used = self.used_index[1]
        py_fence()  # used.idx is read before the elements that it promises
        if (used - self.seen) & 0xFFFF > len(self.given):
            raise BackendError(f"it gives back more than the {len(self.given)} requests that it has")
        while self.seen != used:
            place = 4 + 8 * (self.seen % self.size)
            head, written = (int.from_bytes(self.used[place + at : place + at + 4], "little") for at in (0, 4))
            self.seen = (self.seen + 1) & 0xFFFF
            if head not in self.given:
                raise BackendError(f"it gives back request {head}, which it has not")
            request, slots = self.given.pop(head)
            self.free += slots
            self._finish(request, min(written, size_of(request.writable)))

    def _finish(self, request: Request, written: int) -> None:
        del self.parts[request.head]
        request.done(written)
