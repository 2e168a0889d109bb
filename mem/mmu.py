"""Address translation: PMP, page walks, and the software TLB that compiled code probes.

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
    memory_set,
    store8,
    store16,
    store32,
    store64,
)
from mem.bus import bus_covers, bus_read, bus_write, is_plain, is_ram
from mem.layout import Layout, layout, many, u8, u32, u64
from mem.log import LOG_GUEST_ERRORS, NOTHING_THERE, log
from mem.machine import Machine
from mem.native import native, ref
from mem.regions import HOST, MACHINE
from mem.word import ctz, select, sra

READ, WRITE, EXECUTE = range(3)
USER, SUPERVISOR, MACHINE_MODE = 0, 1, 3
PAGE_MASK = ~0xFFF & (1 << 64) - 1
NO_FAULT = (1 << 64) - 1
EMPTY = (1 << 64) - 1  # a tag that no masked address equals
TLB_ENTRIES = 256
SECOND_ENTRIES = 4096  # of the second level, in a bank
VIEW_U, VIEW_S, VIEW_SUM, VIEW_M, VIEWS = range(5)


PTE_V, PTE_R, PTE_W, PTE_X, PTE_U, PTE_G, PTE_A, PTE_D = (1 << n for n in range(8))
PTE_RESERVED = 0x7F << 54
PTE_PBMT = 3 << 61
PTE_N = 1 << 63
PPN_MASK = (1 << 44) - 1
ADUE, PBMTE = 1 << 61, 1 << 62  # menvcfg

PMP_R, PMP_W, PMP_X, PMP_LOCK = 1, 2, 4, 0x80
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
    """The second level for one kind of access: the translations of all views that `fill` has put into the first.

    A tag is a page's virtual address and, in the bits of the offset, a stamp: the view and the flushes so far.  So a
    flush makes the entries old without touching them.
    """

    flushes: u64  # since the entries were last cleared, times FLUSH
    entries: list[Entry] = many(SECOND_ENTRIES)


@layout
class Mmu(Layout):
    """A hart's translation state; belongs to its hart alone."""

    data: u64  # host address of the view that loads and stores use now
    first_view: u64  # host address of the hart's views, which a copy of this record shares
    cause: u64  # exception of the last access, or NO_FAULT
    tval: u64
    hart: u32
    privilege: u32  # current mode
    data_privilege: u32  # of loads and stores: differs under MPRV
    sum: u32  # mstatus.SUM
    mxr: u32  # mstatus.MXR
    uniform: u32  # scratch: whether PMP gave the same answer for the whole page
    satp: u64
    menvcfg: u64
    large_base: u64  # all superpages ever cached since the last flush lie where (va & large_mask) == large_base
    large_mask: u64
    misses: u64
    second_hits: u64  # misses that the second level answered
    walks: u64
    page_bits: u64  # scratch: log2 of the size of the page that the last walk ended at
    writable: u64  # scratch: whether the last walk allows caching for this access
    pmpaddr: list[u64] = many(PMP_ENTRIES)
    pmpcfg: list[u8] = many(PMP_ENTRIES)
    views: list[View] = many(VIEWS)
    second_read: SecondBank
    second_write: SecondBank


VIEW_BYTES = View.sizeof()
WRITE_BANK = View.offset("write")
BANK_BYTES = Bank.sizeof()
VIEW_SHIFT = VIEW_BYTES.bit_length() - 1
assert VIEW_BYTES == 1 << VIEW_SHIFT
SECOND_BYTES = Entry.sizeof() * SECOND_ENTRIES
FLUSH = 4  # a stamp: the view in the lowest two bits, flushes above
STAMPS = (1 << 12) - FLUSH  # one less than there is room for: the last page's tag must not become EMPTY
assert VIEWS <= FLUSH


@native
def flush_second(bank: SecondBank) -> None:
    """Make all entries old; when the stamps are used up, the entries go, so that none of the first time comes back."""
    bank.flushes += FLUSH
    if bank.flushes >= STAMPS:
        memory_set(ref(bank.entries), 0xFF, SECOND_BYTES)
        bank.flushes = 0


@native(inline=True)
def view_in_use(mmu: Mmu) -> int:
    """Which view `data` is: translated code changes that alone, when it sets SUM."""
    return (mmu.data - mmu.first_view) >> VIEW_SHIFT


