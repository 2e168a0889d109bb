"""What split and packed rings have in common: their state, what a chain may be, and how it is handed to Python.

All that touches a ring is compiled, here and in virtio/split.py and virtio/packed.py.  What a driver wrote is read
once, by a load that the compiler may not repeat, checked, and then believed.
"""

import ctypes
from typing import Any

from mem import regions
from mem.atomics import atomic_load
from mem.layout import Layout, layout, many, u64
from mem.native import native
from mem.reservation import dma_wrote
from mem.ringwatch import RingWatch, ring_has_work
from mem.word import macro
from virtio.ram import QueueError, Ram
from virtio.request import Request

NEXT, WRITE, INDIRECT = 1, 2, 4
MAX_SIZE = 1024  # of a queue, and descriptors of an indirect table
MOST = 1 << 32  # bytes of a request (virtio 1.3, 2.7.5)
NOTHING, FOUND, BAD = range(3)  # what `pop` gives
ERRORS = (
    "avail.idx is {} ahead in a queue of {}",
    "descriptor {} of {}",
    "an indirect table that lies in another, in a chain, or has a next",
    "a chain of more than {} descriptors: a loop",
    "{1} bytes at {0:#x} are not in RAM",
    f"a chain of more than {MOST} bytes",
    "a descriptor to be read follows one to be written",
    "an indirect table, which was not negotiated",
    "an indirect table of {} bytes",
    "a chain of more descriptors than the {} that are not in use",
)
AHEAD, BEYOND, NESTED, LOOP, OUTSIDE, TOO_MUCH, ORDER, NOT_AGREED, TABLE_SIZE, NOT_FREE = range(len(ERRORS))


@layout
class RingState(Layout):
    """A queue's rings, from when the driver has made them ready: private memory of the process that serves them."""

    watch: RingWatch  # first: whoever has the address of one has the other's
    ram_host: u64  # host address of guest physical 0
    ram_start: u64
    ram_bytes: u64
    size: u64
    table: u64  # host addresses
    driver: u64
    device: u64
    event_index: u64
    indirect: u64
    next_avail: u64
    next_used: u64
    signalled: u64  # next_used when the driver was last asked whether it wants an interrupt
    unsignalled: u64  # descriptors given back since
    held_place: u64  # of a packed ring: the first descriptor of a batch, not shown yet, or 0
    held_flags: u64
    # The chain that was popped last.
    head: u64
    slots: u64  # of the ring's descriptors
    readable: u64
    writable: u64
    room: u64
    error: u64
    error_a: u64
    error_b: u64
    parts: list[u64] = many(4 * MAX_SIZE)  # where each part begins and ends in RAM, the readable ones first


@macro
def once16(address: Any) -> Any:
    return atomic_load(address, 2, "monotonic")


@macro
def once64(address: Any) -> Any:
    return atomic_load(address, 8, "monotonic")


@native(cold=True)
def fail(ring: RingState, error: int, a: int, b: int) -> int:
    """Leave what the driver did wrong."""
    ring.error = error
    ring.error_a = a
    ring.error_b = b
    return BAD


@native(inline=True)
def is_outside(ring: RingState, address: int, length: int) -> int:
    """Whether any of the bytes is not in RAM."""
    start = address - ring.ram_start
    return address < ring.ram_start or length > ring.ram_bytes or start > ring.ram_bytes - length


@native(inline=True)
def begin_chain(ring: RingState) -> None:
    ring.slots = 0
    ring.readable = 0
    ring.writable = 0
    ring.room = MOST


@native
def add_part(ring: RingState, address: int, length: int, flags: int) -> int:
    """One more piece of a chain; gives BAD if it must not be there."""
    if is_outside(ring, address, length):
        return fail(ring, OUTSIDE, address, length)
    if length > ring.room:
        return fail(ring, TOO_MUCH, 0, 0)
    ring.room -= length
    number = ring.readable + ring.writable
    if flags & WRITE:
        ring.writable += length != 0
    elif ring.writable:
        return fail(ring, ORDER, 0, 0)
    else:
        ring.readable += length != 0
    ring.parts[2 * number] = address - ring.ram_start
    ring.parts[2 * number + 1] = address - ring.ram_start + length
    return 0


@native
def table_error(ring: RingState, address: int, length: int) -> int:
    """BAD unless an indirect table may lie there."""
    if ring.indirect == 0:
        return fail(ring, NOT_AGREED, 0, 0)
    if length & 15 or length == 0 or length > 16 * MAX_SIZE:
        return fail(ring, TABLE_SIZE, length, 0)
    if is_outside(ring, address, length):
        return fail(ring, OUTSIDE, address, length)
    return 0


