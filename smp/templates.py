"""The translator's templates: what a row becomes in host instructions.

Each emits code for the decoded instruction in a slot; TEMPLATES says which row has which (smp/template_table.py has
them all).  A result is computed in the host register of the guest's, or in rax and then stored.  A template may
`decline`, or send rare cases to the interpreter's handler by `slow_step`.
"""

from mem.native import Native, native
from mem.regions import CODE_TABLE, STEPS
from mem.tlb import TLB_ENTRIES, WRITE_BANK, Mmu
from mem.word import sext32
from smp.code import STEP_END, Slot, handler_of
from smp.codecache import Asm, CodeTable
from smp.decode import decode_into
from smp.hart import SINK, Hart
from smp.x86 import (
    BELOW,
    EQUAL,
    HART,
    IN_MEMORY,
    LESS,
    NOT_EQUAL,
    PIN,
    R13,
    RAX,
    RBP,
    RCX,
    RDX,
    aim,
    byte,
    call_to,
    get,
    here,
    immediate,
    indexed,
    jump,
    jump_if,
    load_constant,
    op_guest,
    op_mem,
    op_reg,
    put,
    rotated,
    shift_by,
    shift_immediate,
    use_guest,
    word32,
)

LINK, FAR, LEAVE, ACCESS, FIX, SLOW, SOFT, STRAYING = range(8)  # what a stub does (smp/translate.py)
DATA = Hart.offset("mmu") + Mmu.offset("data")


@native(inline=True)
def cursor() -> Asm:
    return CodeTable.at(CODE_TABLE).asm


@native
def result(rd: int) -> int:
    """The host register to compute a result in: rd's own, or rax."""
    host = PIN[rd]
    return RAX if host == IN_MEMORY else host


@native
def finish(rd: int, host: int) -> None:
    """Store a result that was computed in rax."""
    if PIN[rd] == IN_MEMORY:
        put(rd, host)


@native
def source(guest: int, spare: int) -> int:
    """A host register that holds the guest register: its own, or `spare` loaded with it."""
    if PIN[guest] != IN_MEMORY:
        return PIN[guest]
    get(spare, guest)
    return spare


# Templates: register arithmetic.  `op` is the x86 opcode or what else the row's table entry says.


@native
def t_binary(s: Slot, op: int, commutes: int) -> None:
    d = result(s.rd)
    first = s.rs1
    second = s.rs2
    if commutes and (first == 0 or (s.rd == second and s.rd != first)):
        first = s.rs2
        second = s.rs1
    if second == 0 and op in (ADD, OR, XOR, SUB):
        get(d, first)
    elif s.rd == second and s.rd != first and d != RAX:
        get(RAX, first)
        op_reg(1, op, RAX, d)
        op_reg(1, 0x8B, d, RAX)
    else:
        get(d, first)
        use_guest(1, op, d, second, RCX)
    finish(s.rd, d)


@native
def get_word(host: int, guest: int) -> None:
    """The lower half of a guest register, with nothing particular above it."""
    if PIN[guest] == IN_MEMORY or PIN[guest] == host:
        get(host, guest)
    else:
        op_reg(0, 0x8B, host, PIN[guest])


@native
def extend(s: Slot, host: int) -> None:
    """rd = the lower half of `host`, sign-extended."""
    d = result(s.rd)
    op_reg(1, 0x63, d, host)
    finish(s.rd, d)


@native
def word_result(s: Slot, avoid: int) -> int:
    """Where to compute a word: rd's own register if it has one and is not the source to be read later."""
    return RAX if s.rd == avoid and s.rd != s.rs1 else result(s.rd)


@native
def t_binary_word(s: Slot, op: int, extra: int) -> None:
    host = word_result(s, s.rs2)
    get_word(host, s.rs1)
    use_guest(0, op, host, s.rs2, RCX)
    extend(s, host)


@native
def t_immediate(s: Slot, digit: int, extra: int) -> None:
    imm = sext32(s.imm)
    d = result(s.rd)
    if s.rs1 == 0 and digit != 4:
        load_constant(d, imm)
    else:
        from_host = PIN[s.rs1]
        if digit == 0 and d != RAX and from_host not in (IN_MEMORY, d) and imm:
            op_mem(1, 0x8D, d, from_host, imm)
        else:
            get(d, s.rs1)
            if imm or digit == 4:
                immediate(1, digit, d, imm)
    finish(s.rd, d)


