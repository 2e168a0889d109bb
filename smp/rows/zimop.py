"""Zimop and Zcmop: may-be operations, which write 0 (compressed: nothing) until an extension takes them over.

The `n` of a name stands for the row's own immediate, scattered over the word.
"""

from smp.cpu import EXT_ZCMOP, EXT_ZIMOP
from smp.row import Kind, compressed, row

row("mop.r.n", "1 uimm[4] 00 uimm[3:2] 0111 uimm[1:0] rs1 100 rd 1110011", "rd, rs1", Kind.ALU,
    lambda rs1: rs1 & 0, ext=EXT_ZIMOP)  # fmt: skip
row("mop.rr.n", "1 uimm[2] 00 uimm[1:0] 1 rs2 rs1 100 rd 1110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1: rs1 & 0, ext=EXT_ZIMOP)  # fmt: skip

# In the reserved space of c.lui with a zero immediate.
for n in range(1, 16, 2):
    compressed(f"c.mop.{n}", f"01100{n:04b}0000001", "", "addi", ext=EXT_ZCMOP, rd=0, rs1=0, imm=0)