@native(inline=True)
def wrote(ring: RingState, place: int, size: int) -> None:
    """The device has written to a host address: harts' reservations there are gone."""
    dma_wrote(place - ring.ram_host, size)


@native(inline=True)
def wait_for_more(ring: RingState) -> int:
    """Have the watch look for the next request; gives 0 when there is one already."""
    ring.watch.active = 1
    if ring_has_work(ring):
        ring.watch.active = 0
        return 0
    return 1


def _word(name: str) -> Any:
    """A field of the state."""
    index = RingState.offset(name) // 8
    return property(lambda ring: ring.words[index], lambda ring, value: ring.words.__setitem__(index, value))


ACTIVE = RingWatch.offset("active") // 8
HEAD, SLOTS, READABLE, WRITABLE, ERROR, PARTS, UNSIGNALLED = (
    RingState.offset(name) // 8 for name in ("head", "slots", "readable", "writable", "error", "parts", "unsignalled")
)


class Ring:
    """A ring as Python code has it; the subclasses name their natives.  Addresses are guest physical.

    A `QueueError` says what the driver did wrong.
    """

    natives: tuple[Any, ...]  # pop, push, arm, silence, wants_interrupt
    next_avail, next_used, signalled = _word("next_avail"), _word("next_used"), _word("signalled")
    indirect, event_index, head = _word("indirect"), _word("event_index"), _word("head")

    def __init__(self, ram: Ram, size: int, event_index: bool, indirect: bool) -> None:
        self.ram, self.size = ram, size
        state: Any = RingState.ctype()
        state.ram_host, state.ram_start, state.ram_bytes = regions.HOST, ram.base, ram.size
        state.size, state.event_index, state.indirect = size, event_index, indirect
        self.state, self.place = state, ctypes.addressof(state)
        self.words = memoryview(state).cast("B").cast("Q")
        self._pop, self._push, self._arm, self._silence, self._wants = (native.entry for native in self.natives)
        self._has_work = ring_has_work.entry

    def area(self, address: int, size: int, align: int) -> int:
        """The host address of an area of the ring."""
        if address % align:
            raise QueueError(f"ring address {address:#x} is not a multiple of {align}")
        self.ram.offset(address, size)
        return regions.HOST + address

    def pop(self, request: Request) -> bool:
        """Fill in the next request; False when there is none."""
        found = self._pop(self.place)
        if found != FOUND:
            if found == BAD:
                self.refuse()
            return False
        words, memory = self.words, self.ram.memory
        request.head, request.slots = words[HEAD], words[SLOTS]
        middle = PARTS + 2 * words[READABLE]
        readable = words[PARTS:middle].tolist()
        request.spans = words[middle : middle + 2 * words[WRITABLE]].tolist()
        request.readable = [memory[start:end] for start, end in zip(readable[::2], readable[1::2], strict=True)]
        request.writable = [
            memory[start:end] for start, end in zip(request.spans[::2], request.spans[1::2], strict=True)
        ]
        return True

    def refuse(self) -> None:
        """Say what the driver did wrong."""
        raise QueueError(ERRORS[self.words[ERROR]].format(self.words[ERROR + 1], self.words[ERROR + 2]))

    def push(self, batch: list[Request]) -> None:
        """Publish that requests are used, all of them at once."""
        last = len(batch) - 1
        for number, request in enumerate(batch):
            self._push(self.place, request.head, request.slots, request.written, number < last)

    def push_one(self, request: Request) -> None:
        """Publish that a request is used."""
        self._push(self.place, request.head, request.slots, request.written, 0)

    def arm(self, notify: bool = True) -> bool:
        """Watch for the next request, and ask to be notified of it; False when one is there already."""
        return self._arm(self.place, notify) != 0

    def forget(self) -> None:
        """Don't watch."""
        self.words[ACTIVE] = 0

    def has_work(self) -> bool:
        """Whether there is a request that is watched for."""
        return self._has_work(self.place) != 0

    def awaits(self) -> bool:
        """Whether it is watched."""
        return self.words[ACTIVE] != 0

    def disarm(self) -> None:
        """Spare the driver its notifications; with event indices it already sends none."""
        self._silence(self.place)

    def unsignalled(self) -> int:
        """Descriptors given back since `wants_interrupt` was asked; at most twice the size."""
        return self.words[UNSIGNALLED]

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to know of what was pushed since the last call."""
        return self._wants(self.place) != 0
