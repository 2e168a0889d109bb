"""Code that changes, and the optimizer's loops, as the counters and the inside of the translator show them.

What the guest sees of it is in the programs of tests/guest; the one here needs the built-in SBI.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import RAM_BASE, Bare, bare_machine, i
from test_guest_programs import TIMEOUT, build, builder

from mem.machine import machine
from mem.regions import CODE_TABLE, HOT
from mem.tlb import NO_FAULT
from smp.codecache import CodePage, CodeTable, page_record
from smp.hart import MPP, MPP_SHIFT, SUPERVISOR
from smp.hot import HotBlocks, note_busy
from smp.optimizer import Optimizer
from smp.translated import run_translated

ROOT = Path(__file__).resolve().parent.parent
JIT = ("--engine", "jit", "--stats")


@pytest.fixture
def bare(translator: None) -> Iterator[Bare]:
    with bare_machine(runs="jit") as made:
        yield made


def test_a_sample_of_what_cannot_be_fetched_is_no_fault(bare: Bare) -> None:
    """A return to an unmapped page uses the quantum up; an interrupt may be taken before anything is fetched there."""
    h = bare.h
    bare.put(RAM_BASE, i("mret"))
    h.mmu.satp = 8 << 60 | (RAM_BASE + 0x10_0000) >> 12
    h.mstatus = h.mstatus & ~MPP | SUPERVISOR << MPP_SHIFT
    h.mepc, h.pc = RAM_BASE + 0x1000, RAM_BASE
    machine().optimizer_fd = -1
    assert run_translated(h, 8)
    assert (h.pc, h.privilege, h.mmu.walks) == (h.mepc, SUPERVISOR, 1)
    assert h.mmu.cause == NO_FAULT


def test_one_page_at_many_virtual_addresses_is_counted_apart(bare: Bare) -> None:
    blocks = [(RAM_BASE, vpc, 1) for vpc in (RAM_BASE, 0x1000, 0x4_0000_0000, 0x4_0020_0000)]
    for _ in range(10):
        for block in blocks:
            note_busy(*block, 0)
    found = {(b.ppc, b.vpc, b.version): b.samples for b in HotBlocks.at(HOT).block if b.samples}
    assert found == dict.fromkeys(blocks, 10)


def test_a_loop_counts_as_code_in_the_cache(bare: Bare) -> None:
    bare.run_here(i("addi", rd=5, rs1=5, imm=1), i("bltu", rs1=5, rs2=6, imm=-4))
    table = CodeTable.at(CODE_TABLE)
    before = table.used
    assert Optimizer().optimize(RAM_BASE, CodePage.at(page_record(RAM_BASE)).version, RAM_BASE, 0)
    assert before < table.used < before + 4096


def run(elf: Path, harts: int, *options: str) -> str:
    """What a machine with this kernel printed on stderr; it ended with success."""
    done = subprocess.run(
        [sys.executable, "-m", "smp", "-smp", str(harts), "-m", "64M", "-nographic", "-kernel", str(elf), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.conformance
@pytest.mark.usefixtures("translator")
@pytest.mark.parametrize("harts", [1, 2, 4])
def test_stores_beside_code_make_nothing_anew(harts: int) -> None:
    """Hundreds of thousands of stores; each of the four fence.i of a hart may have the loop's blocks made once more."""
    stats = run(build("code_beside_data"), harts, "-bios", "none", *JIT)
    blocks = re.search(r"(\d+) blocks", stats)
    assert blocks and int(blocks[1]) < 300, stats


@pytest.mark.conformance
@pytest.mark.usefixtures("translator")
def test_what_runs_long_is_optimized() -> None:
    """So that the program does test the optimizer."""
    for program in ("hot_loops", "far_loops"):
        loops = re.search(r"(\d+) loops optimized", stats := run(build(program), 2, "-bios", "none", *JIT))
        assert loops and int(loops[1]) >= 2, stats


