"""Templates of the privileged architecture: CSRs that are plain storage, sstatus, traps and returns.

A block is not bound to a privilege, so a template that takes one compares it when it runs; what it does not treat
goes to the interpreter's handler.
"""

from mem.mailbox import Mailbox
from mem.native import Native, native, table
from mem.tlb import TLB_ENTRIES, VIEW_BYTES, VIEW_S, VIEW_SHIFT, VIEWS, WRITE_BANK, Mmu
from smp.code import Slot
from smp.csr import (
    ALL,
    CSRS,
    SSTATUS_READABLE,
    SSTATUS_WRITABLE,
    extensions,
    pc_mask,
)
from smp.hart import FP_ALLOWED, FS, MPRV, MXR, SIE, SINK, SUM, SUPERVISOR, UXL, Hart
from smp.system import BLOCK
from smp.templates import SLOW, add_stub, call_step, cursor, decline, slow_step, step_slot
from smp.x86 import (
    BELOW,
    EQUAL,
    HART,
    NOT_EQUAL,
    RAX,
    RCX,
    RDX,
    aim,
    byte,
    get,
    here,
    immediate,
    jump_if,
    load_constant,
    op_mem,
    op_reg,
    put,
    rotated,
    shift_immediate,
    word32,
)
from smp.x86_sse import STORE_ALL, XMM0, XOR_BITS, vex_mem, vex_reg

CALL_ENVIRONMENT, RETURN_SUPERVISOR, LOOK_AT_CLOCK = range(3)  # smp/translated.py:SYSTEM_CALLED
SWAP, SET, CLEAR = range(3)
ALLOWED_SHIFT = FP_ALLOWED.bit_length() - 1
MANY_STUBS = 96  # of a block's MAX_STUBS; a write of sstatus takes five
NONE = 0  # no field: x0 is at displacement 0
SSTATUS, SEPC, MEPC, TIME = 0x100, 0x141, 0x341, 0xC01

PRIVILEGE, MSTATUS, ALARM, SOFT, TIMERS, MIE_FIELD, FRM, FP_INLINE = (
    Hart.offset(n) for n in ("privilege", "mstatus", "alarm", "soft_pending", "timers", "mie", "frm", "fp_inline")
)
PENDING = Mailbox.offset("pending") - Mailbox.offset("alarm")  # from what the field `alarm` points at
SEPC_FIELD, MEPC_FIELD = Hart.offset("sepc"), Hart.offset("mepc")
DATA, SUM_FIELD, FIRST_VIEW, MENVCFG = (
    Hart.offset("mmu") + Mmu.offset(n) for n in ("data", "sum", "first_view", "menvcfg")
)
CBZE_BIT = 7  # of menvcfg
assert VIEW_S + 1 < VIEWS


def _readable(number: int) -> int:
    row = CSRS.get(number)
    if row is None or not isinstance(row.read, str) or row.allowed or Hart.offset(row.read) % 8:
        return NONE
    return Hart.offset(row.read)


def _writable(number: int) -> int:
    row = CSRS.get(number)
    plain = row is not None and row.write == row.read and row.mask == ALL and row.quiet
    return _readable(number) if plain else NONE


# Displacements of registers that are a field of the hart record and no more: to read, and to write.
READABLE = table("u16", [_readable(n) for n in range(4096)])
WRITABLE = table("u16", [_writable(n) for n in range(4096)])


@native
def at_least(privilege: int) -> int:
    """Compare the hart's privilege; gives the jump taken when it is lower."""
    op_mem(0, 0x83, 7, HART, PRIVILEGE)
    byte(privilege)
    return jump_if(BELOW)


@native
def operand(s: Slot, is_immediate: int, host: int) -> None:
    """What a CSR instruction writes, sets or clears."""
    if is_immediate:
        load_constant(host, s.rs1)
    else:
        get(host, s.rs1)


@native
def t_csr(s: Slot, op: int, is_immediate: int) -> None:
    number = s.imm & 0xFFF
    writes = op == SWAP or s.rs1 != 0
    if number == SSTATUS and cursor().stubs < MANY_STUBS:
        t_sstatus(s, op, is_immediate)
    elif number == TIME and not writes and s.rd != SINK:
        call_step(step_slot(cursor().number, cursor().word), cursor().call_system[LOOK_AT_CLOCK])
    elif number in (SEPC, MEPC):
        t_stored(s, SEPC_FIELD if number == SEPC else MEPC_FIELD, op, is_immediate)
    elif READABLE[number] != NONE and (not writes or WRITABLE[number] != NONE):
        t_stored(s, READABLE[number], op, is_immediate)
    else:
        decline()


