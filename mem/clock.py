"""Time: the 10 MHz counter behind MTIME and the `time` CSR, from the host's monotonic clock.

Nobody else reads the host's clock for the guest; a virtual clock would replace these natives.
"""

from mem import memmap, regions
from mem.atomics import aload64, fetch_add64, now_ns
from mem.layout import Layout, layout, u64
from mem.machine import Machine
from mem.native import native, ref

NS_PER_TICK = 1_000_000_000 // memmap.TIMEBASE_HZ
FOREVER_NS = 1 << 62  # what no sleep outlasts, and the host's timespec still holds
CLOCK = regions.CLINT + 0x8000  # behind the CLINT's record


@layout
class Clock(Layout):
    """What writes to MTIME changed."""

    ahead: u64  # ticks added to those since the machine's clock_origin, modulo 2**64


@native
def mtime() -> int:
    """Ticks of the guest's clock, modulo 2**64."""
    since = now_ns() - Machine.at(regions.MACHINE).clock_origin
    return since // NS_PER_TICK + aload64(ref(Clock.at(CLOCK).ahead))


@native
def set_mtime(ticks: int) -> None:
    """Let the clock go on from `ticks`."""
    fetch_add64(ref(Clock.at(CLOCK).ahead), ticks - mtime())


@native
def ns_until(deadline: int) -> int:
    """Nanoseconds until `mtime() >= deadline`, 0 when it is past; at most FOREVER_NS."""
    now = mtime()
    if now >= deadline:
        return 0
    left = deadline - now
    return left * NS_PER_TICK if left < FOREVER_NS // NS_PER_TICK else FOREVER_NS
