"""--stats: the counters of the translator count what they say, and their lines are printed."""

import re
from collections.abc import Iterator

import pytest
from bare import Bare, bare_machine, i

from mem.memmap import RAM_BASE
from mem.regions import CODE, CODE_TABLE, HOT
from smp.codecache import CodeTable
from smp.hot import HotBlocks
from smp.stats import print_stats

ROUNDS = 10


@pytest.fixture
def bare() -> Iterator[Bare]:
    with bare_machine(runs="jit") as made:
        yield made


def loop(bare: Bare) -> None:
    """Two blocks; a load that misses the TLB once, and an instruction without a template in every round."""
    bare.h.x[5], bare.h.x[6] = ROUNDS, RAM_BASE + 0x8000
    bare.run_here(
        i("ld", rd=7, rs1=6, imm=0),
        i("csrrs", rd=8, rs1=0, csr=0x3B0),
        i("addi", rd=5, rs1=5, imm=-1),
        i("bne", rs1=5, rs2=0, imm=-12),
    )


def test_the_translators_counters_count(bare: Bare) -> None:
    loop(bare)
    t = CodeTable.at(CODE_TABLE)
    assert (t.blocks_made, t.instructions) == (2, 6)  # what lies behind the ebreak too
    assert t.used == t.asm.out - CODE > 0
    assert t.translate_ns > 0
    assert bare.h.slow_accesses == bare.h.mmu.misses == 1
    assert bare.h.slow_steps == ROUNDS + 1  # and the ebreak
    assert 1 <= bare.h.chain_misses <= 2  # to the loop's start, if it was not linked at once, and out of the loop


def test_the_lines_have_them(bare: Bare, capsys: pytest.CaptureFixture[str]) -> None:
    loop(bare)
    hot = HotBlocks.at(HOT)
    hot.loops, hot.again, hot.compile_ns = 2, 1, 12_345_678
    print_stats(bare.config, 1.0)
    _, cache, loops, hart = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"  translated: 2 blocks of 6 instructions, \d+ bytes, \d+\.\d ms, \d+ ns an instruction", cache
    )
    assert loops == "  optimizer: 2 loops optimized in 12.3 ms, 1 of them again"
    assert " 1 TLB misses, 0 second-level hits, 0 walks, " in hart
    assert hart.endswith(f", {bare.h.chain_misses} chain misses, 1 slow accesses, {ROUNDS + 1} steps")


def test_the_interpreter_has_no_such_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_machine() as bare:
        loop(bare)
        print_stats(bare.config, 1.0)
    first, hart = capsys.readouterr().err.splitlines()
    assert first.endswith("engine interp") and hart.endswith(" s")
