"""Zicbom and Zicboz: cache blocks (unprivileged manual, chapter CMO). Zicbop's prefetches are ori with rd = x0."""

from smp.cpu import EXT_ZICBOM, EXT_ZICBOZ
from smp.row import Kind, row

for name, number, ext in (
    ("cbo.inval", "000000000000", EXT_ZICBOM),
    ("cbo.clean", "000000000001", EXT_ZICBOM),
    ("cbo.flush", "000000000010", EXT_ZICBOM),
    ("cbo.zero", "000000000100", EXT_ZICBOZ),
):
    row(name, f"{number} rs1 010 00000 0001111", "(rs1)", Kind.SYSTEM, ext=ext)
