"""Loops of several pages, with functions that are called: what is found, and that a hart enters what is there."""

import random

import pytest
from bare import RAM_BASE, Bare, Instruction, encode, i
from loop_programs import COUNT, DATA, optimize, outcome, random_body, write_loop

from mem.machine import machine
from smp.hart import JUMP_ENTRIES
from smp.loopcode import is_known
from smp.loopfinder import Blocks, entries, find_loop, following, headers
from smp.loopguard import MOST_PAGES
from smp.looppages import PAGE, PTE_N, Page, Program, walk
from smp.optimizer import Optimizer
from smp.rows import ALL_EXTENSIONS

EBREAK = 3
NOP = i("addi", rd=0, rs1=0, imm=0)
RET = i("jalr", rd=0, rs1=1, imm=0)


def program(**code: list[Instruction]) -> Program:
    """Pages by their number: p0 is the first."""
    pages = {RAM_BASE + PAGE * int(name[1:]): encode(*text).ljust(PAGE, b"\0") for name, text in code.items()}
    made = {base: Page(data, base, ALL_EXTENSIONS, is_known, base, 7) for base, data in pages.items()}
    return Program(made[RAM_BASE], made.get)


def places(blocks: Blocks) -> list[tuple[int, int]]:
    """Of each instruction: where it is, and in how many calls."""
    return sorted((n.pc - RAM_BASE, len(b.place.calls)) for b in blocks.values() for n in b.instructions)


def test_a_function_belongs_to_the_loop_once_for_each_call() -> None:
    back = i("bne", rs1=5, rs2=0, imm=-8)
    blocks = find_loop(
        program(p0=[i("jal", rd=1, imm=PAGE), i("jal", rd=1, imm=PAGE - 4), back], p1=[NOP, RET]), RAM_BASE
    )
    assert places(blocks) == [(0, 0), (4, 0), (8, 0), *[(PAGE, 1)] * 2, *[(PAGE + 4, 1)] * 2]
    assert entries(blocks, RAM_BASE) == [RAM_BASE]


def test_what_calls_itself_is_followed_once() -> None:
    back = i("bne", rs1=5, rs2=0, imm=-4)
    recursive = [i("beq", rs1=6, rs2=0, imm=8), i("jal", rd=1, imm=-4), RET]
    blocks = find_loop(program(p0=[i("jal", rd=1, imm=PAGE), back], p1=recursive), RAM_BASE)
    assert max(len(place.calls) for place in blocks) == 2


def test_pages_that_are_not_known_or_too_many_leave_the_loop() -> None:
    back = i("bne", rs1=5, rs2=0, imm=-4)
    assert not find_loop(program(p0=[i("jal", rd=1, imm=PAGE), back]), RAM_BASE)
    for count in (MOST_PAGES - 1, MOST_PAGES):
        calls = [i("jal", rd=1, imm=PAGE * n - 4 * (n - 1)) for n in range(1, count + 1)]
        pages = {f"p{n}": [RET] for n in range(1, count + 1)}
        found = find_loop(program(p0=[*calls, i("bne", rs1=5, rs2=0, imm=-4 * count)], **pages), RAM_BASE)
        assert bool(found) == (count < MOST_PAGES)


def random_text(source: random.Random) -> list[Instruction]:
    """Branches, jumps and calls to anywhere in 40 instructions, and returns."""
    text = []
    for at in range(40):
        target = 4 * (source.randrange(40) - at)
        jumps = [i("beq", rs1=5, rs2=0, imm=target), i("jal", rd=0, imm=target), i("jal", rd=1, imm=target)]
        text.append(source.choice([NOP, NOP, RET, *jumps]))
    return text


def test_every_way_around_leads_through_a_header() -> None:
    """Only there the quantum is looked at: a cycle without one would never end."""
    found = 0
    for seed in range(1500):
        blocks = find_loop(program(p0=random_text(random.Random(seed))), RAM_BASE)
        free = set(blocks) - headers(blocks)
        ways = {
            place: [t for t in following(blocks[place].instructions[-1], place.calls) if t in free] for place in free
        }
        while leaves := [place for place, targets in ways.items() if not any(t in ways for t in targets)]:
            for place in leaves:
                del ways[place]
        assert not ways, f"seed {seed}"
        found += bool(blocks)
    assert found > 50


