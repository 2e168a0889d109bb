"""The software TLB that compiled code probes: its two levels, its address spaces, and how they are emptied.

A hart keeps the translations of the last SPACES values that satp had, each in banks of its own, so that a switch
between processes empties nothing.  What is flushed in all address spaces is dropped from those that are not in use:
their banks are emptied when they are given to another.

A kernel's translations are global: the same in all address spaces (privileged manual, "Addressing and Memory
Protection" of Sv32). Those of the upper half of the addresses, where kernels lie, go with the hart to a new address
space (`inherit_views`), and the second level has them once for all spaces.
"""

from mem.atomics import load64, memory_set, store64
from mem.layout import Layout, layout, many, u8, u32, u64
from mem.native import native, ref
from mem.regions import HOST
from mem.word import select

READ, WRITE, EXECUTE = range(3)
USER, SUPERVISOR, MACHINE_MODE = 0, 1, 3
PAGE_MASK = ~0xFFF & (1 << 64) - 1
NO_FAULT = (1 << 64) - 1
EMPTY = (1 << 64) - 1  # a tag that no masked address equals
TLB_ENTRIES = 256
SECOND_ENTRIES = 4096  # of the second level, in a bank
VIEW_U, VIEW_S, VIEW_SUM, VIEW_M, VIEWS = range(5)
SPACES = 4
ALL_SPACES = (1 << SPACES) - 1  # a bit each
LARGES = 8
LARGE_BITS = 31
FREE = (1 << 64) - 1  # in place of a satp: the space belongs to none
ASID_SHIFT, ASID_MASK = 44, 0xFFFF
PMP_ENTRIES = 16


@layout
class Entry(Layout):
    """A page: `tag` its virtual address, host address = virtual address + addend."""

    tag: u64
    addend: u64


@layout
class Bank(Layout):
    """Translations for one kind of access in one view, indexed by the lowest bits of the page number."""

    entries: list[Entry] = many(TLB_ENTRIES)


@layout
class View(Layout):
    """What loads and stores see at one privilege (U, S, S with SUM, M)."""

    read: Bank
    write: Bank


@layout
class SecondBank(Layout):
    """The second level for one kind of access: what `remember` has put into the first, of all views and spaces.

    A tag is a page's virtual address and, in the bits of the offset, the view and a stamp that is the space's.  A space
    that is emptied gets another stamp, which makes its entries old without touching them.
    """

    entries: list[Entry] = many(SECOND_ENTRIES)


@layout
class Space(Layout):
    """An address space whose translations the hart has."""

    satp: u64  # or FREE
    read_stamp: u64
    write_stamp: u64


@layout
class Large(Layout):
    """A region with superpages cached since the last flush of everything: where (va & mask) == base."""

    base: u64
    mask: u64


@layout
class Mmu(Layout):
    """A hart's translation state; belongs to its hart alone."""

    data: u64  # host address of the view that loads and stores use now
    first_view: u64  # host address of the views of the space in use
    all_views: u64  # host address of the hart's views, which a copy of this record shares
    cause: u64  # exception of the last access, or NO_FAULT
    tval: u64
    hart: u32
    privilege: u32  # current mode
    data_privilege: u32  # of loads and stores: differs under MPRV
    sum: u32  # mstatus.SUM
    mxr: u32  # mstatus.MXR
    satp: u64
    menvcfg: u64
    misses: u64
    second_hits: u64  # misses that the second level answered
    walks: u64
    space: u64  # the one in use
    taken: u64  # the space that was last taken from another satp
    page_bits: u64  # scratch: log2 of the size of the page that the last walk ended at
    is_global: u64  # scratch: whether the last walk met the G bit, and no U bit
    shared_read_stamp: u64  # of what the second level has for all spaces
    shared_write_stamp: u64
    writable: u64  # scratch: whether the last walk allows caching for this access
    pmpaddr: list[u64] = many(PMP_ENTRIES)
    pmpcfg: list[u8] = many(PMP_ENTRIES)
    large: list[Large] = many(LARGES)
    spaces: list[Space] = many(SPACES)
    views: list[View] = many(SPACES * VIEWS)
    own: list[u64] = many(SPACES)  # whether supervisor's banks of a space have upper addresses that are not global
    stamps: u64  # the next that is free
    second_read: SecondBank
    second_write: SecondBank


