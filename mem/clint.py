"""CLINT and the ACLINT's supervisor software interrupts: IPIs and timers, all of it in the hart that asks.

Registers as in the SiFive CLINT and the RISC-V ACLINT specification (MSWI, MTIMER, SSWI).  MSIP and SSIP are bits
of the target's mailbox.  The timer's level is nowhere stored: a hart compares `mtime()` with its mtimecmp.
"""

from mem import regions
from mem.atomics import aload32, aload64, astore64, store32
from mem.clock import CLOCK, mtime, set_mtime
from mem.layout import Layout, layout, many, u64
from mem.machine import Machine
from mem.mailbox import ALARM_INTERRUPT, MSIP, SSIP, alarm, clear_pending, mailbox, raise_pending
from mem.native import native, ref
from mem.word import MASK64

MTIMECMP_BASE = 0x4000
MTIME_BASE = 0xBFF8


@layout
class Clint(Layout):
    """The deadlines; written by any hart, with aligned stores of 4 or 8 bytes."""

    mtimecmp: list[u64] = many(regions.MAX_HARTS)


assert regions.CLINT + Clint.sizeof() <= CLOCK


@native
def clint_reset() -> None:
    """No deadline for any hart; called once before the harts start."""
    clint = Clint.at(regions.CLINT)
    for hart in range(regions.MAX_HARTS):
        clint.mtimecmp[hart] = MASK64


@native
def clint_covers(offset: int, size: int) -> int:
    """Whether an aligned access of this size is to a register: 4 bytes, also 8 from MTIMECMP on."""
    return size == 4 or (size == 8 and offset >= MTIMECMP_BASE)


@native
def clint_read(offset: int, size: int) -> int:
    """What a load of 4 or 8 bytes gets; 0 where no hart is."""
    value = 0
    if offset >= MTIME_BASE:
        value = mtime() >> (offset & 4) * 8
    elif offset >= MTIMECMP_BASE:
        hart = (offset - MTIMECMP_BASE) >> 3
        if hart < Machine.at(regions.MACHINE).harts:
            value = aload64(ref(Clint.at(regions.CLINT).mtimecmp[hart])) >> (offset & 4) * 8
    elif offset >> 2 < Machine.at(regions.MACHINE).harts:
        value = aload32(ref(mailbox(offset >> 2).pending)) & MSIP != 0
    return value if size == 8 else value & 0xFFFFFFFF


@native
def clint_write(offset: int, size: int, value: int) -> None:
    """A store of 4 or 8 bytes; without effect where no hart is."""
    if offset >= MTIME_BASE:
        write_mtime(offset, size, value)
    elif offset >= MTIMECMP_BASE:
        write_mtimecmp(offset, size, value)
    elif offset >> 2 < Machine.at(regions.MACHINE).harts:
        if value & 1:
            raise_pending(offset >> 2, MSIP)
        else:
            clear_pending(offset >> 2, MSIP)


@native
def write_mtimecmp(offset: int, size: int, value: int) -> None:
    """Move a hart's deadline, and make it look: it may be asleep until the old one, or be this very hart."""
    hart = (offset - MTIMECMP_BASE) >> 3
    if hart >= Machine.at(regions.MACHINE).harts:
        return
    place = ref(Clint.at(regions.CLINT).mtimecmp[hart])
    if size == 8:
        astore64(place, value)
    else:
        store32(place + (offset & 4), value)
    alarm(hart, ALARM_INTERRUPT)


@native
def write_mtime(offset: int, size: int, value: int) -> None:
    """Set the clock: every deadline is nearer or farther than before."""
    if size == 8:
        set_mtime(value)
    elif offset & 4:
        set_mtime(mtime() & 0xFFFFFFFF | value << 32)
    else:
        set_mtime(mtime() >> 32 << 32 | value & 0xFFFFFFFF)
    for hart in range(Machine.at(regions.MACHINE).harts):
        alarm(hart, ALARM_INTERRUPT)


@native
def sswi_write(offset: int, value: int) -> None:
    """SETSSIP: an edge sets SSIP, the hart itself clears it; the register reads 0."""
    if value & 1 and offset >> 2 < Machine.at(regions.MACHINE).harts:
        raise_pending(offset >> 2, SSIP)
