"""Loads and stores of a loop that share one look at their page: which do, and that nobody sees it."""

import random
from dataclasses import dataclass

import pytest
from bare import RAM_BASE, Bare, Instruction, Trapped, encode, i
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_programs import COUNT, FREE, HEAD, optimize, write_loop

from mem.machine import machine
from mem.mailbox import Mailbox
from mem.mmu import ADUE
from mem.regions import MAILBOXES
from smp.hart import SUPERVISOR
from smp.interpreter import run_quantum
from smp.loopcode import is_known
from smp.loopgroups import DEEPEST, WIDEST, Group, Region, find_regions
from smp.looppages import PAGE, Page
from smp.rows import ALL_EXTENSIONS
from smp.spaces import switch_space
from smp.translated import run_translated

EBREAK, LOAD_PAGE, STORE_PAGE = 3, 13, 15
BASE, OTHER = 8, 9
V, R, W, X, A, D = 1, 2, 4, 8, 64, 128
USED = V | R | W | A | D
TABLES, DATA = RAM_BASE + 0x20_0000, RAM_BASE + 0x30_0000  # physical
VIRTUAL, PAGES = 0x4000_0000, 4  # of the data
CLINT = 0x0200_4000
READ_ONLY, ABSENT, DEVICE, CLEAN, OLD = (
    {"entry": V | R | A | D},
    {"entry": 0},
    {"entry": USED, "physical": CLINT},
    {"entry": V | R | W | A},
    {"entry": V | R | W},
)


# What is a group


def regions_of(*instructions: Instruction) -> list[Region]:
    page = Page(encode(*instructions).ljust(PAGE, b"\0"), RAM_BASE, ALL_EXTENSIONS, is_known)
    found = [page.at(RAM_BASE + 4 * n) for n in range(len(instructions))]
    return find_regions([instruction for instruction in found if instruction])


def ld(offset: int, base: int = BASE, rd: int = 6) -> Instruction:
    return i("ld", rd=rd, rs1=base, imm=offset)


def sd(offset: int, base: int = BASE) -> Instruction:
    return i("sd", rs2=6, rs1=base, imm=offset)


def members(regions: list[Region]) -> list[tuple[int, ...]]:
    return [group.members for region in regions for group in region.groups]


def test_accesses_off_one_value_are_a_group() -> None:
    (region,) = regions_of(ld(-8), sd(16), i("lw", rd=7, rs1=BASE, imm=36), i("sb", rs2=7, rs1=BASE, imm=41))
    group = Group(BASE, 0, (0, 1, 2, 3), -8, 50, 8, True)
    assert region == Region(0, 3, [group])
    assert regions_of(ld(0)) == regions_of(ld(0), ld(0, OTHER)) == []


def test_a_new_value_of_the_base_is_another_group() -> None:
    moved = i("addi", rd=BASE, rs1=BASE, imm=8)
    assert members(regions_of(ld(0), ld(8), moved, ld(0), ld(8))) == [(0, 1), (3, 4)]
    assert regions_of(ld(0), moved, ld(0)) == []
    assert members(regions_of(ld(0), ld(8, rd=BASE), ld(0), ld(8))) == [(0, 1), (2, 3)]


def test_what_is_far_away_is_another_group() -> None:
    assert members(regions_of(ld(0), ld(WIDEST - 8), ld(WIDEST))) == [(0, 1)]
    assert members(regions_of(ld(0), ld(-2048), ld(8), ld(-2040))) == [(0, 2), (1, 3)]


def test_all_of_a_group_is_aligned_when_its_largest_is() -> None:
    (region,) = regions_of(ld(4), i("lw", rd=7, rs1=BASE, imm=2), i("lw", rd=7, rs1=BASE, imm=0), ld(8))
    assert region.groups == [Group(BASE, 0, (0, 2), -4, 16, 8, False)]


def test_groups_that_overlap_are_looked_for_together_or_in_each_other() -> None:
    (region,) = regions_of(ld(0), ld(0, OTHER), ld(8), ld(8, OTHER))
    assert (region.first, region.last) == (0, 3) and members([region]) == [(0, 2), (1, 3)] and not region.inner
    region, behind = regions_of(ld(0, rd=OTHER), ld(0, OTHER), ld(8, OTHER), ld(8), ld(16, OTHER), ld(24, OTHER))
    assert (region.first, region.last) == (0, 3) and members([region]) == [(0, 3)]
    assert members(region.inner) == [(1, 2)] and members([behind]) == [(4, 5)]


