"""What a hart knows of where code lies, and how it forgets: by page, by address space, altogether.

Banks of fetched pages and jump caches are one for U and one for S of each address space (mem/tlb.py), and one for M.
"""

from mem.atomics import memory_copy, memory_set
from mem.native import native, ref
from mem.tlb import (
    FREE,
    PAGE_MASK,
    SPACES,
    copy_upper,
    drop_spaces,
    flush_all,
    flush_page,
    flush_second,
    flush_shared,
    flush_space,
    inherit_views,
    is_large,
    space_of,
    take_space,
    use_space,
)
from mem.word import minu
from smp.hart import (
    CODE_BANKS,
    CODE_ENTRIES,
    FETCH_ENTRIES,
    JUMP_ENTRIES,
    JUMP_LOG,
    NEVER,
    PAGE_WORDS,
    CodeBank,
    FetchBank,
    FetchEntry,
    Hart,
    JumpEntry,
)

MACHINE_BANK = CODE_BANKS - 1
MODE_SHIFT = 60  # satp.MODE
PAGE_HASH_BITS = (PAGE_WORDS * 64).bit_length() - 1
PAGE_JUMPS = 4096 // 2  # places that a page's jumps may have, side by side
assert JUMP_ENTRIES >= PAGE_JUMPS


@native(inline=True)
def code_bank(h: Hart, privilege: int) -> int:
    """The bank of a privilege in the address space in use."""
    return MACHINE_BANK if privilege == 3 else h.mmu.space * 2 + privilege


@native(inline=True)
def page_hash(va: int) -> int:
    """A page's bit in `jump_pages`: spread, for a kernel and its programs use the same low bits."""
    return (va >> 12) * 0x9E3779B97F4A7C15 >> 64 - PAGE_HASH_BITS


@native
def note_jump(h: Hart, bank: int, pc: int, code: int) -> None:
    """Put a block into a jump cache."""
    index = pc >> 1 & JUMP_ENTRIES - 1
    entry = h.jump_banks[bank * JUMP_ENTRIES + index]
    entry.pc = pc
    entry.code = code
    used = h.jumps_used[bank]
    if used < JUMP_LOG:
        h.jump_log[bank * JUMP_LOG + used] = index
    h.jumps_used[bank] = minu(used + 1, JUMP_LOG + 1)
    bit = page_hash(pc)
    h.jump_pages[bank * PAGE_WORDS + (bit >> 6)] |= 1 << (bit & 63)


@native
def flush_bank_jumps(h: Hart, bank: int) -> None:
    """Empty a jump cache."""
    used = h.jumps_used[bank]
    if used > JUMP_LOG:
        memory_set(ref(h.jump_banks[bank * JUMP_ENTRIES]), 0xFF, JumpEntry.sizeof() * JUMP_ENTRIES)
    else:
        for number in range(used):
            h.jump_banks[bank * JUMP_ENTRIES + h.jump_log[bank * JUMP_LOG + number]].pc = NEVER
    if used:
        memory_set(ref(h.jump_pages[bank * PAGE_WORDS]), 0, 8 * PAGE_WORDS)
        h.jumps_used[bank] = 0


@native
def flush_page_jumps(h: Hart, bank: int, va: int) -> None:
    """Take a page's entries out of a jump cache."""
    bit = page_hash(va)
    if h.jump_pages[bank * PAGE_WORDS + (bit >> 6)] >> (bit & 63) & 1:
        first = (va & PAGE_MASK) >> 1 & JUMP_ENTRIES - 1
        for index in range(PAGE_JUMPS):
            entry = h.jump_banks[bank * JUMP_ENTRIES + first + index]
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
        memory_set(ref(h.code_banks[bank]), 0xFF, CodeBank.sizeof())
        h.codes_used[bank] = 0
    flush_bank_jumps(h, bank)


@native
def flush_fetch(h: Hart) -> None:
    """Forget where virtual pages' decoded and translated code lies."""
    h.code_flushes += 1
    for bank in range(CODE_BANKS):
        flush_code(h, bank)


