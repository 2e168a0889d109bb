"""Zihintpause: a fence that orders nothing says that the hart is spinning. Zihintntl's hints are add with rd = x0."""

from smp.cpu import EXT_ZIHINTPAUSE
from smp.row import Kind, row

row("pause", "0000 0001 0000 00000 000 00000 0001111", "", Kind.SYSTEM, ext=EXT_ZIHINTPAUSE)
