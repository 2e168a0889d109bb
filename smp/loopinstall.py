"""Puts the host code of a loop into the code cache, where harts come to it."""

from mem.atomics import load64, memory_copy, spin_lock, spin_unlock, store64
from mem.native import native, ref
from mem.regions import CODE, CODE_ALIAS, CODE_TABLE
from smp.codecache import CodePage, CodeTable, copy_of, enter_block, lookup, page_record
from smp.hart import FP_ALLOWED
from smp.loopcode import LEFT as LEFT_THE_LOOP
from smp.templates import cursor
from smp.translate import (
    BLOCK_ROOM,
    FP_INLINE,
    LEFT_FIELD,
    LOOP_STACK,
    MXCSR,
    check_alarm,
    enough_room,
    probe_jumps,
    save_pinned,
)
from smp.x86 import (
    EQUAL,
    HART,
    LEFT,
    RAX,
    RDI,
    RSI,
    RSP,
    aim,
    byte,
    call_to,
    here,
    jump_if,
    jump_to,
    load_constant,
    op_mem,
    op_reg,
)
from smp.x86_sse import store_mxcsr


@native
def copy_page(page: int, version: int, to: int) -> int:
    """The page as it was when it got this version; 0 when it has another by now."""
    t = CodeTable.at(CODE_TABLE)
    spin_lock(ref(t.lock))
    at = page_record(page)
    same = at != 0 and CodePage.at(at).version == version
    if same:
        memory_copy(to, copy_of(at), 4096)
    spin_unlock(ref(t.lock))
    return same


@native
def put_code(source: int, size: int) -> int:
    """Copy a function into the cache; gives where it executes, or 0.  Under the lock until `finish_install`."""
    t = CodeTable.at(CODE_TABLE)
    spin_lock(ref(t.lock))
    if not enough_room() or t.asm.out + size + BLOCK_ROOM > t.end:
        spin_unlock(ref(t.lock))
        return 0
    a = t.asm
    while a.out & 31:
        byte(0x90)
    start = a.out
    memory_copy(start + CODE_ALIAS, source, size)
    a.out += size
    return start


@native
def enter_loop(function: int, index: int, ppc: int, vpc: int, version: int) -> None:
    """A block that calls the loop's function; it takes the place of the block of this pc, in which it is a jump."""
    a = cursor()
    while a.out & 15:
        byte(0x90)
    start = here()
    rings = check_alarm()
    save_pinned(0)
    op_mem(1, 0x89, LEFT, HART, LEFT_FIELD)
    op_mem(1, 0x89, RSP, HART, LOOP_STACK)
    op_reg(1, 0x8B, RDI, HART)
    load_constant(RSI, index)
    call_to(function)
    op_mem(0, 0x83, 4, HART, FP_INLINE)  # LLVM may have used the floating-point registers
    byte(FP_ALLOWED)
    op_reg(0, 0x83, 7, RAX)
    byte(LEFT_THE_LOOP)
    left = jump_if(EQUAL)
    op_mem(1, 0x8B, LEFT, HART, LEFT_FIELD)
    save_pinned(1)
    probe_jumps()
    aim(left, here())
    store_mxcsr(MXCSR)
    jump_to(a.bare_exit)
    aim(rings, here())
    load_constant(RAX, vpc)
    jump_to(a.leave)
    replace(lookup(ppc, vpc, version), start)
    enter_block(ppc, vpc, version, start)


@native
def replace(old: int, start: int) -> None:
    """Make an old block a jump to the new one.

    One aligned store; the block's first instruction is longer than the jump, so no hart is in its middle.
    """
    if old:
        kept = load64(old + CODE_ALIAS) & ~0xFF_FFFF_FFFF
        store64(old + CODE_ALIAS, kept | ((start - old - 5) & 0xFFFF_FFFF) << 8 | 0xE9)


@native
def finish_install() -> None:
    """Let the other harts translate again."""
    t = CodeTable.at(CODE_TABLE)
    t.used = t.asm.out - CODE
    spin_unlock(ref(t.lock))
