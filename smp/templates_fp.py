"""The translator's templates of F and D: scalar AVX and FMA instructions.

The busiest registers live in host registers too (smp/x86_sse.py:F_PINNED).  What is written always goes to the hart
record as well, so those need no saving: they are loaded when a block finds them not to be (`ready`), and again behind
whatever the block calls.  A single is kept NaN-boxed in both places: scalar instructions take what lies above it from
their first source.

While translated code runs, MXCSR holds the guest's rounding mode and gathers exceptions (smp/translated.py:ready_fp,
collect_flags); they mean on x86-64 what they mean to RISC-V, tininess after rounding included.  The
interpreter's handler does an instruction again whose result the host may not have: NaNs, which must be canonical,
numbers that an integer can't hold, singles that are not NaN-boxed.  It can't take flags back: until then the host may
only have raised what the handler raises too.  A block's first floating-point instruction looks at `fp_inline`: unless
mstatus.FS is dirty and frm a mode that the host has, the handler executes that and the block is left.
"""

from mem.native import Native, native, table
from mem.tlb import WRITE_BANK
from smp.code import Slot
from smp.hart import FP_ALLOWED, FP_LOADED, Hart
from smp.templates import (
    SOFT,
    add_access,
    add_stub,
    cursor,
    decline,
    finish,
    locate,
    result,
    slow_step,
    source,
    step_slot,
)
from smp.x86 import (
    ABOVE,
    EQUAL,
    HART,
    IN_MEMORY,
    NOT_BELOW,
    NOT_EQUAL,
    NOT_PARITY,
    OVERFLOW,
    PARITY,
    RAX,
    RDX,
    SIGN,
    aim,
    byte,
    get,
    here,
    immediate,
    jump,
    jump_if,
    op_mem,
    op_reg,
    put,
    shift_immediate,
)
from smp.x86_sse import (
    ADD,
    ALL_EQUAL,
    AND_BITS,
    CONVERT,
    COPY,
    DIV,
    F_PIN,
    FMADD,
    FMSUB,
    FNMADD,
    FNMSUB,
    FROM_GENERAL,
    FROM_INT,
    LOAD,
    MAX,
    MERGE,
    MIN,
    MUL,
    OR_BITS,
    ORDERED,
    SQRT,
    STORE,
    SUB,
    TO_ADDEND,
    TO_INT,
    TO_INT_RTZ,
    UNORDERED,
    WIDE_FORM,
    XMM0,
    XMM1,
    XMM2,
    vex_indexed,
    vex_mem,
    vex_reg,
)

F = Hart.offset("f")
FP_INLINE = Hart.offset("fp_inline")
RTZ, RESERVED, DYN = 1, 5, 7  # rounding modes of an instruction
FIRST_F = 33  # f0 as a register number of the record: behind x[SINK]
BOXES = 128  # of an access: the loaded single is NaN-boxed
assert F == FIRST_F * 8

# By `single`
LOADS, STORES, ADDS, UNORDERED_COMPARES = (table("u32", forms) for forms in (LOAD, STORE, ADD, UNORDERED))
EXPONENT_AT, EXPONENT_BIAS = table("u8", (52, 23)), table("u16", (0x3FF, 0x7F))


# Operands


@native
def ready() -> None:
    """In front of a block's first floating-point instruction, and the first behind a step."""
    a = cursor()
    if a.fp_ready:
        return
    op_mem(0, 0x83, 7, HART, FP_INLINE)
    byte(FP_ALLOWED | FP_LOADED)
    add_stub(SOFT, jump_if(NOT_EQUAL), a.pc, step_slot(a.number, a.word))
    a.fp_ready = 1


@native
def fetch(register: int, spare: int) -> int:
    """The host register that holds a floating-point register: its own, or `spare` loaded with it."""
    if F_PIN[register] != IN_MEMORY:
        return F_PIN[register]
    vex_mem(LOADS[0], spare, 0, HART, F + register * 8)
    return spare


