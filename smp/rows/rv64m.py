"""M: multiply and divide (unprivileged manual, chapter 12). Division by zero and overflow have results, not traps."""

from mem.word import div, divu, mulh, mulhsu, mulhu, rem, remu, sext32, zext32
from smp.cpu import EXT_M
from smp.row import Kind, row


def register(name: str, funct3: str, meaning: object, opcode: str = "0110011") -> None:
    row(name, f"0000001 rs2 rs1 {funct3} rd {opcode}", "rd, rs1, rs2", Kind.ALU, meaning, ext=EXT_M)


register("mul", "000", lambda rs1, rs2: rs1 * rs2)
register("mulh", "001", lambda rs1, rs2: mulh(rs1, rs2))
register("mulhsu", "010", lambda rs1, rs2: mulhsu(rs1, rs2))
register("mulhu", "011", lambda rs1, rs2: mulhu(rs1, rs2))
register("div", "100", lambda rs1, rs2: div(rs1, rs2))
register("divu", "101", lambda rs1, rs2: divu(rs1, rs2))
register("rem", "110", lambda rs1, rs2: rem(rs1, rs2))
register("remu", "111", lambda rs1, rs2: remu(rs1, rs2))

WORD = "0111011"
register("mulw", "000", lambda rs1, rs2: sext32(rs1 * rs2), WORD)
# A quotient of -2**31 / -1 does not fit 32 bits; sext32 makes it -2**31 again, as the manual has it.
register("divw", "100", lambda rs1, rs2: sext32(div(sext32(rs1), sext32(rs2))), WORD)
register("divuw", "101", lambda rs1, rs2: sext32(divu(zext32(rs1), zext32(rs2))), WORD)
register("remw", "110", lambda rs1, rs2: sext32(rem(sext32(rs1), sext32(rs2))), WORD)
register("remuw", "111", lambda rs1, rs2: sext32(remu(zext32(rs1), zext32(rs2))), WORD)
