"""Zfa: additional floating point (unprivileged manual, chapter Zfa)."""

from smp.cpu import EXT_D, EXT_F, EXT_ZFA, EXT_ZFH
from smp.fpformat import D, Format, H, S
from smp.row import Kind, row


def rows(fmt: Format, ext: int, code: str, letter: str) -> None:
    """The rows of one format."""

    def made(name: str, pattern: str, syntax: str, to: Format | None, meaning: object, rounds: bool = False) -> None:
        row(f"{name}.{letter}", f"{pattern} rd 1010011", syntax, Kind.FP, meaning, ext=EXT_ZFA | ext,
            fmt=fmt, to=to, rounds=rounds)  # fmt: skip

    fd, rd = "fd, fs1, fs2", "rd, fs1, fs2"
    made("fli", f"11110{code} 00001 uimm[4:0] 000", "fd, fli", fmt, lambda fpu, imm: fpu.fli(fmt, imm))
    made("fminm", f"00101{code} rs2 rs1 010", fd, fmt, lambda fpu, fs1, fs2: fpu.minm(fmt, fs1, fs2))
    made("fmaxm", f"00101{code} rs2 rs1 011", fd, fmt, lambda fpu, fs1, fs2: fpu.maxm(fmt, fs1, fs2))
    made("fround", f"01000{code} 00100 rs1 rm", "fd, fs1, rm", fmt, lambda fpu, fs1: fpu.round(fmt, fs1), True)
    made("froundnx", f"01000{code} 00101 rs1 rm", "fd, fs1, rm", fmt, lambda fpu, fs1: fpu.roundnx(fmt, fs1), True)
    made("fleq", f"10100{code} rs2 rs1 100", rd, None, lambda fpu, fs1, fs2: fpu.leq(fmt, fs1, fs2))
    made("fltq", f"10100{code} rs2 rs1 101", rd, None, lambda fpu, fs1, fs2: fpu.ltq(fmt, fs1, fs2))


rows(S, EXT_F, "00", "s")
rows(D, EXT_D, "01", "d")
rows(H, EXT_ZFH, "10", "h")
# Modulo 2**32 as JavaScript has it: always towards zero, so the rounding mode is fixed.
row("fcvtmod.w.d", "110000101000 rs1 001 rd 1010011", "rd, fs1, rtz", Kind.FP, lambda fpu, fs1: fpu.cvtmod(fs1),
    ext=EXT_ZFA | EXT_D, fmt=D)  # fmt: skip
