"""Templates of bit manipulation (Zba, Zbb, Zbs, Zbkb), conditional zero, and mulhsu."""

from mem.native import Native, native
from smp.code import Slot
from smp.templates import ADD, AND, OR, SUB, extend, finish, result, set_if, source
from smp.x86 import BELOW, RAX, RCX, RDX, get, load_constant, op_reg, put, shift_immediate, use_guest
from smp.x86_locked import bit_immediate, bswap


@native
def t_rotate(s: Slot, digit: int, wide: int) -> None:
    """rol (0), ror (1) by rs2."""
    get(RCX, s.rs2)
    get(RAX, s.rs1)
    op_reg(wide, 0xD3, digit, RAX)
    if wide:
        put(s.rd, RAX)
    else:
        extend(s, RAX)


@native
def t_rotate_immediate(s: Slot, op: int, wide: int) -> None:
    get(RAX, s.rs1)
    shift_immediate(wide, 1, RAX, s.imm)
    if wide:
        put(s.rd, RAX)
    else:
        extend(s, RAX)


@native
def t_word_unary(s: Slot, op: int, extra: int) -> None:
    """One instruction on the lower half, whose result has an upper half of zeroes."""
    d = result(s.rd)
    use_guest(0, op, d, s.rs1, RAX)
    finish(s.rd, d)


@native
def t_shift_unsigned_word(s: Slot, op: int, extra: int) -> None:
    d = result(s.rd)
    use_guest(0, 0x8B, d, s.rs1, RAX)
    shift_immediate(1, 4, d, s.imm)
    finish(s.rd, d)


@native
def t_reverse_bytes(s: Slot, op: int, extra: int) -> None:
    d = result(s.rd)
    get(d, s.rs1)
    bswap(d)
    finish(s.rd, d)


@native
def t_bit(s: Slot, op: int, extra: int) -> None:
    """bts, btr, btc with a register: the number counts modulo 64."""
    number = source(s.rs2, RCX)
    get(RAX, s.rs1)
    op_reg(1, op, number, RAX)
    put(s.rd, RAX)


@native
def t_bit_immediate(s: Slot, digit: int, extra: int) -> None:
    d = result(s.rd)
    get(d, s.rs1)
    bit_immediate(digit, d, s.imm)
    finish(s.rd, d)


@native
def t_extract_bit(s: Slot, op: int, extra: int) -> None:
    number = source(s.rs2, RCX)
    op_reg(1, 0x0FA3, number, source(s.rs1, RAX))
    set_if(s, BELOW)


@native
def t_extract_bit_immediate(s: Slot, op: int, extra: int) -> None:
    bit_immediate(4, source(s.rs1, RAX), s.imm)
    set_if(s, BELOW)


@native
def t_zero_if(s: Slot, op: int, extra: int) -> None:
    """czero: a conditional move of 0."""
    condition = source(s.rs2, RCX)
    get(RAX, s.rs1)
    op_reg(0, 0x33, RDX, RDX)
    op_reg(1, 0x85, condition, condition)
    op_reg(1, op, RAX, RDX)
    put(s.rd, RAX)


@native
def t_pack(s: Slot, op: int, extra: int) -> None:
    get(RDX, s.rs2)
    use_guest(0, 0x8B, RAX, s.rs1, RAX)
    shift_immediate(1, 4, RDX, 32)
    op_reg(1, OR, RAX, RDX)
    put(s.rd, RAX)


@native
def t_pack_bytes(s: Slot, op: int, extra: int) -> None:
    # The wide forms: without REX some byte operands are other registers.
    use_guest(1, 0x0FB6, RDX, s.rs2, RDX)
    use_guest(1, 0x0FB6, RAX, s.rs1, RAX)
    shift_immediate(0, 4, RDX, 8)
    op_reg(0, OR, RAX, RDX)
    put(s.rd, RAX)


@native
def t_pack_word(s: Slot, op: int, extra: int) -> None:
    get(RDX, s.rs2)
    use_guest(0, 0x0FB7, RAX, s.rs1, RAX)
    shift_immediate(0, 4, RDX, 16)
    op_reg(0, OR, RAX, RDX)
    extend(s, RAX)