VIEW_BYTES = View.sizeof()
WRITE_BANK = View.offset("write")
BANK_BYTES = Bank.sizeof()
VIEW_SHIFT = VIEW_BYTES.bit_length() - 1
assert VIEW_BYTES == 1 << VIEW_SHIFT
SECOND_BYTES = Entry.sizeof() * SECOND_ENTRIES
STAMP = 4  # the view is in the lowest two bits, the stamp above
STAMPS = (1 << 12) - STAMP  # one less than there is room for: the last page's tag must not become EMPTY
assert VIEWS <= STAMP
SPACE_STEP = SECOND_ENTRIES // VIEWS // SPACES + 1
OWN = Mmu.offset("own") - Mmu.offset("views")


# Spaces


@native
def space_of(mmu: Mmu, satp: int) -> int:
    """The space that has this address space's translations, or SPACES."""
    for space in range(SPACES):
        if mmu.spaces[space].satp == satp:
            return space
    return SPACES


@native
def take_space(mmu: Mmu, satp: int) -> int:
    """Give this address space a space that is still to be emptied: a free one, or another's, not the one in use."""
    taken = space_of(mmu, FREE)
    if taken == SPACES:
        taken = (mmu.taken + 1) % SPACES
        if taken == mmu.space:
            taken = (taken + 1) % SPACES
    mmu.taken = taken
    mmu.spaces[taken].satp = satp
    return taken


@native
def use_space(mmu: Mmu, space: int) -> None:
    """Have loads and stores use the translations of this space; `choose_view` is to follow."""
    mmu.space = space
    mmu.first_view = mmu.all_views + space * (VIEWS << VIEW_SHIFT)


@native
def spaces_with(mmu: Mmu, asid: int) -> int:
    """The spaces of this ASID, a bit each."""
    found = 0
    for space in range(SPACES):
        satp = mmu.spaces[space].satp
        if satp != FREE and satp >> ASID_SHIFT & ASID_MASK == asid:
            found |= 1 << space
    return found


# Flushes


@native
def new_stamp(mmu: Mmu) -> int:
    """A stamp that no entry of the second level has; when they are used up, all entries go and all begin anew."""
    if mmu.stamps >= STAMPS:
        memory_set(ref(mmu.second_read), 0xFF, SECOND_BYTES)
        memory_set(ref(mmu.second_write), 0xFF, SECOND_BYTES)
        mmu.stamps = 0
        for space in range(SPACES):
            mmu.spaces[space].read_stamp = mmu.stamps
            mmu.spaces[space].write_stamp = mmu.stamps
            mmu.stamps += STAMP
        mmu.shared_read_stamp = mmu.stamps
        mmu.shared_write_stamp = mmu.stamps
        mmu.stamps += STAMP
    stamp = mmu.stamps
    mmu.stamps += STAMP
    return stamp


@native
def flush_second(mmu: Mmu, space: int) -> None:
    """Forget what the second level has of a space."""
    stamp = new_stamp(mmu)
    mmu.spaces[space].read_stamp = stamp
    mmu.spaces[space].write_stamp = stamp


@native
def flush_shared(mmu: Mmu) -> None:
    """Forget what the second level has for all spaces."""
    stamp = new_stamp(mmu)
    mmu.shared_read_stamp = stamp
    mmu.shared_write_stamp = stamp


@native
def flush_space(mmu: Mmu, space: int) -> None:
    """Forget a space's translations of loads and stores."""
    memory_set(ref(mmu.views[space * VIEWS]), 0xFF, VIEW_BYTES * VIEWS)
    mmu.own[space] = 0
    flush_second(mmu, space)


@native
def drop_spaces(mmu: Mmu, spaces: int) -> None:
    """Give up these spaces (a bit each), but the one in use."""
    for space in range(SPACES):
        if spaces >> space & 1 and space != mmu.space:
            mmu.spaces[space].satp = FREE


