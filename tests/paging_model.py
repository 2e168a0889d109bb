"""A slow model of address translation, from the privileged manual, and random page tables to hold it against."""

import random
from dataclasses import dataclass, field
from typing import Any

from bare import RAM_BASE, Bare

from mem.machine import machine
from mem.tlb import NO_FAULT
from mem.word import MASK64
from smp.code import page_index, slot_text
from smp.cpu import EXT_PMP, EXT_SVNAPOT
from smp.hart import FS, MACHINE, MPP_SHIFT, MPRV, MXR, SUM, SUPERVISOR, USER, Hart
from smp.spaces import flush_translations
from smp.trap import update_view

PAGE = 4096
READ, WRITE, EXECUTE = range(3)
V, R, W, X, U, G, A, D = (1 << n for n in range(8))
ADUE, PBMTE = 1 << 61, 1 << 62
N, PBMT, RESERVED = 1 << 63, 3 << 61, 0x7F << 54
MODES = {8: 3, 9: 4, 10: 5}
TABLES, TARGETS, CODE = RAM_BASE + 0x10_0000, RAM_BASE + 0x40_0000, RAM_BASE
HOLE = 0x4000_0000  # neither RAM nor a device
X_ADDRESS, X_VALUE = 10, 11
ALL_MEMORY = (0x1F, (1 << 54) - 1)


def slot_address(h: Any, slot: int) -> int:
    """Physical address of the instruction in a slot."""
    return int(h.page_ppn[page_index(slot)] * PAGE + slot_text(slot) % PAGE)


BREAKPOINT = 3


class Fault(Exception):
    """An exception: cause and value."""


