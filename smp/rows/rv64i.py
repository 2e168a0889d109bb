"""RV64I: the base integer instructions (unprivileged manual, chapters 2 and 4), Zicsr, Zifencei."""

from mem.word import ges, lts, ltu, select, sext8, sext16, sext32, sra, zext32
from smp.cpu import EXT_I, EXT_ZICSR, EXT_ZIFENCEI
from smp.row import Kind, row

row("lui", "imm[31:12] rd 0110111", "rd, upper", Kind.ALU, lambda imm: imm + 0, ext=EXT_I)
row("auipc", "imm[31:12] rd 0010111", "rd, upper", Kind.ALU, lambda pc, imm: pc + imm, ext=EXT_I)
row("jal", "imm[20|10:1|11|19:12] rd 1101111", "rd, target", Kind.JAL, ext=EXT_I)
row("jalr", "imm[11:0] rs1 000 rd 1100111", "rd, imm(rs1)", Kind.JALR, ext=EXT_I)


def branch(name: str, funct3: str, meaning: object) -> None:
    pattern = f"imm[12|10:5] rs2 rs1 {funct3} imm[4:1|11] 1100011"
    row(name, pattern, "rs1, rs2, target", Kind.BRANCH, meaning, ext=EXT_I)


branch("beq", "000", lambda rs1, rs2: rs1 == rs2)
branch("bne", "001", lambda rs1, rs2: rs1 != rs2)
branch("blt", "100", lambda rs1, rs2: lts(rs1, rs2))
branch("bge", "101", lambda rs1, rs2: ges(rs1, rs2))
branch("bltu", "110", lambda rs1, rs2: ltu(rs1, rs2))
branch("bgeu", "111", lambda rs1, rs2: rs1 >= rs2)


def load(name: str, funct3: str, size: int, meaning: object) -> None:
    row(name, f"imm[11:0] rs1 {funct3} rd 0000011", "rd, imm(rs1)", Kind.LOAD, meaning, ext=EXT_I, size=size)


load("lb", "000", 1, lambda value: sext8(value))
load("lh", "001", 2, lambda value: sext16(value))
load("lw", "010", 4, lambda value: sext32(value))
load("ld", "011", 8, lambda value: value)
load("lbu", "100", 1, lambda value: value)
load("lhu", "101", 2, lambda value: value)
load("lwu", "110", 4, lambda value: value)


def store(name: str, funct3: str, size: int) -> None:
    pattern = f"imm[11:5] rs2 rs1 {funct3} imm[4:0] 0100011"
    row(name, pattern, "rs2, imm(rs1)", Kind.STORE, ext=EXT_I, size=size)


store("sb", "000", 1)
store("sh", "001", 2)
store("sw", "010", 4)
store("sd", "011", 8)


def immediate(name: str, funct3: str, meaning: object, opcode: str = "0010011") -> None:
    row(name, f"imm[11:0] rs1 {funct3} rd {opcode}", "rd, rs1, imm", Kind.ALU, meaning, ext=EXT_I)


immediate("addi", "000", lambda rs1, imm: rs1 + imm)
immediate("slti", "010", lambda rs1, imm: select(lts(rs1, imm), 1, 0))
immediate("sltiu", "011", lambda rs1, imm: select(ltu(rs1, imm), 1, 0))
immediate("xori", "100", lambda rs1, imm: rs1 ^ imm)
immediate("ori", "110", lambda rs1, imm: rs1 | imm)
immediate("andi", "111", lambda rs1, imm: rs1 & imm)
immediate("addiw", "000", lambda rs1, imm: sext32(rs1 + imm), "0011011")


def shift(name: str, high: str, funct3: str, opcode: str, meaning: object) -> None:
    uimm = "uimm[5:0]" if len(high) == 6 else "uimm[4:0]"
    row(name, f"{high} {uimm} rs1 {funct3} rd {opcode}", "rd, rs1, uimm", Kind.ALU, meaning, ext=EXT_I)


shift("slli", "000000", "001", "0010011", lambda rs1, imm: rs1 << imm)
shift("srli", "000000", "101", "0010011", lambda rs1, imm: rs1 >> imm)
shift("srai", "010000", "101", "0010011", lambda rs1, imm: sra(rs1, imm))
shift("slliw", "0000000", "001", "0011011", lambda rs1, imm: sext32(rs1 << imm))
shift("srliw", "0000000", "101", "0011011", lambda rs1, imm: sext32(zext32(rs1) >> imm))
shift("sraiw", "0100000", "101", "0011011", lambda rs1, imm: sra(sext32(rs1), imm))


def register(name: str, funct7: str, funct3: str, meaning: object, opcode: str = "0110011") -> None:
    row(name, f"{funct7} rs2 rs1 {funct3} rd {opcode}", "rd, rs1, rs2", Kind.ALU, meaning, ext=EXT_I)


register("add", "0000000", "000", lambda rs1, rs2: rs1 + rs2)
register("sub", "0100000", "000", lambda rs1, rs2: rs1 - rs2)
register("sll", "0000000", "001", lambda rs1, rs2: rs1 << (rs2 & 63))
register("slt", "0000000", "010", lambda rs1, rs2: select(lts(rs1, rs2), 1, 0))
register("sltu", "0000000", "011", lambda rs1, rs2: select(ltu(rs1, rs2), 1, 0))
register("xor", "0000000", "100", lambda rs1, rs2: rs1 ^ rs2)
register("srl", "0000000", "101", lambda rs1, rs2: rs1 >> (rs2 & 63))
register("sra", "0100000", "101", lambda rs1, rs2: sra(rs1, rs2))
register("or", "0000000", "110", lambda rs1, rs2: rs1 | rs2)
register("and", "0000000", "111", lambda rs1, rs2: rs1 & rs2)
register("addw", "0000000", "000", lambda rs1, rs2: sext32(rs1 + rs2), "0111011")
register("subw", "0100000", "000", lambda rs1, rs2: sext32(rs1 - rs2), "0111011")
register("sllw", "0000000", "001", lambda rs1, rs2: sext32(rs1 << (rs2 & 31)), "0111011")
register("srlw", "0000000", "101", lambda rs1, rs2: sext32(zext32(rs1) >> (rs2 & 31)), "0111011")
register("sraw", "0100000", "101", lambda rs1, rs2: sra(sext32(rs1), rs2 & 31), "0111011")

row("fence", "fm pred succ rs1 000 rd 0001111", "pred, succ", Kind.SYSTEM, ext=EXT_I)
row("fence.i", "imm[11:0] rs1 001 rd 0001111", "", Kind.SYSTEM, ext=EXT_ZIFENCEI)
row("ecall", "000000000000 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_I)
row("ebreak", "000000000001 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_I)


def csr(name: str, funct3: str, meaning: object) -> None:
    kind, syntax = (Kind.CSRI, "rd, csr, zimm") if name.endswith("i") else (Kind.CSR, "rd, csr, rs1")
    row(name, f"csr rs1 {funct3} rd 1110011", syntax, kind, meaning, ext=EXT_ZICSR)


for suffix, bit in (("", "0"), ("i", "1")):
    csr("csrrw" + suffix, bit + "01", lambda old, src: src)
    csr("csrrs" + suffix, bit + "10", lambda old, src: old | src)
    csr("csrrc" + suffix, bit + "11", lambda old, src: old & ~src)
