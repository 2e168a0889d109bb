"""Split virtqueues (virtio 1.3, 2.7): a table of descriptors, a ring of available heads and one of used ones.

Indices run freely modulo 2**16, as in the rings.
"""

from mem.atomics import aload16, astore16, fence_full, store16, store32
from mem.native import native
from virtio.ram import QueueError, Ram
from virtio.ring import (
    AHEAD,
    BAD,
    BEYOND,
    FOUND,
    INDIRECT,
    LOOP,
    NESTED,
    NEXT,
    NOTHING,
    Ring,
    RingState,
    add_part,
    begin_chain,
    fail,
    once16,
    once64,
    table_error,
    wait_for_more,
    wrote,
)

NO_NOTIFY = NO_INTERRUPT = 1


@native
def split_pop(ring: RingState) -> int:
    """Find the next chain."""
    # Acquire: avail.idx is read before the entry that it promises.
    waiting = (aload16(ring.driver + 2) - ring.next_avail) & 0xFFFF
    if waiting == 0:
        return NOTHING
    if waiting > ring.size:
        return fail(ring, AHEAD, waiting, ring.size)
    head = once16(ring.driver + 4 + 2 * (ring.next_avail & (ring.size - 1)))
    ring.next_avail = (ring.next_avail + 1) & 0xFFFF
    begin_chain(ring)
    ring.head = head
    ring.slots = 1
    return split_walk(ring, head)


@native
def split_walk(ring: RingState, index: int) -> int:
    """Read a chain, which may end in an indirect table."""
    table = ring.table
    limit = ring.size
    nested = 0
    steps = 0
    while True:
        if index >= limit:
            return fail(ring, BEYOND, index, limit)
        address = once64(table + 16 * index)
        rest = once64(table + 16 * index + 8)
        length = rest & 0xFFFFFFFF
        flags = (rest >> 32) & 0xFFFF
        index = rest >> 48
        if flags & INDIRECT:
            if nested or flags & NEXT:
                return fail(ring, NESTED, 0, 0)
            if table_error(ring, address, length):
                return BAD
            table = ring.ram_host + address
            limit = length >> 4
            nested = 1
            steps = 0
            index = 0
        else:
            steps += 1
            if steps > limit:
                return fail(ring, LOOP, limit, 0)
            if add_part(ring, address, length, flags):
                return BAD
            if flags & NEXT == 0:
                return FOUND
    return BAD


@native
def split_push(ring: RingState, head: int, slots: int, written: int, hold: int) -> None:
    """Write a used element, and show it unless more of the same batch follow."""
    place = ring.device + 4 + 8 * (ring.next_used & (ring.size - 1))
    store32(place, head)
    store32(place + 4, written)
    ring.next_used = (ring.next_used + 1) & 0xFFFF
    ring.unsignalled += slots
    if hold == 0:
        astore16(ring.device + 2, ring.next_used)  # release: elements are written before the index that shows them
        wrote(ring, ring.device, 4)
    wrote(ring, place, 8)


@native
def split_arm(ring: RingState, notify: int) -> int:
    """Watch for the next request and, if asked to, have the driver notify; gives 0 when there is one already."""
    if notify:
        if ring.event_index:
            store16(ring.device + 4 + 8 * ring.size, ring.next_avail)  # avail_event
        else:
            store16(ring.device, 0)
        fence_full()  # avail_event is written before avail.idx is read; the driver does the opposite
    ring.watch.place = ring.driver + 2
    ring.watch.mask = 0xFFFF
    ring.watch.value = ring.next_avail
    return wait_for_more(ring)


@native
def split_silence(ring: RingState) -> None:
    """Have the driver not notify."""
    if ring.event_index == 0:
        store16(ring.device, NO_NOTIFY)


@native
def split_wants_interrupt(ring: RingState) -> int:
    """Whether the driver wants to know of what was pushed since the last call."""
    old = ring.signalled
    ring.signalled = ring.next_used
    ring.unsignalled = 0
    fence_full()  # used.idx is written before used_event is read; the driver does the opposite
    if ring.event_index == 0:
        return once16(ring.driver) & NO_INTERRUPT == 0
    event = once16(ring.driver + 4 + 2 * ring.size)  # used_event: "when this element is used"
    return (ring.next_used - event - 1) & 0xFFFF < (ring.next_used - old) & 0xFFFF


class SplitRing(Ring):
    """For Python."""

    natives = (split_pop, split_push, split_arm, split_silence, split_wants_interrupt)

    def __init__(self, ram: Ram, size: int, areas: tuple[int, int, int], event_index: bool, indirect: bool) -> None:
        super().__init__(ram, size, event_index, indirect)
        if size & (size - 1):
            raise QueueError(f"a queue of {size} entries: must be a power of two")
        self.state.table = self.area(areas[0], 16 * size, 16)
        self.state.driver = self.area(areas[1], 6 + 2 * size, 2)
        self.state.device = self.area(areas[2], 6 + 8 * size, 4)
