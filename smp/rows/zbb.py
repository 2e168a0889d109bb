"""Zbb: basic bit manipulation (unprivileged manual, chapter B), with the rows that Zbkb shares."""

from typing import Any

from mem.word import (
    bswap,
    clz,
    ctz,
    maxs,
    maxu,
    mins,
    minu,
    popcount,
    rotl,
    rotr,
    sext8,
    sext16,
    sext32,
    zext16,
    zext32,
)
from smp.cpu import EXT_ZBB, EXT_ZBKB
from smp.row import Kind, row

SHARED = (EXT_ZBB, EXT_ZBKB)
WORD = "0111011"


def register(
    name: str, funct7: str, funct3: str, meaning: object, opcode: str = "0110011", ext: object = SHARED
) -> None:
    row(name, f"{funct7} rs2 rs1 {funct3} rd {opcode}", "rd, rs1, rs2", Kind.ALU, meaning, ext=ext)


def unary(
    name: str, funct12: str, funct3: str, meaning: object, opcode: str = "0010011", ext: object = EXT_ZBB
) -> None:
    row(name, f"{funct12} rs1 {funct3} rd {opcode}", "rd, rs1", Kind.ALU, meaning, ext=ext)


def rotate_right_word(a: Any, n: Any) -> Any:
    """The low 32 bits rotated right by n modulo 32, sign-extended."""
    low = zext32(a)
    return sext32(low >> (n & 31) | low << (-n & 31))


def or_combine(a: Any) -> Any:
    """Each byte all ones if it has a one, else 0."""
    low_bits = 0x7F7F7F7F_7F7F7F7F
    filled = ((a & low_bits) + low_bits | a) & ~low_bits  # each byte's highest bit: whether the byte is not 0
    return (filled >> 7) * 0xFF


register("andn", "0100000", "111", lambda rs1, rs2: rs1 & ~rs2)
register("orn", "0100000", "110", lambda rs1, rs2: rs1 | ~rs2)
register("xnor", "0100000", "100", lambda rs1, rs2: ~(rs1 ^ rs2))
register("rol", "0110000", "001", lambda rs1, rs2: rotl(rs1, rs2))
register("ror", "0110000", "101", lambda rs1, rs2: rotr(rs1, rs2))
register("rolw", "0110000", "001", lambda rs1, rs2: rotate_right_word(rs1, -rs2), WORD)
register("rorw", "0110000", "101", lambda rs1, rs2: rotate_right_word(rs1, rs2), WORD)
row("rori", "011000 uimm[5:0] rs1 101 rd 0010011", "rd, rs1, uimm", Kind.ALU,
    lambda rs1, imm: rotr(rs1, imm), ext=SHARED)  # fmt: skip
row("roriw", "0110000 uimm[4:0] rs1 101 rd 0011011", "rd, rs1, uimm", Kind.ALU,
    lambda rs1, imm: rotate_right_word(rs1, imm), ext=SHARED)  # fmt: skip
unary("rev8", "011010111000", "101", lambda rs1: bswap(rs1), ext=SHARED)

register("min", "0000101", "100", lambda rs1, rs2: mins(rs1, rs2), ext=EXT_ZBB)
register("minu", "0000101", "101", lambda rs1, rs2: minu(rs1, rs2), ext=EXT_ZBB)
register("max", "0000101", "110", lambda rs1, rs2: maxs(rs1, rs2), ext=EXT_ZBB)
register("maxu", "0000101", "111", lambda rs1, rs2: maxu(rs1, rs2), ext=EXT_ZBB)

unary("clz", "011000000000", "001", lambda rs1: clz(rs1))
unary("ctz", "011000000001", "001", lambda rs1: ctz(rs1))
unary("cpop", "011000000010", "001", lambda rs1: popcount(rs1))
unary("clzw", "011000000000", "001", lambda rs1: clz(zext32(rs1)) - 32, "0011011")
unary("ctzw", "011000000001", "001", lambda rs1: ctz(rs1 | 1 << 32), "0011011")
unary("cpopw", "011000000010", "001", lambda rs1: popcount(zext32(rs1)), "0011011")
unary("sext.b", "011000000100", "001", lambda rs1: sext8(rs1))
unary("sext.h", "011000000101", "001", lambda rs1: sext16(rs1))
# Zbkb has the same word as packw with x0, and the same result: hence shared, and packw excludes rs2 = x0.
unary("zext.h", "000010000000", "100", lambda rs1: zext16(rs1), WORD, ext=SHARED)
unary("orc.b", "001010000111", "101", lambda rs1: or_combine(rs1))
