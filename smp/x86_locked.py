"""x86-64 instructions that only atomics and bit manipulation use; the common ones are in smp/x86.py."""

from mem.native import native
from smp.x86 import byte, op_mem, op_reg


@native
def locked(wide: int, opcode: int, reg: int, base: int) -> None:
    """An instruction that reads, modifies and writes [base] in one; the base is not rsp or r12."""
    byte(0xF0)
    op_mem(wide, opcode, reg, base, 0)


@native
def bswap(host: int) -> None:
    """Reverse the bytes of a 64-bit register."""
    byte(0x48 | host >> 3)
    byte(0x0F)
    byte(0xC8 | host & 7)


@native
def bit_immediate(digit: int, host: int, number: int) -> None:
    """bt (4), bts (5), btr (6), btc (7) host, number: carry is the bit as it was."""
    op_reg(1, 0x0FBA, digit, host)
    byte(number)
