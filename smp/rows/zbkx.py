"""Zbkx: crossbar permutations (unprivileged manual, chapter K)."""

from typing import Any

from mem.word import select
from smp.cpu import EXT_ZBKX
from smp.row import Kind, row


def look_up(table: Any, indices: Any, width: int) -> Any:
    """Each element of `indices` replaced by the element of `table` that it names, by 0 if there is none."""
    ones, scale = (1 << width) - 1, width.bit_length() - 1
    result = table & 0
    for low in range(0, 64, width):
        index = indices >> low & ones
        found = table >> (index << scale & 63) & ones
        result = result | select(index < 64 // width, found, 0) << low
    return result


row("xperm4", "0010100 rs2 rs1 010 rd 0110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: look_up(rs1, rs2, 4), ext=EXT_ZBKX)  # fmt: skip
row("xperm8", "0010100 rs2 rs1 100 rd 0110011", "rd, rs1, rs2", Kind.ALU,
    lambda rs1, rs2: look_up(rs1, rs2, 8), ext=EXT_ZBKX)  # fmt: skip