def check_nesting(regions: list[Region], first: int, last: int, depth: int) -> None:
    for region in regions:
        assert first <= region.first <= region.last <= last and depth <= DEEPEST
        for group in region.groups:
            assert group.known <= region.first and set(group.members) <= set(range(region.first, region.last + 1))
            assert len(group.members) > 1 and group.span <= WIDEST + group.alignment
        check_nesting(region.inner, region.first, region.last, depth + 1)
        first = region.last + 1


def test_regions_nest() -> None:
    for seed in range(300):
        source = random.Random(seed)
        regions = regions_of(*random_body(source, source.randint(2, 40)))
        check_nesting(regions, 0, 1000, 1)


# What a group does


@dataclass
class End:
    """How a run ended."""

    trap: Trapped
    x: list[int]
    retired: int
    memory: bytes


def map_pages(bare: Bare, kinds: dict[int, dict[str, int]]) -> None:
    """Sv39: RAM where it is, for code; the data at VIRTUAL and at address 0, its first two pages also at the end."""
    middle, leaves = TABLES + PAGE, TABLES + 2 * PAGE
    bare.poke(TABLES, bytes(3 * PAGE))
    bare.put_word(TABLES + 8 * 2, RAM_BASE >> 2 | USED | X)
    for index in (0, 1, 511):
        bare.put_word(TABLES + 8 * index, middle >> 2 | V)
    for index in (0, 511):
        bare.put_word(middle + 8 * index, leaves >> 2 | V)
    for number in range(PAGES):
        kind = kinds.get(number, {})
        entry = kind.get("physical", DATA + PAGE * number) >> 2 | kind.get("entry", USED)
        bare.put_word(leaves + 8 * number, entry)
        if number < 2:
            bare.put_word(leaves + 8 * (510 + number), entry)
    bare.h.mmu.menvcfg = ADUE
    switch_space(bare.h, 8 << 60 | TABLES >> 12)
    bare.enter(SUPERVISOR)
    bare.drop_translations()


