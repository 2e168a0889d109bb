"""Address translation against a slow model written from the privileged manual, and the TLB against the walk."""

import ctypes
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from bare import RAM_BASE, Bare, i
from hypothesis import given, settings
from hypothesis import strategies as st

from mem import reservation
from mem.machine import machine
from mem.mmu import cached, pmp_allows, read_slow, translate, write_slow
from mem.tlb import (
    ALL_SPACES,
    ASID_SHIFT,
    NO_FAULT,
    SECOND_ENTRIES,
    SPACES,
    STAMP,
    STAMPS,
    VIEW_BYTES,
    VIEWS,
    flush_all,
    flush_page,
    flush_writes,
    second_level,
)
from mem.word import MASK64
from smp.alarm import fence_i
from smp.code import enter, page_index, slot_text
from smp.cpu import EXT_PMP, EXT_SVNAPOT, parse_cpu
from smp.csr import write_satp
from smp.hart import FS, MACHINE, MPP_SHIFT, MPRV, MXR, SUM, SUPERVISOR, USER, Hart
from smp.spaces import flush_one, flush_translations
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


@pytest.fixture(autouse=True)
def fresh(bare: Bare) -> None:
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


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 48))
def test_walks_end_where_the_manual_says(bare: Bare, seed: int) -> None:
    source = random.Random(seed)
    model = random_model(source, bare)
    va = build(source, model)
    model.pmp = random_pmp(source)
    model.install(bare.h)
    mmu = bare.h.mmu
    access = source.choice((READ, WRITE, EXECUTE))
    compare_twice(bare, model, lambda: model.translate(va, access), lambda: translate(mmu, va, access, model.privilege))
    size = source.choice((1, 2, 4, 8))
    inside = va & ~(PAGE - 1) | min(va % PAGE, PAGE - size)
    value = source.getrandbits(8 * size)
    compare_twice(bare, model, lambda: model.read(inside, size), lambda: read_slow(mmu, inside, size))
    compare_twice(bare, model, lambda: model.write(inside, size, value) or 0,
                  lambda: write_slow(mmu, inside, size, value) and 0)  # fmt: skip
    for kind in (READ, WRITE):
        found = cached(mmu, inside, 1, kind)
        assert found == NO_FAULT or found == outcome(lambda kind=kind: model.locate(inside, 1, kind))


@pytest.mark.parametrize("extension", ["svnapot", "svpbmt", "svadu"])
def test_page_table_bits_of_an_extension_that_is_off_are_reserved(bare: Bare, extension: str) -> None:
    machine().extensions = parse_cpu(f"rv64,{extension}=off").mask
    bits = {"svnapot": N, "svpbmt": 1 << 61, "svadu": 0}[extension]
    model = Model(bare, 8 << 60 | TABLES >> 12, menvcfg=0)
    for level in range(3):
        bare.put_word(TABLES + (2 - level) * PAGE, (TABLES + (3 - level) * PAGE) >> 12 << 10 | V)
    bare.put_word(
        TABLES + 2 * PAGE, (TARGETS >> 12 | (8 if bits == N else 0)) << 10 | V | R | W | (A | D if bits else 0)
    )
    at = TABLES + 2 * PAGE
    bare.put_word(at, bare.word(at) | bits)
    model.install(bare.h)
    assert outcome(lambda: model.read(0, 8)) == (13, 0)
    assert native_outcome(bare.h, lambda: read_slow(bare.h.mmu, 0, 8)) == (13, 0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 48))
def test_accesses_across_two_pages(bare: Bare, seed: int) -> None:
    """Two pages that lie apart, either of which may fault: its part is named, and nothing is stored."""
    source = random.Random(seed)
    model = random_model(source, bare)
    model.satp = 8 << 60 | TABLES >> 12
    bare.put_word(TABLES, (TABLES + PAGE) >> 12 << 10 | V)
    bare.put_word(TABLES + PAGE, (TABLES + 2 * PAGE) >> 12 << 10 | V)
    for page in range(2):
        pte = leaf_of(source, TARGETS + source.randrange(64) * PAGE, 0) & ~N
        bare.put_word(TABLES + 2 * PAGE + 8 * page, spoil(source, pte) if source.random() < 0.3 else pte | R | W)
    model.install(bare.h)
    size = source.choice((2, 4, 8))
    va = PAGE - source.randrange(1, size)
    value = source.getrandbits(8 * size)
    mmu = bare.h.mmu
    compare_twice(bare, model, lambda: model.read(va, size), lambda: read_slow(mmu, va, size))
    compare_twice(bare, model, lambda: model.write(va, size, value) or 0,
                  lambda: write_slow(mmu, va, size, value) and 0)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 1 << 48))