@native
def flush_decoded(h: Hart) -> None:
    """Forget where decoded and translated code lies, but not at which physical pages."""
    h.code_flushes += 1
    for bank in range(CODE_BANKS):
        if h.codes_used[bank]:
            memory_set(ref(h.fetch_banks[bank]), 0xFF, FetchBank.sizeof())
        flush_bank_jumps(h, bank)


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
    """Forget all translations of these address spaces, a bit each, but global ones."""
    drop_spaces(h.mmu, spaces)
    if spaces >> h.mmu.space & 1:
        h.code_flushes += 1
        forget_space(h, h.mmu.space)


@native
def forget_space(h: Hart, space: int) -> None:
    """Empty a space, but for the kernel's translations of the one in use, if they are global: they hold in it too."""
    if h.mmu.own[h.mmu.space]:
        flush_space(h.mmu, space)
        flush_code(h, space * 2)
        flush_code(h, space * 2 + 1)
    else:
        inherit_views(h.mmu, space)
        flush_second(h.mmu, space)
        flush_code(h, space * 2)
        inherit_code(h, space * 2 + 1, h.mmu.space * 2 + 1)


@native
def inherit_code(h: Hart, bank: int, source: int) -> None:
    """Where a bank's code lies, in the upper half, holds for another bank too, or is all that is left of the same."""
    if h.codes_used[source]:
        copy_upper(ref(h.fetch_banks[bank]), ref(h.fetch_banks[source]), FETCH_ENTRIES)
        copy_upper(ref(h.code_banks[bank]), ref(h.code_banks[source]), CODE_ENTRIES)
        h.codes_used[bank] = 1
    else:
        flush_code(h, bank)
    if h.jumps_used[source]:
        copy_upper(ref(h.jump_banks[bank * JUMP_ENTRIES]), ref(h.jump_banks[source * JUMP_ENTRIES]), JUMP_ENTRIES)
        memory_copy(ref(h.jump_pages[bank * PAGE_WORDS]), ref(h.jump_pages[source * PAGE_WORDS]), 8 * PAGE_WORDS)
        h.jumps_used[bank] = JUMP_LOG + 1
    else:
        flush_bank_jumps(h, bank)


@native(inline=True)
def forget_entry(entry: FetchEntry, va: int) -> None:
    """Most pages that are flushed are data: the page of code that has the place of one stays."""
    if (entry.tag ^ va) >> 12 == 0:
        entry.tag = NEVER


@native
def flush_one(h: Hart, va: int, spaces: int) -> None:
    """Forget one page's translations in these address spaces; all that there are when it lies in a superpage."""
    if is_large(h.mmu, va):
        flush_translations(h)
        return
    h.code_flushes += 1
    flush_page(h.mmu, va, spaces)
    fetched = (va >> 12) & (FETCH_ENTRIES - 1)
    translated = (va >> 12) & (CODE_ENTRIES - 1)
    for bank in range(MACHINE_BANK):
        if spaces >> (bank >> 1) & 1:
            forget_entry(h.fetch_banks[bank].entries[fetched], va)
            forget_entry(h.code_banks[bank].entries[translated], va)
            flush_page_jumps(h, bank, va)


@native
def switch_space(h: Hart, satp: int) -> None:
    """satp has changed: go on with what is known of this address space.  `update_view` is to follow."""
    if h.mmu.satp >> MODE_SHIFT != satp >> MODE_SHIFT:
        # Even what is global means something else; a switch between modes is rare.
        h.mmu.own[h.mmu.space] = 1
        flush_shared(h.mmu)
    h.mmu.satp = satp
    space = space_of(h.mmu, satp)
    if space == SPACES:
        space = take_space(h.mmu, satp)
        forget_space(h, space)
    use_space(h.mmu, space)


@native
def reset_spaces(h: Hart, views: int) -> None:
    """Nothing is known yet, of any space; `views` is where the TLB lies."""
    h.mmu.all_views = views
    for space in range(SPACES):
        h.mmu.spaces[space].satp = FREE
    for bank in range(CODE_BANKS):
        h.codes_used[bank] = 1
        h.jumps_used[bank] = JUMP_LOG + 1
    use_space(h.mmu, 0)
    flush_fetch(h)
    flush_translations(h)
