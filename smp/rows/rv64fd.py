"""F and D: single and double precision (unprivileged manual, chapters 20 and 21).

The kind unboxes `fmt` operands (a value not NaN-boxed reads as the canonical NaN) and boxes a `to` result;
rows without `fmt` see the register's 64 bits as they are.
"""

from mem.word import sext32, zext32
from smp.cpu import EXT_D, EXT_F, EXT_ZFH
from smp.fpformat import D, Format, H, S
from smp.row import Kind, row

EXT = {S: EXT_F, D: EXT_D, H: EXT_ZFH}
CODE = {S: "00", D: "01", H: "10"}  # the fmt field
NAME = {S: "s", D: "d", H: "h"}

row("flw", "imm[11:0] rs1 010 rd 0000111", "fd, imm(rs1)", Kind.FLOAD, lambda value: value | 0xFFFFFFFF << 32,
    ext=EXT_F, size=4)  # fmt: skip
row("fld", "imm[11:0] rs1 011 rd 0000111", "fd, imm(rs1)", Kind.FLOAD, lambda value: value, ext=EXT_D, size=8)
row("fsw", "imm[11:5] rs2 rs1 010 imm[4:0] 0100111", "fs2, imm(rs1)", Kind.FSTORE, ext=EXT_F, size=4)
row("fsd", "imm[11:5] rs2 rs1 011 imm[4:0] 0100111", "fs2, imm(rs1)", Kind.FSTORE, ext=EXT_D, size=8)


def arithmetic(fmt: Format) -> None:
    """Rows that round to one format."""

    def made(name: str, head: str, operands: str, meaning: object, opcode: str = "1010011") -> None:
        pattern = f"{head} rs1 rm rd {opcode}"
        row(f"{name}.{NAME[fmt]}", pattern, f"fd, {operands}, rm", Kind.FP, meaning, ext=EXT[fmt],
            fmt=fmt, to=fmt, rounds=True)  # fmt: skip

    code, negative = CODE[fmt], fmt.sign_bit
    made("fadd", f"00000{code} rs2", "fs1, fs2", lambda fpu, fs1, fs2: fpu.add(fmt, fs1, fs2))
    made("fsub", f"00001{code} rs2", "fs1, fs2", lambda fpu, fs1, fs2: fpu.sub(fmt, fs1, fs2))
    made("fmul", f"00010{code} rs2", "fs1, fs2", lambda fpu, fs1, fs2: fpu.mul(fmt, fs1, fs2))
    made("fdiv", f"00011{code} rs2", "fs1, fs2", lambda fpu, fs1, fs2: fpu.div(fmt, fs1, fs2))
    made("fsqrt", f"01011{code} 00000", "fs1", lambda fpu, fs1: fpu.sqrt(fmt, fs1))
    # fnmsub is -(a * b) + c and fnmadd -(a * b) - c: signs go in before the single rounding.
    for name, opcode, sign_a, sign_c in (
        ("fmadd", "1000011", 0, 0),
        ("fmsub", "1000111", 0, negative),
        ("fnmsub", "1001011", negative, 0),
        ("fnmadd", "1001111", negative, negative),
    ):
        made(name, f"rs3 {code} rs2", "fs1, fs2, fs3", _fused(fmt, sign_a, sign_c), opcode)


def _fused(fmt: Format, sign_a: int, sign_c: int) -> object:
    return lambda fpu, fs1, fs2, fs3: fpu.fma(fmt, fs1 ^ sign_a, fs2, fs3 ^ sign_c)


