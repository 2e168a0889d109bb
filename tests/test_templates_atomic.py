"""Templates of atomics and bit manipulation: programs that are full of them against the living definition, what they
leave to the interpreter, and what LR/SC costs."""

import ctypes
import random

import pytest
from bare import RAM_BASE, Bare, Instruction, i
from lockstep import candidates, compare, make, single

from mem.regions import CODE, CODE_ALIAS, CODE_TABLE
from smp import template_table
from smp.codecache import CodeTable
from smp.cpu import EXT_A, EXT_ZABHA, EXT_ZACAS, EXT_ZBA, EXT_ZBB, EXT_ZBKB, EXT_ZBS, EXT_ZCB, EXT_ZICOND
from smp.decode import LIST
from smp.hart import MACHINE, USER
from smp.row import ROWS, Kind, Row
from smp.rows import ALL_EXTENSIONS
from smp.templates_atomic import t_fence

FAMILIES = (EXT_A, EXT_ZABHA, EXT_ZACAS, EXT_ZBA, EXT_ZBB, EXT_ZBKB, EXT_ZBS, EXT_ZCB, EXT_ZICOND)
STEPS = {"amocas.q"}  # its operands are register pairs, two of which the host wants in registers that are taken
PROGRAMS, SINGLES = 200, 6
CELL = RAM_BASE + 0x10_0000
A0, A1, T0, T1 = 10, 11, 5, 6
LOCKED_OR = bytes.fromhex("f0830c2400")


@pytest.fixture
def fresh(translating: Bare) -> Bare:
    translating.reset()
    return translating


def is_of_family(row: Row) -> bool:
    return any(ext & family for ext in row.ext for family in FAMILIES) or row.name == "mulhsu"


def test_every_row_of_the_families_has_a_template() -> None:
    steps = [row.name for n, row in enumerate(LIST) if template_table.TEMPLATE[n] == template_table.STEP_TEMPLATE]
    assert {name for name in steps if is_of_family(ROWS[name])} == STEPS


@pytest.mark.parametrize("row", [row for row in LIST if is_of_family(row)], ids=lambda row: row.name)
def test_an_instruction_does_what_is_defined(translating: Bare, row: Row) -> None:
    for seed in range(SINGLES):
        _, different = compare(translating, single(random.Random(f"{row.name} {seed}"), row), ALL_EXTENSIONS)
        assert not different, f"seed {seed}: {different}"


@pytest.mark.parametrize("privilege", [USER, MACHINE])
def test_programs_of_the_families_do_what_is_defined(translating: Bare, privilege: int) -> None:
    jumps = (Kind.BRANCH, Kind.JAL, Kind.JALR)
    rows = [row for row in candidates(privilege, ALL_EXTENSIONS) if is_of_family(row) or row.kind in jumps]
    for seed in range(PROGRAMS):
        program = make(random.Random(f"atomics {privilege} {seed}"), rows, privilege, count=100)
        _, different = compare(translating, program, ALL_EXTENSIONS)
        assert not different, f"seed {seed}: {different}"


def steps_of(bare: Bare, *loop: Instruction) -> int:
    """How many instructions the interpreter executes for translated code in 100 turns, the first ones aside."""
    h = bare.h
    count = i("addi", rd=A1, rs1=A1, imm=-1)
    size = sum(ROWS[item[0]].bits // 8 for item in (*loop, count) if isinstance(item, tuple))
    again = i("bne", rs1=A1, imm=-size)
    for turns in (2, 100):
        h.x[A0], h.x[A1], h.slow_steps = CELL, turns, 0
        bare.run_here(*loop, count, again)
    return int(h.slow_steps)


LR, SC = i("lr.d", rd=T0, rs1=A0), i("sc.d", rd=T1, rs1=A0, rs2=T0)
ADD = i("addi", rd=T0, rs1=T0, imm=1)


def test_a_constrained_sequence_never_leaves_translated_code(fresh: Bare) -> None:
    fresh.put_word(CELL, 0)
    # The ebreak at the end is a step.
    assert steps_of(fresh, LR, ADD, SC, i("bne", rs1=T1, imm=-12)) <= 3
    assert fresh.word(CELL) == 102


def test_nor_does_one_that_is_left_by_a_branch(fresh: Bare) -> None:
    fresh.h.x[A0], fresh.h.x[T0] = CELL, 7
    fresh.run_here(i("sd", rs1=A0, rs2=T0))  # an LR of a page that was never written to is a step
    out = i("bne", rs1=T0, imm=12)
    assert steps_of(fresh, LR, out, SC, i("bne", rs1=T1, imm=-12)) <= 3


def test_an_lr_whose_sequence_was_misjudged_gets_a_watched_one(fresh: Bare) -> None:
    """The SC behind the branch fails once; from then on the LR is the interpreter's, and the loop goes on."""
    fresh.put_word(CELL, 5)
    loop = (LR, i("bne", rs1=T0, imm=8), SC, i("addi", rd=T0, rs1=T0, imm=1), SC, i("bne", rs1=T1, imm=-20))
    fresh.h.x[A0] = CELL
    fresh.run_here(*loop)
    assert fresh.word(CELL) == 6


def test_the_end_of_a_fused_sequence_ends_an_older_reservation(fresh: Bare) -> None:
    h = fresh.h
    h.x[A0], h.x[A1] = CELL, CELL + 64
    watched = (i("lr.d", rd=T0, rs1=A1), i("fence", pred=3, succ=3))
    late = i("sc.d", rd=9, rs1=A1, rs2=T0)
    fresh.run_here(*watched, LR, ADD, SC, late)
    assert (h.x[T1], h.x[9]) == (0, 1)


@pytest.mark.parametrize(
    ("pred", "succ", "fm", "orders"),
    [(3, 3, 0, 1), (1, 2, 0, 1), (4, 8, 0, 1), (15, 15, 0, 1), (3, 3, 8, 0), (2, 3, 0, 0), (3, 1, 0, 0), (1, 1, 0, 0),
     (2, 2, 0, 0), (10, 15, 0, 0), (15, 5, 0, 0), (0, 0, 0, 0)],
)  # fmt: skip
def test_only_stores_before_loads_cost_a_fence(translating: Bare, pred: int, succ: int, fm: int, orders: int) -> None:
    asm = CodeTable.at(CODE_TABLE).asm
    before = asm.out
    asm.out = at = CODE + 0x10_0000
    asm.word = ROWS["fence"].encode(pred=pred, succ=succ, fm=fm)
    t_fence(asm.decoded, 0, 0)
    made = ctypes.string_at(at + CODE_ALIAS, asm.out - at)
    asm.out = before
    assert made == (LOCKED_OR if orders else b"")