@native
def operate(form: int, reg: int, left: int, register: int) -> None:
    """An instruction whose last operand is a floating-point register of the guest."""
    if F_PIN[register] != IN_MEMORY:
        vex_reg(form, reg, left, F_PIN[register])
    else:
        vex_mem(form, reg, left, HART, F + register * 8)


@native
def target(register: int) -> int:
    """The host register to compute a result in; the old value is not needed even if the handler takes over."""
    return XMM0 if F_PIN[register] == IN_MEMORY else F_PIN[register]


@native
def deliver(register: int, xmm: int, single: int) -> None:
    """Write a result, all 64 bits of it."""
    a = cursor()
    if F_PIN[register] not in (IN_MEMORY, xmm):
        vex_reg(COPY, F_PIN[register], 0, xmm)
    vex_mem(STORES[0], xmm, 0, HART, F + register * 8)
    a.boxed = a.boxed & ~(1 << register) | single << register


@native
def ones(xmm: int) -> None:
    vex_reg(ALL_EQUAL, xmm, xmm, xmm)


@native
def unless_boxed(s: Slot, count: int, single: int) -> int:
    """The jump taken when one of the first `count` sources is a single not NaN-boxed; 0 when that can't be."""
    opcode = 0x8B
    if single:
        for number in range(count):
            register = s.rs1 if number == 0 else s.rs2 if number == 1 else s.rs3
            if not cursor().boxed >> register & 1:
                op_mem(0, opcode, RAX, HART, F + register * 8 + 4)
                opcode = 0x23
    if opcode == 0x8B:
        return 0
    immediate(0, 0, RAX, 1)
    return jump_if(NOT_EQUAL)


@native
def deliver_number(s: Slot, xmm: int, single: int, unboxed: int) -> None:
    """Write a result, unless it is a NaN."""
    vex_reg(UNORDERED_COMPARES[single], xmm, 0, xmm)
    nan = jump_if(PARITY)
    deliver(s.rd, xmm, single)
    slow_step(nan, unboxed)


# Templates: arithmetic.  `form` is the instruction, the last argument 1 for singles.


@native
def t_fp_binary(s: Slot, form: int, single: int) -> None:
    if s.imm != DYN:
        decline()
        return
    ready()
    unboxed = unless_boxed(s, 2, single)
    d = target(s.rd)
    operate(form, d, fetch(s.rs1, XMM0), s.rs2)
    deliver_number(s, d, single, unboxed)


@native
def t_fp_fused(s: Slot, form: int, single: int) -> None:
    if s.imm != DYN:
        decline()
        return
    ready()
    unboxed = unless_boxed(s, 3, single)
    d = target(s.rd)
    if s.rd == s.rs3 and d != XMM0:
        operate(form + TO_ADDEND, d, fetch(s.rs1, XMM1), s.rs2)
    else:
        d = XMM0 if s.rd == s.rs2 else d
        first = fetch(s.rs1, d)
        if first != d:
            vex_reg(COPY, d, 0, first)
        operate(form, d, fetch(s.rs2, XMM1), s.rs3)
    deliver_number(s, d, single, unboxed)


@native
def t_fp_sqrt(s: Slot, form: int, single: int) -> None:
    if s.imm != DYN:
        decline()
        return
    ready()
    unboxed = unless_boxed(s, 1, single)
    d = target(s.rd)
    number = fetch(s.rs1, XMM0)
    vex_reg(form, d, number, number)
    deliver_number(s, d, single, unboxed)