@dataclass
class Model:
    """The manual, slowly.  `memory` is the machine's own RAM, read and written through the test's hands."""

    bare: Bare
    satp: int = 0
    privilege: int = SUPERVISOR
    sum: bool = False
    mxr: bool = False
    menvcfg: int = 0
    pmp: list[tuple[int, int]] = field(default_factory=lambda: [ALL_MEMORY] + [(0, 0)] * 15)

    # Physical memory protection

    def range(self, entry: int) -> tuple[int, int]:
        """First byte and the one behind the last."""
        config, address = self.pmp[entry]
        mode = config >> 3 & 3
        if mode == 0:
            return 0, 0
        if mode == 1:
            return (self.pmp[entry - 1][1] << 2 if entry else 0), address << 2
        if mode == 2:
            return address << 2, (address << 2) + 4
        size = 8
        while address & 1:
            address >>= 1
            size *= 2
        base = address * size >> 1 << 0
        return base // size * size, base // size * size + size

    def permitted(self, pa: int, size: int, access: int, privilege: int) -> bool:
        for entry in range(16):
            low, high = self.range(entry)
            touched = [low <= at < high for at in range(pa, pa + size)]
            if any(touched):
                config = self.pmp[entry][0]
                if privilege == MACHINE and not config & 0x80:
                    return all(touched)
                return all(touched) and bool(config >> access & 1)
        return privilege == MACHINE or not machine().extensions & EXT_PMP

    # The walk (privileged manual, "Virtual Address Translation Process")

    def is_ram(self, pa: int, size: int = 1) -> bool:
        return pa >= RAM_BASE and pa + size <= RAM_BASE + self.bare.config.ram

    def fault(self, kind: str, va: int, access: int) -> Fault:
        return Fault({"page": (13, 15, 12), "access": (5, 7, 1)}[kind][access], va)

    def translate(self, va: int, access: int) -> int:
        levels = MODES.get(self.satp >> 60, 0)
        if self.privilege == MACHINE or not levels:
            return va
        width = 12 + 9 * levels
        top = va >> width - 1
        if top not in (0, (1 << 64 - width + 1) - 1):
            raise self.fault("page", va, access)
        table = (self.satp & (1 << 44) - 1) * PAGE
        for level in reversed(range(levels)):
            at = table + (va >> 12 + 9 * level) % 512 * 8
            if not self.is_ram(at, 8) or not self.permitted(at, 8, READ, SUPERVISOR):
                raise self.fault("access", va, access)
            pte = self.bare.word(at)
            if not pte & V or (pte & W and not pte & R) or pte & RESERVED:
                raise self.fault("page", va, access)
            if not pte & (R | X):
                if pte & (D | A | U | N | PBMT):
                    raise self.fault("page", va, access)
                table = (pte >> 10) % (1 << 44) * PAGE
                continue
            return self.leaf(va, access, level, at, pte)
        raise self.fault("page", va, access)

    def leaf(self, va: int, access: int, level: int, at: int, pte: int) -> int:
        ppn = (pte >> 10) % (1 << 44)
        readable = pte & R or (self.mxr and pte & X)
        good = bool((readable, pte & W, pte & X)[access])
        if self.privilege == USER:
            good = good and bool(pte & U)
        elif pte & U:
            good = good and self.sum and access != EXECUTE
        good = good and ppn % (1 << 9 * level) == 0
        if pte & PBMT:
            good = good and bool(self.menvcfg & PBMTE) and pte & PBMT != PBMT
        size = 12 + 9 * level
        if pte & N:
            good = good and bool(machine().extensions & EXT_SVNAPOT) and level == 0 and ppn % 16 == 8
            ppn, size = ppn // 16 * 16, 16
        if not good:
            raise self.fault("page", va, access)
        needed = A | (D if access == WRITE else 0)
        if pte & needed != needed:
            if not self.menvcfg & ADUE:
                raise self.fault("page", va, access)
            if not self.permitted(at, 8, WRITE, SUPERVISOR):
                raise self.fault("access", va, access)
            self.bare.put_word(at, pte | needed)
        return ppn * PAGE + va % (1 << size)

    def locate(self, va: int, size: int, access: int) -> int:
        """The physical address of an access inside one page."""
        pa = self.translate(va, access)
        if not self.permitted(pa, size, access, self.privilege) or not self.is_ram(pa, size):
            raise self.fault("access", va, access)
        return pa

    def parts(self, va: int, size: int, access: int) -> list[int]:
        """The physical address of each byte."""
        first = min(size, PAGE - va % PAGE)
        pa = self.locate(va, first, access)
        made = list(range(pa, pa + first))
        if first < size:
            pa = self.locate(va + first, size - first, access)
            made += range(pa, pa + size - first)
        return made

    def read(self, va: int, size: int) -> int:
        return int.from_bytes(b"".join(self.bare.peek(at, 1) for at in self.parts(va, size, READ)), "little")

    def write(self, va: int, size: int, value: int) -> None:
        for at, byte in zip(self.parts(va, size, WRITE), value.to_bytes(size, "little"), strict=True):
            self.bare.poke(at, bytes([byte]))

    def install(self, h: Hart) -> None:
        """Give the hart this state; the data privilege by MPRV, so that its own mode stays M."""
        h.mmu.satp, h.mmu.menvcfg = self.satp, self.menvcfg
        for entry, (config, address) in enumerate(self.pmp):
            h.mmu.pmpcfg[entry], h.mmu.pmpaddr[entry] = config, address
        self.install_mode(h)
        flush_translations(h)

    def install_mode(self, h: Hart) -> None:
        h.privilege = MACHINE
        h.mstatus = FS | MPRV | self.privilege << MPP_SHIFT | (SUM if self.sum else 0) | (MXR if self.mxr else 0)
        update_view(h)


def fill(bare: Bare) -> None:
    """A machine as new, with words in the targets that tell where they are."""
    bare.reset()
    for at in range(TARGETS, TARGETS + 0x4_0000, 8):
        bare.put_word(at, at * 0x9E3779B97F4A7C15 & MASK64)


def outcome(action: Any) -> Any:
    """What an action of the model gives, or its fault."""
    try:
        return action()
    except Fault as fault:
        return fault.args


def native_outcome(h: Hart, action: Any) -> Any:
    """The same of compiled code."""
    result = action()
    if h.mmu.cause == NO_FAULT:
        return result
    found = (h.mmu.cause, h.mmu.tval)
    h.mmu.cause = NO_FAULT
    return found


# Random page tables


def table_page(source: random.Random) -> int:
    if source.random() < 0.02:
        return HOLE
    return TABLES + source.randrange(64) * PAGE


