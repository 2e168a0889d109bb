"""Exact LR/SC for sequences that are not constrained: watched pages.

A plain store costs nothing extra, so nobody sees it break a reservation.  An LR therefore first has its page
*watched*: every hart drops its write translations for it and from then on stores to the page through the slow
path, which breaks the reservations it touches under one lock.  A page that has seen no LR for a while is let go.
Constrained sequences (no memory access between LR and SC) never come here: see smp/interpreter.py.
"""

from mem.atomics import aload32, fetch_add32, load8, now_ns, spin_lock, spin_unlock, store8
from mem.layout import Layout, layout, many, u32, u64
from mem.native import native, ref
from mem.regions import MAX_HARTS, RESERVATIONS, WATCHED

GRANULE = 8  # bytes of a reservation set
NONE = (1 << 64) - 1
UNWATCHED, ARMING, ARMED = range(3)
LET_GO_NS = 20_000_000
RAM = 0x8000_0000


@layout
class Reservations(Layout):
    """One for all; `granule` and `page_time` change under the lock."""

    lock: u32
    watched: u32  # how many pages are watched: nobody takes the lock while it is 0
    granule: list[u64] = many(MAX_HARTS)  # physical address each hart has reserved, or NONE
    page_time: list[u64] = many(1024)  # by page number modulo 1024: when an LR last touched it


@native(inline=True)
def lock() -> None:
    spin_lock(ref(Reservations.at(RESERVATIONS).lock))


@native(inline=True)
def unlock() -> None:
    spin_unlock(ref(Reservations.at(RESERVATIONS).lock))


@native(inline=True)
def mark(pa: int) -> int:
    """Host address of the page's byte."""
    return WATCHED + ((pa - RAM) >> 12)


@native
def is_watched(pa: int) -> int:
    """Whether stores to the page of this RAM address must take the slow path."""
    return load8(mark(pa)) != UNWATCHED


@native
def reset() -> None:
    """No reservations: called before the harts start."""
    for hart in range(MAX_HARTS):
        Reservations.at(RESERVATIONS).granule[hart] = NONE


@native
def broken_by(hart: int, pa: int, size: int) -> None:
    """The hart (or MAX_HARTS: a device) wrote here: others' reservations of it are gone.  Under the lock.

    Lets the page go when no LR came for a while and nobody holds a reservation in it.
    """
    r = Reservations.at(RESERVATIONS)
    held = 0
    for other in range(MAX_HARTS):
        granule = r.granule[other]
        if granule != NONE:
            if other != hart and granule < pa + size and pa < granule + GRANULE:
                r.granule[other] = NONE
            elif granule >> 12 == pa >> 12:
                held = 1
    if not held and load8(mark(pa)) == ARMED and now_ns() - r.page_time[(pa >> 12) & 1023] > LET_GO_NS:
        store8(mark(pa), UNWATCHED)
        fetch_add32(ref(r.watched), -1)


@native
def dma_wrote(pa: int, size: int) -> None:
    """A device wrote guest RAM."""
    if aload32(ref(Reservations.at(RESERVATIONS).watched)):
        lock()
        at = pa
        while at < pa + size:
            if load8(mark(at)) != UNWATCHED:
                broken_by(MAX_HARTS, at, min_of(4096 - (at & 0xFFF), pa + size - at))
            at = (at | 0xFFF) + 1
        unlock()


@native
def break_all() -> None:
    """Another process wrote guest RAM, nobody knows where."""
    r = Reservations.at(RESERVATIONS)
    if aload32(ref(r.watched)):
        lock()
        for hart in range(MAX_HARTS):
            r.granule[hart] = NONE
        unlock()


@native(inline=True)
def min_of(a: int, b: int) -> int:
    return a if a < b else b


@native
def drop(hart: int) -> None:
    """Forget the hart's own reservation."""
    Reservations.at(RESERVATIONS).granule[hart] = NONE


@native
def begin_watch(pa: int) -> None:
    """Mark the page as being armed, so that no write translation of it is cached from now on."""
    lock()
    if load8(mark(pa)) == UNWATCHED:
        store8(mark(pa), ARMING)
        fetch_add32(ref(Reservations.at(RESERVATIONS).watched), 1)
    unlock()


@native
def is_armed(pa: int) -> int:
    return load8(mark(pa)) == ARMED


@native
def finish_watch(pa: int) -> None:
    """All harts have dropped their write translations."""
    lock()
    if load8(mark(pa)) == ARMING:
        store8(mark(pa), ARMED)
    # The LR is still to come: a store before it must not let the page go again.
    Reservations.at(RESERVATIONS).page_time[(pa >> 12) & 1023] = now_ns()
    unlock()
