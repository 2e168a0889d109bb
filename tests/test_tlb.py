"""The TLB, in both levels and all address spaces, against the walk."""

import ctypes
import random
from typing import Any

import pytest
from bare import RAM_BASE, Bare, i
from hypothesis import given, settings
from hypothesis import strategies as st
from paging_model import (
    ADUE,
    BREAKPOINT,
    CODE,
    EXECUTE,
    PAGE,
    PBMTE,
    READ,
    TABLES,
    TARGETS,
    WRITE,
    X_ADDRESS,
    X_VALUE,
    A,
    D,
    G,
    Model,
    N,
    R,
    U,
    V,
    W,
    X,
    compare_twice,
    fill,
    leaf_of,
    native_outcome,
    slot_address,
)

from mem import reservation
from mem.mmu import cached, read_slow, write_slow
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
from smp.code import enter
from smp.csr import write_satp
from smp.hart import MACHINE, MXR, SUPERVISOR, USER, Hart
from smp.spaces import flush_one, flush_translations
from smp.trap import update_view


@pytest.fixture(autouse=True)
def fresh(bare: Bare) -> None:
    fill(bare)


def forget_first_level(h: Hart) -> None:
    """As if other pages had displaced all of it."""
    ctypes.memset(ctypes.addressof(h.mmu.views), 0xFF, ctypes.sizeof(h.mmu.views))


# The TLB: instructions in M-mode under MPRV go through it, and the walk is the judge.


def address_of_page(page: int) -> int:
    return (page // 16 * 2 << 21) + page % 16 * PAGE


ASIDS = SPACES + 3
FENCE = CODE + 0x100


OWN = MASK64 & -1 << 38  # in the upper half: 16 pages that each root has for itself
KERNEL = OWN + (1 << 30)  # and 16 that are global
GLOBAL_TABLES = TABLES + 16 * PAGE


class Mapped:
    """Three levels over a few addresses: pages, a 64 KiB page, superpages of two sizes, and pages of the upper half."""

    def __init__(self, bare: Bare, source: random.Random) -> None:
        self.bare, self.source = bare, source
        # Without large pages a fence of an address flushes that page alone.
        self.large = source.random() < 0.5
        self.above = source.random() < 0.5  # whether what leads to the global pages says so, or their leaves do
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
            self.put_upper(root)
        self.model.satp = 8 << 60 | self.roots[0] >> 12
        self.model.install(bare.h)
        bare.put(CODE, i("ld", rd=X_VALUE, rs1=X_ADDRESS), i("ebreak"))
        bare.put(CODE + 0x40, i("sd", rs1=X_ADDRESS, rs2=X_VALUE), i("ebreak"))
        bare.put(CODE + 0x80, i("amoadd.d", rd=12, rs1=X_ADDRESS, rs2=X_VALUE), i("ebreak"))
        bare.forget_code()

    def put_upper(self, root: int) -> None:
        own = root + 4 * PAGE
        for at, to in ((root + 8 * 256, own), (own, own + PAGE), (GLOBAL_TABLES, GLOBAL_TABLES + PAGE)):
            self.bare.put_word(at, to >> 12 << 10 | V)
        self.bare.put_word(root + 8 * 257, GLOBAL_TABLES >> 12 << 10 | V | (G if self.above else 0))
        for page in range(16):
            self.new_upper(own + PAGE, page)
            self.new_upper(GLOBAL_TABLES + PAGE, page)

    def new_upper(self, table: int, page: int) -> None:
        pte = leaf_of(self.source, TARGETS + self.source.randrange(48) * PAGE, 0) & ~(N | G)
        if table == GLOBAL_TABLES + PAGE and (not self.above or self.source.random() < 0.3):
            pte |= G
        self.bare.put_word(table + 8 * page, pte)

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
        if self.source.random() < 0.4:
            return self.source.choice((OWN, KERNEL)) + self.source.randrange(16) * PAGE + offset
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
        if self.source.random() < 0.4:
            page, base = self.source.randrange(16), self.source.choice((OWN, KERNEL))
            self.new_upper((root + 4 * PAGE if base == OWN else GLOBAL_TABLES) + PAGE, page)
            return base + page * PAGE
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
        """For all address spaces that have the root in use, or that have it globally, of the address or of all."""
        of_all, every = self.source.random() < 0.3, self.source.random() < 0.5 or va >= KERNEL
        ours = self.model.satp >> ASID_SHIFT & 1
        for asid in [None] if every else [asid for asid in range(ASIDS) if asid % 2 == ours]:
            self.bare.h.x[X_ADDRESS], self.bare.h.x[X_VALUE] = va, asid or 0
            self.bare.put(FENCE, i("sfence.vma", rs1=0 if of_all else X_ADDRESS, rs2=0 if asid is None else X_VALUE),
                          i("ebreak"))  # fmt: skip
            fence_i(self.bare.h)
            self.model.install_mode(self.bare.h)
            assert self.bare.run(FENCE).cause == BREAKPOINT


@settings(max_examples=10)
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
