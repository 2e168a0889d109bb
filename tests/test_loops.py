"""The optimizer: what it takes for a loop, and that its code does what the interpreter does."""

import ctypes
import random
import struct

import pytest
from bare import RAM_BASE, Bare, Instruction, encode, i
from loop_programs import COUNT, DATA, HEAD, optimize, outcome, random_body, write_loop

from mem.mailbox import ALARM_STOP, Mailbox, alarm
from mem.regions import CODE_TABLE, HOT, MAILBOXES
from smp.codecache import ALARM_CHECK, CodeTable
from smp.hot import REQUESTS, SAMPLES, HotBlock, HotBlocks, note_busy, take_request
from smp.loopcode import is_known
from smp.loopfinder import LONGEST, entries, find_loop
from smp.looppages import Page, Program
from smp.rows import ALL_EXTENSIONS
from smp.translate import check_alarm
from smp.translated import run_translated

EBREAK = 3


def loop_of(*instructions: Instruction, head: int = RAM_BASE) -> tuple[list[int], list[int]]:
    """Where the loop's instructions and entries are, counted from the first instruction."""
    data = encode(*instructions).ljust(4096, b"\0")
    blocks = find_loop(Program(Page(data, RAM_BASE, ALL_EXTENSIONS, is_known)), head)
    inside = sorted(n.pc - RAM_BASE for block in blocks.values() for n in block.instructions)
    return inside, [pc - RAM_BASE for pc in entries(blocks, head)] if blocks else []


NOP = i("addi", rd=0, rs1=0, imm=0)


def test_a_loop_is_what_leads_back_to_its_head() -> None:
    back = i("bne", rs1=5, rs2=0, imm=-8)
    assert loop_of(NOP, NOP, NOP, back, NOP, head=RAM_BASE + 4) == ([4, 8, 12], [4])
    assert loop_of(NOP, NOP, NOP, NOP) == ([], [])


def test_a_long_loop_is_left_to_its_blocks() -> None:
    for count, found in ((LONGEST - 1, LONGEST), (LONGEST, 0)):
        inside, _ = loop_of(*[NOP] * count, i("bne", rs1=5, rs2=0, imm=-4 * count))
        assert len(inside) == found


def test_of_a_nest_that_is_too_long_the_inner_loops_are_taken() -> None:
    """The outermost way back goes; a call in the loop that stays keeps its function."""
    inner = [i("jal", rd=1, imm=-8), NOP, i("bne", rs1=5, rs2=0, imm=-8)]
    ret = i("jalr", rd=0, rs1=1, imm=0)
    outer = [*[NOP] * LONGEST, ret, NOP, *inner, i("bne", rs1=6, rs2=0, imm=-4 * (LONGEST + 5))]
    at = 4 * LONGEST
    assert loop_of(*outer, head=RAM_BASE + at + 12) == ([at, at + 8, at + 12, at + 16], [at + 12, at + 8])


def test_the_loops_around_belong_to_it() -> None:
    inner, outer = i("bne", rs1=5, rs2=0, imm=-4), i("jal", rd=0, imm=-12)
    assert loop_of(NOP, NOP, inner, outer, head=RAM_BASE + 4) == ([0, 4, 8, 12], [4, 0])


def test_functions_of_the_page_that_are_called_belong_to_it() -> None:
    call, back, ret = i("jal", rd=1, imm=12), i("bne", rs1=5, rs2=0, imm=-4), i("jalr", rd=0, rs1=1, imm=0)
    assert loop_of(call, back, NOP, NOP, ret) == ([0, 4, 12, 16], [0])
    assert loop_of(call, back, NOP, NOP, NOP) == ([], [])


@pytest.mark.parametrize("leaving", [i("jalr", rd=1, rs1=1, imm=0), i("jal", rd=1, imm=4096), i("ecall"), 0xFFFFFFFF])
def test_what_leaves_the_page_or_is_not_known_ends_a_path(leaving: Instruction) -> None:
    over, back = i("bne", rs1=6, rs2=0, imm=8), i("bne", rs1=5, rs2=0, imm=-12)
    assert loop_of(NOP, over, leaving, back) == ([0, 4, 12], [0])
    assert loop_of(NOP, leaving, back) == ([], [])