@native
def t_combine(s: Slot, op: int, extra: int) -> None:
    """orc.b, in the way of smp/rows/zbb.py:or_combine; times 255 is a shift and a subtraction."""
    load_constant(RCX, 0x7F7F7F7F_7F7F7F7F)
    get(RAX, s.rs1)
    op_reg(1, 0x8B, RDX, RAX)
    op_reg(1, AND, RDX, RCX)
    op_reg(1, ADD, RDX, RCX)
    op_reg(1, OR, RDX, RAX)
    op_reg(1, 0xF7, 2, RCX)
    op_reg(1, AND, RDX, RCX)
    shift_immediate(1, 5, RDX, 7)
    op_reg(1, 0x8B, RAX, RDX)
    shift_immediate(1, 4, RDX, 8)
    op_reg(1, SUB, RDX, RAX)
    put(s.rd, RDX)


@native
def swap_neighbours(width: int, low: int) -> None:
    """Exchange each group of `width` bits of rax that `low` has with the next higher one."""
    load_constant(RCX, low)
    op_reg(1, 0x8B, RDX, RAX)
    op_reg(1, AND, RDX, RCX)
    shift_immediate(1, 4, RDX, width)
    shift_immediate(1, 5, RAX, width)
    op_reg(1, AND, RAX, RCX)
    op_reg(1, OR, RAX, RDX)


@native
def t_reverse_bits(s: Slot, op: int, extra: int) -> None:
    """brev8."""
    get(RAX, s.rs1)
    swap_neighbours(1, 0x5555555555555555)
    swap_neighbours(2, 0x3333333333333333)
    swap_neighbours(4, 0x0F0F0F0F0F0F0F0F)
    put(s.rd, RAX)


@native
def t_multiply_mixed(s: Slot, op: int, extra: int) -> None:
    """mulhsu: the unsigned product's upper half is too large by rs2 when rs1 is negative."""
    get(RAX, s.rs1)
    get(RCX, s.rs1)
    use_guest(1, 0xF7, 4, s.rs2, RDX)
    shift_immediate(1, 7, RCX, 63)
    use_guest(1, AND, RCX, s.rs2, RAX)
    op_reg(1, SUB, RDX, RCX)
    put(s.rd, RDX)


CMOVE, CMOVNE = 0x0F44, 0x0F45

TEMPLATES: dict[str, tuple[Native, int, int]] = {
    "rol": (t_rotate, 0, 1), "ror": (t_rotate, 1, 1), "rolw": (t_rotate, 0, 0), "rorw": (t_rotate, 1, 0),
    "rori": (t_rotate_immediate, 0, 1), "roriw": (t_rotate_immediate, 0, 0),
    "rev8": (t_reverse_bytes, 0, 0), "orc.b": (t_combine, 0, 0), "brev8": (t_reverse_bits, 0, 0),
    "slli.uw": (t_shift_unsigned_word, 0, 0),
    "clzw": (t_word_unary, 0xF30FBD, 0), "ctzw": (t_word_unary, 0xF30FBC, 0), "cpopw": (t_word_unary, 0xF30FB8, 0),
    "bset": (t_bit, 0x0FAB, 0), "bclr": (t_bit, 0x0FB3, 0), "binv": (t_bit, 0x0FBB, 0), "bext": (t_extract_bit, 0, 0),
    "bseti": (t_bit_immediate, 5, 0), "bclri": (t_bit_immediate, 6, 0), "binvi": (t_bit_immediate, 7, 0),
    "bexti": (t_extract_bit_immediate, 0, 0),
    "czero.eqz": (t_zero_if, CMOVE, 0), "czero.nez": (t_zero_if, CMOVNE, 0),
    "pack": (t_pack, 0, 0), "packh": (t_pack_bytes, 0, 0), "packw": (t_pack_word, 0, 0),
    "mulhsu": (t_multiply_mixed, 0, 0),
}  # fmt: skip
