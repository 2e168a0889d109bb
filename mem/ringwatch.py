"""A word of a ring in guest RAM that an I/O process looks at while it spins."""

from mem.atomics import aload16
from mem.layout import Layout, layout, u64
from mem.native import native


@layout
class RingWatch(Layout):
    """There is work when the masked bits are `value`, or when they are not."""

    place: u64  # host address of 16 bits
    mask: u64
    value: u64
    equal: u64  # 1: work when they are the value; 0: when they differ
    active: u64  # 0: nobody waits for work here


@native
def ring_has_work(watch: int) -> int:
    """Whether a driver has put something into the ring that a RingWatch is for."""
    ring = RingWatch.at(watch)
    if ring.active == 0:
        return 0
    differs = (aload16(ring.place) ^ ring.value) & ring.mask
    return differs == 0 if ring.equal else differs != 0
