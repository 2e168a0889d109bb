"""Puts the host code of a loop into the code cache, where harts come to it."""

from mem.atomics import load64, memory_copy, spin_lock, spin_unlock, store64
from mem.native import native, ref
from mem.regions import CODE, CODE_ALIAS, CODE_TABLE
from smp.blocklog import record_loop
from smp.codecache import CodeTable, enter_block, lookup
from smp.hart import JUMP_ENTRIES, Hart, JumpEntry
from smp.loopcode import ANYWHERE, FAR, LOOK, MISS
from smp.loopguard import LoopPages, has_version
from smp.templates import call_piece, cursor
from smp.translate import (
    BLOCK_ROOM,
    JUMPS,
    MAX_INSTRUCTIONS,
    PC_FIELD,
    align_code,
    check_alarm,
    emit_stubs,
    enough_room,
    link_or_aim,
    probe_jumps,
    translate_some,
)
from smp.x86 import (
    GHC_ARGUMENTS,
    HART,
    LEFT,
    NOT_EQUAL,
    PINNED,
    RAX,
    RCX,
    RDX,
    aim,
    align_jump,
    byte,
    here,
    immediate,
    indexed,
    jump,
    jump_if,
    jump_to,
    load_constant,
    op_mem,
    op_reg,
    word32,
    word64,
)

WAY_ROOM = 512  # bytes that an entry or an exit takes at most
ENTRY_FIELD, EXIT_FIELD, ADMITTED = (Hart.offset(n) for n in ("loop_entry", "loop_exit", "loop_admitted"))
NOT_PASSED = [(host, guest) for guest, host in PINNED.items() if host not in GHC_ARGUMENTS]
assert len(NOT_PASSED) == 2
((FIRST, FIRST_GUEST), (SECOND, SECOND_GUEST)) = NOT_PASSED


@native
def put_code(source: int, size: int, room: int, pages: int) -> int:
    """Copy a function of these pages into the cache, if there is room for it and `room` more; gives where it executes.

    0 when there is none, or a page has another version by now.  Under the lock until `finish_install`.
    """
    t = CodeTable.at(CODE_TABLE)
    spin_lock(ref(t.lock))
    good = enough_room() and t.asm.out + size + room + BLOCK_ROOM <= t.end
    loop = LoopPages.at(pages)
    for n in range(loop.count):
        good = good and has_version(loop.page[n].physical, loop.page[n].version)
    if not good:
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
def not_passed(opcode: int) -> None:
    """Store (0x89) to the record, or load (0x8B), the two pinned registers that are not the function's arguments."""
    op_mem(1, opcode, FIRST, HART, FIRST_GUEST * 8)
    op_mem(1, opcode, SECOND, HART, SECOND_GUEST * 8)


@native
def put_pages(pages: int, function: int) -> int:
    """Copy the record of a loop's pages into the cache; gives where it lies."""
    align_code()
    at = here()
    LoopPages.at(pages).function = function
    memory_copy(at + CODE_ALIAS, pages, LoopPages.sizeof())
    cursor().out += LoopPages.sizeof()
    return at


@native
def ask_or_stay(pages: int, ppc: int, vpc: int, version: int) -> int:
    """Code that asks whether this hart may enter a loop, and else goes on with a block of its own.

    Behind a jump to it, which is aimed later, at what enters the loop; gives the end of that jump.
    """
    load_constant(RAX, pages)
    load_constant(RDX, vpc)
    call_piece(cursor().call_admit)
    op_mem(1, 0x83, 7, HART, ADMITTED)
    byte(0)
    admitted = jump_if(NOT_EQUAL)
    translate_some(ppc, vpc, version, MAX_INSTRUCTIONS)
    return admitted


@native
def check_pages(pages: int, ask: int) -> None:
    """Go to `ask` unless this hart has found all pages of the loop to be there, as its jump cache knows."""
    loop = LoopPages.at(pages)
    op_mem(1, 0x8B, RAX, HART, JUMPS)
    for n in range(loop.count):
        key = loop.page[n].key
        entry = (key >> 1 & JUMP_ENTRIES - 1) * JumpEntry.sizeof()
        load_constant(RCX, key)
        op_mem(1, 0x3B, RCX, RAX, entry)
        aim(jump_if(NOT_EQUAL), ask)
        load_constant(RCX, loop.function)
        op_mem(1, 0x3B, RCX, RAX, entry + 8)
        aim(jump_if(NOT_EQUAL), ask)


@native
def enter_loop(function: int, index: int, pages: int, ppc: int, version: int, vpc: int) -> None:
    """A block that goes to the loop's function; it takes the place of the block of this pc, in which it is a jump.

    pages: the record of the loop's pages if it has several, else 0.
    """
    align_code()
    ask = here()
    admitted = 0
    if pages:
        admitted = ask_or_stay(pages, ppc, vpc, version)
        align_code()
    start = here()
    rings = check_alarm()
    if pages:
        check_pages(pages, ask)
        aim(admitted, here())
    not_passed(0x89)
    op_mem(1, 0xC7, 0, HART, ENTRY_FIELD)
    word32(index)
    jump_to(function)
    aim(rings, here())
    load_constant(RAX, vpc)
    jump_to(cursor().leave)
    replace(lookup(ppc, vpc, version), start)
    enter_block(ppc, vpc, version, start)


@native
def leave_loop(kind: int, not_run: int, ppc: int, version: int, vpc: int) -> int:
    """Code that a loop's function leaves by (smp/loopcode.py:Exit); gives where it begins."""
    a = cursor()
    start = here()
    if not_run:
        immediate(1, 0, LEFT, not_run)
    not_passed(0x8B)
    if kind == MISS:
        # Not the block of this pc: it may be the loop, which would come here again.
        translate_some(ppc, vpc, version, 1)
    elif kind == LOOK:
        load_constant(RAX, vpc)
        jump_to(a.leave)
    elif kind == ANYWHERE:
        op_mem(1, 0x8B, RAX, HART, PC_FIELD)
        probe_jumps()
    elif kind == FAR:
        load_constant(RAX, vpc)
        probe_jumps()
    else:
        a.pc = vpc
        a.page = ppc & ~0xFFF
        a.stubs = 0
        a.first_pc = 0
        a.version = version
        align_jump(1)
        link_or_aim(jump(), vpc)
        emit_stubs()
    return start


@native
def leave_rarely(exits: int) -> int:
    """The way to all rare exits: jumps by a table in front of it, the first exit's last; gives where it begins."""
    for _ in range(exits):
        word64(0)
    start = here()
    op_mem(1, 0x8B, RAX, HART, EXIT_FIELD)
    op_reg(1, 0xF7, 3, RAX)
    load_constant(RCX, start)
    indexed(0, 0xFF, 4, RCX, RAX, 3)
    return start


@native
def set_rare(rarely: int, index: int, place: int) -> None:
    """Where one of the rare exits goes."""
    store64(rarely - 8 * (index + 1) + CODE_ALIAS, place)


@native
def replace(old: int, start: int) -> None:
    """Make an old block a jump to the new one.

    One aligned store; the block's first instruction is longer than the jump, so no hart is in its middle.
    """
    if old:
        kept = load64(old + CODE_ALIAS) & ~0xFF_FFFF_FFFF
        store64(old + CODE_ALIAS, kept | ((start - old - 5) & 0xFFFF_FFFF) << 8 | 0xE9)


@native
def finish_install(vpc: int, function: int) -> None:
    """Record the loop, and let the others translate again."""
    record_loop(vpc, function)
    t = CodeTable.at(CODE_TABLE)
    t.used = t.asm.out - CODE
    spin_unlock(ref(t.lock))
