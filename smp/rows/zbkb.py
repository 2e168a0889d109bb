"""Zbkb: bit manipulation for cryptography (unprivileged manual, chapter K); smp/rows/zbb.py has what Zbb shares."""

from typing import Any

from mem.word import sext32, zext8, zext16, zext32
from smp.cpu import EXT_ZBKB
from smp.row import Kind, row


def reverse_bits_in_bytes(a: Any) -> Any:
    """Neighbouring bits, pairs and nibbles change places."""
    for width, low in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        a = (a & low) << width | a >> width & low
    return a


row("pack", "0000100 rs2 rs1 100 rd 0110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: zext32(rs1) | rs2 << 32, ext=EXT_ZBKB)  # fmt: skip
row("packh", "0000100 rs2 rs1 111 rd 0110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: zext8(rs1) | zext8(rs2) << 8, ext=EXT_ZBKB)  # fmt: skip
row("packw", "0000100 rs2!=0 rs1 100 rd 0111011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: sext32(zext16(rs1) | rs2 << 16), ext=EXT_ZBKB)  # fmt: skip
row("brev8", "011010000111 rs1 101 rd 0010011", "rd, rs1", Kind.ALU,
    lambda rs1: reverse_bits_in_bytes(rs1), ext=EXT_ZBKB)  # fmt: skip