@native
def t_fp_choose(s: Slot, form: int, extra: int) -> None:
    """fmin and fmax; extra: single, from bit 1 the form that merges both answers.

    The host's answer for zeros is its second operand, so it is asked both ways: -0 is in one answer at least.
    """
    single = extra & 1
    ready()
    unboxed = unless_boxed(s, 2, single)
    first = fetch(s.rs1, XMM0)
    second = fetch(s.rs2, XMM1)
    vex_reg(UNORDERED_COMPARES[single], first, 0, second)
    nan = jump_if(PARITY)
    vex_reg(form, XMM2, first, second)
    vex_reg(form, XMM0, second, first)
    d = target(s.rd)
    vex_reg(extra >> 1, d, XMM0, XMM2)
    deliver(s.rd, d, single)
    slow_step(nan, unboxed)


@native
def t_fp_equal(s: Slot, form: int, single: int) -> None:
    ready()
    unboxed = unless_boxed(s, 2, single)
    operate(form, fetch(s.rs1, XMM0), 0, s.rs2)
    d = result(s.rd)
    op_reg(0, 0x0F90 | NOT_PARITY, 0, RAX)
    op_reg(0, 0x0F90 | EQUAL, 0, RDX)
    op_reg(0, 0x23, RAX, RDX)
    op_reg(0, 0x0FB6, d, RAX)
    finish(s.rd, d)
    if unboxed:
        slow_step(unboxed, 0)


@native
def t_fp_order(s: Slot, form: int, extra: int) -> None:
    """flt and fle as rs2 > rs1 and rs2 >= rs1, which NaNs are not; extra: single, from bit 1 the condition."""
    single = extra & 1
    ready()
    unboxed = unless_boxed(s, 2, single)
    operate(form, fetch(s.rs2, XMM0), 0, s.rs1)
    d = result(s.rd)
    op_reg(0, 0x0F90 | extra >> 1, 0, RAX)
    op_reg(0, 0x0FB6, d, RAX)
    finish(s.rd, d)
    if unboxed:
        slow_step(unboxed, 0)


@native
def t_fp_sign(s: Slot, inject: int, single: int) -> None:
    """fsgnj (0), fsgnjn (1) and fsgnjx (2): rs1 with the difference of signs, its opposite, or rs2's sign, flipped."""
    ready()
    unboxed = unless_boxed(s, 2, single)
    if inject == 0 and s.rs1 == s.rs2:
        deliver(s.rd, fetch(s.rs1, XMM0), single)
    else:
        d = target(s.rd)
        inject_sign(s, inject, 1 - single)
        vex_reg(FROM_GENERAL, d, 0, RDX)
        deliver(s.rd, d, single)
    if unboxed:
        slow_step(unboxed, 0)


@native
def inject_sign(s: Slot, inject: int, wide: int) -> None:
    """Compute it in rdx; a single keeps what lies above it."""
    op_mem(wide, 0x8B, RDX, HART, F + s.rs2 * 8)
    if inject != 2:
        op_mem(wide, 0x33, RDX, HART, F + s.rs1 * 8)
    if inject == 1:
        op_reg(wide, 0xF7, 2, RDX)
    shift_immediate(wide, 5, RDX, 63 if wide else 31)
    shift_immediate(wide, 4, RDX, 63 if wide else 31)
    op_mem(1, 0x33, RDX, HART, F + s.rs1 * 8)


# Templates: conversions.  extra: single, bit 1 the integer has 64 bits.


@native
def t_fp_to_signed(s: Slot, form: int, extra: int) -> None:
    """The host's answer to what does not fit is the least number: that is looked at by the interpreter's handler."""
    if s.imm != DYN and s.imm != RTZ:
        decline()
        return
    ready()
    unboxed = unless_boxed(s, 1, extra & 1)
    wide = extra >> 1
    operate(form + (s.imm == DYN) | wide * WIDE_FORM, RAX, 0, s.rs1)
    immediate(wide, 7, RAX, 1)
    least = jump_if(OVERFLOW)
    if wide:
        put(s.rd, RAX)
    else:
        d = result(s.rd)
        op_reg(1, 0x63, d, RAX)
        finish(s.rd, d)
    slow_step(least, unboxed)


