"""Address translation: PMP, page walks, and loads and stores that missed the software TLB (mem/tlb.py).

An access that finds its page in the current view's bank goes straight to host memory.  All others come here:
`translate` follows the privileged manual (Supervisor-Level ISA, virtual address translation process), `fill`
caches the result when later accesses may skip it.  Faults are left in `mmu.cause` and `mmu.tval`; the caller
takes the trap.
"""

from mem import reservation
from mem.atomics import (
    aload64,
    cas64,
    load8,
    load16,
    load32,
    load64,
    store8,
    store16,
    store32,
    store64,
)
from mem.bus import bus_covers, bus_read, bus_write, is_plain, is_ram
from mem.log import LOG_GUEST_ERRORS, NOTHING_THERE, log
from mem.machine import Machine
from mem.native import native
from mem.regions import HOST, MACHINE
from mem.tlb import (
    EXECUTE,
    MACHINE_MODE,
    NO_FAULT,
    PAGE_MASK,
    PMP_ENTRIES,
    READ,
    SUPERVISOR,
    TLB_ENTRIES,
    USER,
    WRITE,
    Mmu,
    View,
    note_large,
    remember,
    second_level,
)
from mem.word import ctz, select, sra

PTE_V, PTE_R, PTE_W, PTE_X, PTE_U, PTE_G, PTE_A, PTE_D = (1 << n for n in range(8))
PTE_RESERVED = 0x7F << 54
PTE_PBMT = 3 << 61
PTE_N = 1 << 63
PPN_MASK = (1 << 44) - 1
ADUE, PBMTE = 1 << 61, 1 << 62  # menvcfg

PMP_R, PMP_W, PMP_X, PMP_LOCK = 1, 2, 4, 0x80


# Physical memory protection (privileged manual, "Physical Memory Protection")


@native
def pmp_base(mmu: Mmu, entry: int) -> int:
    """First byte of an entry's range."""
    address = mmu.pmpaddr[entry]
    mode = (mmu.pmpcfg[entry] >> 3) & 3
    if mode == 1:
        return mmu.pmpaddr[entry - 1] << 2 if entry > 0 else 0
    if mode == 3:
        return (address & (address + 1)) << 2
    return address << 2


@native
def pmp_size(mmu: Mmu, entry: int) -> int:
    """Bytes of an entry's range; 0 when it is off or empty."""
    mode = (mmu.pmpcfg[entry] >> 3) & 3
    if mode == 0:
        return 0
    if mode == 1:
        base = pmp_base(mmu, entry)
        top = mmu.pmpaddr[entry] << 2
        return top - base if top > base else 0
    if mode == 2:
        return 4
    ones = ctz(~mmu.pmpaddr[entry])
    return NO_FAULT if ones >= 54 else 8 << ones


@native
def pmp_allows(mmu: Mmu, pa: int, size: int, access: int, privilege: int) -> int:
    """Whether PMP lets the whole access through: the lowest entry that matches any byte decides.

    An entry that matches only some of the bytes refuses.
    """
    for entry in range(PMP_ENTRIES):
        length = pmp_size(mmu, entry)
        if length:
            base = pmp_base(mmu, entry)
            last = base + length - 1 if length != NO_FAULT else NO_FAULT
            if pa <= last and pa + size - 1 >= base:
                if pa < base or pa + size - 1 > last:
                    return 0
                config = mmu.pmpcfg[entry]
                if privilege == MACHINE_MODE and not config & PMP_LOCK:
                    return 1
                need = select(access == READ, PMP_R, select(access == WRITE, PMP_W, PMP_X))
                return config & need != 0
    if privilege == MACHINE_MODE:
        return 1
    return not Machine.at(MACHINE).extensions >> 55 & 1


# The walk


@native
def fault(mmu: Mmu, cause: int, tval: int) -> int:
    """Leave an exception for the caller to take; gives 0."""
    mmu.cause = cause
    mmu.tval = tval
    return 0


@native(inline=True)
def cause_of(access: int, read: int, write: int, execute: int) -> int:
    """The cause that goes with the kind of access."""
    return select(access == READ, read, select(access == WRITE, write, execute))


@native
def access_fault(mmu: Mmu, va: int, access: int) -> int:
    return fault(mmu, cause_of(access, 5, 7, 1), va)


@native
def page_fault(mmu: Mmu, va: int, access: int) -> int:
    return fault(mmu, cause_of(access, 13, 15, 12), va)


@native
def levels_of(satp: int) -> int:
    """Levels of the page table that satp.MODE asks for; 0 for Bare."""
    mode = satp >> 60
    return mode - 5 if mode >= 8 else 0


@native
def leaf_allows(mmu: Mmu, pte: int, access: int, privilege: int) -> int:
    """Steps 5 and 6 of the translation process: what R, W, X, U, SUM and MXR say."""
    if access == EXECUTE:
        if not pte & PTE_X:
            return 0
    elif access == WRITE:
        if not pte & PTE_W:
            return 0
    elif not (pte & PTE_R or (mmu.mxr and pte & PTE_X)):
        return 0
    if privilege == USER:
        return pte & PTE_U != 0
    if pte & PTE_U:
        return access != EXECUTE and mmu.sum != 0
    return 1