def test_keys_are_entries_of_the_jump_cache_that_the_loop_does_not_use(translating: Bare) -> None:
    code = program(p0=[i("jal", rd=1, imm=PAGE), i("bne", rs1=5, rs2=0, imm=-4)], p1=[*[NOP] * 200, RET])
    blocks = find_loop(code, RAM_BASE)
    pcs = [RAM_BASE, RAM_BASE + 4, *range(RAM_BASE + PAGE, RAM_BASE + PAGE + 804, 4)]
    optimizer, seen = Optimizer(), set()
    for _ in range(2000):
        record = optimizer.pages(code, blocks)
        assert [(p.physical, p.version, p.key & -PAGE) for p in record.page[:2]] == [
            (base, 7, base) for base in (RAM_BASE, RAM_BASE + PAGE)
        ]
        assert record.count == 2 and all(p.key & 1 for p in record.page[:2])
        slots = {p.key >> 1 & JUMP_ENTRIES - 1 for p in record.page[:2]}
        assert len(slots) == 2 and not slots & {pc >> 1 & JUMP_ENTRIES - 1 for pc in pcs}
        seen |= slots
    assert len(seen) > JUMP_ENTRIES // 3


def test_loops_across_pages_do_what_the_interpreter_does(translating: Bare) -> None:
    bare = translating
    for seed in range(40):
        source = random.Random(seed)
        head = RAM_BASE + 2 * PAGE - 4 * source.randint(1, 6)
        write_loop(bare, random_body(source), source.choice(((8, 8), (4, -4), (1, 2040), (0, 16))), head)
        bare.forget_code()
        outcome(bare, False, f"{seed}", 3, head)
        bare.h.loop_admitted = 0
        assert optimize(bare, head)
        loops = [outcome(bare, interpreted, f"{seed}", 300, head) for interpreted in (False, True)]
        assert loops[0] == loops[1], f"seed {seed}"
        assert bare.h.loop_admitted, "the loop was entered"


def test_a_function_that_changed_is_not_the_old_one(translating: Bare) -> None:
    """Nor when it is what it was again; the caller's page does not change."""
    bare, h, head, function = translating, translating.h, RAM_BASE + 16, RAM_BASE + PAGE
    caller = [i("jal", rd=1, imm=PAGE - 16), i("addi", rd=COUNT, rs1=COUNT, imm=-1), i("bne", rs1=COUNT, rs2=0, imm=-8)]
    bare.put(head, *caller, i("ebreak"))
    h.loop_admitted, optimized = 0, False
    for step, admitted in ((1, 0), (1, 1), (2, 0), (1, 0)):
        bare.put(function, i("addi", rd=6, rs1=6, imm=step), RET)
        bare.forget_code()
        h.x[COUNT], h.x[6], before = 1000, 0, h.instret
        assert bare.run(head).cause == EBREAK and h.x[6] == 1000 * step
        assert h.instret - before == 5000
        assert h.loop_admitted == admitted
        optimized = optimized or optimize(bare, head)


@pytest.mark.parametrize("mode, levels", [(8, 3), (9, 4), (10, 5)])
def test_page_tables_are_walked(translating: Bare, mode: int, levels: int) -> None:
    """As the privileged manual has it, from pages of 4 KiB to superpages and Svnapot; 0 where nothing executes."""
    v, r, x, n = 1, 2, 8, PTE_N
    tables = [DATA + PAGE * level for level in range(levels)]
    satp, va = mode << 60 | tables[-1] >> 12, 0x1234_5000

    def put(level: int, entry: int) -> None:
        translating.poke(tables[level] + 8 * (va >> 12 + 9 * level & 511), entry.to_bytes(8, "little"))

    def leaf(address: int) -> int:
        return address >> 12 << 10

    for level in range(1, levels):
        put(level, leaf(tables[level - 1]) | v)
    for entry, physical in (
        (leaf(RAM_BASE + 0x5000) | v | r | x, RAM_BASE + 0x5000),
        (leaf(RAM_BASE + 0x5000) | r | x, 0),
        (leaf(RAM_BASE + 0x5000) | v | r, 0),
        (leaf(RAM_BASE + machine().ram_bytes) | v | r | x, 0),
        (leaf(RAM_BASE + 0x2_8000) | n | v | r | x, RAM_BASE + 0x2_5000),
    ):
        put(0, entry)
        assert walk(satp, va) == physical
    put(1, leaf(RAM_BASE) | v | r | x)
    assert walk(satp, va) == RAM_BASE + (va & 0x1F_F000)
    put(levels - 1, leaf(0x1000) | v)
    assert walk(satp, va) == 0
    assert (walk(0, RAM_BASE), walk(0, 0x1000), walk(1 << 60, RAM_BASE)) == (RAM_BASE, 0, 0)
