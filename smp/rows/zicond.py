"""Zicond: conditional zero (unprivileged manual, chapter Zicond)."""

from mem.word import select
from smp.cpu import EXT_ZICOND
from smp.row import Kind, row

row("czero.eqz", "0000111 rs2 rs1 101 rd 0110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: select(rs2 == 0, 0, rs1), ext=EXT_ZICOND)  # fmt: skip
row("czero.nez", "0000111 rs2 rs1 111 rd 0110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: select(rs2 == 0, rs1, 0), ext=EXT_ZICOND)  # fmt: skip
