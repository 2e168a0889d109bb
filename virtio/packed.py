"""Packed virtqueues (virtio 1.3, 2.8): one ring of descriptors, which driver and device write in turn.

Places in the ring are counted modulo twice its size: below the size the wrap counter is 1, from there on it is 0.
The driver area says when it wants interrupts, the device area when we want notifications.
"""

from mem.atomics import aload16, astore16, fence_full, load32, store16, store32
from mem.native import native
from virtio.ram import Ram
from virtio.ring import (
    BAD,
    FOUND,
    INDIRECT,
    NESTED,
    NEXT,
    NOT_FREE,
    NOTHING,
    WRITE,
    Ring,
    RingState,
    add_part,
    begin_chain,
    fail,
    once64,
    table_error,
    wait_for_more,
    wrote,
)

AVAIL, USED = 1 << 7, 1 << 15
DISABLE, AT_DESCRIPTOR = 1, 2  # flags of event suppression; they lie above the place, at bit 16


@native(inline=True)
def descriptor(ring: RingState, place: int) -> int:
    """Host address of the descriptor at a place."""
    return ring.table + 16 * (place if place < ring.size else place - ring.size)


@native(inline=True)
def after(ring: RingState, place: int, count: int) -> int:
    """The place that follows `count` descriptors later."""
    place += count
    return place if place < 2 * ring.size else place - 2 * ring.size


@native(inline=True)
def distance(ring: RingState, start: int, end: int) -> int:
    """From one place forward to another."""
    return end - start if start <= end else end + 2 * ring.size - start


@native(inline=True)
def driver_mark(ring: RingState) -> int:
    """How the driver marks the next descriptor."""
    return AVAIL if ring.next_avail < ring.size else USED


@native
def packed_pop(ring: RingState) -> int:
    """Find the next chain."""
    # Acquire: the flags are read before the rest of the descriptors that they promise.
    flags = aload16(descriptor(ring, ring.next_avail) + 14)
    if flags & (AVAIL | USED) != driver_mark(ring):
        return NOTHING
    free = ring.size - distance(ring, ring.next_used, ring.next_avail)
    place = ring.next_avail
    begin_chain(ring)
    while ring.slots < free:
        address = once64(descriptor(ring, place))
        rest = once64(descriptor(ring, place) + 8)
        if ring.slots:
            flags = rest >> 48
        ring.head = (rest >> 32) & 0xFFFF
        ring.slots += 1
        place = after(ring, place, 1)
        if packed_add(ring, address, rest & 0xFFFFFFFF, flags):
            return BAD
        if flags & NEXT == 0:
            ring.next_avail = place
            return FOUND
    return fail(ring, NOT_FREE, free, 0)


@native
def packed_add(ring: RingState, address: int, length: int, flags: int) -> int:
    """A descriptor of the ring; one of an indirect table has no flag but WRITE, whatever is there."""
    if flags & INDIRECT == 0:
        return add_part(ring, address, length, flags)
    if flags & NEXT or ring.slots > 1:
        return fail(ring, NESTED, 0, 0)
    if table_error(ring, address, length):
        return BAD
    table = ring.ram_host + address
    for index in range(length >> 4):
        rest = once64(table + 16 * index + 8)
        if add_part(ring, once64(table + 16 * index), rest & 0xFFFFFFFF, rest >> 48):
            return BAD
    return 0


@native
def packed_push(ring: RingState, head: int, slots: int, written: int, hold: int) -> None:
    """Write over the descriptor that comes next, whatever was there.

    Of a batch the first one's flags come last: a driver finds none of it without them.
    """
    place = descriptor(ring, ring.next_used)
    flags = (AVAIL | USED if ring.next_used < ring.size else 0) | (WRITE if written else 0)
    store32(place + 8, written)
    store16(place + 12, head)
    ring.next_used = after(ring, ring.next_used, slots)
    ring.unsignalled += slots
    if hold and ring.held_place == 0:
        ring.held_place = place
        ring.held_flags = flags
        return
    astore16(place + 14, flags)  # release: length and id are written before the flags that show them
    wrote(ring, place, 16)
    if hold == 0 and ring.held_place:
        astore16(ring.held_place + 14, ring.held_flags)  # release: so are all others of the batch
        wrote(ring, ring.held_place, 16)
        ring.held_place = 0


@native
def packed_arm(ring: RingState, notify: int) -> int:
    """Watch for the next request and, if asked to, have the driver notify; gives 0 when there is one already."""
    if notify:
        event = 0
        if ring.event_index:
            event = AT_DESCRIPTOR << 16 | ring.next_avail
            if ring.next_avail >= ring.size:
                event = AT_DESCRIPTOR << 16 | (ring.next_avail - ring.size)
            else:
                event = event | 1 << 15
        store32(ring.device, event)
        fence_full()  # the events are written before the descriptor is read; the driver does the opposite
    ring.watch.place = descriptor(ring, ring.next_avail) + 14
    ring.watch.mask = AVAIL | USED
    ring.watch.value = driver_mark(ring)
    ring.watch.equal = 1
    return wait_for_more(ring)


@native
def packed_silence(ring: RingState) -> None:
    """Have the driver not notify."""
    if ring.event_index == 0:
        store32(ring.device, DISABLE << 16)


@native
def packed_wants_interrupt(ring: RingState) -> int:
    """Whether the driver wants to know of what was pushed since the last call."""
    old = ring.signalled
    ring.signalled = ring.next_used
    ring.unsignalled = 0
    fence_full()  # the used descriptors are written before the events are read; the driver does the opposite
    event = load32(ring.driver)
    kind = (event >> 16) & 3
    if ring.event_index == 0 or kind != AT_DESCRIPTOR:
        return kind != DISABLE
    place = event & 0x7FFF
    if event & 0x8000 == 0:
        place += ring.size
    if place >= 2 * ring.size:
        return 0  # there is no such place
    return distance(ring, old, place) < distance(ring, old, ring.next_used)


class PackedRing(Ring):
    """For Python."""

    natives = (packed_pop, packed_push, packed_arm, packed_silence, packed_wants_interrupt)

    def __init__(self, ram: Ram, size: int, areas: tuple[int, int, int], event_index: bool, indirect: bool) -> None:
        super().__init__(ram, size, event_index, indirect)
        self.state.table = self.area(areas[0], 16 * size, 16)
        self.state.driver = self.area(areas[1], 4, 4)
        self.state.device = self.area(areas[2], 4, 4)
