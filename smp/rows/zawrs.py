"""Zawrs: wait on a reservation set, with and without a time limit (unprivileged manual, chapter Zawrs)."""

from smp.cpu import EXT_ZAWRS
from smp.row import Kind, row

row("wrs.nto", "000000001101 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_ZAWRS)
row("wrs.sto", "000000011101 00000 000 00000 1110011", "", Kind.SYSTEM, ext=EXT_ZAWRS)