@native
def t_fp_to_unsigned(s: Slot, form: int, extra: int) -> None:
    """As a signed number of 64 bits, when sign and exponent say that it is less than 2**32 or 2**63."""
    if s.imm != RTZ:
        decline()
        return
    ready()
    single = extra & 1
    wide = extra >> 1
    unboxed = unless_boxed(s, 1, single)
    op_mem(1 - single, 0x8B, RAX, HART, F + s.rs1 * 8)
    shift_immediate(1 - single, 5, RAX, EXPONENT_AT[single])
    immediate(0, 7, RAX, EXPONENT_BIAS[single] + (63 if wide else 32))
    outside = jump_if(NOT_BELOW)
    operate(form | WIDE_FORM, RAX, 0, s.rs1)
    if wide:
        put(s.rd, RAX)
    else:
        d = result(s.rd)
        op_reg(1, 0x63, d, RAX)
        finish(s.rd, d)
    slow_step(outside, unboxed)


@native
def rounds_as_host(s: Slot, exact: int) -> int:
    """Whether MXCSR has the instruction's rounding mode; an exact conversion may have any that is not reserved."""
    return s.imm == DYN or (exact and s.imm < RESERVED)


@native
def t_fp_from_int(s: Slot, form: int, extra: int) -> None:
    """A signed integer, or an unsigned one of 32 bits (extra's bit 2)."""
    if not rounds_as_host(s, extra & 3 == 0):
        decline()
        return
    ready()
    d = target(s.rd)
    ones(XMM1)
    if extra & 4:
        op_reg(0, 0x8B, RAX, source(s.rs1, RAX))
        vex_reg(form | WIDE_FORM, d, XMM1, RAX)
    else:
        vex_reg(form | (extra >> 1) * WIDE_FORM, d, XMM1, source(s.rs1, RAX))
    deliver(s.rd, d, extra & 1)


@native
def t_fp_from_unsigned(s: Slot, form: int, single: int) -> None:
    """Of 64 bits.  From 2**63 on half of it, with the bit that drops out kept in the lowest, and doubled."""
    if s.imm != DYN:
        decline()
        return
    ready()
    d = target(s.rd)
    ones(XMM1)
    get(RAX, s.rs1)
    op_reg(1, 0x85, RAX, RAX)
    large = jump_if(SIGN)
    vex_reg(form | WIDE_FORM, d, XMM1, RAX)
    done = jump()
    aim(large, here())
    op_reg(0, 0x8B, RDX, RAX)
    immediate(0, 4, RDX, 1)
    shift_immediate(1, 5, RAX, 1)
    op_reg(1, 0x0B, RAX, RDX)
    vex_reg(form | WIDE_FORM, d, XMM1, RAX)
    vex_reg(ADDS[single], d, d, d)
    aim(done, here())
    deliver(s.rd, d, single)


@native
def t_fp_convert(s: Slot, form: int, from_single: int) -> None:
    if not rounds_as_host(s, from_single):
        decline()
        return
    ready()
    unboxed = unless_boxed(s, 1, from_single)
    d = target(s.rd)
    ones(XMM1)
    operate(form, d, XMM1, s.rs1)
    deliver_number(s, d, 1 - from_single, unboxed)


# Templates: moves and memory


@native
def t_fp_move_to_x(s: Slot, op: int, extra: int) -> None:
    ready()
    d = result(s.rd)
    op_mem(1, op, d, HART, F + s.rs1 * 8)
    finish(s.rd, d)


@native
def t_fp_move_from_x(s: Slot, form: int, single: int) -> None:
    ready()
    d = target(s.rd)
    vex_reg(form, d, 0, source(s.rs1, RAX))
    if single:
        ones(XMM1)
        vex_reg(MERGE, d, XMM1, d)
    deliver(s.rd, d, single)


