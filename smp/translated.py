"""What translated code calls, and the hart's side of running it."""

from typing import Any

from llvmlite import ir

from mem.atomics import aload32, now_ns
from mem.machine import Machine, is_ending
from mem.mmu import pmp_allows, read_slow, write_slow
from mem.native import Record, emitted, native, ref, table
from mem.regions import CODE_TABLE, MACHINE
from mem.tlb import EXECUTE, NO_FAULT, PAGE_MASK, note_large, note_space
from mem.word import I64, V, builder, lts, raw, sext8, sext16, sext32
from smp.blocklog import record_block
from smp.code import Slot, fetch_page
from smp.codecache import AGAIN, ALARM_CHECK, CodeTable, check_page, has_changed, lookup, next_epoch, version_of
from smp.csr import counter_allowed, read_time
from smp.fpformat import DZ, NV, NX, OF, UF
from smp.hart import CODE_ENTRIES, ECALL_U, FP_ALLOWED, FS, SUPERVISOR, TSR, USER, Hart
from smp.hart import MACHINE as MACHINE_MODE
from smp.hot import note_busy
from smp.interpreter import run_slot
from smp.quiesce import empty_cache, free_lock, take_lock
from smp.spaces import code_bank, note_jump
from smp.trap import may_go_on, supervisor_return, take_fault, take_trap

TIME = 0xC01
GO_ON, LEAVE, JUMP = range(3)  # to the next instruction; to the hart's loop; to the translated code for `h.pc`
MOST_TAKEN = 64  # instructions that a block takes off the quantum at once


@native
def widened(value: int, size: int) -> int:
    """A loaded value, sign-extended from its size."""
    match size:
        case 1:
            return sext8(value)
        case 2:
            return sext16(value)
        case 4:
            return sext32(value)
    return value


@native
def access(h: Hart, va: int, pc: int, info: int) -> int:
    """A load or store that missed the TLB.

    info: size, bit 4 store, bit 5 sign-extend, bit 7 NaN-box, from bit 8 the register (33 is f0), from bit 16 how many
    instructions of the block have not run (this one included).
    """
    size = info & 15
    register = info >> 8 & 127
    h.slow_accesses += 1
    left = h.left
    h.left = left + (info >> 16)
    if info & 16:
        write_slow(h.mmu, va, size, h.x[register])
    else:
        value = read_slow(h.mmu, va, size)
        if h.mmu.cause == NO_FAULT:
            if info & 128:
                value |= 0xFFFFFFFF << 32
            h.x[register] = widened(value, size) if info & 32 else value
    if h.mmu.cause != NO_FAULT:
        take_fault(h, pc)
        return onward(h)
    if aload32(h.alarm):
        # It may have waited for another process and counted as asleep: the alarm comes first.
        h.left -= 1
        h.pc = pc + (2 if info & 64 else 4)
        return LEAVE
    h.left = left
    return GO_ON


# MXCSR (Intel manual, volume 1, "MXCSR Control and Status Register"): exceptions from bit 0, rounding from bit 13
MXCSR_FLAGS = {0: NV, 2: DZ, 3: OF, 4: UF, 5: NX}
FLAGS_OF = table("u8", [sum(f for bit, f in MXCSR_FLAGS.items() if n >> bit & 1) for n in range(64)])
ALL_MASKED = 0x1F80
ROUNDING = table("u16", [0, 3 << 13, 1 << 13, 2 << 13])  # RNE, RTZ, RDN, RUP


@native
def collect_flags(h: Hart) -> None:
    """Move the exceptions that translated code has raised to fflags."""
    h.fflags |= FLAGS_OF[h.mxcsr & 63]
    h.mxcsr &= ~63


@native
def ready_fp(h: Hart) -> None:
    """Before translated code: what FS and frm mean to it."""
    h.mxcsr = h.mxcsr & 63 | ALL_MASKED | ROUNDING[h.frm & 3]
    h.fp_inline = FP_ALLOWED if h.mstatus & FS == FS and h.frm < 4 else 0