@native
def t_addiw(s: Slot, op: int, extra: int) -> None:
    imm = sext32(s.imm)
    d = result(s.rd)
    if imm == 0:
        extend(s, source(s.rs1, RAX))
        return
    from_host = PIN[s.rs1]
    if d != RAX and from_host not in (IN_MEMORY, d):
        op_mem(0, 0x8D, d, from_host, imm)
    else:
        get_word(d, s.rs1)
        immediate(0, 0, d, imm)
    extend(s, d)


@native
def t_shift_immediate(s: Slot, digit: int, wide: int) -> None:
    d = result(s.rd)
    if wide:
        get(d, s.rs1)
        shift_immediate(1, digit, d, s.imm)
        finish(s.rd, d)
    elif digit == SAR:
        op_reg(1, 0x63, d, source(s.rs1, RAX))
        shift_immediate(1, digit, d, s.imm)
        finish(s.rd, d)
    else:
        op_reg(0, 0x8B, d, source(s.rs1, RAX))
        shift_immediate(0, digit, d, s.imm)
        if digit == SHL or s.imm == 0:
            extend(s, d)
        else:
            finish(s.rd, d)


@native
def t_shift(s: Slot, prefix: int, wide: int) -> None:
    count = source(s.rs2, RCX)
    d = result(s.rd)
    shift_by(wide, prefix, d, source(s.rs1, RAX), count)
    if wide:
        finish(s.rd, d)
    else:
        extend(s, d)


@native
def set_if(s: Slot, condition: int) -> None:
    """rd = 1 if the flags say so, else 0."""
    d = result(s.rd)
    op_reg(0, 0x0F90 | condition, 0, RAX)
    op_reg(0, 0x0FB6, d, RAX)
    finish(s.rd, d)


@native
def t_compare(s: Slot, condition: int, extra: int) -> None:
    use_guest(1, 0x3B, source(s.rs1, RAX), s.rs2, RCX)
    set_if(s, condition)


@native
def t_compare_immediate(s: Slot, condition: int, extra: int) -> None:
    immediate(1, 7, source(s.rs1, RAX), sext32(s.imm))
    set_if(s, condition)


@native
def t_constant(s: Slot, from_pc: int, extra: int) -> None:
    value = sext32(s.imm) + (cursor().pc if from_pc else 0)
    d = result(s.rd)
    load_constant(d, value)
    finish(s.rd, d)


@native
def t_shift_add(s: Slot, scale: int, word: int) -> None:
    index = source(s.rs1, RAX)
    if word:
        op_reg(0, 0x8B, RAX, index)
        index = RAX
    base = source(s.rs2, RDX)
    if base in (RBP, R13):
        op_reg(1, 0x8B, RDX, base)
        base = RDX
    d = result(s.rd)
    indexed(1, 0x8D, d, base, index, scale)
    finish(s.rd, d)


@native
def t_unary(s: Slot, op: int, extra: int) -> None:
    d = result(s.rd)
    use_guest(1, op, d, s.rs1, RAX)
    finish(s.rd, d)


@native
def t_choose(s: Slot, op: int, extra: int) -> None:
    """min and max: a conditional move of rs2 over rs1."""
    get(RAX, s.rs1)
    get(RDX, s.rs2)
    op_reg(1, 0x3B, RAX, RDX)
    op_reg(1, op, RAX, RDX)
    put(s.rd, RAX)


@native
def t_inverted(s: Slot, op: int, extra: int) -> None:
    """andn, orn, xnor: rs1 op ~rs2."""
    get(RAX, s.rs2)
    op_reg(1, 0xF7, 2, RAX)
    use_guest(1, op, RAX, s.rs1, RCX)
    put(s.rd, RAX)


@native
def t_multiply_high(s: Slot, digit: int, extra: int) -> None:
    get(RAX, s.rs1)
    use_guest(1, 0xF7, digit, s.rs2, RCX)
    put(s.rd, RDX)


@native
def t_divide(s: Slot, digit: int, flags: int) -> None:
    """div (6) and idiv (7); flags: 1 remainder, 2 word.  By zero and by -1 are the manual's, not the host's."""
    wide = flags & 2 == 0
    answer = RDX if flags & 1 else RAX
    op_guest(wide, 0x8B, RAX, s.rs1)
    op_guest(wide, 0x8B, RCX, s.rs2)
    op_reg(wide, 0x85, RCX, RCX)
    by_zero = jump_if(EQUAL)
    by_minus_one = 0
    if digit == 7:
        immediate(wide, 7, RCX, (1 << 64) - 1)
        by_minus_one = jump_if(EQUAL)
        if wide:
            byte(0x48)
        byte(0x99)
    else:
        op_reg(0, 0x33, RDX, RDX)
    op_reg(wide, 0xF7, digit, RCX)
    done = jump()
    aim(by_zero, here())
    if flags & 1:
        op_reg(wide, 0x8B, RDX, RAX)
    else:
        load_constant(RAX, (1 << 64) - 1)
    done_zero = jump()
    if by_minus_one:
        aim(by_minus_one, here())
        if flags & 1:
            op_reg(0, 0x33, RDX, RDX)
        else:
            op_reg(wide, 0xF7, 3, RAX)
    aim(done, here())
    aim(done_zero, here())
    if wide:
        put(s.rd, answer)
    else:
        op_reg(1, 0x63, RAX, answer)
        put(s.rd, RAX)