@native
def flush_all(mmu: Mmu) -> None:
    """Forget all translations of loads and stores."""
    drop_spaces(mmu, ALL_SPACES)
    flush_space(mmu, mmu.space)
    flush_shared(mmu)
    for number in range(LARGES):
        mmu.large[number].mask = 0
        mmu.large[number].base = NO_FAULT


@native
def flush_writes(mmu: Mmu) -> None:
    """Forget the translations of stores, in both levels and all spaces: a page became watched."""
    for space in range(SPACES):
        if mmu.spaces[space].satp != FREE:
            for view in range(VIEWS):
                memory_set(ref(mmu.views[space * VIEWS + view]) + WRITE_BANK, 0xFF, BANK_BYTES)
            stamp = new_stamp(mmu)
            mmu.spaces[space].write_stamp = stamp
    stamp = new_stamp(mmu)
    mmu.shared_write_stamp = stamp


@native
def is_large(mmu: Mmu, va: int) -> int:
    """Whether the address may lie in a superpage: it is cached as 4 KiB pieces, so only a full flush forgets it."""
    for number in range(LARGES):
        if va & mmu.large[number].mask == mmu.large[number].base:
            return 1
    return 0


@native
def flush_page(mmu: Mmu, va: int, spaces: int) -> None:
    """Forget, in these spaces (a bit each), the translations that the leaf entry of an address gave.

    What the second level has for all spaces lies where it would for space 0 alone: a fence that is for all takes it,
    and no other needs to.  Not for an address for which `is_large` holds.
    """
    index = (va >> 12) & (TLB_ENTRIES - 1)
    for view in range(VIEWS):
        for space in range(SPACES):
            if spaces >> space & 1:
                mmu.views[space * VIEWS + view].read.entries[index].tag = EMPTY
                mmu.views[space * VIEWS + view].write.entries[index].tag = EMPTY
                second = second_index(va, space, view)
                mmu.second_read.entries[second].tag = EMPTY
                mmu.second_write.entries[second].tag = EMPTY


@native
def widened(large: Large, va: int, bits: int) -> int:
    """The mask of a region that is to hold a superpage too."""
    mask = NO_FAULT << bits
    if large.base != NO_FAULT:
        mask &= large.mask
        while (va ^ large.base) & mask:
            mask = mask << 1
    return mask


@native
def note_large(mmu: Mmu, va: int, bits: int) -> None:
    """Have a region hold a superpage: one that stays below LARGE_BITS, or a free one, or the one that stays smallest.

    A kernel's image, its map of all memory and pages of 4 KiB that it maps for a moment lie far apart: with one region
    for all of them each such page, when it is flushed, would flush everything.
    """
    best = 0
    most = 0
    for number in range(LARGES):
        large = mmu.large[number]
        mask = widened(large, va, bits)
        rank = NO_FAULT << LARGE_BITS if large.base == NO_FAULT else mask
        if rank > most:
            best = number
            most = rank
    large = mmu.large[best]
    large.mask = widened(large, va, bits)
    large.base = va & large.mask


# Views


@native
def choose_view(mmu: Mmu) -> None:
    """Point `data` at the bank for the current privilege of loads and stores."""
    view = VIEW_M
    if mmu.data_privilege == USER:
        view = VIEW_U
    elif mmu.data_privilege == SUPERVISOR:
        view = VIEW_SUM if mmu.sum else VIEW_S
    mmu.data = mmu.first_view + (view << VIEW_SHIFT)


@native(inline=True)
def view_in_use(mmu: Mmu) -> int:
    """Which view `data` is: translated code changes that alone, when it sets SUM."""
    return (mmu.data - mmu.first_view) >> VIEW_SHIFT


# What a space has from others


@native
def copy_upper(to: int, source: int, entries: int) -> None:
    """Copy a bank of pairs of words, of which the first is a virtual address: those in the upper half."""
    for index in range(entries):
        first = load64(source + index * 16)
        store64(to + index * 16, select(first >> 63 != 0, first, EMPTY))
        store64(to + index * 16 + 8, load64(source + index * 16 + 8))