@pytest.mark.parametrize("deep", [1, 4, 9])
def test_loops_in_loops_are_compiled(translating: Bare, deep: int) -> None:
    """Many entries and ways out; whatever their number, the code must not need a table."""
    back = [i("bne", rs1=6, rs2=0, imm=4 * (deep - 1 - n) - 4 * (deep + n)) for n in range(deep)]
    translating.run_here(*[NOP] * deep, *back)
    assert optimize(translating, RAM_BASE + 4 * (deep - 1))


def test_loops_do_what_the_interpreter_does(translating: Bare) -> None:
    bare, made = translating, 0
    for seed in range(60):
        source = random.Random(seed)
        write_loop(bare, random_body(source), source.choice(((8, 8), (4, -4), (1, 2040), (0, 16))))
        bare.forget_code()
        count = source.choice((1, 2, 30, 300))
        outcome(bare, False, f"{seed}", 3)
        assert optimize(bare, HEAD)
        loops = [outcome(bare, interpreted, f"{seed}", count) for interpreted in (False, True)]
        assert loops[0] == loops[1], f"seed {seed}"
        made += 1
    assert made == 60


def test_a_fault_in_a_loop_is_exact(translating: Bare) -> None:
    """The pointer runs out of RAM: everything before that access has happened, nothing behind it."""
    bare = translating
    bare.put(HEAD, i("addi", rd=6, rs1=6, imm=1), i("sd", rs2=6, rs1=8, imm=0), i("add", rd=8, rs1=8, rs2=7),
             i("bne", rs1=7, rs2=0, imm=-12), i("ebreak"))  # fmt: skip
    bare.forget_code()
    for _ in range(2):  # the first to have it translated
        bare.h.x[6], bare.h.x[7], bare.h.x[8] = 0, 0x1000, RAM_BASE + bare.config.ram - 0x5000
        before = bare.h.instret
        trapped = bare.run(HEAD)
        assert trapped == (7, RAM_BASE + bare.config.ram, HEAD + 4)
        assert bare.h.x[6] == 6 and bare.h.instret - before == 21
        assert optimize(bare, HEAD)


def test_a_loop_without_end_heeds_quantum_and_alarm(translating: Bare) -> None:
    bare, h = translating, translating.h
    bare.put(HEAD, i("ld", rd=6, rs1=8, imm=0), i("addi", rd=7, rs1=7, imm=1), i("jal", rd=0, imm=-8))
    bare.forget_code()
    h.x[7], h.x[8], h.pc = 0, DATA, HEAD
    run_translated(h, 1000)
    assert optimize(bare, HEAD)
    h.x[7], h.pc, before = 0, HEAD, h.instret
    run_translated(h, 1000)
    retired = h.instret - before
    assert 997 < retired <= 1000 and h.pc == HEAD and h.x[7] == retired // 3
    alarm(0, ALARM_STOP)
    run_translated(h, 1000)
    assert h.instret - before == retired
    Mailbox.at(MAILBOXES).alarm = 0


def test_changed_code_is_not_the_old_loop(translating: Bare) -> None:
    bare, h = translating, translating.h
    for step in (1, 2, 1):
        write_loop(bare, [i("addi", rd=6, rs1=6, imm=step)], (0, 0))
        bare.forget_code()
        for _ in range(2):
            h.x[COUNT], h.x[6] = 100, 0
            assert bare.run(HEAD).cause == EBREAK and h.x[6] == 100 * step
            assert optimize(bare, HEAD)


def test_a_block_in_front_of_the_loop_comes_to_its_new_code(translating: Bare) -> None:
    bare, h = translating, translating.h
    write_loop(bare, [i("addi", rd=6, rs1=6, imm=1)], (0, 0))
    bare.put(HEAD - 4, i("jal", rd=0, imm=4))
    bare.forget_code()
    h.x[COUNT] = 2
    bare.run(HEAD - 4)
    assert optimize(bare, HEAD)
    blocks = CodeTable.at(CODE_TABLE).blocks_made
    h.x[COUNT], h.x[6] = 1000, 0
    assert bare.run(HEAD - 4).cause == EBREAK and h.x[6] == 1000
    assert CodeTable.at(CODE_TABLE).blocks_made == blocks


