"""LR, SC and compare-and-swap (unprivileged manual, "A" and "Zacas"; how exactness is had: mem/reservation.py).

An LR that opens a constrained sequence (only register arithmetic and branches up to its SC, all on one page)
remembers the value; its SC is one host compare-and-swap.  That is exact: nothing the guest can see tells it from
an LR that happened at the moment of the swap.  A trap or another SC ends the sequence.  So does a branch taken out
of it; an SC reached that way fails once, and its LR is watched from then on.
"""

from mem import reservation
from mem.atomics import cas32, cas64, cas128, load8, load16, load32, load64, now_ns
from mem.machine import Machine, is_ending
from mem.mailbox import ALARM_WATCH, request
from mem.mmu import atomic_address, store_host
from mem.native import native, ref
from mem.regions import HOST, MACHINE, RESERVATIONS, STEPS, STEPS_BYTES
from mem.reservation import NONE, Reservations
from mem.tlb import NO_FAULT, READ, WRITE, flush_writes
from mem.word import sext32
from smp.alarm import wait_for
from smp.code import Slot
from smp.hart import CONSTRAINED, NOTHING, STRAY, Hart


@native
def load_host(address: int, size: int) -> int:
    """A plain load from host memory, zero-extended."""
    match size:
        case 1:
            return load8(address)
        case 2:
            return load16(address)
        case 4:
            return load32(address)
    return load64(address)


@native
def arm(h: Hart, pa: int) -> None:
    """Have every hart store to this page through the slow path.

    A hart acknowledges between two instructions: its earlier stores to the page are then in memory.
    """
    reservation.begin_watch(pa)
    flush_writes(h.mmu)
    for other in range(Machine.at(MACHINE).harts):
        if other != h.id:
            wait_for(h, other, request(other, ALARM_WATCH))
    reservation.finish_watch(pa)


@native
def watched_load(h: Hart, pa: int, size: int) -> int:
    """LR outside a constrained sequence."""
    r = Reservations.at(RESERVATIONS)
    while True:
        if not reservation.is_armed(pa):
            arm(h, pa)
        reservation.lock()
        if reservation.is_armed(pa) or is_ending():
            r.granule[h.id] = pa & ~(reservation.GRANULE - 1)
            r.page_time[(pa >> 12) & 1023] = now_ns()
            value = load_host(HOST + pa, size)
            reservation.unlock()
            return value
        reservation.unlock()
    return 0


@native
def load_reserved(h: Hart, va: int, size: int, sc_pc: int) -> int:
    """LR: the value, zero-extended, or `mmu.cause` set.  `sc_pc` is where its constrained sequence ends, or 0."""
    pa = atomic_address(h.mmu, va, size, READ)
    if h.mmu.cause != NO_FAULT:
        return 0
    if sc_pc:
        value = load_host(HOST + pa, size)
        Reservations.at(RESERVATIONS).granule[h.id] = NONE
        h.reservation = CONSTRAINED
        h.reserved_pa = pa
        h.reserved_value = value
        h.reserved_sc = sc_pc
        h.reserved_lr = h.slot
        return value
    h.reservation = 0
    return watched_load(h, pa, size)


@native
def swap(address: int, size: int, expected: int, desired: int) -> int:
    """A host compare-and-swap of 4 or 8 bytes; gives the old value, zero-extended."""
    if size == 4:
        return cas32(address, expected, desired)
    return cas64(address, expected, desired)


@native
def constrained_store(h: Hart, pa: int, size: int, value: int) -> int:
    """SC of a constrained sequence: 0 when it stored."""
    if not reservation.is_watched(pa):
        return swap(HOST + pa, size, h.reserved_value, value) != h.reserved_value
    reservation.lock()
    failed = swap(HOST + pa, size, h.reserved_value, value) != h.reserved_value
    if not failed:
        reservation.broken_by(h.id, pa, size)
    reservation.unlock()
    return failed


