"""Templates of atomics: AMOs and compare-and-swap as one locked host instruction or a loop around one, LR/SC, fences.

An access goes inline when its page is in the *write* bank: it is plain RAM then, writable, and not watched as far
as this hart has been told.  All else is the interpreter's.

LR/SC.  An LR whose constrained sequence (smp/lrsc.py) has its address in one register throughout is *fused* with its
SC: it leaves the host address in the hart's `reservation`, and the SC is one compare-and-swap there.  All three lie in
one block, which begins with the LR and is only left between them by a branch that is taken (smp/translate.py).  So
nobody else ever meets such an address, and no alarm is answered between the two: the page is still not watched.
"""

from mem.machine import Machine
from mem.native import Native, native, ref
from mem.regions import MACHINE
from mem.tlb import WRITE_BANK
from mem.word import sext32
from smp.code import Slot, handler_of
from smp.decode import (
    CONSTRAINED_LR,
    HANDLER,
    K_ALU,
    K_BRANCH,
    KIND,
    NO_SC,
    begins_in_window,
    find_row,
    length_of,
    put_operands,
    sequence_end,
    word_at,
)
from smp.hart import NOTHING, SINK, STATES, STRAY, Hart
from smp.lrsc import NEVER_FUSE
from smp.templates import (
    ADD,
    AND,
    CMOVA,
    CMOVB,
    CMOVG,
    CMOVL,
    OR,
    SLOW,
    XOR,
    add_stub,
    cursor,
    decline,
    locate,
    set_if,
    slow_step,
    source,
    step_slot,
)
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
    indexed,
    jump_if,
    load_constant,
    op_guest,
    op_mem,
    op_reg,
    put,
    use_guest,
    word32,
)
from smp.x86_locked import locked

RESERVATION, RESERVED_VALUE, RESERVED_LR = (
    Hart.offset(n) for n in ("reservation", "reserved_value", "reserved_lr")
)  # fmt: skip
STORED, ADDED, CHANGED, SIGNED_CHOICE, UNSIGNED_CHOICE = range(5)  # what an AMO does with memory
XADD, XCHG, CMPXCHG = 0x0FC1, 0x87, 0x0FB1
OPERAND16 = 0x66 << 16


@native
def sized(size: int, opcode: int) -> int:
    """The opcode for operands of 1 or 2 bytes; those of 4 and 8 differ in REX.W."""
    if size == 1:
        return opcode & ~1
    return opcode | OPERAND16 if size == 2 else opcode


@native
def probe_host(s: Slot, size: int) -> int:
    """rax = host address of what rs1 points to; gives the jump taken on a miss."""
    s.imm = 0
    where = locate(s, size, WRITE_BANK)
    indexed(1, 0x8D, RAX, RDX, where, 0)
    return cursor().missed


@native
def put_extended(s: Slot, size: int, host: int) -> None:
    """rd = the host register (rax, rcx or rdx), sign-extended from the access's size."""
    if s.rd == SINK or s.rd == 0:
        return
    match size:
        case 1:
            op_reg(1, 0x0FBE, host, host)
        case 2:
            op_reg(1, 0x0FBF, host, host)
        case 4:
            op_reg(1, 0x63, host, host)
    put(s.rd, host)


# AMOs


@native
def t_amo(s: Slot, how: int, extra: int) -> None:
    """extra: size, from bit 8 the opcode that computes."""
    size = extra & 15
    op = extra >> 8
    miss = probe_host(s, size)
    if how == STORED:
        get(RDX, s.rs2)
        op_mem(size == 8, sized(size, XCHG), RDX, RAX, 0)
        put_extended(s, size, RDX)
    elif s.rd == SINK and how in (ADDED, CHANGED):
        # `op` computes in a register; the form with memory is two less.
        get(RDX, s.rs2)
        locked(size == 8, sized(size, op - 2), RDX, RAX)
    elif how == ADDED:
        get(RDX, s.rs2)
        locked(size == 8, sized(size, XADD), RDX, RAX)
        put_extended(s, size, RDX)
    else:
        op_reg(1, 0x8B, RCX, RAX)
        swap_loop(s, how, op, size)
        put_extended(s, size, RAX)
    slow_step(miss, 0)