# Templates: memory


@native
def add_stub(kind: int, site: int, pc: int, info: int) -> None:
    """Have code made behind the block."""
    a = cursor()
    stub = a.stub[a.stubs]
    stub.kind = kind
    stub.site = site
    stub.more = 0
    stub.back = here()
    stub.pc = pc
    stub.info = info
    stub.segment = a.segment
    stub.before = a.count - a.begun
    stub.fp = a.fp_ready
    a.stubs += 1


@native
def add_access(miss: int, info: int) -> None:
    """The stub of a load or store; from bit 16 of its info the host register that holds the address."""
    a = cursor()
    short = 64 if a.length == 2 else 0
    add_stub(ACCESS, miss, a.pc, info | short)


@native
def decline() -> None:
    """Before anything is emitted: the interpreter's handler executes this instruction."""
    cursor().declined = 1


@native
def slow_step(site: int, more: int) -> None:
    """At the end of a template: have the interpreter's handler execute the instruction when a jump to here is taken.

    site, more: what jump_if or jump gave; `more` may be 0.  All guest registers must be as before the instruction.
    """
    a = cursor()
    add_stub(SLOW, site, a.pc, step_slot(a.number, a.word))
    a.stub[a.stubs - 1].more = more


STEP_BYTES = 64


@native
def step_slot(number: int, word: int) -> int:
    """A decoded slot for one instruction, the one in hand, behind which the interpreter stops."""
    t = CodeTable.at(CODE_TABLE)
    slot = STEPS + t.slots_used * STEP_BYTES
    t.slots_used += 1
    decode_into(slot, word, t.asm.pc, 0)
    Slot.at(slot + 16).handler = handler_of(STEP_END)
    Slot.at(slot + 32).handler = handler_of(STEP_END)
    Slot.at(slot + 48).handler = 0  # the cache may have been emptied: an LR's note not to fuse it
    Slot.at(slot + 48).imm = word
    return slot


@native
def call_piece(piece: int) -> None:
    """Call one of the fixed pieces, which may use the floating-point registers."""
    cursor().fp_ready = 0
    cursor().boxed = 0
    call_to(piece)


@native
def call_step(slot: int, piece: int) -> None:
    """Call a piece that executes the instruction in hand: it gets the slot, the pc, and what has not run."""
    a = cursor()
    load_constant(RAX, slot)
    load_constant(RDX, a.pc)
    byte(0xB8 | RCX)
    word32(a.length)
    add_stub(FIX, here(), 0, 0)
    call_piece(piece)


@native
def effective_address(s: Slot) -> None:
    """rax = rs1 + imm."""
    imm = sext32(s.imm)
    host = PIN[s.rs1]
    if host != IN_MEMORY and imm:
        op_mem(1, 0x8D, RAX, host, imm)
    else:
        get(RAX, s.rs1)
        if imm:
            immediate(1, 0, RAX, imm)


@native
def locate(s: Slot, size: int, bank: int) -> int:
    """Look rs1 + imm up in the data TLB; [rdx + the register that it gives] is the place in host memory.

    A miss goes to the access's stub, which must be added behind it (`add_access`).
    """
    a = cursor()
    where = PIN[s.rs1]
    if sext32(s.imm) or where == IN_MEMORY:
        effective_address(s)
        where = RAX
    rotated(RCX, where, 8)
    immediate(0, 4, RCX, (TLB_ENTRIES - 1) << 4)
    op_mem(1, 0x03, RCX, HART, DATA)
    op_reg(1, 0x8B, RDX, where)
    immediate(1, 4, RDX, (0 - 4096) | (size - 1))
    op_mem(1, 0x3B, RDX, RCX, bank)
    a.missed = jump_if(NOT_EQUAL)
    op_mem(1, 0x8B, RDX, RCX, bank + 8)
    return where


@native
def t_load(s: Slot, op: int, extra: int) -> None:
    """extra: size, sign bit 4, wide bit 8."""
    size = extra & 15
    where = locate(s, size, 0)
    d = result(s.rd)
    indexed(extra >> 8 & 1, op, d, RDX, where, 0)
    if s.rd != SINK:
        finish(s.rd, d)
    add_access(cursor().missed, size | (extra & 16) << 1 | s.rd << 8 | where << 16)