@native
def watched_store(h: Hart, pa: int, size: int, value: int) -> int:
    """SC after a watched LR: 0 when it stored."""
    r = Reservations.at(RESERVATIONS)
    if r.granule[h.id] == NONE:
        return 1
    reservation.lock()
    failed = r.granule[h.id] != pa & ~(reservation.GRANULE - 1)
    if not failed:
        store_host(HOST + pa, size, value)
        reservation.broken_by(h.id, pa, size)
    r.granule[h.id] = NONE
    reservation.unlock()
    return failed


@native
def store_conditional(h: Hart, va: int, size: int, value: int, pc: int) -> int:
    """SC: 0 when it stored, 1 when not, or `mmu.cause` set.

    An SC that a constrained LR did not foresee fails, and that LR is watched from then on (`reserved_lr` is left
    for the caller, who knows the handlers).
    """
    pa = atomic_address(h.mmu, va, size, WRITE)
    if h.mmu.cause != NO_FAULT:
        return 0
    held = h.reservation
    if held == STRAY or (held == CONSTRAINED and pc != h.reserved_sc):
        h.reservation = STRAY
        return 1
    h.reservation = NOTHING
    if held == 0:
        return watched_store(h, pa, size, value)
    if held != CONSTRAINED or pa != h.reserved_pa:
        return 1
    return constrained_store(h, pa, size, value)


NEVER_FUSE = 48  # in a translated LR's slot, behind those of a step: not 0 once the LR must be a watched one


@native
def never_fuse(slot: int) -> None:
    """Translated code may no longer execute the LR of this slot by itself."""
    if slot - STEPS < STEPS_BYTES:
        Slot.at(slot + NEVER_FUSE).handler = 1


@native
def begin_locked(h: Hart, pa: int) -> int:
    """Before an atomic on a page that may be watched: takes the lock if so, and says it."""
    if not reservation.is_watched(pa):
        return 0
    reservation.lock()
    return 1


@native
def end_locked(h: Hart, pa: int, size: int, locked: int) -> None:
    """After it."""
    if locked:
        reservation.broken_by(h.id, pa, size)
        reservation.unlock()


@native
def compare_and_swap(h: Hart, va: int, size: int, rd: int, rs2: int) -> None:
    """amocas.w and .d (and .b, .h by a masked word): rd holds the expected value and gets the old one."""
    pa = atomic_address(h.mmu, va, size, WRITE)
    if h.mmu.cause != NO_FAULT:
        return
    locked = begin_locked(h, pa)
    address = HOST + pa
    if size == 8:
        old = cas64(address, h.x[rd], h.x[rs2])
    elif size == 4:
        old = sext32(cas32(address, h.x[rd], h.x[rs2]))
    else:
        old = narrow_swap(address, size, h.x[rd], h.x[rs2])
    end_locked(h, pa, size, locked)
    if rd:
        h.x[rd] = old


@native
def narrow_swap(address: int, size: int, expected: int, desired: int) -> int:
    """A compare-and-swap of one or two bytes inside their aligned word; old value sign-extended."""
    word = address & ~3
    shift = (address & 3) * 8
    bits = 8 * size
    mask = ((1 << bits) - 1) << shift
    while True:
        old = load32(word)
        current = (old & mask) >> shift
        if current != expected & ((1 << bits) - 1):
            break
        if cas32(word, old, old & ~mask | (desired << shift) & mask) == old:
            break
    top = 1 << (bits - 1)
    return (current ^ top) - top


@native
def compare_and_swap_pair(h: Hart, va: int, rd: int, rs2: int) -> None:
    """amocas.q: register pairs; a pair that begins with x0 reads as zero and takes nothing."""
    pa = atomic_address(h.mmu, va, 16, WRITE)
    if h.mmu.cause != NO_FAULT:
        return
    locked = begin_locked(h, pa)
    rd_high = h.x[rd + 1] if rd else 0
    rs2_high = h.x[rs2 + 1] if rs2 else 0
    cas128(HOST + pa, h.x[rd], rd_high, h.x[rs2], rs2_high, ref(h.pair))
    end_locked(h, pa, 16, locked)
    if rd:
        h.x[rd] = h.pair[0]
        h.x[rd + 1] = h.pair[1]