@native
def t_stored(s: Slot, field: int, op: int, is_immediate: int) -> None:
    """A register that is a field of the hart record; of a pc the lowest bits are zero."""
    number = s.imm & 0xFFF
    is_pc = number in (SEPC, MEPC)
    low = 0
    if number >> 8 & 3:
        low = at_least(number >> 8 & 3)
    op_mem(1, 0x8B, RAX, HART, field)
    if is_pc:
        immediate(1, 4, RAX, pc_mask())
    if op == SWAP or s.rs1 != 0:
        operand(s, is_immediate, RCX)
        if op == SET:
            op_reg(1, 0x0B, RCX, RAX)
        elif op == CLEAR:
            op_reg(1, 0xF7, 2, RCX)
            op_reg(1, 0x23, RCX, RAX)
        if is_pc:
            immediate(1, 4, RCX, ALL & ~1)
        op_mem(1, 0x89, RCX, HART, field)
    if s.rd != SINK:
        put(s.rd, RAX)
    if low:
        slow_step(low, 0)


# sstatus


@native
def test_constant(host: int, bits: int) -> None:
    """test host (32 bits), bits."""
    op_reg(0, 0xF7, 0, host)
    word32(bits)


@native
def sstatus_value() -> None:
    """rax: mstatus to sstatus, with UXL and SD; spoils rcx."""
    op_reg(0, 0x8B, RCX, RAX)
    immediate(0, 4, RCX, FS)
    immediate(0, 0, RCX, FS & -FS)  # bit 15 says that both bits of FS are set
    shift_immediate(0, 5, RCX, 15)
    shift_immediate(1, 4, RCX, 63)
    immediate(0, 4, RAX, SSTATUS_READABLE & 0xFFFFFFFF)
    op_reg(1, 0x0B, RAX, RCX)
    load_constant(RCX, 2 << 32)
    op_reg(1, 0x0B, RAX, RCX)


@native
def combine_sstatus(s: Slot, op: int, is_immediate: int) -> None:
    """rdx: the writable bits' new values; rcx: which of them change; rax is mstatus."""
    writable = SSTATUS_WRITABLE if extensions() >> 5 & 1 else SSTATUS_WRITABLE & ~FS
    operand(s, is_immediate, RDX)
    if op == SET:
        op_reg(0, 0x0B, RDX, RAX)
    elif op == CLEAR:
        op_reg(0, 0xF7, 2, RDX)
        op_reg(0, 0x23, RDX, RAX)
    immediate(0, 4, RDX, writable)
    op_reg(0, 0x8B, RCX, RDX)
    op_reg(0, 0x33, RCX, RAX)
    immediate(0, 4, RCX, writable)


@native
def unless_enabling(slow: int) -> None:
    """To the slow path when the new sstatus (rdx) enables interrupts and one may be due; spoils rdx."""
    test_constant(RDX, SIE)
    masked = jump_if(EQUAL)
    op_mem(1, 0x8B, RDX, HART, ALARM)
    op_mem(0, 0x8B, RDX, RDX, PENDING)
    op_mem(0, 0x0B, RDX, HART, SOFT)
    op_mem(0, 0x0B, RDX, HART, TIMERS)
    op_mem(0, 0x23, RDX, HART, MIE_FIELD)
    add_stub(SLOW, jump_if(NOT_EQUAL), cursor().pc, slow)
    aim(masked, here())


@native
def follow_sum() -> None:
    """If SUM is one of the bits changed (rcx), let loads and stores use the other view; rdx is the new mstatus."""
    test_constant(RCX, SUM)
    same = jump_if(EQUAL)
    shift_immediate(0, 5, RDX, 18)
    immediate(0, 4, RDX, 1)
    op_mem(0, 0x89, RDX, HART, SUM_FIELD)
    shift_immediate(0, 4, RDX, VIEW_SHIFT)
    immediate(1, 0, RDX, VIEW_S * VIEW_BYTES)
    op_mem(1, 0x03, RDX, HART, FIRST_VIEW)
    op_mem(1, 0x89, RDX, HART, DATA)
    aim(same, here())


