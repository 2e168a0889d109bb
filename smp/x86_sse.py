"""x86-64 floating-point instructions in their VEX forms, emitted at the translator's cursor (AVX and FMA, scalar).

A form says which instruction: opcode, opcode map, mandatory prefix and VEX.W (Intel manual, volume 2, "VEX Prefix").
`left` is the first source, which VEX.vvvv names, and 0 where the instruction has none.
"""

from mem.native import native, table
from smp.x86 import HART, IN_MEMORY, based, byte, op_mem

XMM0, XMM1, XMM2 = range(3)

# Guest registers that live in host registers too: those that compilers take first.
F_PINNED = {10: 4, 11: 5, 12: 6, 13: 7, 14: 8, 15: 9, 0: 10, 1: 11, 2: 12, 3: 13, 8: 14, 9: 15}
F_PIN = table("u8", [F_PINNED.get(f, IN_MEMORY) for f in range(32)])

WIDE_FORM = 1 << 14


def form(prefix: int, opcode: int, opcode_map: int = 1, wide: bool = False) -> int:
    """An instruction; `prefix` is its mandatory prefix, or 0."""
    return opcode | opcode_map << 8 | {0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}[prefix] << 12 | wide << 14


# Each for doubles and singles.
LOAD = form(0xF2, 0x10), form(0xF3, 0x10)
STORE = form(0xF2, 0x11), form(0xF3, 0x11)
ADD, MUL, SUB, MIN, DIV, MAX, SQRT = (
    (form(0xF2, opcode), form(0xF3, opcode)) for opcode in (0x58, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x51)
)
UNORDERED = form(0x66, 0x2E), form(0, 0x2E)  # compares and raises invalid for signaling NaNs only
ORDERED = form(0x66, 0x2F), form(0, 0x2F)  # ... for all NaNs
FROM_INT = form(0xF2, 0x2A), form(0xF3, 0x2A)
TO_INT, TO_INT_RTZ = ((form(0xF2, opcode), form(0xF3, opcode)) for opcode in (0x2D, 0x2C))
CONVERT = form(0xF2, 0x5A), form(0xF3, 0x5A)  # from this format to the other
# first = left * first + other, and with the signs of the product and the addend changed
FMADD, FMSUB, FNMADD, FNMSUB = (
    (form(0x66, opcode, 2, wide=True), form(0x66, opcode, 2)) for opcode in (0xA9, 0xAB, 0xAD, 0xAF)
)
TO_ADDEND = 0x10  # added to these: first = left * other + first
OR_BITS, AND_BITS, XOR_BITS = form(0, 0x56), form(0, 0x54), form(0, 0x57)
STORE_ALL = form(0, 0x11)  # all of a register, anywhere
COPY = form(0x66, 0x28)  # all of a register
MERGE = LOAD[1]  # on registers: the last one's lowest 32 bits and the rest of the first source
ALL_EQUAL = form(0x66, 0x76)  # of a register and itself: all bits are one
FROM_GENERAL = form(0x66, 0x6E, wide=True)  # a general register's bits


@native
def vex(form: int, reg: int, left: int, base: int) -> None:
    """The VEX prefix, of two bytes where that can hold it, and the opcode."""
    if form & (0xF00 | WIDE_FORM) == 0x100 and base < 8:
        byte(0xC5)
        byte((reg >> 3 ^ 1) << 7 | (left ^ 15) << 3 | form >> 12 & 3)
    else:
        byte(0xC4)
        byte((reg >> 3 ^ 1) << 7 | 1 << 6 | (base >> 3 ^ 1) << 5 | form >> 8 & 15)
        byte(form >> 14 << 7 | (left ^ 15) << 3 | form >> 12 & 3)
    byte(form)


@native
def vex_reg(form: int, reg: int, left: int, rm: int) -> None:
    """An instruction whose last operand is a register."""
    vex(form, reg, left, rm)
    byte(0xC0 | (reg & 7) << 3 | rm & 7)


@native
def vex_mem(form: int, reg: int, left: int, base: int, displacement: int) -> None:
    """An instruction whose memory operand is [base + displacement]; the base is not rsp or r12."""
    vex(form, reg, left, base)
    based(reg, base, displacement)


@native
def vex_indexed(form: int, reg: int, base: int, index: int) -> None:
    """An instruction whose memory operand is [base + index]; the base is not rbp or r13, the index not rsp."""
    byte(0xC4)
    byte((reg >> 3 ^ 1) << 7 | (index >> 3 ^ 1) << 6 | (base >> 3 ^ 1) << 5 | form >> 8 & 15)
    byte(form >> 14 << 7 | 15 << 3 | form >> 12 & 3)
    byte(form)
    byte((reg & 7) << 3 | 4)
    byte((index & 7) << 3 | base & 7)


@native
def load_mxcsr(offset: int) -> None:
    """ldmxcsr from the hart record."""
    op_mem(0, 0x0FAE, 2, HART, offset)


@native
def store_mxcsr(offset: int) -> None:
    """stmxcsr to the hart record."""
    op_mem(0, 0x0FAE, 3, HART, offset)