@native
def onward(h: Hart) -> int:
    """After a trap, a return, or a change of the hart's state."""
    return JUMP if may_go_on(h) else LEAVE


@native
def call_environment(h: Hart, slot: int, pc: int, info: int) -> int:
    """ecall; `info` as for `step_one`."""
    if h.privilege == SUPERVISOR and Machine.at(MACHINE).sbi:
        return step_one(h, slot, pc, info)
    h.left += info >> 16
    take_trap(h, pc, ECALL_U + h.privilege, 0)
    return onward(h)


@native
def return_supervisor(h: Hart, slot: int, pc: int, info: int) -> int:
    """sret."""
    if h.privilege == USER or (h.privilege == SUPERVISOR and h.mstatus & TSR):
        return step_one(h, slot, pc, info)
    h.left += (info >> 16) - 1
    supervisor_return(h)
    return onward(h)


@native
def look_at_clock(h: Hart, slot: int, pc: int, info: int) -> int:
    """rdtime."""
    if not counter_allowed(h, TIME):
        return step_one(h, slot, pc, info)
    h.x[Slot.at(slot).rd] = read_time(h)
    return GO_ON


@native
def may_skip_loop(slot: int) -> int:
    """Whether a step is of a CSR instruction or sfence.vma.

    Others that leave may have slept or waited for others: a quantum of them lasts too long for timers, which the
    loop looks at.
    """
    word = Slot.at(slot + 48).imm
    return word & 0x7F == 0x73 and (word >> 12 & 7 != 0 or word >> 25 == 9)


@native
def step_one(h: Hart, slot: int, pc: int, info: int) -> int:
    """Have the interpreter execute one instruction.

    It runs with nothing left of the quantum, so that a jump comes back here; info as for `access`, and the
    instruction's length in the lowest bits.
    """
    h.slow_steps += 1
    collect_flags(h)
    left = h.left
    exact = left + (info >> 16)
    traps = h.traps
    h.quantum -= exact
    h.left = 0
    h.pc = pc
    h.stepped = 0
    run_slot(h, slot)
    h.quantum += exact
    if h.stepped and h.pc == pc + (info & 15):
        ready_fp(h)
        h.left = left
        return GO_ON
    h.left += exact
    ready_fp(h)
    return onward(h) if h.traps != traps or may_skip_loop(slot) else LEAVE


# What the templates of smp/templates_system.py have called instead of a step, in the order of its constants.
SYSTEM_CALLED = (call_environment, return_supervisor, look_at_clock)


@native
def physical_pc(h: Hart) -> int:
    """The physical address of the instruction at `h.pc`, or 0 (`mmu.cause` may be set).

    A page that is new to this hart may hold something new without a fence.i (docs/ARCHITECTURE.md, "Pages that
    are mapped anew"); a kernel's image of large pages does not, and it is what this comes back to all the time.
    """
    pc = h.pc
    privilege = h.privilege
    bank = code_bank(h, privilege)
    entry = h.code_banks[bank].entries[(pc >> 12) & (CODE_ENTRIES - 1)]
    if entry.tag != pc & PAGE_MASK:
        page = fetch_page(h, pc)
        if h.mmu.cause != NO_FAULT or not pmp_allows(h.mmu, page, 4096, EXECUTE, privilege):
            return 0
        is_image = h.mmu.page_bits > 12 and privilege == SUPERVISOR
        if h.mmu.page_bits > 12:
            note_large(h.mmu, pc, h.mmu.page_bits)
        note_space(h.mmu, pc)
        if not is_image and has_changed(page):
            h.epoch = next_epoch()
        entry.tag = pc & PAGE_MASK
        entry.page = page
        h.codes_used[bank] = 1
    return entry.page | pc & 0xFFF


