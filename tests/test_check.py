"""--engine check: what the translator does is compared with what the interpreter foretells, and differences are found.

A difference is made by rewriting an instruction without a fence.i: the translator may go on with the old one, and the
interpreter that foretells reads the new one.
"""

from collections.abc import Iterator

import pytest
from bare import Bare, Instruction, bare_machine, i
from console import started
from test_machine import Assemble, guest  # noqa: F401

from mem.memmap import RAM_BASE
from mem.regions import CHECK, CHECK_BYTES, unmap
from smp.check import prepare_check, run_checked
from smp.check_report import report
from smp.config_check import check
from smp.cpu import ConfigError
from smp.options import parse

DATA = RAM_BASE + 0x8000


@pytest.fixture
def bare() -> Iterator[Bare]:
    with bare_machine(runs="check") as made:
        prepare_check()
        yield made
        unmap(CHECK, CHECK_BYTES)


def run(bare: Bare, *instructions: Instruction) -> None:
    """Run until the ebreak, or until a difference is found."""
    bare.put(RAM_BASE, *instructions, i("jal", rd=0, imm=4), i("ebreak"))
    again(bare)


def again(bare: Bare) -> None:
    h = bare.h
    h.pc, h.x[9], h.x[10], traps = RAM_BASE, DATA, DATA + 64, h.traps
    for _ in range(1000):
        run_checked(h)
        if h.traps != traps or h.check_failed:
            return
    raise AssertionError(f"no end, pc {h.pc:#x}")


LOOP = (
    i("addi", rd=5, rs1=0, imm=100),
    i("addi", rd=6, rs1=6, imm=3),
    i("sd", rs1=9, rs2=6, imm=0),
    i("lw", rd=7, rs1=9, imm=0),
    i("amoadd.d", rd=8, rs1=10, rs2=6, aq=0, rl=0),
    i("fsd", rs1=9, rs2=3, imm=8),
    i("addi", rd=5, rs1=5, imm=-1),
    i("bne", rs1=5, rs2=0, imm=-24),
)


def test_a_loop_is_compared_from_end_to_end(bare: Bare) -> None:
    run(bare, *LOOP)
    assert not bare.h.check_failed
    assert bare.h.instret == bare.h.compared == 1 + 7 * 100 + 1
    assert bare.h.x[6] == bare.h.x[7] == 300 and bare.word(DATA + 64) == bare.h.x[8] + 300


@pytest.mark.parametrize(
    ("at", "instead", "text"),
    [
        (1, i("addi", rd=6, rs1=6, imm=4), "t1: interpreter"),
        (2, i("sd", rs1=9, rs2=5, imm=0), "t2: interpreter"),
        (5, i("fsd", rs1=9, rs2=4, imm=8), f"8 bytes at {DATA + 8:#x}: interpreter 0x7777, translator 0x0"),
        (7, i("beq", rs1=5, rs2=0, imm=-24), "pc: interpreter"),
        (3, i("lw", rd=7, rs1=0, imm=0), "mcause: 0x3 becomes 0x5"),
    ],
)
def test_a_difference_is_found(bare: Bare, at: int, instead: Instruction, text: str) -> None:
    bare.h.f[4] = 0x7777
    bare.h.x[6] = 0
    run(bare, *LOOP)
    assert not bare.h.check_failed
    bare.put(RAM_BASE + 4 * at, instead)
    again(bare)
    assert bare.h.check_failed
    said = report(bare.h)
    assert text in said
    assert f"{RAM_BASE:#018x}:  06400293  addi t0,zero,100" in said


def test_a_trap_is_compared(bare: Bare) -> None:
    run(bare, i("addi", rd=5, rs1=0, imm=1), i("ld", rd=6, rs1=5, imm=0))
    assert not bare.h.check_failed
    assert (bare.h.mcause, bare.h.mtval, bare.h.compared) == (5, 1, 1)


def test_stores_are_done_once(bare: Bare) -> None:
    bare.put_word(DATA, 5)
    run(bare, i("addi", rd=5, rs1=0, imm=7), i("amoadd.d", rd=6, rs1=9, rs2=5, aq=0, rl=0))
    assert (bare.h.x[6], bare.word(DATA)) == (5, 12)


def test_a_store_is_forwarded_to_loads_of_its_bytes(bare: Bare) -> None:
    bare.put_word(DATA, 0x1111111111111111)
    run(
        bare,
        i("addi", rd=5, rs1=0, imm=-1),
        i("sh", rs1=9, rs2=5, imm=2),
        i("sb", rs1=9, rs2=0, imm=3),
        i("ld", rd=6, rs1=9, imm=0),
        i("lh", rd=7, rs1=9, imm=1),
        i("lhu", rd=8, rs1=9, imm=2),
    )
    assert not bare.h.check_failed and bare.h.compared == 7
    assert (bare.h.x[6], bare.h.x[7], bare.h.x[8]) == (0x1111111100FF1111, (1 << 64) - 0xEF, 0xFF)


def test_an_sc_succeeds(bare: Bare) -> None:
    """Its LR ends a window, so translated code is left between the two."""
    loop = (
        i("lr.d", rd=6, rs1=9, aq=0, rl=0),
        i("blt", rs1=6, rs2=0, imm=16),
        i("addi", rd=6, rs1=6, imm=1),
        i("sc.d", rd=7, rs1=9, rs2=6, aq=0, rl=0),
        i("bne", rs1=7, rs2=0, imm=-16),
    )
    run(bare, i("addi", rd=5, rs1=0, imm=10), *loop, i("addi", rd=5, rs1=5, imm=-1), i("bne", rs1=5, rs2=0, imm=-24))
    assert not bare.h.check_failed and bare.word(DATA) == 10


def test_it_compares_one_hart() -> None:
    with pytest.raises(ConfigError, match="use -smp 1"):
        check(parse(["-kernel", __file__, "--engine", "check", "-smp", "2"]))


PROGRAM = """
    only_first
    li s0, 0
    li s1, 2
again:
    li t0, 100
1:  addi t1, t1, 1
patched:
    addi t2, t2, 1
    addi t0, t0, -1
    bnez t0, 1b
    addi s0, s0, 1
    beq s0, s1, out
    lla t3, patched
    li t4, NEW
    sw t4, 0(t3)
    FENCE
    j again
out:
    finish 0x5555
"""


@pytest.mark.conformance
@pytest.mark.parametrize(("fence", "status"), [("fence.i", 0), ("nop", 1)])
def test_a_machine_ends_at_the_first_difference(guest: Assemble, fence: str, status: int) -> None:  # noqa: F811
    program = PROGRAM.replace("NEW", "0x00238393").replace("FENCE", fence)  # addi t2, t2, 2
    with started("-nographic", "--engine", "check", "-kernel", guest(".option norvc\n" + program), harts=1) as console:
        assert console.wait() == status
        assert (b"t2: interpreter" in console.errors) == (status == 1)