def test_pmp_decides_by_its_lowest_match(bare: Bare, seed: int) -> None:
    source = random.Random(seed)
    model = Model(bare)
    model.pmp = random_pmp(source)
    model.install(bare.h)
    borders = [edge for entry in range(16) for edge in model.range(entry)]
    for _ in range(20):
        size = source.choice((1, 2, 4, 8, 64))
        pa = max(0, source.choice(borders) % (1 << 56) + source.randrange(-size - 2, size + 2))
        access, privilege = source.choice((READ, WRITE, EXECUTE)), source.choice((USER, SUPERVISOR, MACHINE))
        expected = model.permitted(pa, size, access, privilege)
        assert bool(pmp_allows(bare.h.mmu, pa, size, access, privilege)) == expected, f"{pa:#x} {size} {model.pmp}"


def test_pmp_ranges_of_all_memory_and_of_nothing(bare: Bare) -> None:
    mmu = bare.h.mmu
    for address in ((1 << 54) - 1, (1 << 53) - 1, (1 << 52) - 1):
        bare.pmp(bare.h, 0, 0x19, address)
        assert pmp_allows(mmu, 0x8000_0000, 8, READ, USER) == 1
        assert pmp_allows(mmu, 0x8000_0000, 8, WRITE, USER) == 0
    bare.pmp(bare.h, 0, 0x0F, 0)  # TOR up to 0
    bare.pmp(bare.h, 1, 0x0F, 0)
    assert pmp_allows(mmu, 0, 4, READ, USER) == 0
    assert pmp_allows(mmu, 0, 4, READ, MACHINE) == 1
    machine().extensions &= ~EXT_PMP
    assert pmp_allows(mmu, 0, 4, READ, USER) == 1


def forget_first_level(h: Hart) -> None:
    """As if other pages had displaced all of it."""
    ctypes.memset(ctypes.addressof(h.mmu.views), 0xFF, ctypes.sizeof(h.mmu.views))


# The TLB: instructions in M-mode under MPRV go through it, and the walk is the judge.