def comparisons(fmt: Format) -> None:
    """Rows that don't round: sign injection, order, class."""

    def made(name: str, head: str, funct3: str, to: Format | None, meaning: object) -> None:
        pattern = f"{head}{CODE[fmt]} rs2 rs1 {funct3} rd 1010011"
        syntax = "fd, fs1, fs2" if to else "rd, fs1, fs2"
        row(f"{name}.{NAME[fmt]}", pattern, syntax, Kind.FP, meaning, ext=EXT[fmt], fmt=fmt, to=to)

    sign, magnitude = fmt.sign_bit, fmt.magnitude_mask
    made("fsgnj", "00100", "000", fmt, lambda fs1, fs2: fs1 & magnitude | fs2 & sign)
    made("fsgnjn", "00100", "001", fmt, lambda fs1, fs2: fs1 & magnitude | ~fs2 & sign)
    made("fsgnjx", "00100", "010", fmt, lambda fs1, fs2: fs1 ^ fs2 & sign)
    made("fmin", "00101", "000", fmt, lambda fpu, fs1, fs2: fpu.min(fmt, fs1, fs2))
    made("fmax", "00101", "001", fmt, lambda fpu, fs1, fs2: fpu.max(fmt, fs1, fs2))
    made("fle", "10100", "000", None, lambda fpu, fs1, fs2: fpu.le(fmt, fs1, fs2))
    made("flt", "10100", "001", None, lambda fpu, fs1, fs2: fpu.lt(fmt, fs1, fs2))
    made("feq", "10100", "010", None, lambda fpu, fs1, fs2: fpu.eq(fmt, fs1, fs2))
    row(f"fclass.{NAME[fmt]}", f"11100{CODE[fmt]} 00000 rs1 001 rd 1010011", "rd, fs1", Kind.FP,
        lambda fpu, fs1: fpu.classify(fmt, fs1), ext=EXT[fmt], fmt=fmt)  # fmt: skip


INTEGERS = (("w", "00000", 32, True), ("wu", "00001", 32, False), ("l", "00010", 64, True), ("lu", "00011", 64, False))


def conversions(fmt: Format) -> None:
    """To and from integers of 32 and 64 bits; a 32-bit result is sign-extended, unsigned or not."""

    def made(name: str, number: str, width: int, signed: bool) -> None:
        head = f"{CODE[fmt]} {number} rs1 rm rd 1010011"
        row(f"fcvt.{name}.{NAME[fmt]}", f"11000{head}", "rd, fs1, rm", Kind.FP,
            lambda fpu, fs1: fpu.to_int(fmt, fs1, width, signed), ext=EXT[fmt], fmt=fmt, rounds=True)  # fmt: skip
        shown = "exact" if width <= fmt.fraction_bits else "rm"
        row(f"fcvt.{NAME[fmt]}.{name}", f"11010{head}", f"fd, rs1, {shown}", Kind.FP,
            lambda fpu, rs1: fpu.from_int(fmt, rs1, width, signed), ext=EXT[fmt], to=fmt, rounds=True)  # fmt: skip

    for integer in INTEGERS:
        made(*integer)


for precision in (S, D):
    arithmetic(precision)
    comparisons(precision)
    conversions(precision)


def convert(name: str, pattern: str, of: Format, to: Format, ext: int) -> None:
    """From one format to another."""
    shown = "exact" if to.bits > of.bits else "rm"
    row(name, pattern, f"fd, fs1, {shown}", Kind.FP, lambda fpu, fs1: fpu.convert(of, to, fs1), ext=ext,
        fmt=of, to=to, rounds=True)  # fmt: skip


convert("fcvt.s.d", "010000000001 rs1 rm rd 1010011", D, S, EXT_D)
convert("fcvt.d.s", "010000100000 rs1 rm rd 1010011", S, D, EXT_D)


def move(name: str, head: str, to: Format | None, meaning: object, ext: int) -> None:
    """Bits from one register file to the other."""
    syntax = "fd, rs1" if to else "rd, fs1"
    row(name, f"{head} 00000 rs1 000 rd 1010011", syntax, Kind.FP, meaning, ext=ext, to=to)


move("fmv.x.w", "1110000", None, lambda fs1: sext32(fs1), EXT_F)
move("fmv.w.x", "1111000", S, lambda rs1: zext32(rs1), EXT_F)
move("fmv.x.d", "1110001", None, lambda fs1: fs1 + 0, EXT_D)
move("fmv.d.x", "1111001", D, lambda rs1: rs1 + 0, EXT_D)
