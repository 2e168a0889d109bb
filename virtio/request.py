"""A request: what a driver offers in one chain of descriptors, and what a back-end makes of it."""

from typing import TYPE_CHECKING

from virtio.ram import QueueError

if TYPE_CHECKING:
    from virtio.queue import Queue


class Request:
    """A descriptor chain: what the driver offers, until `done` gives it back."""

    forgotten = False

    def __init__(self, queue: "Queue") -> None:
        self.queue = queue
        self.head = self.slots = 0  # the name it is given back by, and how many of the ring's descriptors it takes
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.spans: list[int] = []  # where each part of what is writable begins and ends in RAM
        self.written: int | None = None  # how much, when it is done

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Addresses and sizes of what is writable."""
        base = self.queue.ram.base
        return [(base + start, end - start) for start, end in zip(self.spans[::2], self.spans[1::2], strict=True)]

    def read(self, count: int) -> bytes:
        """Take up to `count` bytes off the front of `readable`."""
        if self.readable and len(first := self.readable[0]) >= count:
            self.readable[:1] = [first[count:]] if len(first) > count else []
            return bytes(first[:count])
        return b"".join(bytes(part) for part in take(self.readable, count))

    def write(self, data: bytes | memoryview) -> int:
        """Fill `writable` from its front; gives how much of the data fitted and takes the room away."""
        if self.writable and (len(first := self.writable[0]) > len(data) or len(self.writable) == 1):
            count = min(len(first), len(data))
            first[:count] = data[:count]
            self.writable[:1] = [first[count:]] if len(first) > count else []
            return count
        at = 0
        for part in take(self.writable, len(data)):
            part[:] = data[at : at + len(part)]
            at += len(part)
        return at

    def last(self) -> memoryview:
        """Take the last writable byte, where many devices put a status."""
        if self.forgotten:
            return memoryview(bytearray(1))
        if not self.writable:
            raise QueueError("a request has no room for its status")
        part = self.writable.pop()
        if len(part) > 1:
            self.writable.append(part[:-1])
        return part[-1:]

    def done(self, written: int) -> None:
        """Give the chain back: `written` bytes from the front of the writable part are valid."""
        self.queue.give_back(self, written)

    def forget(self) -> None:
        """The queue was reset: the buffers are the driver's again, and `done` does nothing any more."""
        self.readable, self.writable, self.spans = [], [], []
        self.forgotten = True


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