@native
def t_fp_load(s: Slot, op: int, single: int) -> None:
    ready()
    size = 4 if single else 8
    where = locate(s, size, 0)
    d = target(s.rd)
    vex_indexed(LOADS[single], d, RDX, where)
    if single:
        ones(XMM1)
        vex_reg(MERGE, d, XMM1, d)
    deliver(s.rd, d, single)
    add_access(cursor().missed, size | (FIRST_F + s.rd) << 8 | (BOXES if single else 0) | where << 16)


@native
def t_fp_store(s: Slot, op: int, single: int) -> None:
    ready()
    size = 4 if single else 8
    where = locate(s, size, WRITE_BANK)
    vex_indexed(STORES[single], fetch(s.rs2, XMM0), RDX, where)
    add_access(cursor().missed, size | 16 | (FIRST_F + s.rs2) << 8 | where << 16)


TEMPLATES: dict[str, tuple[Native, int, int]] = {}


def rows(letter: str, single: int) -> None:
    """The rows of one format."""
    for name, forms in (("fadd", ADD), ("fsub", SUB), ("fmul", MUL), ("fdiv", DIV)):
        TEMPLATES[f"{name}.{letter}"] = t_fp_binary, forms[single], single
    # RISC-V's fnmadd is -(a * b) - c, which the host calls fnmsub, and the other way round.
    for name, forms in (("fmadd", FMADD), ("fmsub", FMSUB), ("fnmsub", FNMADD), ("fnmadd", FNMSUB)):
        TEMPLATES[f"{name}.{letter}"] = t_fp_fused, forms[single], single
    TEMPLATES.update(
        {
            f"fsqrt.{letter}": (t_fp_sqrt, SQRT[single], single),
            f"fmin.{letter}": (t_fp_choose, MIN[single], OR_BITS << 1 | single),
            f"fmax.{letter}": (t_fp_choose, MAX[single], AND_BITS << 1 | single),
            f"feq.{letter}": (t_fp_equal, UNORDERED[single], single),
            f"flt.{letter}": (t_fp_order, ORDERED[single], ABOVE << 1 | single),
            f"fle.{letter}": (t_fp_order, ORDERED[single], NOT_BELOW << 1 | single),
            f"fcvt.{letter}.w": (t_fp_from_int, FROM_INT[single], single),
            f"fcvt.{letter}.wu": (t_fp_from_int, FROM_INT[single], 4 | single),
            f"fcvt.{letter}.l": (t_fp_from_int, FROM_INT[single], 2 | single),
            f"fcvt.{letter}.lu": (t_fp_from_unsigned, FROM_INT[single], single),
            f"fl{'w' if single else 'd'}": (t_fp_load, 0, single),
            f"fs{'w' if single else 'd'}": (t_fp_store, 0, single),
        }
    )
    for inject, name in enumerate(("fsgnj", "fsgnjn", "fsgnjx")):
        TEMPLATES[f"{name}.{letter}"] = t_fp_sign, inject, single
    for wide, size in enumerate("wl"):
        TEMPLATES[f"fcvt.{size}.{letter}"] = t_fp_to_signed, TO_INT_RTZ[single], wide << 1 | single
        TEMPLATES[f"fcvt.{size}u.{letter}"] = t_fp_to_unsigned, TO_INT_RTZ[single], wide << 1 | single


rows("d", 0)
rows("s", 1)
assert all(dyn == rtz + 1 for dyn, rtz in zip(TO_INT, TO_INT_RTZ, strict=True))
TEMPLATES |= {
    "fcvt.s.d": (t_fp_convert, CONVERT[0], 0), "fcvt.d.s": (t_fp_convert, CONVERT[1], 1),
    "fmv.x.d": (t_fp_move_to_x, 0x8B, 0), "fmv.x.w": (t_fp_move_to_x, 0x63, 0),
    "fmv.d.x": (t_fp_move_from_x, FROM_GENERAL, 0), "fmv.w.x": (t_fp_move_from_x, FROM_GENERAL, 1),
}  # fmt: skip
