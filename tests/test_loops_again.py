"""Loops are compiled again when a page of theirs has changed or the cache was emptied, but not all the time."""

import pytest
from bare import RAM_BASE, Bare, i
from loop_programs import COUNT

from mem.machine import machine
from mem.regions import HOT
from smp.hot import SAMPLES, HotBlocks, note_busy
from smp.looppages import PAGE
from smp.optimizer import Optimizer, Spent
from smp.quiesce import empty_cache, free_lock, take_lock
from smp.translated import run_translated

EBREAK = 3
HEAD, FUNCTION = RAM_BASE + 16, RAM_BASE + PAGE
QUANTUM = 1000


def write_caller(bare: Bare) -> None:
    """A loop that calls a function of the next page."""
    bare.put(HEAD, i("jal", rd=1, imm=PAGE - 16), i("addi", rd=COUNT, rs1=COUNT, imm=-1),
             i("bne", rs1=COUNT, rs2=0, imm=-8), i("ebreak"))  # fmt: skip


def write_function(bare: Bare, step: int) -> None:
    bare.put(FUNCTION, i("addi", rd=6, rs1=6, imm=step), i("jalr", rd=0, rs1=1, imm=0))
    bare.forget_code()


def stay_busy(bare: Bare, optimizer: Optimizer, loops: int) -> int:
    """Run the loop until as many were compiled, or for much longer than that takes; gives how many were."""
    h, hot = bare.h, HotBlocks.at(HOT)
    h.pc, h.x[COUNT] = HEAD, 1 << 60
    for _ in range(10 * SAMPLES):
        run_translated(h, QUANTUM - h.instret % 7)
        optimizer.take_requests()
        if hot.loops == loops:
            break
    return int(hot.loops)


def result(bare: Bare) -> int:
    """What 100 rounds add up to."""
    h = bare.h
    h.x[COUNT], h.x[6], h.loop_admitted = 100, 0, 0
    assert bare.run(HEAD).cause == EBREAK
    return int(h.x[6])


@pytest.fixture
def busy(translating: Bare) -> Bare:
    """A machine with the loop, of which nothing is known yet."""
    bare = translating
    bare.reset()
    machine().optimizer_fd = -1  # requests wait until they are taken
    write_caller(bare)
    write_function(bare, 1)
    return bare


def test_a_loop_whose_second_page_has_changed_is_compiled_again(busy: Bare) -> None:
    optimizer, hot = Optimizer(share=0), HotBlocks.at(HOT)
    for loops, step in enumerate((1, 2, 3, 2), start=1):
        write_function(busy, step)
        assert stay_busy(busy, optimizer, loops) == loops
        assert result(busy) == 100 * step
        assert busy.h.loop_admitted, "the new loop was entered"
        assert hot.again == loops - 1
        stay_busy(busy, optimizer, -1)  # so long that it is asked for but seldom
    assert hot.loops == 4, "what is as it was is not compiled again"


def test_loops_come_back_after_the_cache_was_emptied(busy: Bare) -> None:
    optimizer = Optimizer(share=0)
    for loops in (1, 2, 3):
        assert stay_busy(busy, optimizer, loops) == loops
        assert result(busy) == 100 and busy.h.loop_admitted
        assert take_lock(busy.h)
        empty_cache(busy.h)
        free_lock()
        assert result(busy) == 100 and not busy.h.loop_admitted


def test_what_changes_for_ever_gets_its_share_alone(busy: Bare) -> None:
    optimizer, hot = Optimizer(share=1 << 40), HotBlocks.at(HOT)
    assert stay_busy(busy, optimizer, 1) == 1
    taken = hot.compile_ns
    write_function(busy, 2)
    assert stay_busy(busy, optimizer, 2) == 1 and hot.compile_ns > taken, "it was asked for"
    assert result(busy) == 200
    spent = Spent(began=1000, compile_ns=10)
    assert [Optimizer(20).may_have(spent, now) for now in (1199, 1200)] == [False, True]


def test_a_busy_block_is_asked_for_again_ever_more_seldom(busy: Bare) -> None:
    hot, asked = HotBlocks.at(HOT), []
    for samples in range(1, 20 * SAMPLES):
        note_busy(RAM_BASE, RAM_BASE, 1, 0)
        if hot.waiting:
            asked.append(samples)
            hot.waiting = 0
    assert asked == [SAMPLES << n for n in range(5)]
