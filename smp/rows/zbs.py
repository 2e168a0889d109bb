"""Zbs: single bits (unprivileged manual, chapter B)."""

from smp.cpu import EXT_ZBS
from smp.row import Kind, row


def bit(name: str, funct6: str, funct3: str, by_register: object, by_immediate: object) -> None:
    """A row with the bit's number in rs2 and one with an immediate."""
    row(name, f"{funct6}0 rs2 rs1 {funct3} rd 0110011", "rd, rs1, rs2", Kind.ALU, by_register, ext=EXT_ZBS)
    row(f"{name}i", f"{funct6} uimm[5:0] rs1 {funct3} rd 0010011", "rd, rs1, uimm", Kind.ALU, by_immediate,
        ext=EXT_ZBS)  # fmt: skip


bit("bclr", "010010", "001", lambda rs1, rs2: rs1 & ~(1 << (rs2 & 63)), lambda rs1, imm: rs1 & ~(1 << imm))
bit("bext", "010010", "101", lambda rs1, rs2: rs1 >> (rs2 & 63) & 1, lambda rs1, imm: rs1 >> imm & 1)
bit("binv", "011010", "001", lambda rs1, rs2: rs1 ^ 1 << (rs2 & 63), lambda rs1, imm: rs1 ^ 1 << imm)
bit("bset", "001010", "001", lambda rs1, rs2: rs1 | 1 << (rs2 & 63), lambda rs1, imm: rs1 | 1 << imm)