def address_of_page(page: int) -> int:
    return (page // 16 * 2 << 21) + page % 16 * PAGE


ASIDS = SPACES + 3
FENCE = CODE + 0x100


class Mapped:
    """Three levels over a few addresses: pages, a 64 KiB page, and superpages of two sizes."""

    def __init__(self, bare: Bare, source: random.Random) -> None:
        self.bare, self.source = bare, source
        # Without large pages a fence of an address flushes that page alone.
        self.large = source.random() < 0.5
        self.favourite = 0  # the page that is used and changed most, so that it is known when it changes
        self.model = Model(bare, menvcfg=source.choice((0, ADUE)) | PBMTE)
        self.roots = [TABLES, TABLES + 8 * PAGE]
        for root in self.roots:
            for index in range(4):
                bare.put_word(root + 8 * index, (root + PAGE) >> 12 << 10 | V)
            for index in range(4):
                bare.put_word(root + PAGE + 8 * index, (root + (2 + index // 2) * PAGE) >> 12 << 10 | V)
            bare.put_word(root + 8 * 3, (RAM_BASE >> 12) << 10 | V | R | W | X | A | D)  # 1 GiB
            bare.put_word(root + PAGE + 8 * 3, (TARGETS >> 12) << 10 | V | R | W | X | A | D)  # 2 MiB
            for page in range(32):
                self.new_pte(root, page)
        self.model.satp = 8 << 60 | self.roots[0] >> 12
        self.model.install(bare.h)
        bare.put(CODE, i("ld", rd=X_VALUE, rs1=X_ADDRESS), i("ebreak"))
        bare.put(CODE + 0x40, i("sd", rs1=X_ADDRESS, rs2=X_VALUE), i("ebreak"))
        bare.put(CODE + 0x80, i("amoadd.d", rd=12, rs1=X_ADDRESS, rs2=X_VALUE), i("ebreak"))
        bare.forget_code()

    def new_pte(self, root: int, page: int) -> None:
        pte = leaf_of(self.source, TARGETS + self.source.randrange(48) * PAGE, 0)
        if not self.large:
            pte &= ~N
        self.bare.put_word(root + (2 + page // 16) * PAGE + 8 * (page % 16), pte)

    def address(self) -> int:
        dice = self.source.random()
        offset = self.source.randrange(0, PAGE, 8)
        if self.source.random() < 0.3:
            return address_of_page(self.favourite) + offset
        if not self.large:
            dice = 1.0
        if dice < 0.25:
            return 3 << 30 | 0x40_0000 + self.source.randrange(48) * PAGE + offset
        if dice < 0.5:
            return 3 << 21 | self.source.randrange(48) * PAGE + offset
        return self.source.choice((0, 2 << 21, 1 << 30)) | self.source.randrange(16) * PAGE + offset

    def change(self) -> int:
        """Another leaf somewhere; gives an address that it translates."""
        root = self.roots[self.model.satp & (1 << 44) - 1 != self.roots[0] >> 12]
        dice = self.source.random()
        if dice < 0.6:
            if self.source.random() < 0.3:
                self.favourite = self.source.randrange(32)
            self.new_pte(root, self.favourite)
            return address_of_page(self.favourite)
        level, at, base = (2, root + 24, 3 << 30) if dice < 0.7 else (1, root + PAGE + 24, 3 << 21)
        target = RAM_BASE if level == 2 else TARGETS
        self.bare.put_word(at, leaf_of(self.source, target, level))
        return base + self.source.randrange(48) * PAGE

    def check_data(self, kind: int) -> None:
        va, value = self.address(), self.source.getrandbits(64)
        h, model = self.bare.h, self.model
        if self.source.random() < 0.5:
            forget_first_level(h)
        pc = CODE + (0, 0x40)[kind]

        def by_instruction() -> Any:
            model.install_mode(h)
            h.x[X_ADDRESS], h.x[X_VALUE] = va, value
            trapped = self.bare.run(pc)
            if trapped.cause != BREAKPOINT:
                return trapped[:2]
            return h.x[X_VALUE] if kind == READ else 0

        work = (lambda: model.read(va, 8)) if kind == READ else (lambda: model.write(va, 8, value) or 0)
        compare_twice(self.bare, model, work, by_instruction)

    def check_fetch(self) -> None:
        va = self.address()
        h, model = self.bare.h, self.model

        def enter_there() -> Any:
            h.privilege, h.pc = model.privilege, va
            update_view(h)
            slot = enter(h)
            return slot_address(h, slot) if slot else 0

        compare_twice(self.bare, model, lambda: model.locate(va, 2, EXECUTE), enter_there)

    def choose_space(self) -> None:
        """Another ASID, of more than the TLB has spaces for; each has one of the roots for good."""
        asid = self.source.randrange(ASIDS)
        self.model.satp = 8 << 60 | asid << ASID_SHIFT | self.roots[asid % 2] >> 12
        write_satp(self.bare.h, self.model.satp)

    def fence(self, va: int) -> None:
        """For all address spaces that have the root in use, of the address or of all."""
        of_all, every = self.source.random() < 0.3, self.source.random() < 0.5
        ours = self.model.satp >> ASID_SHIFT & 1
        for asid in [None] if every else [asid for asid in range(ASIDS) if asid % 2 == ours]:
            self.bare.h.x[X_ADDRESS], self.bare.h.x[X_VALUE] = va, asid or 0
            self.bare.put(FENCE, i("sfence.vma", rs1=0 if of_all else X_ADDRESS, rs2=0 if asid is None else X_VALUE),
                          i("ebreak"))  # fmt: skip
            fence_i(self.bare.h)
            self.model.install_mode(self.bare.h)
            assert self.bare.run(FENCE).cause == BREAKPOINT


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 48))
def test_the_tlb_answers_as_the_walk(bare: Bare, seed: int) -> None:
    source = random.Random(seed)
    mapped = Mapped(bare, source)
    model = mapped.model
    for _ in range(120):
        dice = source.random()
        if dice < 0.75:
            source.choice((lambda: mapped.check_data(READ), lambda: mapped.check_data(WRITE), mapped.check_fetch))()
        elif dice < 0.88:
            mapped.fence(mapped.change())
        elif dice < 0.93:
            mapped.choose_space()
        else:
            model.sum, model.mxr = source.random() < 0.5, source.random() < 0.5
            model.privilege = source.choice((USER, SUPERVISOR, SUPERVISOR))
            model.install_mode(bare.h)


# The second level


PAGES_AT = 0x4000_0000  # virtual; in no superpage


@pytest.fixture
def paged(bare: Bare) -> Model:
    """Pages of U and of S in turn from PAGES_AT, that lead to TARGETS."""
    model = Model(bare, 8 << 60 | TABLES >> 12)
    bare.put_word(TABLES + 8 * (PAGES_AT >> 30), (TABLES + PAGE) >> 12 << 10 | V)
    bare.put_word(TABLES + PAGE, (TABLES + 2 * PAGE) >> 12 << 10 | V)
    for page in range(64):
        bare.put_word(TABLES + 2 * PAGE + 8 * page, page_leaf(page))
    model.install(bare.h)
    return model


def page_leaf(page: int, flags: int = R | W) -> int:
    return (TARGETS >> 12) + page << 10 | V | A | D | flags | (U if page % 2 else 0)


def known_to_second(h: Hart, page: int, access: int) -> bool:
    """Asks for it in the view in use, and has the first level as before."""
    found = second_level(h.mmu, PAGES_AT + page * PAGE, access)
    forget_first_level(h)
    assert found in (NO_FAULT, TARGETS + page * PAGE)
    return found != NO_FAULT


def test_a_page_that_left_the_first_level_costs_no_walk(bare: Bare, paged: Model) -> None:
    h = bare.h
    for work in (lambda va: read_slow(h.mmu, va, 8), lambda va: write_slow(h.mmu, va, 8, 1)):
        walks, hits = h.mmu.walks, h.mmu.second_hits
        for _ in range(3):
            for page in range(0, 64, 2):
                work(PAGES_AT + page * PAGE)
            forget_first_level(h)
        assert h.mmu.cause == NO_FAULT
        assert h.mmu.walks - walks == 32
        assert h.mmu.second_hits - hits == 64


def test_the_second_level_gives_its_page_back_to_the_first(bare: Bare, paged: Model) -> None:
    h = bare.h
    for access, work in ((READ, lambda: read_slow(h.mmu, PAGES_AT, 8)),
                         (WRITE, lambda: write_slow(h.mmu, PAGES_AT, 8, 1))):  # fmt: skip
        work()
        forget_first_level(h)
        assert cached(h.mmu, PAGES_AT, 8, access) == NO_FAULT
        work()
        assert cached(h.mmu, PAGES_AT, 8, access) == TARGETS
        assert cached(h.mmu, PAGES_AT, 8, WRITE) == (TARGETS if access == WRITE else NO_FAULT)


def test_reads_do_not_permit_writes(bare: Bare, paged: Model) -> None:
    bare.put_word(TABLES + 2 * PAGE, page_leaf(0, R))
    flush_translations(bare.h)
    read_slow(bare.h.mmu, PAGES_AT, 8)
    assert known_to_second(bare.h, 0, READ)
    assert native_outcome(bare.h, lambda: write_slow(bare.h.mmu, PAGES_AT, 8, 1)) == (15, PAGES_AT)


def test_a_view_has_only_what_it_saw(bare: Bare, paged: Model) -> None:
    h = bare.h
    views = [(USER, False), (SUPERVISOR, False), (SUPERVISOR, True), (MACHINE, False)]

    def look(privilege: int, with_sum: bool) -> None:
        paged.privilege, paged.sum = privilege, with_sum
        paged.install_mode(h)

    for view in views:
        flush_translations(h)
        look(*view)
        page = 1 if view[0] == USER or view[1] else 0
        at = PAGES_AT + page * PAGE if view[0] != MACHINE else TARGETS
        read_slow(h.mmu, at, 8)
        assert h.mmu.cause == NO_FAULT
        for other in views:
            look(*other)
            assert (second_level(h.mmu, at, READ) != NO_FAULT) == (other == view)
        look(*view)
        forget_first_level(h)


def test_a_flush_of_a_page_takes_it_from_the_second_level_in_all_views(bare: Bare, paged: Model) -> None:
    h = bare.h
    views = [(USER, False), (SUPERVISOR, True)]
    for flushed in (1, 3):
        for paged.privilege, paged.sum in views:
            paged.install_mode(h)
            for page in (1, 3):
                read_slow(h.mmu, PAGES_AT + page * PAGE, 8)
                write_slow(h.mmu, PAGES_AT + page * PAGE, 8, 1)
        flush_page(h.mmu, PAGES_AT + flushed * PAGE + 8, ALL_SPACES)
        forget_first_level(h)
        for paged.privilege, paged.sum in views:
            paged.install_mode(h)
            for access in (READ, WRITE):
                assert not known_to_second(h, flushed, access)
                assert known_to_second(h, 4 - flushed, access)


def test_no_number_of_flushes_brings_a_translation_back(bare: Bare, paged: Model) -> None:
    """The stamps come round after STAMPS / STAMP flushes at most."""
    h = bare.h
    for empty, access in ((flush_all, READ), (flush_all, WRITE), (flush_writes, WRITE)):
        for start in range(3):
            for _ in range(start * 5):
                empty(h.mmu)
            write_slow(h.mmu, PAGES_AT, 8, 1)
            read_slow(h.mmu, PAGES_AT, 8)
            assert known_to_second(h, 0, access)
            for _ in range(STAMPS // STAMP + 2):
                empty(h.mmu)
                assert not known_to_second(h, 0, access)


def test_a_record_of_zeros_knows_nothing_once_it_was_flushed(bare: Bare) -> None:
    """Page 0 of the first view has a tag of nothing but its stamp."""
    mmu = bare.h.mmu
    mmu.data = ctypes.addressof(mmu.views)
    for bank in (mmu.second_read, mmu.second_write):
        ctypes.memset(ctypes.addressof(bank), 0, ctypes.sizeof(bank))
    flush_all(mmu)
    assert second_level(mmu, 0, READ) == second_level(mmu, 0, WRITE) == NO_FAULT


def test_an_empty_entry_is_no_page(bare: Bare) -> None:
    """The last page of all has the tag that comes nearest to that of an empty entry."""
    mmu, last = bare.h.mmu, MASK64 & -PAGE
    views = ctypes.addressof(mmu.views)
    for bank in (mmu.second_read, mmu.second_write):
        ctypes.memset(ctypes.addressof(bank.entries), 0xFF, ctypes.sizeof(bank.entries))
    for _ in range(STAMPS // STAMP + 2):
        flush_all(mmu)
        for view in range(VIEWS):
            mmu.data = views + view * VIEW_BYTES
            assert second_level(mmu, last, READ) == second_level(mmu, last, WRITE) == NO_FAULT


def test_a_watched_page_is_stored_to_through_the_slow_path_only(bare: Bare, paged: Model) -> None:
    """The second level keeps what it may be read by."""
    h = bare.h
    read_slow(h.mmu, PAGES_AT, 8)
    write_slow(h.mmu, PAGES_AT, 8, 1)
    reservation.begin_watch(TARGETS)
    flush_writes(h.mmu)
    forget_first_level(h)
    assert not known_to_second(h, 0, WRITE)
    for _ in range(2):
        write_slow(h.mmu, PAGES_AT, 8, 2)
        assert cached(h.mmu, PAGES_AT, 8, WRITE) == NO_FAULT
        assert not known_to_second(h, 0, WRITE)
    assert known_to_second(h, 0, READ)


def test_pages_that_share_a_place_displace_each_other(bare: Bare, paged: Model) -> None:
    """Two addresses that differ in the tag alone."""
    h = bare.h
    bare.put_word(TABLES + PAGE + 8 * (SECOND_ENTRIES // 512), (TABLES + 3 * PAGE) >> 12 << 10 | V)
    bare.put_word(TABLES + 3 * PAGE, page_leaf(32))
    near, far = PAGES_AT, PAGES_AT + SECOND_ENTRIES * PAGE
    target = {near: TARGETS, far: TARGETS + 32 * PAGE}
    for va, other in ((near, far), (far, near), (near, far)):
        assert read_slow(h.mmu, va, 8) == bare.word(target[va])
        forget_first_level(h)
        assert second_level(h.mmu, va, READ) == target[va]
        assert second_level(h.mmu, other, READ) == NO_FAULT


def test_mxr_does_not_make_the_fence_forget_superpages_of_code(bare: Bare) -> None:
    """A change of MXR drops data translations; those of code in the same superpage must still go at the fence."""
    model = Model(bare, 8 << 60 | TABLES >> 12)
    leaf = V | R | X | A | D
    bare.put_word(TABLES, (TABLES + PAGE) >> 12 << 10 | V)
    bare.put_word(TABLES + PAGE, TARGETS >> 12 << 10 | leaf)
    model.install(bare.h)
    h = bare.h

    def fetch(va: int) -> Any:
        h.privilege, h.pc = SUPERVISOR, va
        update_view(h)
        return native_outcome(h, lambda: slot_address(h, slot) if (slot := enter(h)) else 0)

    assert fetch(5 * PAGE) == TARGETS + 5 * PAGE
    h.mstatus |= MXR
    update_view(h)
    bare.put_word(TABLES + PAGE, 0)
    flush_one(h, 3 * PAGE, ALL_SPACES)
    assert fetch(5 * PAGE) == (12, 5 * PAGE)


def test_pmp_inside_a_page_is_asked_at_every_access(bare: Bare) -> None:
    """Such a page must not be cached, for data or for code."""
    model = Model(bare)
    model.pmp[0] = (0x1F, (TARGETS + 0x800 >> 2) | 0xFF)
    model.pmp[1] = (0x00, 0)
    model.install(bare.h)
    mmu = bare.h.mmu
    for va in (TARGETS + 0x800, TARGETS + 0x7F8, TARGETS + 0xFF8):
        for _ in range(2):
            compare_twice(bare, model, lambda va=va: model.read(va, 8), lambda va=va: read_slow(mmu, va, 8))
        assert cached(mmu, va, 8, READ) == NO_FAULT
    bare.poke(TARGETS + 0x7FE, b"\x01\x00" * 4)  # c.nop
    bare.h.privilege = SUPERVISOR
    for va, expected in ((TARGETS + 0x800, 0), (TARGETS + 0x7FE, 1)):
        bare.h.pc = va
        update_view(bare.h)
        assert (enter(bare.h) == 0) == bool(expected)
        bare.h.mmu.cause = NO_FAULT


# Address spaces


def space_satp(asid: int) -> int:
    return 8 << 60 | asid << ASID_SHIFT | TABLES >> 12


def known_pages(h: Hart, asid: int) -> list[int]:
    """Which of the first four pages a space still has, in either level."""
    write_satp(h, space_satp(asid))
    return [page for page in range(0, 4, 2) if second_level(h.mmu, PAGES_AT + page * PAGE, READ) != NO_FAULT]


@pytest.mark.parametrize(
    "fence, left",
    [
        ({"rs1": 0, "rs2": 0}, ([], [])),
        ({"rs1": 0, "rs2": 7}, ([0, 2], [])),
        ({"rs1": 6, "rs2": 0}, ([0], [0])),
        ({"rs1": 6, "rs2": 7}, ([0, 2], [0])),
    ],
)
@pytest.mark.parametrize("current", [1, 2])
def test_a_fence_is_for_its_asid_and_address(
    bare: Bare, paged: Model, fence: dict[str, int], left: tuple[list[int], list[int]], current: int
) -> None:
    h = bare.h
    for asid in (1, 2):
        write_satp(h, space_satp(asid))
        for page in (0, 2):
            read_slow(h.mmu, PAGES_AT + page * PAGE, 8)
    write_satp(h, space_satp(current))
    h.x[6], h.x[7] = PAGES_AT + 2 * PAGE, 2
    bare.run_here(i("sfence.vma", **fence), pc=CODE)
    paged.install_mode(h)
    assert (known_pages(h, 1), known_pages(h, 2)) == left


def test_a_space_that_another_has_taken_begins_empty(bare: Bare, paged: Model) -> None:
    h = bare.h
    for asid in range(1, SPACES + 2):
        write_satp(h, space_satp(asid))
        assert known_pages(h, asid) == []
        read_slow(h.mmu, PAGES_AT, 8)
    known = [asid for asid in range(SPACES + 1, 0, -1) if known_pages(h, asid)]
    assert SPACES + 1 in known and len(known) < SPACES + 1


def test_satp_has_sixteen_bits_of_asid(bare: Bare) -> None:
    write_satp(bare.h, 8 << 60 | 0xFFFF << ASID_SHIFT | TABLES >> 12)
    assert bare.h.mmu.satp >> ASID_SHIFT == 0x8FFFF
