"""Zbc: carry-less multiplication (unprivileged manual, chapter B), one masked shift for each bit of rs2."""

from typing import Any

from smp.cpu import EXT_ZBC
from smp.row import Kind, row


def product(a: Any, b: Any, shifted: Any) -> Any:
    """Exclusive or of `shifted(a, bit)` over the bits that are set in b."""
    result = a & 0
    for bit in range(64):
        result = result ^ shifted(a, bit) & -(b >> bit & 1)
    return result


def _low(a: Any, bit: int) -> Any:
    return a << bit


def _high(a: Any, bit: int) -> Any:
    return a >> 1 >> 63 - bit  # by 64 when the bit is 0


def _reversed(a: Any, bit: int) -> Any:
    return a >> 63 - bit


def register(name: str, funct3: str, shifted: Any) -> None:
    row(name, f"0000101 rs2 rs1 {funct3} rd 0110011", "rd, rs1, rs2", Kind.ALU,
        lambda rs1, rs2: product(rs1, rs2, shifted), ext=EXT_ZBC)  # fmt: skip


register("clmul", "001", _low)
register("clmulr", "010", _reversed)
register("clmulh", "011", _high)