# Hart 1 counts in memory, in a loop; hart 0 unmaps the page and has the SBI tell it, three times, then changes a loop.
REMOTE_FENCES = """
    .equ WINDOW, 0x400000000
    .equ WAIT, 3000000
    .macro until address, register
    lla t0, \\address
8:  ld t1, 0(t0)
    bne t1, \\register, 8b
    fence r, rw
    .endm
    .macro tell address, register
    fence rw, w
    lla t0, \\address
    sd \\register, 0(t0)
    .endm
    .macro sbi extension, function
    li a7, \\extension
    li a6, \\function
    ecall
    bnez a0, fail
    .endm
    .macro delay
    rdtime t0
    li t1, WAIT
    add t0, t0, t1
8:  rdtime t1
    bltu t1, t0, 8b
    .endm
    .macro point table, index, to
    lla t0, \\table
    lla t1, \\to
    srli t1, t1, 2
    ori t1, t1, 1
    sd t1, 8 * \\index(t0)
    .endm

    .option norvc
    .globl _start
_start:
    lla t0, root
    li t1, 0x200000cf
    sd t1, 8 * 2(t0)
    point root, 16, middle
    point middle, 0, last
    li a0, 1
    lla a1, worker
    sbi 0x48534d, 0
    li s1, 1
rounds:
    lla t0, data
    srli t1, t0, 2
    ori t1, t1, 0xc7
    lla t0, last
    sd t1, 0(t0)
    tell go, s1
    until started, s1
    delay
    lla t0, last
    sd zero, 0(t0)
    li a0, 2
    li a1, 0
    li a2, 0
    li a3, -1
    sbi 0x52464e43, 1
    lla s2, data
    ld s3, 0(s2)
    beqz s3, fail
    until ended, s1
    ld t0, 0(s2)
    bne t0, s3, fail
    addi s1, s1, 1
    li t0, 4
    bne s1, t0, rounds

    tell go, s1
    until started, s1
    delay
    lla t0, spin
    li t1, 0x8067
    sw t1, 4(t0)
    fence rw, rw
    li a0, 2
    li a1, 0
    sbi 0x52464e43, 0
    until ended, s1
    li t1, 0x5555
    j finish
fail:
    li t1, 0x13333
finish:
    li t0, 0x100000
    sw t1, 0(t0)
    j .

worker:
    lla t0, root
    srli t0, t0, 12
    li t1, 8 << 60
    or t0, t0, t1
    csrw satp, t0
    lla t0, fault
    csrw stvec, t0
    li s1, 1
again:
    until go, s1
    sfence.vma
    li t0, 4
    beq s1, t0, turns
    li a0, WINDOW
    lla t0, data
    sd zero, 0(t0)
    li a3, 0
    tell started, s1
count:
    ld a2, 0(a0)
    addi a2, a2, 1
    sd a2, 0(a0)
    addi a3, a3, 1
    j count
    .balign 4
fault:
    csrr t0, scause
    lla t2, count
    li t1, 13
    beq t0, t1, 1f
    li t1, 15
    bne t0, t1, bad
    addi t2, t2, 8
    addi a2, a2, -1
1:  csrr t0, sepc
    bne t0, t2, bad
    csrr t0, stval
    bne t0, a0, bad
    bne a2, a3, bad
    lla t0, data
    ld t0, 0(t0)
    bne t0, a3, bad
    tell ended, s1
    addi s1, s1, 1
    j again
bad:
    j bad
turns:
    tell started, s1
    lla t0, spin
    jalr t0
    tell ended, s1
    j .

    .balign 4096
spin:
    addi a3, a3, 1
    j spin
    .balign 4096
root: .skip 4096
middle: .skip 4096
last: .skip 4096
data: .skip 4096
go: .dword 0
started: .dword 0
ended: .dword 0
"""


@pytest.mark.conformance
def test_remote_fences_of_the_sbi_reach_a_busy_loop(tmp_path: Path) -> None:
    try:
        compiler = builder.compiler()
    except builder.NoCompiler as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    (source := tmp_path / "fences.S").write_text(REMOTE_FENCES)
    flags = ["-march=rv64gc", "-mabi=lp64d", "-mno-relax", "-nostdlib", "-static", "-Wl,-N", "-Wl,-Ttext=0x80200000"]
    flags += ["-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments"]
    subprocess.run([compiler, *flags, source, "-o", tmp_path / "fences"], check=True)
    run(tmp_path / "fences", 2, *os.environ.get("HARTBEAT_GUEST_ARGS", "").split())