@native
def follow_fs() -> None:
    """If FS changes (bits in rcx), whether translated code may do floating point: as smp/translated.py:ready_fp."""
    test_constant(RCX, FS)
    same = jump_if(EQUAL)
    op_reg(0, 0x33, RCX, RCX)
    op_mem(0, 0x8B, RDX, HART, MSTATUS)
    immediate(0, 4, RDX, FS)
    immediate(0, 7, RDX, FS)
    off = jump_if(NOT_EQUAL)
    op_mem(0, 0x83, 7, HART, FRM)
    byte(4)
    op_reg(0, 0x0F90 | BELOW, 0, RCX)
    shift_immediate(0, 4, RCX, ALLOWED_SHIFT)
    aim(off, here())
    op_mem(0, 0x89, RCX, HART, FP_INLINE)
    aim(same, here())
    cursor().fp_ready = 0


@native
def t_sstatus(s: Slot, op: int, is_immediate: int) -> None:
    """In S-mode without MPRV, and MXR as it is: the rest is rare and the handler's."""
    writes = op == SWAP or s.rs1 != 0
    wide = op == SWAP or not is_immediate  # it may change more than the lowest five bits
    slow = step_slot(cursor().number, cursor().word)
    op_mem(0, 0x83, 7, HART, PRIVILEGE)
    byte(SUPERVISOR)
    add_stub(SLOW, jump_if(NOT_EQUAL), cursor().pc, slow)
    op_mem(1, 0x8B, RAX, HART, MSTATUS)
    if writes:
        combine_sstatus(s, op, is_immediate)
        if wide:
            test_constant(RCX, MXR)
            add_stub(SLOW, jump_if(NOT_EQUAL), cursor().pc, slow)
            test_constant(RAX, MPRV)
            add_stub(SLOW, jump_if(NOT_EQUAL), cursor().pc, slow)
        if op != CLEAR:
            unless_enabling(slow)
        op_reg(1, 0x8B, RDX, RAX)
        op_reg(1, 0x33, RDX, RCX)
        op_mem(1, 0x89, RDX, HART, MSTATUS)
        if wide:
            follow_sum()
            follow_fs()
    if s.rd != SINK:
        sstatus_value()
        put(s.rd, RAX)
    # The stubs come back behind the instruction.
    a = cursor()
    for index in range(a.stubs):
        if a.stub[index].kind == SLOW and a.stub[index].info == slow:
            a.stub[index].back = here()


# Traps and returns


@native
def t_leaves(s: Slot, which: int, extra: int) -> None:
    """ecall and sret: on in the code of another mode."""
    call_step(step_slot(cursor().number, cursor().word), cursor().call_system[which])
    cursor().ended = 1


@native
def t_zero_block(s: Slot, op: int, extra: int) -> None:
    """cbo.zero where menvcfg lets S-mode have it, and the TLB the block's page; the rest is the handler's."""
    op_mem(0, 0x8B, RCX, HART, PRIVILEGE)
    shift_immediate(0, 4, RCX, CBZE_BIT)  # of the privileges, S and M have the bit that CBZE is
    op_mem(0, 0x85, RCX, HART, MENVCFG)
    refused = jump_if(EQUAL)
    get(RAX, s.rs1)
    immediate(1, 4, RAX, (1 << 64) - BLOCK)
    rotated(RCX, RAX, 8)
    immediate(0, 4, RCX, (TLB_ENTRIES - 1) << 4)
    op_mem(1, 0x03, RCX, HART, DATA)
    op_reg(1, 0x8B, RDX, RAX)
    immediate(1, 4, RDX, (1 << 64) - 4096)
    op_mem(1, 0x3B, RDX, RCX, WRITE_BANK)
    missed = jump_if(NOT_EQUAL)
    op_mem(1, 0x03, RAX, RCX, WRITE_BANK + 8)
    vex_reg(XOR_BITS, XMM0, XMM0, XMM0)
    for part in range(BLOCK // 16):
        vex_mem(STORE_ALL, XMM0, 0, RAX, 16 * part)
    slow_step(refused, missed)


TEMPLATES: dict[str, tuple[Native, int, int]] = {
    "cbo.zero": (t_zero_block, 0, 0),
    "csrrw": (t_csr, SWAP, 0), "csrrs": (t_csr, SET, 0), "csrrc": (t_csr, CLEAR, 0),
    "csrrwi": (t_csr, SWAP, 1), "csrrsi": (t_csr, SET, 1), "csrrci": (t_csr, CLEAR, 1),
    "ecall": (t_leaves, CALL_ENVIRONMENT, 0), "sret": (t_leaves, RETURN_SUPERVISOR, 0),
}  # fmt: skip
assert UXL == 3 << 32