@native
def pte_is_sound(mmu: Mmu, pte: int, leaf: int) -> int:
    """Whether the reserved bits and encodings of a valid entry are as the manual demands."""
    extensions = Machine.at(MACHINE).extensions
    if pte & PTE_RESERVED:
        return 0
    if not leaf:
        return pte & (PTE_A | PTE_D | PTE_U | PTE_N | PTE_PBMT) == 0
    if pte & (PTE_R | PTE_W) == PTE_W:
        return 0
    if pte & PTE_N and not extensions >> 52 & 1:
        return 0
    if pte & PTE_PBMT:
        return mmu.menvcfg & PBMTE != 0 and pte & PTE_PBMT != PTE_PBMT
    return 1


@native
def canonical(va: int, bits: int) -> int:
    """Whether the bits above the virtual address's width all equal its highest bit."""
    return sra(va << (64 - bits), 64 - bits) == va


@native
def mark_used(mmu: Mmu, pte_address: int, pte: int, access: int) -> int:
    """Step 9: set A (and D for a store) by compare-and-swap; 0 when the entry changed meanwhile."""
    want = pte | PTE_A | select(access == WRITE, PTE_D, 0)
    if not reservation.is_watched(pte_address):
        return cas64(HOST + pte_address, pte, want) == pte
    reservation.lock()
    marked = cas64(HOST + pte_address, pte, want) == pte
    if marked:
        reservation.broken_by(mmu.hart, pte_address, 8)
    reservation.unlock()
    return marked


@native
def leaf_address(pte: int, va: int, level: int) -> int:
    """The physical address a leaf gives, or NO_FAULT when the leaf is malformed."""
    ppn = (pte >> 10) & PPN_MASK
    bits = 12 + 9 * level
    if pte & PTE_N:
        if level or ppn & 15 != 8:
            return NO_FAULT
        return ((ppn & ~15) << 12) | (va & 0xFFFF)
    if (ppn << 12) & ((1 << bits) - 1):
        return NO_FAULT
    return (ppn << 12) | (va & ((1 << bits) - 1))


@native
def translate(mmu: Mmu, va: int, access: int, privilege: int) -> int:
    """The physical address for an access at this privilege, or `mmu.cause` set.

    Leaves in `mmu.page_bits` how large the page is, and in `mmu.is_global` whether it is global, as all that lies below
    an entry with G is, and not a user's.  PMP for the access itself is the caller's to check.
    """
    mmu.page_bits = 12
    mmu.is_global = 0
    levels = levels_of(mmu.satp)
    if privilege == MACHINE_MODE or levels == 0:
        return va
    mmu.walks += 1
    if not canonical(va, 12 + 9 * levels):
        return page_fault(mmu, va, access)
    table = (mmu.satp & PPN_MASK) << 12
    level = levels - 1
    while True:
        pte_address = table + ((va >> (12 + 9 * level)) & 0x1FF) * 8
        if not is_ram(pte_address, 8) or not pmp_allows(mmu, pte_address, 8, READ, SUPERVISOR):
            return access_fault(mmu, va, access)
        pte = aload64(HOST + pte_address)
        leaf = pte & (PTE_R | PTE_W | PTE_X)
        if not pte & PTE_V or not pte_is_sound(mmu, pte, leaf):
            return page_fault(mmu, va, access)
        mmu.is_global |= pte & PTE_G
        if leaf:
            if not leaf_allows(mmu, pte, access, privilege):
                return page_fault(mmu, va, access)
            pa = leaf_address(pte, va, level)
            if pa == NO_FAULT:
                return page_fault(mmu, va, access)
            if not pte & PTE_A or (access == WRITE and not pte & PTE_D):
                if not mmu.menvcfg & ADUE:
                    return page_fault(mmu, va, access)
                if not pmp_allows(mmu, pte_address, 8, WRITE, SUPERVISOR):
                    return access_fault(mmu, va, access)
                if not mark_used(mmu, pte_address, pte, access):
                    continue
            mmu.page_bits = select(pte & PTE_N != 0, 16, 12 + 9 * level)
            if pte & PTE_U:
                mmu.is_global = 0
            return pa
        if level == 0:
            return page_fault(mmu, va, access)
        table = ((pte >> 10) & PPN_MASK) << 12
        level -= 1
    return 0


# Slow accesses


@native
def fill(mmu: Mmu, va: int, pa: int, access: int) -> None:
    """Cache the page for loads or stores if every later access to it may go straight to memory."""
    page = pa & PAGE_MASK
    if not pmp_allows(mmu, page, 4096, access, mmu.data_privilege) or not is_ram(page, 4096):
        return
    if access == WRITE and (not is_plain(page) or reservation.is_watched(page)):
        return
    if mmu.page_bits > 12:
        note_large(mmu, va, mmu.page_bits)
    remember(mmu, va, pa, access)


