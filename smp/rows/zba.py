"""Zba: address generation (unprivileged manual, chapter B)."""

from mem.word import zext32
from smp.cpu import EXT_ZBA
from smp.row import Kind, row


def register(name: str, funct7: str, funct3: str, meaning: object, opcode: str = "0110011") -> None:
    row(name, f"{funct7} rs2 rs1 {funct3} rd {opcode}", "rd, rs1, rs2", Kind.ALU, meaning, ext=EXT_ZBA)


WORD = "0111011"
register("sh1add", "0010000", "010", lambda rs1, rs2: (rs1 << 1) + rs2)
register("sh2add", "0010000", "100", lambda rs1, rs2: (rs1 << 2) + rs2)
register("sh3add", "0010000", "110", lambda rs1, rs2: (rs1 << 3) + rs2)
register("add.uw", "0000100", "000", lambda rs1, rs2: zext32(rs1) + rs2, WORD)
register("sh1add.uw", "0010000", "010", lambda rs1, rs2: (zext32(rs1) << 1) + rs2, WORD)
register("sh2add.uw", "0010000", "100", lambda rs1, rs2: (zext32(rs1) << 2) + rs2, WORD)
register("sh3add.uw", "0010000", "110", lambda rs1, rs2: (zext32(rs1) << 3) + rs2, WORD)
row("slli.uw", "000010 uimm[5:0] rs1 001 rd 0011011", "rd, rs1, uimm", Kind.ALU,
    lambda rs1, imm: zext32(rs1) << imm, ext=EXT_ZBA)  # fmt: skip
