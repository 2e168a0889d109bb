"""Zcb: more 16-bit abbreviations (unprivileged manual, chapter Zc)."""

from smp.cpu import EXT_M, EXT_ZBA, EXT_ZBB, EXT_ZCB
from smp.row import compressed


def memory(name: str, head: str, pieces: str, value: str, base: str) -> None:
    pattern = f"{head} rs1' {pieces} {value}' 00"
    compressed(name, pattern, f"{value}, imm(rs1)", base, ext=EXT_ZCB, rs1="rs1", imm="imm", **{value: value})


memory("c.lbu", "100000", "uimm[0|1]", "rd", "lbu")
memory("c.lhu", "100001", "0 uimm[1]", "rd", "lhu")
memory("c.lh", "100001", "1 uimm[1]", "rd", "lh")
memory("c.sb", "100010", "uimm[0|1]", "rs2", "sb")
memory("c.sh", "100011", "0 uimm[1]", "rs2", "sh")


def unary(name: str, low: str, base: str, ext: int, **fixed: int) -> None:
    compressed(name, f"100111 rd' 11{low} 01", "rd", base, ext=ext, rd="rd", rs1="rd", **fixed)


unary("c.zext.b", "000", "andi", EXT_ZCB, imm=0xFF)
unary("c.sext.b", "001", "sext.b", EXT_ZCB | EXT_ZBB)
unary("c.zext.h", "010", "zext.h", EXT_ZCB | EXT_ZBB)
unary("c.sext.h", "011", "sext.h", EXT_ZCB | EXT_ZBB)
unary("c.zext.w", "100", "add.uw", EXT_ZCB | EXT_ZBA, rs2=0)
unary("c.not", "101", "xori", EXT_ZCB, imm=-1)
compressed("c.mul", "100111 rd' 10 rs2' 01", "rd, rs2", "mul", ext=EXT_ZCB | EXT_M,
           rd="rd", rs1="rd", rs2="rs2")  # fmt: skip