def spoil(source: random.Random, pte: int) -> int:
    """Perhaps a few other bits."""
    dice = source.random()
    if dice < 0.35:
        pte ^= 1 << source.choice((0, 1, 2, 3, 4, 5, 6, 7))
    elif dice < 0.42:
        pte ^= 1 << source.randrange(54, 64)
    elif dice < 0.46:
        pte |= PBMT & source.getrandbits(64)
    elif dice < 0.49:
        pte ^= 1 << source.randrange(10, 54)
    return pte


def leaf_of(source: random.Random, target: int, level: int) -> int:
    """A leaf that leads to the page of `target`."""
    flags = V | A | D | source.choice((R, R | W, R | W | X, X, R | X, W, W | X, R | W | X))
    flags |= source.choice((0, U)) | source.choice((0, G))
    if source.random() < 0.3:
        flags &= ~source.choice((A, D, A | D))
    ppn = target >> 12 >> 9 * level << 9 * level
    if level == 0 and source.random() < 0.2:
        flags |= N
        ppn = (ppn & ~15 | 8) if source.random() < 0.8 else ppn
    return ppn << 10 | flags


def build(source: random.Random, model: Model) -> int:
    """Page tables for one address, which is returned; sometimes nothing leads there."""
    mode = source.choice((8, 9, 10))
    levels = MODES[mode]
    model.satp = mode << 60 | table_page(source) >> 12
    target = source.choice((TARGETS + source.randrange(0x4_0000), HOLE + 0x123)) if source.random() < 0.1 else (
        TARGETS + source.randrange(0x4_0000))  # fmt: skip
    stop = source.choice((0, 0, 0, 1, 1, *range(levels)))
    size = 12 + 9 * stop
    va = source.getrandbits(9 * levels - 9 * stop) << size | target % (1 << size)
    if va >> 11 + 9 * levels & 1:
        va |= MASK64 & -1 << 12 + 9 * levels
    table = (model.satp & (1 << 44) - 1) * PAGE
    for level in reversed(range(stop, levels)):
        at = table + (va >> 12 + 9 * level) % 512 * 8
        following = table_page(source)
        pte = leaf_of(source, target, level) if level == stop else following >> 12 << 10 | V
        if source.random() < 0.4 / levels or (level == stop and source.random() < 0.3):
            pte = spoil(source, pte)
        if model.is_ram(at, 8):
            model.bare.put_word(at, pte)
        table = following
    if source.random() < 0.04:
        va ^= 1 << source.randrange(38, 64)
    return va


def random_pmp(source: random.Random) -> list[tuple[int, int]]:
    """Entries that meet the tables and the targets."""
    if source.random() < 0.5:
        return [ALL_MEMORY] + [(0, 0)] * 15
    entries = []
    for _ in range(16):
        base = source.choice((TABLES, TARGETS, RAM_BASE)) + source.randrange(0, 0x4_0000, 4)
        config = source.choice((0, 8, 0x10, 0x18, 0x18)) | source.choice((1, 3, 4, 5, 7, 7, 7, 0))
        address = base >> 2
        if config & 0x18 == 0x18:
            ones = source.choice((0, 4, 9, 12, 16, 20))
            address = address >> ones + 1 << ones + 1 | (1 << ones) - 1
        entries.append((config | source.choice((0, 0, 0, 0x80)), address))
    if source.random() < 0.8:
        entries[15] = ALL_MEMORY
    return entries


def random_model(source: random.Random, bare: Bare) -> Model:
    bits = source.choice((0, ADUE)) | source.choice((0, PBMTE))
    return Model(bare, 0, source.choice((USER, SUPERVISOR)), source.random() < 0.5, source.random() < 0.5, bits)


def compare_twice(bare: Bare, model: Model, work: Any, native: Any) -> None:
    """The same action on the same RAM by the model and by compiled code: the same result, the same RAM."""
    before = bytes(bare.ram[TABLES - RAM_BASE : TARGETS - RAM_BASE + 0x4_0000])
    start = TABLES - RAM_BASE
    expected = outcome(work)
    after = bytes(bare.ram[start : start + len(before)])
    bare.ram[start : start + len(before)] = before
    assert native_outcome(bare.h, native) == expected
    assert bytes(bare.ram[start : start + len(before)]) == after