def run(
    bare: Bare, interpreted: bool, seed: int, count: int, bases: tuple[int, int], kinds: dict[int, dict[str, int]]
) -> End:
    """Run the loop at HEAD from a state of which all is known."""
    source, h = random.Random(seed), bare.h
    for number in range(1, 32):
        h.x[number] = source.choice((source.getrandbits(64), source.getrandbits(8), (1 << 64) - 1))
    h.x[COUNT], h.x[BASE], h.x[OTHER] = count, *bases
    words = [VIRTUAL + 8 * source.randrange(8, PAGE * PAGES // 8 - 8) for _ in range(PAGE * PAGES // 8)]
    bare.poke(DATA, b"".join(word.to_bytes(8, "little") for word in words))
    map_pages(bare, kinds)
    h.pc, before, traps = HEAD, h.instret, h.traps
    machine().log |= 1  # with -d int translated code, too, leaves at each trap
    while h.traps == traps:
        Mailbox.at(MAILBOXES).alarm = 0  # a device's register rings it
        if interpreted or not run_translated(h, 1000):
            run_quantum(h, 1000 if interpreted else 1)
    trap = Trapped(h.mcause, h.mtval, h.mepc)
    return End(trap, list(h.x[:32]), h.instret - before, bare.peek(TABLES, 3 * PAGE) + bare.peek(DATA, PAGE * PAGES))


def both(bare: Bare, body: list[Instruction], steps: tuple[int, int], **how: object) -> End:
    """How the loop ends, which must be the same for the interpreter and for the optimizer's code."""
    bare.reset()
    write_loop(bare, body, steps)
    bare.forget_code()
    arguments = {"seed": 1, "count": 100, "bases": (VIRTUAL, VIRTUAL), "kinds": {}} | how
    expected = run(bare, True, **arguments)  # type: ignore[arg-type]
    run(bare, False, **arguments)  # type: ignore[arg-type]
    assert optimize(bare, HEAD)
    found = run(bare, False, **arguments)  # type: ignore[arg-type]
    assert found == expected
    return found


FRAME = [sd(0), sd(8), ld(16), sd(24), ld(24, rd=7), sd(32)]


@pytest.mark.parametrize("offset", range(-48, 16, 8))
def test_a_frame_across_two_pages_stays_there(translating: Bare, offset: int) -> None:
    end = both(translating, FRAME, (0, 0), bases=(VIRTUAL + PAGE + offset, 0))
    assert end.trap.cause == EBREAK and end.retired == 1000


def test_a_frame_that_moves_over_pages(translating: Bare) -> None:
    assert both(translating, FRAME, (24, 0), count=500).trap.cause == EBREAK


@pytest.mark.parametrize("kind", [READ_ONLY, ABSENT, DEVICE, CLEAN, OLD])
@pytest.mark.parametrize("body", [FRAME, FRAME[::-1], [ld(16), ld(0), ld(24), i("sw", rs2=6, rs1=BASE, imm=12)]])
def test_a_frame_comes_to_a_page_of_another_kind(
    translating: Bare, body: list[Instruction], kind: dict[str, int]
) -> None:
    """From below and from above; everything before an access that faults has happened, nothing behind it."""
    for start, step, number in ((PAGE - 800, 8, 1), (PAGE + 800, -8, 0)):
        end = both(translating, body, (step, 0), bases=(VIRTUAL + start, 0), count=200, kinds={number: kind})
        if kind is READ_ONLY:
            assert end.trap.cause == STORE_PAGE
        elif kind is ABSENT:
            assert end.trap.cause in (LOAD_PAGE, STORE_PAGE) and end.trap.tval - VIRTUAL >> 12 == number
        elif kind is not DEVICE:
            assert end.trap.cause == EBREAK


def test_a_page_that_may_only_be_read_faults_at_the_store(translating: Bare) -> None:
    """The loads before it have happened."""
    body = [ld(0, rd=6), ld(8, rd=7), i("addi", rd=10, rs1=7, imm=1), i("sd", rs2=10, rs1=BASE, imm=16), ld(24, rd=11)]
    end = both(translating, body, (0, 8), kinds={0: READ_ONLY})
    assert end.trap == (STORE_PAGE, VIRTUAL + 16, HEAD + 12) and end.retired == 3
    assert end.x[10] == end.x[7] + 1


@pytest.mark.parametrize("kind", [READ_ONLY, CLEAN])
def test_a_page_that_is_known_for_loads_is_not_for_stores(translating: Bare, kind: dict[str, int]) -> None:
    """Another register has led to it; the group comes there from one iteration to the next."""
    body = [ld(0, OTHER), ld(16), sd(0), ld(8)]
    end = both(translating, body, (512, 0), bases=(VIRTUAL, VIRTUAL + PAGE), kinds={1: kind}, count=12)
    if kind is READ_ONLY:
        assert end.trap == (STORE_PAGE, VIRTUAL + PAGE, HEAD + 8)


@pytest.mark.parametrize("step", [1, 2, 4, 9, -3])
def test_misaligned_groups(translating: Bare, step: int) -> None:
    start = VIRTUAL + (PAGE - 150 if step > 0 else PAGE + 150)
    body = [*FRAME, i("lh", rd=7, rs1=BASE, imm=40), i("lbu", rd=7, rs1=BASE, imm=43)]
    both(translating, body, (step, 0), bases=(start, 0))
    both(translating, body, (step, 0), bases=(start, 0), kinds={1 if step > 0 else 0: ABSENT})


def test_groups_of_bytes(translating: Bare) -> None:
    body = [i("lbu", rd=6, rs1=BASE, imm=3), i("sb", rs2=6, rs1=BASE, imm=5), i("lb", rd=7, rs1=BASE, imm=0)]
    for base in (PAGE - 50, -(1 << 63) - VIRTUAL, -20 - VIRTUAL, -1 - VIRTUAL):
        both(translating, body, (1, 0), bases=(VIRTUAL + base & (1 << 64) - 1, 0))


@pytest.mark.parametrize("start", [-400, -24, -8, 0])
def test_addresses_wrap_around(translating: Bare, start: int) -> None:
    """The last page of all (1) and the first one (0) are neighbours, and in no group together."""
    assert both(translating, FRAME, (8, 0), bases=(start & (1 << 64) - 1, 0)).trap.cause == EBREAK
    both(translating, FRAME, (8, 0), bases=(start & (1 << 64) - 1, 0), kinds={1: ABSENT})
    both(translating, FRAME, (8, 0), bases=(start & (1 << 64) - 1, 0), kinds={0: ABSENT})


def test_accesses_far_apart(translating: Bare) -> None:
    body = [ld(0), sd(WIDEST - 8), ld(WIDEST), sd(WIDEST + 8), ld(-2048), sd(-2040)]
    for start in (3 * PAGE // 2, PAGE + 2000, 2 * PAGE - WIDEST):
        both(translating, body, (8, 0), bases=(VIRTUAL + start, 0))


def test_a_store_to_the_loop_s_own_page_is_seen_after_a_fence(translating: Bare) -> None:
    """The group lies in the page of the code, and overwrites an instruction of it."""
    bare, h = translating, translating.h
    bare.reset()
    bare.forget_code()
    add = [i("addi", rd=7, rs1=7, imm=step) for step in (1, 2)]
    body = [i("lw", rd=6, rs1=BASE, imm=4), i("sw", rs2=10, rs1=BASE, imm=8), i("addi", rd=0, rs1=0, imm=0)]
    write_loop(bare, [add[0], *body], (0, 0))
    bare.forget_code()
    for round, step in enumerate((1, 1, 2)):
        if round == 2:
            bare.forget_code()
        h.x[COUNT], h.x[7], h.x[BASE], h.x[10] = 100, 0, HEAD - 8, int.from_bytes(encode(add[round == 1]), "little")
        assert bare.run(HEAD).cause == EBREAK and h.x[7] == 100 * step
        assert round or optimize(bare, HEAD)


@pytest.mark.parametrize("size", ["ld", "lw", "lhu"])
@pytest.mark.parametrize("kind", [{}, ABSENT])
def test_a_misaligned_group_just_above_zero(translating: Bare, size: str, kind: dict[str, int]) -> None:
    """Where a register that has led nowhere yet must not be taken to have led to."""
    body = [i(size, rd=6, rs1=BASE, imm=0), i(size, rd=7, rs1=BASE, imm=16), i(size, rd=10, rs1=OTHER, imm=24)]
    for address in (1, 3, 5, 7, 15, 23, 4063):
        both(translating, body, (8, 0), bases=(address, VIRTUAL), count=4, kinds={0: kind})
        both(translating, body, (-8, 0), bases=(address, VIRTUAL), count=4, kinds={0: kind})


def random_body(source: random.Random, count: int) -> list[Instruction]:
    """Accesses off two registers, which arithmetic and loads of pointers change in between."""
    body = []
    for _ in range(count):
        base, offset = source.choice((BASE, BASE, OTHER)), source.choice((0, 8, 16, 24, 40, -8, -32, 1000, -1000))
        kind = source.random()
        if kind < 0.1:
            body.append(i("addi", rd=base, rs1=source.choice((BASE, OTHER)), imm=source.choice((8, 16, -8, 4))))
        elif kind < 0.2:
            body.append(i("ld", rd=source.choice((BASE, OTHER)), rs1=base, imm=offset))
        elif kind < 0.3:
            body.append(i("add", rd=source.choice(FREE), rs1=source.choice(FREE), rs2=source.choice(FREE)))
        elif kind < 0.65:
            name, step = source.choice((("ld", 1), ("ld", 1), ("lw", 4), ("lbu", 1), ("lhu", 2)))
            body.append(i(name, rd=source.choice(FREE), rs1=base, imm=offset + source.choice((0, 0, step))))
        else:
            name, step = source.choice((("sd", 1), ("sd", 1), ("sw", 4), ("sb", 1), ("sh", 2)))
            body.append(
                i(name, rs2=source.choice((*FREE, base)), rs1=base, imm=offset + source.choice((0, 0, 0, step)))
            )
    return body


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 48))
def test_random_groups_do_what_the_interpreter_does(translating: Bare, seed: int) -> None:
    source = random.Random(seed)
    chosen = [{}, {}, {}, READ_ONLY, ABSENT, CLEAN, OLD]
    kinds: dict[int, dict[str, int]] = {number: source.choice(chosen) for number in range(PAGES)}
    bases = [VIRTUAL + PAGE * source.randrange(1, PAGES) + 8 * source.randint(-20, 20) for _ in range(2)]
    body = random_body(source, source.randint(3, 24))
    both(translating, body, source.choice(((8, 8), (-8, 16), (24, -40), (0, 0))), seed=seed, bases=(bases[0], bases[1]),
         kinds=kinds, count=source.choice((20, 150)))  # fmt: skip