@native
def swap_loop(s: Slot, how: int, op: int, size: int) -> None:
    """Compute from memory at rcx until nobody was faster; rax is the old value."""
    op_mem(size == 8, sized(size, 0x8B), RAX, RCX, 0)
    again = here()
    if how == CHANGED:
        op_reg(1, 0x8B, RDX, RAX)
        # Not rcx: it holds the address.
        op_guest(1, op, RDX, s.rs2)
    else:
        extend_both(s, size, how == SIGNED_CHOICE)
        op_reg(size == 8, 0x3B, RAX, RDX)
        op_reg(1, 0x0F00 | op, RDX, RAX)
    locked(size == 8, sized(size, CMPXCHG), RDX, RCX)
    aim(jump_if(NOT_EQUAL), again)


@native
def extend_both(s: Slot, size: int, signed: int) -> None:
    """rdx = rs2; extend a byte or halfword in it and in rax, so that they compare as words."""
    if size >= 4:
        get(RDX, s.rs2)
        return
    op = (0x0FBE if signed else 0x0FB6) + (size == 2)
    # The wide forms: without REX some byte operands are other registers.
    use_guest(1, op, RDX, s.rs2, RDX)
    op_reg(1, op, RAX, RAX)


@native
def t_compare_and_swap(s: Slot, op: int, size: int) -> None:
    """amocas: rd holds the expected value and gets the old one."""
    miss = probe_host(s, size)
    op_reg(1, 0x8B, RCX, RAX)
    get(RAX, s.rd)
    get(RDX, s.rs2)
    locked(size == 8, sized(size, CMPXCHG), RDX, RCX)
    put_extended(s, size, RAX)
    slow_step(miss, 0)


# LR and SC


@native
def leads_out(text: int, length: int) -> int:
    """Whether all branches of the constrained sequence lead out of it."""
    inner = cursor().inner
    at = 4
    while at < length:
        word = word_at(text + at)
        number = find_row(word)
        if KIND[number] == K_BRANCH:
            put_operands(number, word, ref(cursor().inner))
            if begins_in_window(text, length, at + sext32(inner.imm)):
                return 0
        at += length_of(word)
    return 1


@native
def keeps_address(s: Slot, text: int, length: int) -> int:
    """Whether LR and SC name the same address register and nothing from the LR on writes to it."""
    inner = cursor().inner
    if s.rd == s.rs1:
        return 0
    at = 4
    while at <= length:
        word = word_at(text + at)
        number = find_row(word)
        put_operands(number, word, ref(cursor().inner))
        if at == length:
            return inner.rs1 == s.rs1
        if KIND[number] == K_ALU and inner.rd == s.rs1:
            return 0
        at += length_of(word)
    return 0


@native
def begin_window(slot: int, number: int) -> int:
    """Decode the LR in hand: constrained when all branches of its sequence lead out, else watched.

    Gives the bytes to its SC, or 0.
    """
    a = cursor()
    a.window_end = 0
    length = sequence_end(a.text)
    if length == 0 or (length != NO_SC and not leads_out(a.text, length)):
        return 0
    s = Slot.at(slot)
    s.imm = length
    s.handler = handler_of(HANDLER[number] + CONSTRAINED_LR)
    if length == NO_SC:
        return 0
    a.window_end = a.text + length
    a.window_lr = slot
    return length


@native
def is_fusible(s: Slot) -> int:
    """Whether the LR in hand and its SC can do without the interpreter.

    Not with --engine check, which has translated code left between the two.
    """
    if Machine.at(MACHINE).check:
        return 0
    length = sequence_end(cursor().text)
    if length == 0 or length == NO_SC:
        return 0
    return leads_out(cursor().text, length) and keeps_address(s, cursor().text, length)


@native
def t_load_reserved(s: Slot, op: int, size: int) -> None:
    a = cursor()
    a.fused = is_fusible(s)
    if not a.fused:
        decline()
        return
    slot = step_slot(a.number, a.word)
    begin_window(slot, a.number)
    Slot.at(slot + NEVER_FUSE).handler = 0
    miss = probe_host(s, size)
    load_constant(RCX, slot + NEVER_FUSE)
    op_mem(1, 0x83, 7, RCX, 0)
    byte(0)
    never = jump_if(NOT_EQUAL)
    op_mem(1, 0x89, RAX, HART, RESERVATION)
    op_mem(1, op, RDX, RAX, 0)
    op_mem(1, 0x89, RDX, HART, RESERVED_VALUE)
    if s.rd != SINK:
        put(s.rd, RDX)
    add_stub(SLOW, miss, a.pc, slot)
    a.stub[a.stubs - 1].more = never


