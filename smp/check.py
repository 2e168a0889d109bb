"""--engine check: the interpreter foretells what the translator must do, window by window, and they are compared.

The interpreter's handlers run on a shadow of the hart record, a few instructions ahead; their stores are noted and not
done, so devices that poll memory see nothing of it.  The translator then runs at most as many instructions on the hart
itself, and registers, traps and stored bytes must be those foretold.  Instructions whose effect can't be had twice
(devices, CSRs, LR and SC, system instructions) end a window: they are executed once and not compared, as are the few
that share a stretch of a block with one.  For machines with one hart: nobody else may change memory meanwhile but
devices, and what they have changed is not held against the translator.
"""

import ctypes

from mem.atomics import load8, memory_compare, memory_copy, store8
from mem.bus import bus_covers, is_plain, is_ram
from mem.layout import Layout, layout, many, u64
from mem.mmu import pmp_allows, translate
from mem.native import native, ref, table
from mem.regions import CHECK, CHECK_BYTES, HOST, STEPS, map_fixed
from mem.tlb import EXECUTE, NO_FAULT, PAGE_MASK, READ, WRITE, Mmu, flush_second, flush_shared
from mem.word import sext32
from smp.code import STEP_END, Slot, fetch_page, handler_of
from smp.csr import CSRS
from smp.decode import LIST, NO_ROW, decode_into, find_row, length_of, put_operands, word_at
from smp.hart import CODE_ENTRIES, FS, Hart
from smp.interpreter import run_quantum
from smp.row import ROWS, Kind
from smp.spaces import code_bank
from smp.translated import run_translated, step_one, widened

WINDOW = 64  # instructions foretold at a time
FEW = 20  # instructions that the interpreter runs where the translator can't
SLOT = STEPS  # for the instruction in hand; the translator leaves it free (smp/codecache.py:FIRST_STEP)

MEMORY_KINDS = {Kind.LOAD: 1, Kind.FLOAD: 2, Kind.STORE: 3, Kind.FSTORE: 4, Kind.AMO: 5}
K_LOAD, K_FLOAD, K_STORE, K_FSTORE, K_AMO = MEMORY_KINDS.values()
CSR_KINDS = (Kind.CSR, Kind.CSRI)
PLAIN_CSRS = ("fflags", "frm", "fcsr", "sscratch", "sepc", "scause", "stval", "mscratch", "mepc", "mcause", "mtval")
PLAIN = table("u8", [number in CSRS and CSRS[number].name in PLAIN_CSRS for number in range(4096)])
AGAIN = (Kind.ALU, Kind.BRANCH, Kind.JAL, Kind.JALR, Kind.FP, *MEMORY_KINDS)
REPLAYABLE = table("u8", [row.kind in AGAIN or row.name == "fence" for row in LIST])
MEMORY_KIND = table("u8", [MEMORY_KINDS.get(row.kind, 0) for row in LIST])
IS_CSR = table("u8", [row.kind in CSR_KINDS for row in LIST])
SIGNED = table("u8", [(row.base or row.name) in ("lb", "lh", "lw") for row in LIST])
SIZE = table("u8", [(ROWS[row.base] if row.base else row).size for row in LIST])

# What is compared: the hart record but for counters, scratch and the state of reservations.
X = [("x", n) for n in range(1, 32)]
F = [("f", n) for n in range(32)]
NAMES = ("pc", "privilege", "fflags", "frm", "mstatus", "mie", "soft_pending", "mideleg", "medeleg", "mtvec", "mepc",
         "mcause", "mtval", "mscratch", "stvec", "sepc", "scause", "stval", "sscratch", "senvcfg", "stimecmp",
         "traps")  # fmt: skip
COMPARED = [(name, Hart.offset(name) + 8 * n) for name, n in X + F] + [(name, Hart.offset(name)) for name in NAMES]
OFFSETS = table("u32", [offset for _, offset in COMPARED])
WIDTHS = table("u8", [4 if name == "privilege" else 8 for name, _ in COMPARED])
STATE = Hart.offset("pair")  # bytes of the record that a foretold state keeps
COPIED, FETCH_BANKS, MMU = (Hart.offset(name) for name in ("page_ppn", "fetch_banks", "mmu"))
VIEWS = Mmu.offset("views")