@native
def locate(mmu: Mmu, va: int, size: int, access: int) -> int:
    """Translate and check a data access that lies in one page, and cache its page; gives the physical address."""
    mmu.misses += 1
    known = second_level(mmu, va, access)
    if known != NO_FAULT:
        return known
    pa = translate(mmu, va, access, mmu.data_privilege)
    if mmu.cause != NO_FAULT:
        return 0
    if not pmp_allows(mmu, pa, size, access, mmu.data_privilege):
        return access_fault(mmu, va, access)
    if not is_ram(pa, size) and not bus_covers(pa, size):
        log(LOG_GUEST_ERRORS, mmu.hart, NOTHING_THERE, pa, size)
        return access_fault(mmu, va, access)
    fill(mmu, va, pa, access)
    return pa


@native
def read_physical(mmu: Mmu, pa: int, size: int) -> int:
    """Load from RAM or a device; zero-extended."""
    if not is_ram(pa, size):
        return bus_read(mmu.hart, pa, size)
    match size:
        case 1:
            return load8(HOST + pa)
        case 2:
            return load16(HOST + pa)
        case 4:
            return load32(HOST + pa)
    return load64(HOST + pa)


@native
def store_host(address: int, size: int, value: int) -> None:
    """A plain store to host memory."""
    match size:
        case 1:
            store8(address, value)
        case 2:
            store16(address, value)
        case 4:
            store32(address, value)
        case _:
            store64(address, value)


@native
def write_physical(mmu: Mmu, pa: int, size: int, value: int) -> None:
    """Store to RAM or a device; breaks reservations where the page is watched."""
    if not is_ram(pa, size) or not is_plain(pa):
        bus_write(mmu.hart, pa, size, value)
    elif reservation.is_watched(pa):
        reservation.lock()
        store_host(HOST + pa, size, value)
        reservation.broken_by(mmu.hart, pa, size)
        reservation.unlock()
    else:
        store_host(HOST + pa, size, value)


@native
def crosses(va: int, size: int) -> int:
    """Whether the access touches two pages."""
    return (va ^ (va + size - 1)) >> 12 != 0


@native
def read_slow(mmu: Mmu, va: int, size: int) -> int:
    """A load that missed the TLB: zero-extended value, or `mmu.cause` set.

    Misaligned loads work; one that crosses a page is done in two parts, the fault's tval naming the part.
    """
    if crosses(va, size):
        first = 4096 - (va & 0xFFF)
        low = read_slow(mmu, va, first) if first & (first - 1) == 0 else read_bytes(mmu, va, first)
        if mmu.cause != NO_FAULT:
            return 0
        rest = size - first
        high = read_slow(mmu, va + first, rest) if rest & (rest - 1) == 0 else read_bytes(mmu, va + first, rest)
        return low | high << (8 * first)
    pa = locate(mmu, va, size, READ)
    if mmu.cause != NO_FAULT:
        return 0
    return read_physical(mmu, pa, size)


@native
def read_bytes(mmu: Mmu, va: int, count: int) -> int:
    """An odd number of bytes inside one page."""
    value = 0
    for i in range(count):
        byte = read_slow(mmu, va + i, 1)
        if mmu.cause != NO_FAULT:
            return 0
        value |= byte << (8 * i)
    return value


@native
def write_slow(mmu: Mmu, va: int, size: int, value: int) -> None:
    """A store that missed the TLB; nothing is written when any part of it faults."""
    pa = locate(mmu, va, 4096 - (va & 0xFFF) if crosses(va, size) else size, WRITE)
    if mmu.cause != NO_FAULT:
        return
    if crosses(va, size):
        first = 4096 - (va & 0xFFF)
        other = locate(mmu, va + first, size - first, WRITE)
        if mmu.cause != NO_FAULT:
            return
        for i in range(size):
            place = pa + i if i < first else other + i - first
            write_physical(mmu, place, 1, value >> (8 * i))
    else:
        write_physical(mmu, pa, size, value)


@native
def cached(mmu: Mmu, va: int, size: int, access: int) -> int:
    """The physical address that the TLB has for an aligned access, or NO_FAULT."""
    view = View.at(mmu.data)
    index = (va >> 12) & (TLB_ENTRIES - 1)
    entry = view.write.entries[index] if access == WRITE else view.read.entries[index]
    if entry.tag != va & (PAGE_MASK | size - 1):
        return NO_FAULT
    return va + entry.addend - HOST


@native
def atomic_address(mmu: Mmu, va: int, size: int, access: int) -> int:
    """The physical address of RAM for LR (READ), SC and AMO (WRITE), or `mmu.cause` set.

    Misaligned ones raise the misaligned exception, devices an access fault.
    """
    known = cached(mmu, va, size, access)
    if known != NO_FAULT:
        return known
    if va & (size - 1):
        return fault(mmu, cause_of(access, 4, 6, 0), va)
    pa = locate(mmu, va, size, access)
    if mmu.cause != NO_FAULT:
        return 0
    if not is_ram(pa, size):
        return access_fault(mmu, va, access)
    return pa
