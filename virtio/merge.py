"""Received frames go into buffers of the receive ring (virtio 1.3, 5.1.6.4), compiled: a frame may take 17 buffers.

A frame that finds too few buffers stays where it is, half copied, until the driver has offered more.  The driver sees
all buffers of a frame at once, and none before.
"""

import ctypes
from typing import Any

from mem.atomics import memory_copy, store8
from mem.layout import Layout, layout, many, u8, u64
from mem.native import native
from mem.reservation import dma_wrote, min_of
from virtio.netdev import HEADER_BYTES
from virtio.packed import packed_pop, packed_push
from virtio.queue import Queue, QueueError
from virtio.ring import BAD, FOUND, MAX_SIZE, Ring, RingState
from virtio.split import split_pop, split_push

NUM_BUFFERS = 10  # its place in the header
MISSING, FILLED, LOST, REFUSED, TOO_SHORT, TWICE = range(6)  # what `merge_frame` gives


@layout
class Merge(Layout):
    """A frame on its way into buffers, and the buffers that it has taken so far."""

    packed: u64
    merging: u64  # whether a frame may take several buffers
    start: u64  # next_avail of before
    frame: u64  # host address
    size: u64  # with the header
    copied: u64  # bytes of it
    count: u64  # of buffers
    low: u64  # host addresses of the bytes of num_buffers
    high: u64
    header: list[u8] = many(16)
    heads: list[u64] = many(MAX_SIZE)
    slots: list[u64] = many(MAX_SIZE)
    written: list[u64] = many(MAX_SIZE)


HEADER = Merge.offset("header")


@native
def merge_frame(ring: RingState, merge: Merge) -> int:
    """Go on with a frame; when it is all there, show the driver."""
    while merge.copied < merge.size:
        found = packed_pop(ring) if merge.packed else split_pop(ring)
        if found != FOUND:
            return REFUSED if found == BAD else MISSING
        if is_taken(merge, ring.head):
            return TWICE
        room = room_of(ring)
        if room < HEADER_BYTES:
            return TOO_SHORT
        if room < merge.size - merge.copied and (merge.merging == 0 or merge.count + 1 >= ring.size):
            return LOST
        merge_chain(ring, merge)
    merge_show(ring, merge)
    return FILLED


@native
def is_taken(merge: Merge, head: int) -> int:
    """Whether the frame has a buffer of this name already."""
    for number in range(merge.count):
        if merge.heads[number] == head:
            return 1
    return 0


@native
def room_of(ring: RingState) -> int:
    """Bytes that may be written into the chain that was popped last."""
    room = 0
    for part in range(ring.readable, ring.readable + ring.writable):
        room += ring.parts[2 * part + 1] - ring.parts[2 * part]
    return room


@native
def merge_chain(ring: RingState, merge: Merge) -> None:
    """Copy what fits into the chain that was popped last."""
    began = merge.copied
    for part in range(ring.readable, ring.readable + ring.writable):
        address = ring.ram_start + ring.parts[2 * part]
        count = min_of(ring.parts[2 * part + 1] - ring.parts[2 * part], merge.size - merge.copied)
        merge_copy(merge, ring.ram_host + address, count)
        dma_wrote(address, count)
    merge.heads[merge.count] = ring.head
    merge.slots[merge.count] = ring.slots
    merge.written[merge.count] = merge.copied - began
    merge.count += 1


@native
def merge_copy(merge: Merge, to: int, count: int) -> None:
    """Copy the next bytes of header and frame to a host address."""
    end = merge.copied + count
    while merge.copied < end and merge.copied < HEADER_BYTES:
        if merge.copied == NUM_BUFFERS:
            merge.low = to
        if merge.copied == NUM_BUFFERS + 1:
            merge.high = to
        store8(to, merge.header[merge.copied])
        merge.copied += 1
        to += 1
    memory_copy(to, merge.frame + merge.copied - HEADER_BYTES, end - merge.copied)
    merge.copied = end


@native
def merge_show(ring: RingState, merge: Merge) -> None:
    """Fill in num_buffers and give all buffers back."""
    store8(merge.low, merge.count)
    store8(merge.high, merge.count >> 8)
    dma_wrote(merge.low - ring.ram_host, 1)
    dma_wrote(merge.high - ring.ram_host, 1)
    for number in range(merge.count):
        hold = number + 1 < merge.count
        if merge.packed:
            packed_push(ring, merge.heads[number], merge.slots[number], merge.written[number], hold)
        else:
            split_push(ring, merge.heads[number], merge.slots[number], merge.written[number], hold)


class Merger:
    """The buffers of one receive queue, as Python code has them."""

    def __init__(self) -> None:
        self.ring: Ring | None = None  # where a frame is on its way
        self.frame: bytearray | memoryview = memoryview(b"")
        self.state: Any = Merge.ctype()
        self.place = ctypes.addressof(self.state)
        self.merge = merge_frame.entry

    def put(self, queue: Queue, data: memoryview, header: bytes, is_merging: bool) -> int:
        """Put a frame, which must be the same until it is done, into buffers.

        Gives FILLED, MISSING if it has to wait for buffers (the driver notifies of the next), or LOST if it does not
        fit.  A `QueueError` says what the driver did wrong.
        """
        if not queue.ready:
            return MISSING
        if self.ring is not queue.ring:
            self._begin(queue, data, header, is_merging)
        while (found := self.merge(queue.ring.place, self.place)) == MISSING:
            if queue.arm():
                return MISSING
        if found != FILLED:
            self.drop()
            self._refuse(queue.ring, found)
        self.ring = None
        return found

    def _begin(self, queue: Queue, data: memoryview, header: bytes, is_merging: bool) -> None:
        """A new frame, or the same in a ring of after a reset."""
        self.ring, self.frame, state = queue.ring, data, self.state
        if data.readonly or not data:
            self.frame = bytearray(data) + b"\0"  # something that has an address
        state.packed, state.merging, state.start = queue.packed, is_merging, queue.ring.next_avail
        state.frame, state.size = ctypes.addressof(ctypes.c_char.from_buffer(self.frame)), HEADER_BYTES + len(data)
        state.copied = state.count = 0
        ctypes.memmove(self.place + HEADER, header, HEADER_BYTES)

    def _refuse(self, ring: Ring, found: int) -> None:
        """Complain, if there is something to complain about."""
        if found == REFUSED:
            ring.refuse()
        if found == TOO_SHORT:
            raise QueueError(f"a buffer to receive of less than {HEADER_BYTES} bytes")
        if found == TWICE:
            raise QueueError(f"descriptor {ring.head} is offered again before it was given back")

    def drop(self) -> None:
        """Forget the frame: the next finds the same buffers, whose descriptors are read and checked anew."""
        if self.ring:
            self.ring.next_avail = self.state.start
            self.ring = None
