"""Privileged instructions and Svinval (privileged manual, chapters 3 and 12)."""

from smp.cpu import EXT_I, EXT_SVINVAL
from smp.row import Kind, row

row("sret", "000100000010 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_I)
row("mret", "001100000010 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_I)
row("wfi", "000100000101 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_I)
row("sfence.vma", "0001001 rs2 rs1 000 00000 1110011", "rs1, rs2", Kind.SYSTEM, ext=EXT_I)
row("sinval.vma", "0001011 rs2 rs1 000 00000 1110011", "rs1, rs2", Kind.SYSTEM, ext=EXT_SVINVAL)
row("sfence.w.inval", "000110000000 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_SVINVAL)
row("sfence.inval.ir", "000110000001 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_SVINVAL)