@layout
class Access(Layout):
    """A load or store of the window."""

    step: u64  # instructions of the window before it
    pa: u64
    size: u64
    value: u64  # read by a load, to be written by a store


@layout
class Foretold(Layout):
    """The window in hand, and what became of it."""

    count: u64  # instructions foretold
    trap: u64  # 1: the next one traps
    loads: u64
    stores: u64
    old: u64  # what an AMO found
    ran: u64  # instructions that the translator retired
    pcs: list[u64] = many(WINDOW + 1)
    words: list[u64] = many(WINDOW + 1)
    load: list[Access] = many(WINDOW)
    store: list[Access] = many(WINDOW)
    states: list[u64] = many((WINDOW + 2) * STATE // 8)
    shadow: Hart


assert Foretold.sizeof() <= CHECK_BYTES


@native(inline=True)
def window() -> Foretold:
    return Foretold.at(CHECK)


@native(inline=True)
def state_at(step: int) -> int:
    """The record after so many instructions."""
    return ref(window().states) + step * STATE


@native
def cast_shadow(h: Hart) -> Hart:
    """A copy of the hart's registers that shares the hart's translations of data."""
    shadow = Hart.at(ref(window().shadow))
    memory_copy(ref(window().shadow), ref(h.x), COPIED)
    memory_copy(ref(shadow.mmu), ref(h.mmu), VIEWS)
    # Flushes of the hart's second level don't come to this one.
    flush_second(shadow.mmu, shadow.mmu.space)
    flush_shared(shadow.mmu)
    return shadow


@native
def fetch(h: Hart, shadow: Hart) -> int:
    """Physical address of the shadow's next instruction, or 0."""
    pc = shadow.pc
    privilege = shadow.privilege
    bank = h.code_banks[code_bank(h, privilege)]
    entry = bank.entries[(pc >> 12) & (CODE_ENTRIES - 1)]
    page = entry.page
    if entry.tag != pc & PAGE_MASK:
        page = fetch_page(shadow, pc)
        if shadow.mmu.cause != NO_FAULT or not pmp_allows(shadow.mmu, page, 4096, EXECUTE, privilege):
            return 0
    return page | pc & 0xFFF


@native
def overlaps(access: Access, pa: int, size: int) -> int:
    return pa < access.pa + access.size and access.pa < pa + size


@native
def touches_store(pa: int, size: int) -> int:
    """Whether a store of the window, not done yet, writes any of the bytes."""
    w = window()
    for index in range(w.stores):
        if overlaps(w.store[index], pa, size):
            return 1
    return 0


@native
def bytes_at(pa: int, size: int) -> int:
    value = 0
    for index in range(size):
        value |= load8(HOST + pa + index) << (8 * index)
    return value


@native
def note_load(pa: int, size: int) -> None:
    w = window()
    access = w.load[w.loads]
    access.step = w.count
    access.pa = pa
    access.size = size
    access.value = bytes_at(pa, size)
    w.loads += 1


@native
def note_store(pa: int, size: int, value: int) -> None:
    w = window()
    access = w.store[w.stores]
    access.step = w.count
    access.pa = pa
    access.size = size
    access.value = value
    w.stores += 1


FAULTS, ELSEWHERE = 1, 2  # what `physical` gives in place of an address


@native
def physical(mmu: Mmu, va: int, size: int, access: int) -> int:
    """The physical address of an access to RAM; FAULTS, or ELSEWHERE: in devices, in two pages."""
    if (va & 0xFFF) + size > 4096:
        return ELSEWHERE
    pa = translate(mmu, va, access, mmu.data_privilege)
    if mmu.cause != NO_FAULT:
        mmu.cause = NO_FAULT
        return FAULTS
    if not pmp_allows(mmu, pa, size, access, mmu.data_privilege) or not bus_covers(pa, size):
        return FAULTS
    return pa if is_ram(pa, size) and is_plain(pa) else ELSEWHERE


DO, DONE, UNKNOWN = range(3)


@native
def forward(shadow: Hart, number: int, pa: int, size: int) -> int:
    """A load of bytes that stores of the window write."""
    w = window()
    w.old = bytes_at(pa, size)
    for index in range(w.stores):
        access = w.store[index]
        for n in range(access.size):
            if access.pa + n - pa < size:
                store8(ref(w.old) + access.pa + n - pa, access.value >> (8 * n))
    value = w.old & ((1 << (8 * size)) - 1) if size < 8 else w.old
    shadow.x[Slot.at(SLOT).rd] = widened(value, size) if SIGNED[number] else value
    return DONE


@native
def can_be_had_twice(number: int, word: int) -> int:
    """Whether an instruction's effect is in the hart record and in RAM alone."""
    if number == NO_ROW:
        return 0
    return REPLAYABLE[number] or (IS_CSR[number] and PLAIN[word >> 20])


@native
def prepare(shadow: Hart, number: int) -> int:
    """Note an instruction's access: DO runs its handler, DONE has done it here, UNKNOWN ends the window before it."""
    s = Slot.at(SLOT)
    kind = MEMORY_KIND[number]
    size = SIZE[number]
    va = shadow.x[s.rs1] if kind == K_AMO else shadow.x[s.rs1] + sext32(s.imm)
    pa = physical(shadow.mmu, va, size, READ if kind in (K_LOAD, K_FLOAD) else WRITE)
    if pa == FAULTS:
        return DO
    if pa == ELSEWHERE:
        return UNKNOWN
    if kind in (K_LOAD, K_FLOAD, K_AMO) and touches_store(pa, size):
        return forward(shadow, number, pa, size) if kind == K_LOAD else UNKNOWN
    if kind in (K_LOAD, K_FLOAD):
        note_load(pa, size)
        return DO
    if kind == K_AMO:
        return UNKNOWN if pa & (size - 1) else DO
    if kind == K_FSTORE and shadow.mstatus & FS == 0:
        return DO
    note_store(pa, size, shadow.f[s.rs2] if kind == K_FSTORE else shadow.x[s.rs2])
    return DONE


@native
def run_amo(shadow: Hart, number: int, pc: int, length: int) -> None:
    """Have the handler do it, and take back what it wrote."""
    size = SIZE[number]
    pa = physical(shadow.mmu, shadow.x[Slot.at(SLOT).rs1], size, WRITE)
    if pa in (FAULTS, ELSEWHERE) or pa & (size - 1):
        step_one(shadow, SLOT, pc, length)
        return
    window().old = bytes_at(pa, size)
    step_one(shadow, SLOT, pc, length)
    note_store(pa, size, bytes_at(pa, size))
    memory_copy(HOST + pa, ref(window().old), size)


@native
def foretell_one(shadow: Hart, number: int, word: int, length: int) -> int:
    """Run the shadow's next instruction; 0 when it can't be had twice."""
    pc = shadow.pc
    decode_into(SLOT, word, pc, 0)
    Slot.at(SLOT + 16).handler = handler_of(STEP_END)
    Slot.at(SLOT + 32).handler = handler_of(STEP_END)
    Slot.at(SLOT + 48).imm = word
    put_operands(number, word, SLOT)
    what = prepare(shadow, number) if MEMORY_KIND[number] else DO
    if what == UNKNOWN:
        return 0
    if what == DONE:
        shadow.pc = pc + length
    elif MEMORY_KIND[number] == K_AMO:
        run_amo(shadow, number, pc, length)
    else:
        step_one(shadow, SLOT, pc, length)
    return 1


@native
def foretell(h: Hart) -> None:
    """Run the shadow ahead and keep its states, until a trap or what can't be had twice."""
    w = window()
    w.count = 0
    w.trap = 0
    w.loads = 0
    w.stores = 0
    shadow = cast_shadow(h)
    memory_copy(state_at(0), ref(shadow.x), STATE)
    while w.count < WINDOW:
        ppc = fetch(h, shadow)
        if ppc == 0:
            break
        word = word_at(HOST + ppc)
        length = length_of(word)
        number = find_row(word)
        if not can_be_had_twice(number, word) or (ppc & 0xFFF == 0xFFE and length == 4):
            break
        w.pcs[w.count] = shadow.pc
        w.words[w.count] = word
        traps = shadow.traps
        if not foretell_one(shadow, number, word, length):
            break
        if shadow.traps != traps:
            w.trap = 1
            memory_copy(state_at(w.count + 1), ref(shadow.x), STATE)
            break
        w.count += 1
        memory_copy(state_at(w.count), ref(shadow.x), STATE)


@native
def same_state(h: Hart, state: int) -> int:
    """Whether the hart's registers are those of a foretold state."""
    for index in range(len(COMPARED)):
        if memory_compare(ref(h.x) + OFFSETS[index], state + OFFSETS[index], WIDTHS[index]):
            return 0
    return 1


@native
def overwritten(index: int, ran: int) -> int:
    """Whether a later store of what ran writes to a store's bytes."""
    w = window()
    for later in range(index + 1, w.stores):
        if w.store[later].step < ran and overlaps(w.store[later], w.store[index].pa, w.store[index].size):
            return 1
    return 0


@native
def same_stores(ran: int) -> int:
    """Whether memory holds what the stores of the instructions that ran put there."""
    w = window()
    for index in range(w.stores):
        access = w.store[index]
        counts = access.step < ran and not overwritten(index, ran)
        if counts and memory_compare(HOST + access.pa, ref(access.value), access.size):
            return 0
    return 1


@native
def device_wrote(ran: int) -> int:
    """Whether memory that was read changed other than by the stores of the window."""
    w = window()
    for index in range(w.loads):
        access = w.load[index]
        counts = access.step <= ran and not touches_store(access.pa, access.size)
        if counts and memory_compare(HOST + access.pa, ref(access.value), access.size):
            return 1
    return 0


@native
def run_unchecked(h: Hart) -> None:
    """Go on behind what can't be foretold, as little as the translator's blocks allow."""
    before = h.instret
    traps = h.traps
    quantum = window().count + 1
    while h.instret == before and h.traps == traps and quantum < 4 * WINDOW:
        if not run_translated(h, quantum):
            run_quantum(h, FEW)
            break
        quantum *= 2


@native
def check_window(h: Hart, traps: int) -> int:
    """Whether what the translator did was foretold."""
    w = window()
    if h.traps != traps:
        if w.trap == 0:
            return w.ran == w.count  # by the fetch of an instruction that was not foretold
        return w.ran == w.count and same_state(h, state_at(w.count + 1)) and same_stores(w.ran)
    return w.ran <= w.count and same_state(h, state_at(w.ran)) and same_stores(w.ran)


@native
def run_checked(h: Hart) -> None:
    """One window by the translator, compared; `check_failed` is set when they differ."""
    w = window()
    foretell(h)
    before = h.instret
    traps = h.traps
    if w.count or w.trap:
        run_translated(h, w.count + (WINDOW if w.trap else 0))
    w.ran = h.instret - before
    if w.ran == 0 and h.traps == traps:
        run_unchecked(h)
        return
    h.compared += w.ran
    if not check_window(h, traps) and not device_wrote(w.ran):
        h.check_failed = 1


def prepare_check() -> None:
    """Map the region in the hart's process; the shadow's own translations hold nothing."""
    map_fixed(CHECK, CHECK_BYTES)
    shadow = CHECK + Foretold.offset("shadow")
    ctypes.memset(shadow + FETCH_BANKS, 0xFF, MMU - FETCH_BANKS)
    ctypes.memset(shadow + MMU + VIEWS, 0xFF, Mmu.sizeof() - VIEWS)
    for bank in ("second_read", "second_write"):
        getattr(Foretold.at(CHECK).shadow.mmu, bank).flushes = 0