@native
def t_store_conditional(s: Slot, op: int, size: int) -> None:
    a = cursor()
    if a.text != a.window_end:
        fail_alone(s, size)
    elif a.fused:
        store_fused(s, size)
    else:
        decline()


@native
def store_fused(s: Slot, size: int) -> None:
    """The end of a fused sequence, unless the interpreter had to execute its LR."""
    op_mem(1, 0x8B, RCX, HART, RESERVATION)
    immediate(1, 7, RCX, STATES)
    stepped = jump_if(BELOW)
    op_mem(1, 0x8B, RAX, HART, RESERVED_VALUE)
    locked(size == 8, CMPXCHG, source(s.rs2, RDX), RCX)
    set_state(NOTHING)
    set_if(s, NOT_EQUAL)
    slow_step(stepped, 0)


@native
def fail_alone(s: Slot, size: int) -> None:
    """An SC without an LR: how a kernel drops reservations on its way out."""
    s.imm = 0
    locate(s, size, WRITE_BANK)
    miss = cursor().missed
    op_mem(1, 0x83, 7, HART, RESERVATION)
    byte(NOTHING)
    held = jump_if(NOT_EQUAL)
    load_constant(RAX, 1)
    put(s.rd, RAX)
    slow_step(miss, held)


@native
def set_state(state: int) -> None:
    """Set the hart's `reservation`; leaves the flags alone."""
    op_mem(1, 0xC7, 0, HART, RESERVATION)
    word32(state)


@native
def leave_window(lr: int) -> None:
    """On the way out of a constrained sequence by a branch; a watched LR stays as it is."""
    op_mem(1, 0x83, 7, HART, RESERVATION)
    byte(0)
    watched = jump_if(EQUAL)
    load_constant(RAX, lr)
    op_mem(1, 0x89, RAX, HART, RESERVED_LR)
    set_state(STRAY)
    aim(watched, here())


# Fences

PREDECESSOR_WRITES, SUCCESSOR_READS = 5 << 24, 10 << 20  # O, W; I, R
FENCE_TSO = 0x8330_0000


@native
def t_fence(s: Slot, op: int, extra: int) -> None:
    """The host keeps all orders but that of earlier stores with later loads."""
    word = cursor().word
    if not (word & PREDECESSOR_WRITES and word & SUCCESSOR_READS) or word & 0xFFF0_0000 == FENCE_TSO:
        return
    # lock or dword [rsp], 0: as good as mfence, in less time.
    byte(0xF0)
    byte(0x83)
    byte(0x0C)
    byte(0x24)
    byte(0)


AMOS: dict[str, tuple[int, int]] = {
    "amoswap": (STORED, 0), "amoadd": (ADDED, ADD), "amoand": (CHANGED, AND), "amoor": (CHANGED, OR),
    "amoxor": (CHANGED, XOR), "amomin": (SIGNED_CHOICE, CMOVL), "amomax": (SIGNED_CHOICE, CMOVG),
    "amominu": (UNSIGNED_CHOICE, CMOVB), "amomaxu": (UNSIGNED_CHOICE, CMOVA),
}  # fmt: skip
SIZES = {"b": 1, "h": 2, "w": 4, "d": 8}

TEMPLATES: dict[str, tuple[Native, int, int]] = {
    "fence": (t_fence, 0, 0),
    "lr.w": (t_load_reserved, 0x63, 4), "lr.d": (t_load_reserved, 0x8B, 8),
    "sc.w": (t_store_conditional, 0, 4), "sc.d": (t_store_conditional, 0, 8),
    **{f"amocas.{letter}": (t_compare_and_swap, 0, size) for letter, size in SIZES.items()},
    **{f"{name}.{letter}": (t_amo, how, size | (op & 0xFF) << 8)
       for name, (how, op) in AMOS.items() for letter, size in SIZES.items()},
}  # fmt: skip
