"""Zfhmin: half precision to load, store, move and convert (unprivileged manual, chapter Zfh)."""

from mem.word import sext16, zext16
from smp.cpu import EXT_D, EXT_ZFHMIN
from smp.fpformat import D, H, S
from smp.row import Kind, row
from smp.rows.rv64fd import convert

row("flh", "imm[11:0] rs1 001 rd 0000111", "fd, imm(rs1)", Kind.FLOAD,
    lambda value: value | 0xFFFFFFFF_FFFF << 16, ext=EXT_ZFHMIN, size=2)  # fmt: skip
row("fsh", "imm[11:5] rs2 rs1 001 imm[4:0] 0100111", "fs2, imm(rs1)", Kind.FSTORE, ext=EXT_ZFHMIN, size=2)
row("fmv.x.h", "111001000000 rs1 000 rd 1010011", "rd, fs1", Kind.FP, lambda fs1: sext16(fs1), ext=EXT_ZFHMIN)
row("fmv.h.x", "111101000000 rs1 000 rd 1010011", "fd, rs1", Kind.FP, lambda rs1: zext16(rs1), ext=EXT_ZFHMIN,
    to=H)  # fmt: skip

convert("fcvt.s.h", "010000000010 rs1 rm rd 1010011", H, S, EXT_ZFHMIN)
convert("fcvt.h.s", "010001000000 rs1 rm rd 1010011", S, H, EXT_ZFHMIN)
convert("fcvt.d.h", "010000100010 rs1 rm rd 1010011", H, D, EXT_ZFHMIN | EXT_D)
convert("fcvt.h.d", "010001000001 rs1 rm rd 1010011", D, H, EXT_ZFHMIN | EXT_D)