def test_the_look_at_the_alarm_is_as_long_as_jumps_forward_think(translating: Bare) -> None:
    asm = CodeTable.at(CODE_TABLE).asm
    start = asm.out
    check_alarm()
    assert asm.out - start == ALARM_CHECK
    asm.out = start


def test_a_loop_with_calls_goes_on_behind_them(translating: Bare) -> None:
    """Two calls of one function, which the second time is left to elsewhere."""
    bare, h = translating, translating.h
    function = HEAD + 32
    bare.put(HEAD, i("jal", rd=1, imm=32), i("addi", rd=7, rs1=7, imm=1), i("jal", rd=1, imm=24),
             i("addi", rd=COUNT, rs1=COUNT, imm=-1), i("bne", rs1=COUNT, rs2=0, imm=-16), i("ebreak"))  # fmt: skip
    bare.put(function, i("addi", rd=6, rs1=6, imm=2), i("bne", rs1=6, rs2=10, imm=8), i("addi", rd=1, rs1=11, imm=0),
             i("jalr", rd=0, rs1=1, imm=0))  # fmt: skip
    bare.put(HEAD + 128, i("ebreak"))
    bare.forget_code()
    for end, count, behind in ((0, 40, 0), (0, 40, 0), (60, 40, 128)):
        h.x[COUNT], h.x[6], h.x[7], h.x[10], h.x[11] = count, 0, 0, end, HEAD + 128
        before = h.instret
        assert bare.run(HEAD) == (EBREAK, HEAD + (behind or 20), HEAD + (behind or 20))
        assert h.x[6] == (end or 4 * count) and h.x[7] == (15 if end else count)
        assert h.instret - before == (164 if end else 11 * count)
        assert optimize(bare, HEAD)


def test_a_loop_leaves_floating_point_registers_alone(translating: Bare) -> None:
    """Blocks around it have them in the host's."""
    bare, h = translating, translating.h
    loop = [i("ld", rd=6, rs1=8, imm=0), i("ld", rd=7, rs1=8, imm=8), i("sd", rs2=6, rs1=8, imm=16),
            i("sd", rs2=7, rs1=8, imm=24), i("addi", rd=COUNT, rs1=COUNT, imm=-1),
            i("bne", rs1=COUNT, rs2=0, imm=-20)]  # fmt: skip
    add = i("fadd.d", rd=1, rs1=1, rs2=2, rm=7)
    bare.put(HEAD - 4, add, *loop, add, i("addi", rd=COUNT, rs1=0, imm=3), i("addi", rd=9, rs1=9, imm=-1),
             i("bne", rs1=9, rs2=0, imm=-40), i("ebreak"))  # fmt: skip
    bare.forget_code()
    for _ in range(2):
        h.mstatus |= 3 << 13
        h.f[1], h.f[2] = 0, 0x3FF0_0000_0000_0000
        h.x[8], h.x[9], h.x[COUNT] = DATA, 100, 3
        assert bare.run(HEAD - 4).cause == EBREAK
        assert struct.unpack("<d", struct.pack("<Q", h.f[1])) == (200.0,)
        assert optimize(bare, HEAD)


def test_the_newest_request_is_taken_first_and_a_busy_block_makes_one(translating: Bare) -> None:
    bare, hot, request = translating, HotBlocks.at(HOT), HotBlock.ctype()
    bare.reset()
    for ppc in (RAM_BASE, RAM_BASE + 2):
        for _ in range(SAMPLES + 1):
            note_busy(ppc, ppc + 0x1000, 7, 9)
    assert hot.waiting == 2
    taken = []
    while take_request(ctypes.addressof(request)):
        taken.append((request.ppc, request.vpc, request.version, request.satp))
    assert taken == [(ppc, ppc + 0x1000, 7, 9) for ppc in (RAM_BASE + 2, RAM_BASE)]
    for _ in range(2 * REQUESTS * SAMPLES):
        note_busy(RAM_BASE, RAM_BASE, 8, 0)
    assert hot.waiting == 1
