"""Decoded code: where the instructions of a physical page lie ready to run.

A decoded page has a slot for every halfword; a slot holds its handler's host address and the operands.  All slots
begin with the handler that decodes.  Pages are private to the hart and found by a direct-mapped directory.  A page that
is entered anew is compared with the copy that was taken when it was set up, and only a changed one starts anew.
Instructions are decoded from the copy, not from memory: what is decoded is then what is compared, even when a word
was changed and changed back in between.
"""

from mem import regions
from mem.atomics import load16, memory_copy, store64
from mem.layout import Layout, layout, u8, u32, u64
from mem.machine import Machine
from mem.mmu import access_fault, fault, is_ram, pmp_allows, translate
from mem.native import emitted, native
from mem.pages import pages_differ
from mem.regions import HOST
from mem.tlb import EXECUTE, NO_FAULT, PAGE_MASK, note_large, note_space
from smp.hart import CODE_BANKS, DECODED_PAGES, FETCH_ENTRIES, Hart
from smp.spaces import code_bank

SLOT = 16  # bytes
SLOTS = 2048
# Behind the last halfword lie two slots that go on to the next page: a four-byte instruction may end one halfword
# behind the page.  The 32 bytes more spread the pages' slots over the sets of the host's caches.
STRIDE = (SLOTS + 2) * SLOT + 32
assert STRIDE % 64 == 0
COPIES = regions.DECODED + (DECODED_PAGES * STRIDE + 4095 & ~4095)  # a page-aligned copy for each decoded page
DECODED_BYTES = COPIES + DECODED_PAGES * 4096 - regions.DECODED


@layout
class Slot(Layout):
    """A decoded instruction."""

    handler: u64
    rd: u8
    rs1: u8
    rs2: u8
    rs3: u8
    imm: u32


assert Slot.sizeof() == SLOT


@native
def page_index(slot: int) -> int:
    """Which decoded page a slot belongs to."""
    return (slot - regions.DECODED) // STRIDE


@native
def slot_text(slot: int) -> int:
    """Host address, in the page's copy, of the instruction in a slot."""
    index = page_index(slot)
    return COPIES + index * 4096 + (slot - regions.DECODED - index * STRIDE) // SLOT * 2


@native
def current_word(h: Hart) -> int:
    """The bits of the instruction in hand (`h.slot`), for mtval."""
    if h.slot - regions.STEPS < regions.STEPS_BYTES:
        return Slot.at(h.slot + 48).imm
    text = slot_text(h.slot)
    low = load16(text)
    if low & 3 != 3:
        return low
    if text & 0xFFF == 0xFFE:
        return h.straddle_word
    return low | load16(text + 2) << 16


@emitted
def handler_of(index: int) -> int:
    """Host address of a handler."""
    from smp.interpreter import handler_table

    return handler_table(index)  # type: ignore[return-value]


DECODE, PAGE_END, STRADDLE, ILLEGAL_HANDLER, STEP_END, SPECIAL_HANDLERS = range(6)


@native
def reset_page(h: Hart, index: int, ppn: int) -> None:
    """Give a decoded page to a physical page: nothing decoded yet."""
    base = regions.DECODED + index * STRIDE
    decode = handler_of(DECODE)
    for i in range(SLOTS):
        store64(base + i * SLOT, decode)
    store64(base + SLOTS * SLOT, handler_of(PAGE_END))
    store64(base + (SLOTS + 1) * SLOT, handler_of(PAGE_END))
    memory_copy(COPIES + index * 4096, HOST + (ppn << 12), 4096)
    h.page_ppn[index] = ppn


@native
def decoded_page(h: Hart, ppn: int) -> int:
    """Host address of the page's slots, set up or brought up to date."""
    index = (ppn ^ ppn >> 9) & (DECODED_PAGES - 1)
    base = regions.DECODED + index * STRIDE
    if h.page_ppn[index] != ppn:
        h.pages_evicted += 1
        forget_base(h, base)
        reset_page(h, index, ppn)
    elif pages_differ(COPIES + index * 4096, HOST + (ppn << 12)):
        reset_page(h, index, ppn)
    return base


@native
def forget_base(h: Hart, base: int) -> None:
    """No virtual page may lead to this decoded page any more."""
    for bank in range(CODE_BANKS):
        for i in range(FETCH_ENTRIES):
            if h.fetch_banks[bank].entries[i].page == base:
                h.fetch_banks[bank].entries[i].tag = NO_FAULT


@native
def fetch_page(h: Hart, va: int) -> int:
    """Physical page for executing at this address, or `mmu.cause` set."""
    mmu = h.mmu
    pa = translate(mmu, va, EXECUTE, h.privilege)
    if mmu.cause != NO_FAULT:
        return 0
    page = pa & PAGE_MASK
    if not is_ram(page, 4096) or not pmp_allows(mmu, pa, 2, EXECUTE, h.privilege):
        return access_fault(mmu, va, EXECUTE)
    return page


@native
def enter(h: Hart) -> int:
    """The slot of the instruction at `h.pc`, or 0 with `mmu.cause` set."""
    pc = h.pc
    if pc & h.misaligned:
        return fault(h.mmu, 0, pc)
    index = (pc >> 12) & (FETCH_ENTRIES - 1)
    bank = code_bank(h, h.privilege)
    entry = h.fetch_banks[bank].entries[index]
    if entry.tag != pc & PAGE_MASK:
        page = fetch_page(h, pc)
        if h.mmu.cause != NO_FAULT:
            return 0
        if h.mmu.page_bits > 12:
            note_large(h.mmu, pc, h.mmu.page_bits)
        base = decoded_page(h, page >> 12)
        # PMP that cuts the page: every entry into it is checked anew.
        if not pmp_allows(h.mmu, page, 4096, EXECUTE, h.privilege):
            return base + (pc & 0xFFE) * (SLOT // 2)
        note_space(h.mmu, pc)
        entry.tag = pc & PAGE_MASK
        entry.page = base
        h.codes_used[bank] = 1
    return entry.page + (pc & 0xFFE) * (SLOT // 2)


@native
def second_half(h: Hart, va: int) -> int:
    """The halfword at the start of a page, for an instruction that crosses into it; or `mmu.cause` set."""
    page = fetch_page(h, va)
    if h.mmu.cause != NO_FAULT:
        return 0
    return load16(HOST + page)


@native
def extensions() -> int:
    return Machine.at(regions.MACHINE).extensions