@native(inline=True)
def second_index(va: int, view: int) -> int:
    """A page's place depends on the view, so that the kernel's own accesses to a page don't displace its user's."""
    return ((va >> 12) + view * (SECOND_ENTRIES // VIEWS)) & (SECOND_ENTRIES - 1)


@native
def flush_all(mmu: Mmu) -> None:
    """Forget all translations of loads and stores."""
    memory_set(ref(mmu.views), 0xFF, VIEW_BYTES * VIEWS)
    flush_second(mmu.second_read)
    flush_second(mmu.second_write)
    mmu.large_mask = 0
    mmu.large_base = NO_FAULT


@native
def flush_writes(mmu: Mmu) -> None:
    """Forget the translations of stores, in both levels: a page became watched."""
    for view in range(VIEWS):
        memory_set(ref(mmu.views[view]) + WRITE_BANK, 0xFF, BANK_BYTES)
    flush_second(mmu.second_write)


@native
def flush_page(mmu: Mmu, va: int) -> None:
    """Forget the translations that the leaf entry of this address gave.

    A superpage is cached as 4 KiB pieces, so an address inside one costs a full flush.
    """
    if va & mmu.large_mask == mmu.large_base:
        flush_all(mmu)
        return
    index = (va >> 12) & (TLB_ENTRIES - 1)
    for view in range(VIEWS):
        mmu.views[view].read.entries[index].tag = EMPTY
        mmu.views[view].write.entries[index].tag = EMPTY
        second = second_index(va, view)
        mmu.second_read.entries[second].tag = EMPTY
        mmu.second_write.entries[second].tag = EMPTY


@native
def note_large(mmu: Mmu, va: int, bits: int) -> None:
    """Widen the one region that holds all cached superpages."""
    mask = (NO_FAULT << bits) & NO_FAULT
    if mmu.large_base == NO_FAULT:
        mmu.large_mask = mask
    else:
        mmu.large_mask &= mask
        while (va ^ mmu.large_base) & mmu.large_mask:
            mmu.large_mask = mmu.large_mask << 1
    mmu.large_base = va & mmu.large_mask


@native
def choose_view(mmu: Mmu) -> None:
    """Point `data` at the bank for the current privilege of loads and stores."""
    view = VIEW_M
    if mmu.data_privilege == USER:
        view = VIEW_U
    elif mmu.data_privilege == SUPERVISOR:
        view = VIEW_SUM if mmu.sum else VIEW_S
    mmu.data = ref(mmu.views[view])


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

    An entry that matches only some of the bytes refuses.  `mmu.uniform` is 0 when it did so.
    """
    mmu.uniform = 1
    for entry in range(PMP_ENTRIES):
        length = pmp_size(mmu, entry)
        if length:
            base = pmp_base(mmu, entry)
            last = base + length - 1 if length != NO_FAULT else NO_FAULT
            if pa <= last and pa + size - 1 >= base:
                if pa < base or pa + size - 1 > last:
                    mmu.uniform = 0
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

    Leaves in `mmu.page_bits` how large the page is.  PMP for the access itself is the caller's to check.
    """
    mmu.page_bits = 12
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
    put_first(mmu, va, HOST + pa - va, access)
    bank = mmu.second_write if access == WRITE else mmu.second_read
    view = view_in_use(mmu)
    entry = bank.entries[second_index(va, view)]
    entry.tag = va & PAGE_MASK | bank.flushes | view
    entry.addend = HOST + pa - va


@native(inline=True)
def put_first(mmu: Mmu, va: int, addend: int, access: int) -> None:
    """Make it an entry of the bank in use."""
    view = View.at(mmu.data)
    index = (va >> 12) & (TLB_ENTRIES - 1)
    entry = view.write.entries[index] if access == WRITE else view.read.entries[index]
    entry.tag = va & PAGE_MASK
    entry.addend = addend


@native
def second_level(mmu: Mmu, va: int, access: int) -> int:
    """The physical address that the second level has, or NO_FAULT; what it has goes to the first."""
    bank = mmu.second_write if access == WRITE else mmu.second_read
    view = view_in_use(mmu)
    entry = bank.entries[second_index(va, view)]
    if entry.tag != va & PAGE_MASK | bank.flushes | view:
        return NO_FAULT
    mmu.second_hits += 1
    put_first(mmu, va, entry.addend, access)
    return va + entry.addend - HOST


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