@native
def t_store(s: Slot, op: int, extra: int) -> None:
    size = extra & 15
    where = locate(s, size, WRITE_BANK)
    indexed(extra >> 8 & 1, op, source(s.rs2, RCX), RDX, where, 0)
    add_access(cursor().missed, size | 16 | s.rs2 << 8 | where << 16)


ADD, AND, OR, XOR, SUB, MUL = 0x03, 0x23, 0x0B, 0x33, 0x2B, 0x0FAF
CMOVB, CMOVA, CMOVL, CMOVG = 0x0F42, 0x0F47, 0x0F4C, 0x0F4F
SHL, SHR, SAR = 4, 5, 7
WIDE = 1 << 8
SIGNED = 16

TEMPLATES: dict[str, tuple[Native, int, int]] = {
    "add": (t_binary, ADD, 1), "sub": (t_binary, SUB, 0), "and": (t_binary, AND, 1), "or": (t_binary, OR, 1),
    "xor": (t_binary, XOR, 1), "mul": (t_binary, MUL, 1),
    "addw": (t_binary_word, ADD, 0), "subw": (t_binary_word, SUB, 0), "mulw": (t_binary_word, MUL, 0),
    "addi": (t_immediate, 0, 0), "ori": (t_immediate, 1, 0), "andi": (t_immediate, 4, 0), "xori": (t_immediate, 6, 0),
    "addiw": (t_addiw, 0, 0),
    "slli": (t_shift_immediate, 4, 1), "srli": (t_shift_immediate, 5, 1), "srai": (t_shift_immediate, 7, 1),
    "slliw": (t_shift_immediate, 4, 0), "srliw": (t_shift_immediate, 5, 0), "sraiw": (t_shift_immediate, 7, 0),
    "sll": (t_shift, 1, 1), "srl": (t_shift, 3, 1), "sra": (t_shift, 2, 1),
    "sllw": (t_shift, 1, 0), "srlw": (t_shift, 3, 0), "sraw": (t_shift, 2, 0),
    "slt": (t_compare, LESS, 0), "sltu": (t_compare, BELOW, 0),
    "slti": (t_compare_immediate, LESS, 0), "sltiu": (t_compare_immediate, BELOW, 0),
    "lui": (t_constant, 0, 0), "auipc": (t_constant, 1, 0),
    "sh1add": (t_shift_add, 1, 0), "sh2add": (t_shift_add, 2, 0), "sh3add": (t_shift_add, 3, 0),
    "add.uw": (t_shift_add, 0, 1), "sh1add.uw": (t_shift_add, 1, 1), "sh2add.uw": (t_shift_add, 2, 1),
    "sh3add.uw": (t_shift_add, 3, 1),
    "sext.b": (t_unary, 0x0FBE, 0), "sext.h": (t_unary, 0x0FBF, 0), "zext.h": (t_unary, 0x0FB7, 0),
    "clz": (t_unary, 0xF30FBD, 0), "ctz": (t_unary, 0xF30FBC, 0), "cpop": (t_unary, 0xF30FB8, 0),
    "min": (t_choose, CMOVG, 0), "max": (t_choose, CMOVL, 0), "minu": (t_choose, CMOVA, 0),
    "maxu": (t_choose, CMOVB, 0),
    "andn": (t_inverted, AND, 0), "orn": (t_inverted, OR, 0), "xnor": (t_inverted, XOR, 0),
    "mulh": (t_multiply_high, 5, 0), "mulhu": (t_multiply_high, 4, 0),
    "div": (t_divide, 7, 0), "divu": (t_divide, 6, 0), "rem": (t_divide, 7, 1), "remu": (t_divide, 6, 1),
    "divw": (t_divide, 7, 2), "divuw": (t_divide, 6, 2), "remw": (t_divide, 7, 3), "remuw": (t_divide, 6, 3),
    "lb": (t_load, 0x0FBE, 1 | SIGNED | WIDE), "lh": (t_load, 0x0FBF, 2 | SIGNED | WIDE),
    "lw": (t_load, 0x63, 4 | SIGNED | WIDE), "ld": (t_load, 0x8B, 8 | WIDE),
    "lbu": (t_load, 0x0FB6, 1), "lhu": (t_load, 0x0FB7, 2), "lwu": (t_load, 0x8B, 4),
    "sb": (t_store, 0x88, 1), "sh": (t_store, 0x660089, 2), "sw": (t_store, 0x89, 4), "sd": (t_store, 0x89, 8 | WIDE),
}  # fmt: skip