@native
def find_code(h: Hart) -> int:
    """The translated code for `h.pc`, made if need be; 0 when the interpreter must run it."""
    code = AGAIN
    while code == AGAIN:
        ppc = physical_pc(h)
        if ppc == 0 or h.misaligned:
            return 0
        code = known_code(h, ppc)
        if code == 0:
            code = make_code(h, ppc)
        if code == 0 or (code == AGAIN and is_ending()):
            return 0
    note_jump(h, code_bank(h, h.privilege), h.pc, code)
    return code


@native
def known_code(h: Hart, ppc: int) -> int:
    """The code of a block that is there already, or 0."""
    if aload32(ref(CodeTable.at(CODE_TABLE).emptying)):
        return 0
    version = version_of(ppc & PAGE_MASK, h.epoch)
    return lookup(ppc, h.pc, version) if version else 0


@native
def make_code(h: Hart, ppc: int) -> int:
    """Translate under the lock, unless another hart just did; AGAIN when `ppc` may have become another meanwhile."""
    if not take_lock(h):
        return AGAIN
    version = check_page(ppc & PAGE_MASK, h.epoch)
    code = lookup(ppc, h.pc, version)
    if code == 0:
        started = now_ns()
        code = translate(ppc, h.pc, version)
        CodeTable.at(CODE_TABLE).translate_ns += now_ns() - started
        if code == AGAIN:
            empty_cache(h)
        elif code:
            record_block(h, ppc, code)
    free_lock()
    return code


@emitted
def translate(ppc: int, vpc: int, version: int) -> int:
    """smp/translate.py's translate_block, which needs this module for the natives it calls."""
    from mem.native import call
    from smp.translate import translate_block

    return call(translate_block, ppc, vpc, version)  # type: ignore[return-value]


@emitted
def enter_code(h: Hart, enter: int, code: int) -> None:
    """Run translated code until it is left."""
    hart: Any = h
    kind = ir.FunctionType(ir.VoidType(), [I64, I64])
    function = builder().inttoptr(raw(enter), kind.as_pointer())
    assert isinstance(hart, Record) and isinstance(code, V)
    builder().call(function, [hart.address.v, code.v])


@native
def note_hart(h: Hart) -> None:
    """The quantum is used up: what runs now is a sample of what is busy."""
    ppc = physical_pc(h)
    if ppc:
        satp = 0 if h.privilege == MACHINE_MODE else h.mmu.satp
        note_busy(ppc, h.pc, version_of(ppc & PAGE_MASK, h.epoch), satp)
    # That was no fetch: when it faults, the hart may take an interrupt first, and never come to this pc.
    h.mmu.cause = NO_FAULT


@native
def run_translated(h: Hart, quantum: int) -> int:
    """Run about `quantum` instructions; 0 when the interpreter must go on at `h.pc`."""
    h.left = quantum
    h.quantum = quantum
    done = 1
    while True:
        site = h.link
        h.link = 0
        flushes = h.code_flushes
        code = find_code(h)
        if code == 0:
            if h.mmu.cause == NO_FAULT:
                done = 0
                break
            take_fault(h, h.pc)
            if not may_go_on(h) or lts(h.left, 1):
                break
            continue
        # The block that the jump is in may be gone by now.
        if site > 1 and h.code_flushes == flushes and physical_pc(h) & PAGE_MASK == h.link_page & PAGE_MASK:
            link(site, code + (ALARM_CHECK if h.link_page & 1 else 0))
        ready_fp(h)
        enter_code(h, CodeTable.at(CODE_TABLE).asm.enter, code)
        if h.link == 0:
            if h.left < MOST_TAKEN and Machine.at(MACHINE).optimizer_fd:
                note_hart(h)
            break
        h.chain_misses += 1
    collect_flags(h)
    h.instret += h.quantum - h.left
    h.quantum = 0
    h.left = 0
    h.link = 0
    return done


@emitted
def link(site: int, code: int) -> None:
    """Make a jump between blocks go straight on."""
    from mem.native import call
    from smp.x86 import aim

    call(aim, site, code)