@native
def inherit_views(mmu: Mmu, space: int) -> None:
    """Give a space what supervisor's views of the one in use have of the upper half, all of it global, and no more.

    It may be the one in use itself.
    """
    memory_set(ref(mmu.views[space * VIEWS + VIEW_U]), 0xFF, VIEW_BYTES)
    memory_set(ref(mmu.views[space * VIEWS + VIEW_M]), 0xFF, VIEW_BYTES)
    mmu.own[space] = 0
    for view in range(VIEW_S, VIEW_SUM + 1):
        copy_upper(ref(mmu.views[space * VIEWS + view]), ref(mmu.views[mmu.space * VIEWS + view]), 2 * TLB_ENTRIES)


@native
def note_space(mmu: Mmu, va: int) -> None:
    """Supervisor's banks of the space in use get a page of the upper half: is it one of this space alone?"""
    if va >> 63 and not mmu.is_global:
        store64(mmu.all_views + OWN + mmu.space * 8, 1)


@native(inline=True)
def is_shared(mmu: Mmu, va: int) -> int:
    """Whether the second level has the page, if it has it at all, for all spaces, and for S with SUM or without.

    So it has no user's page of the upper half, be it global: without SUM that is not for S.
    """
    view = view_in_use(mmu)
    return va >> 63 & ((view == VIEW_S) | (view == VIEW_SUM))


@native(inline=True)
def place_in_use(mmu: Mmu, va: int) -> int:
    """A page's index in the second level."""
    shared = is_shared(mmu, va)
    return second_index(va, select(shared != 0, 0, mmu.space), select(shared != 0, VIEW_S, view_in_use(mmu)))


@native(inline=True)
def second_index(va: int, space: int, view: int) -> int:
    """A page's place depends on space and view: other processes, and the kernel, use the same addresses."""
    return ((va >> 12) + view * (SECOND_ENTRIES // VIEWS) + space * SPACE_STEP) & (SECOND_ENTRIES - 1)


@native(inline=True)
def stamp_of(mmu: Mmu, va: int, access: int) -> int:
    """What marks an entry of the second level as one of this space and view."""
    if is_shared(mmu, va):
        return (mmu.shared_write_stamp if access == WRITE else mmu.shared_read_stamp) | VIEW_S
    space = mmu.spaces[mmu.space]
    return (space.write_stamp if access == WRITE else space.read_stamp) | view_in_use(mmu)


@native(inline=True)
def put_first(mmu: Mmu, va: int, addend: int, access: int) -> None:
    """Make it an entry of the bank in use."""
    view = View.at(mmu.data)
    index = (va >> 12) & (TLB_ENTRIES - 1)
    entry = view.write.entries[index] if access == WRITE else view.read.entries[index]
    entry.tag = va & PAGE_MASK
    entry.addend = addend


@native
def remember(mmu: Mmu, va: int, pa: int, access: int) -> None:
    """Put a page into both levels; into the second only what it has a place for."""
    put_first(mmu, va, HOST + pa - va, access)
    note_space(mmu, va)
    if is_shared(mmu, va) and not mmu.is_global:
        return
    bank = mmu.second_write if access == WRITE else mmu.second_read
    entry = bank.entries[place_in_use(mmu, va)]
    entry.tag = va & PAGE_MASK | stamp_of(mmu, va, access)
    entry.addend = HOST + pa - va


@native
def second_level(mmu: Mmu, va: int, access: int) -> int:
    """The physical address that the second level has, or NO_FAULT; what it has goes to the first."""
    bank = mmu.second_write if access == WRITE else mmu.second_read
    entry = bank.entries[place_in_use(mmu, va)]
    if entry.tag != va & PAGE_MASK | stamp_of(mmu, va, access):
        return NO_FAULT
    mmu.second_hits += 1
    put_first(mmu, va, entry.addend, access)
    return va + entry.addend - HOST
