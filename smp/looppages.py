"""Guest code as the optimizer reads it: pages of virtual addresses, in the bytes of their version.

The optimizer is no hart: it walks page tables by itself, for a guess.  Whether a hart sees these pages there is looked
at when it enters the loop (smp/loopguard.py).
"""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

from mem.machine import machine
from mem.memmap import RAM_BASE
from mem.regions import HOST
from mem.word import signed
from smp.codecache import CodePage, page_record
from smp.decode import BUCKET_ROWS, BUCKET_START, LIST, row_bucket
from smp.loopguard import MOST_PAGES, copy_page
from smp.row import ROWS, Row

PAGE = 4096

LEVELS = {8: 3, 9: 4, 10: 5}  # of page tables, by the mode of satp (privileged manual, "satp")
PTE_V, PTE_R, PTE_X, PTE_N = 1, 2, 8, 1 << 63
PPN = (1 << 44) - 1


@dataclass
class Instruction:
    """One decoded instruction; compressed ones appear as what they abbreviate."""

    pc: int
    row: Row
    fields: dict[str, int]
    length: int

    @property
    def target(self) -> int:
        """Where a branch or jal goes."""
        return self.pc + signed(self.fields["imm"])

    @property
    def behind(self) -> int:
        return self.pc + self.length


def candidates(word: int, length: int) -> list[Row]:
    """The rows that a word can be, the most particular first."""
    number = row_bucket(word, 8 * length)
    return [LIST[n] for n in BUCKET_ROWS.values[BUCKET_START[number] : BUCKET_START[number + 1]]]


class Page:
    """A page of code at a virtual address, as it was when its version was taken.

    physical: its physical address; known: whether a row may be part of a loop.
    """

    def __init__(
        self, data: bytes, base: int, extensions: int, known: Callable[[Row], bool], physical: int = 0, version: int = 0
    ) -> None:
        self.data, self.base, self.known, self.extensions = data, base, known, extensions
        self.physical, self.version = physical, version
        self.decoded: dict[int, Instruction | None] = {}

    def at(self, pc: int) -> Instruction | None:
        """The instruction at a pc of this page, or None where the loop is left: unknown, or across the page's end."""
        if pc not in self.decoded:
            self.decoded[pc] = self.decode(pc)
        return self.decoded[pc]

    def decode(self, pc: int) -> Instruction | None:
        """`at`, when it is first asked for."""
        at = pc - self.base
        if not 0 <= at <= PAGE - 2:
            return None
        length = 4 if self.data[at] & 3 == 3 else 2
        if at + length > PAGE:
            return None
        word = int.from_bytes(self.data[at : at + length], "little")
        rows = (row for row in candidates(word, length) if row.accepts(word) and row.enabled(self.extensions))
        found = next(rows, None)
        if found is None:
            return None
        base = ROWS[found.base] if found.base else found
        return Instruction(pc, base, found.operands(word), length) if self.known(base) else None


class Program:
    """The pages around a busy instruction: its own, and those that code leads to, MOST_PAGES together.

    find: gives the page at a virtual address, if it is known.
    """

    def __init__(self, first: Page, find: Callable[[int], Page | None] = lambda base: None) -> None:
        self.pages, self.find = {first.base: first}, find
        self.missing: set[int] = set()

    def page(self, pc: int) -> Page | None:
        """The page of a pc."""
        base = pc & ~(PAGE - 1)
        if base not in self.pages and base not in self.missing:
            found = self.find(base) if len(self.pages) < MOST_PAGES else None
            if found:
                self.pages[base] = found
            else:
                self.missing.add(base)
        return self.pages.get(base)

    def address(self, pc: int) -> tuple[int, int]:
        """The physical address of a pc and the version of its page; zeroes when that page is not known."""
        page = self.pages.get(pc & -PAGE)
        return (page.physical | pc & PAGE - 1, page.version) if page else (0, 0)

    def at(self, pc: int) -> Instruction | None:
        """The instruction at a pc, or None where a loop is left."""
        page = self.page(pc)
        return page.at(pc) if page else None


@functools.lru_cache(maxsize=64)
def page_of(physical: int, base: int, version: int, known: Callable[[Row], bool]) -> Page | None:
    """A page of this version; None when it has another by now."""
    data = ctypes.create_string_buffer(PAGE)
    if not copy_page(physical, version, ctypes.addressof(data)):
        return None
    return Page(data.raw, base, machine().extensions, known, physical, version)


def find_page(satp: int, known: Callable[[Row], bool], base: int) -> Page | None:
    """The page at a virtual address of this address space, if code of it has been translated."""
    physical = walk(satp, base)
    record = page_record(physical) if physical else 0
    return page_of(physical, base, CodePage.at(record).version, known) if record else None


def walk(satp: int, va: int) -> int:
    """The physical address of an executable page, by the tables that satp names; 0 when there is none in RAM."""
    mode = satp >> 60
    if mode == 0:
        return va if in_ram(va) else 0
    if mode not in LEVELS:
        return 0
    table = (satp & PPN) << 12
    for level in reversed(range(LEVELS[mode])):
        entry = table_entry(table, va >> 12 + 9 * level & 511)
        if not entry & PTE_V:
            return 0
        ppn = entry >> 10 & PPN
        if entry & (PTE_R | PTE_X):
            low = (1 << 9 * level) - 1
            if entry & PTE_N:  # Svnapot: 64 KiB
                low = 15
            physical = (ppn & ~low | va >> 12 & low) << 12
            return physical if entry & PTE_X and in_ram(physical) else 0
        table = ppn << 12
    return 0


def table_entry(table: int, index: int) -> int:
    """An entry of a page table; 0, which is not valid, outside of RAM."""
    at = table + 8 * index
    return ctypes.c_uint64.from_address(HOST + at).value if in_ram(at) else 0


def in_ram(address: int) -> bool:
    return RAM_BASE <= address < RAM_BASE + machine().ram_bytes
