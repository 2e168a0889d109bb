"""What a hart knows of where code lies, and how it forgets: by page, by address space, altogether.

Banks of fetched pages and jump caches are one for U and one for S of each address space (mem/tlb.py), and one for M.
"""

from mem.atomics import memory_set
from mem.native import native, ref
from mem.tlb import (
    FREE,
    SPACES,
    drop_spaces,
    flush_all,
    flush_page,
    flush_space,
    is_large,
    space_of,
    take_space,
    use_space,
)
from smp.hart import CODE_BANKS, FETCH_ENTRIES, JUMP_ENTRIES, NEVER, PAGE_WORDS, FetchBank, Hart, JumpEntry

MACHINE_BANK = CODE_BANKS - 1


@native(inline=True)
def code_bank(h: Hart, privilege: int) -> int:
    """The bank of a privilege in the address space in use."""
    return MACHINE_BANK if privilege == 3 else h.mmu.space * 2 + privilege


@native
def note_jump(h: Hart, bank: int, pc: int, code: int) -> None:
    """Put a block into a jump cache."""
    entry = h.jump_banks[bank * JUMP_ENTRIES + ((pc >> 1) & (JUMP_ENTRIES - 1))]
    entry.pc = pc
    entry.code = code
    h.jumps_used[bank] = 1
    h.jump_pages[bank * PAGE_WORDS + (pc >> 18 & PAGE_WORDS - 1)] |= 1 << (pc >> 12 & 63)


@native
def flush_bank_jumps(h: Hart, bank: int) -> None:
    """Empty a jump cache."""
    if h.jumps_used[bank]:
        memory_set(ref(h.jump_banks[bank * JUMP_ENTRIES]), 0xFF, JumpEntry.sizeof() * JUMP_ENTRIES)
        memory_set(ref(h.jump_pages[bank * PAGE_WORDS]), 0, 8 * PAGE_WORDS)
        h.jumps_used[bank] = 0


@native
def flush_page_jumps(h: Hart, bank: int, va: int) -> None:
    """Take a page's entries out of a jump cache."""
    if h.jump_pages[bank * PAGE_WORDS + (va >> 18 & PAGE_WORDS - 1)] >> (va >> 12 & 63) & 1:
        for index in range(JUMP_ENTRIES):
            entry = h.jump_banks[bank * JUMP_ENTRIES + index]
            if (entry.pc ^ va) >> 12 == 0:
                entry.pc = NEVER


@native
def flush_jumps(h: Hart) -> None:
    """Forget which code belongs to which virtual pc."""
    h.code_flushes += 1
    for bank in range(CODE_BANKS):
        flush_bank_jumps(h, bank)


@native
def flush_code(h: Hart, bank: int) -> None:
    """Forget where one bank's virtual pages have their decoded and translated code."""
    if h.codes_used[bank]:
        memory_set(ref(h.fetch_banks[bank]), 0xFF, FetchBank.sizeof())
        memory_set(ref(h.code_banks[bank]), 0xFF, FetchBank.sizeof())
        h.codes_used[bank] = 0
    flush_bank_jumps(h, bank)


@native
def flush_fetch(h: Hart) -> None:
    """Forget where virtual pages' decoded and translated code lies."""
    h.code_flushes += 1
    for bank in range(CODE_BANKS):
        flush_code(h, bank)


@native
def flush_translations(h: Hart) -> None:
    """Forget all translations, of all address spaces."""
    h.code_flushes += 1
    h.mmu.spaces[h.mmu.space].satp = h.mmu.satp
    flush_all(h.mmu)
    flush_code(h, h.mmu.space * 2)
    flush_code(h, h.mmu.space * 2 + 1)
    flush_code(h, MACHINE_BANK)


@native
def flush_spaces(h: Hart, spaces: int) -> None:
    """Forget all translations of these address spaces, a bit each."""
    drop_spaces(h.mmu, spaces)
    if spaces >> h.mmu.space & 1:
        h.code_flushes += 1
        flush_space(h.mmu, h.mmu.space)
        flush_code(h, h.mmu.space * 2)
        flush_code(h, h.mmu.space * 2 + 1)


@native
def flush_one(h: Hart, va: int, spaces: int) -> None:
    """Forget one page's translations in these address spaces; all that there are when it lies in a superpage."""
    if is_large(h.mmu, va):
        flush_translations(h)
        return
    h.code_flushes += 1
    flush_page(h.mmu, va, spaces)
    index = (va >> 12) & (FETCH_ENTRIES - 1)
    for bank in range(MACHINE_BANK):
        if spaces >> (bank >> 1) & 1:
            h.fetch_banks[bank].entries[index].tag = NEVER
            h.code_banks[bank].entries[index].tag = NEVER
            flush_page_jumps(h, bank, va)


@native
def switch_space(h: Hart, satp: int) -> None:
    """satp has changed: go on with what is known of this address space.  `update_view` is to follow."""
    h.mmu.satp = satp
    space = space_of(h.mmu, satp)
    if space == SPACES:
        space = take_space(h.mmu, satp)
        flush_code(h, space * 2)
        flush_code(h, space * 2 + 1)
    use_space(h.mmu, space)


@native
def reset_spaces(h: Hart, views: int) -> None:
    """Nothing is known yet, of any space; `views` is where the TLB lies."""
    h.mmu.all_views = views
    for space in range(SPACES):
        h.mmu.spaces[space].satp = FREE
    for bank in range(CODE_BANKS):
        h.codes_used[bank] = 1
        h.jumps_used[bank] = 1
    use_space(h.mmu, 0)
    flush_fetch(h)
    flush_translations(h)
