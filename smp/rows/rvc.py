"""C: 16-bit abbreviations of other rows (unprivileged manual, chapter 27).

Encodings that the manual calls hints (a result to x0, a shift by 0) are not excluded: the base row does nothing
there.  Those it reserves are excluded; the all-zero word is c.addi4spn with a reserved immediate.
"""

from smp.cpu import EXT_C, EXT_D
from smp.row import compressed

# Quadrant 0.
compressed("c.addi4spn", "000 uimm[5:4|9:6|2|3]!=0 rd' 00", "rd, sp, imm", "addi", ext=EXT_C,
           rd="rd", rs1=2, imm="imm")  # fmt: skip


def memory(name: str, head: str, pieces: tuple[str, str], value: str, base: str, ext: int = EXT_C) -> None:
    """A load or store of a three-bit register; `value` is its name in the syntax."""
    register = {"fd": "rd", "fs2": "rs2"}.get(value, value)
    pattern = f"{head} uimm[{pieces[0]}] rs1' uimm[{pieces[1]}] {register}' 00"
    compressed(name, pattern, f"{value}, imm(rs1)", base, ext=ext, rs1="rs1", imm="imm", **{register: register})


WORD, DOUBLE = ("5:3", "2|6"), ("5:3", "7:6")
memory("c.fld", "001", DOUBLE, "fd", "fld", EXT_C | EXT_D)
memory("c.lw", "010", WORD, "rd", "lw")
memory("c.ld", "011", DOUBLE, "rd", "ld")
memory("c.fsd", "101", DOUBLE, "fs2", "fsd", EXT_C | EXT_D)
memory("c.sw", "110", WORD, "rs2", "sw")
memory("c.sd", "111", DOUBLE, "rs2", "sd")

# Quadrant 1.
compressed("c.addi", "000 imm[5] rd imm[4:0] 01", "rd, imm", "addi", ext=EXT_C, rd="rd", rs1="rd", imm="imm")
compressed("c.addiw", "001 imm[5] rd!=0 imm[4:0] 01", "rd, imm", "addiw", ext=EXT_C, rd="rd", rs1="rd", imm="imm")
compressed("c.li", "010 imm[5] rd imm[4:0] 01", "rd, imm", "addi", ext=EXT_C, rd="rd", rs1=0, imm="imm")
compressed("c.addi16sp", "011 imm[9] 00010 imm[4|6|8:7|5]!=0 01", "sp, imm", "addi", ext=EXT_C,
           rd=2, rs1=2, imm="imm")  # fmt: skip
compressed("c.lui", "011 imm[17] rd!=2 imm[16:12]!=0 01", "rd, upper", "lui", ext=EXT_C, rd="rd", imm="imm")


def immediate(name: str, funct2: str, uimm: str, syntax: str, base: str) -> None:
    pattern = f"100 {uimm}[5] {funct2} rd' {uimm}[4:0] 01"
    compressed(name, pattern, syntax, base, ext=EXT_C, rd="rd", rs1="rd", imm="imm")


immediate("c.srli", "00", "uimm", "rd, uimm", "srli")
immediate("c.srai", "01", "uimm", "rd, uimm", "srai")
immediate("c.andi", "10", "imm", "rd, imm", "andi")


def register(name: str, funct6: str, funct2: str, base: str) -> None:
    compressed(name, f"{funct6} rd' {funct2} rs2' 01", "rd, rs2", base, ext=EXT_C, rd="rd", rs1="rd", rs2="rs2")


register("c.sub", "100011", "00", "sub")
register("c.xor", "100011", "01", "xor")
register("c.or", "100011", "10", "or")
register("c.and", "100011", "11", "and")
register("c.subw", "100111", "00", "subw")
register("c.addw", "100111", "01", "addw")
compressed("c.j", "101 imm[11|4|9:8|10|6|7|3:1|5] 01", "target", "jal", ext=EXT_C, rd=0, imm="imm")


def branch(name: str, funct3: str, base: str) -> None:
    pattern = f"{funct3} imm[8|4:3] rs1' imm[7:6|2:1|5] 01"
    compressed(name, pattern, "rs1, target", base, ext=EXT_C, rs1="rs1", rs2=0, imm="imm")


branch("c.beqz", "110", "beq")
branch("c.bnez", "111", "bne")

# Quadrant 2.
compressed("c.slli", "000 uimm[5] rd uimm[4:0] 10", "rd, uimm", "slli", ext=EXT_C, rd="rd", rs1="rd", imm="imm")
compressed("c.fldsp", "001 uimm[5] rd uimm[4:3|8:6] 10", "fd, imm(sp)", "fld", ext=EXT_C | EXT_D,
           rd="rd", rs1=2, imm="imm")  # fmt: skip
compressed("c.lwsp", "010 uimm[5] rd!=0 uimm[4:2|7:6] 10", "rd, imm(sp)", "lw", ext=EXT_C,
           rd="rd", rs1=2, imm="imm")  # fmt: skip
compressed("c.ldsp", "011 uimm[5] rd!=0 uimm[4:3|8:6] 10", "rd, imm(sp)", "ld", ext=EXT_C,
           rd="rd", rs1=2, imm="imm")  # fmt: skip
compressed("c.jr", "1000 rs1!=0 00000 10", "rs1", "jalr", ext=EXT_C, rd=0, rs1="rs1", imm=0)
compressed("c.mv", "1000 rd rs2!=0 10", "rd, rs2", "add", ext=EXT_C, rd="rd", rs1=0, rs2="rs2")
compressed("c.ebreak", "1001000000000010", "", "ebreak", ext=EXT_C)
compressed("c.jalr", "1001 rs1!=0 00000 10", "rs1", "jalr", ext=EXT_C, rd=1, rs1="rs1", imm=0)
compressed("c.add", "1001 rd rs2!=0 10", "rd, rs2", "add", ext=EXT_C, rd="rd", rs1="rd", rs2="rs2")
compressed("c.fsdsp", "101 uimm[5:3|8:6] rs2 10", "fs2, imm(sp)", "fsd", ext=EXT_C | EXT_D,
           rs1=2, rs2="rs2", imm="imm")  # fmt: skip
compressed("c.swsp", "110 uimm[5:2|7:6] rs2 10", "rs2, imm(sp)", "sw", ext=EXT_C, rs1=2, rs2="rs2", imm="imm")
compressed("c.sdsp", "111 uimm[5:3|8:6] rs2 10", "rs2, imm(sp)", "sd", ext=EXT_C, rs1=2, rs2="rs2", imm="imm")
