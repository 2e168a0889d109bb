"""Floating point in translated code: every row against the definition, and what surrounds it, FS, frm and MXCSR."""

import random
import struct

import pytest
from bare import RAM_BASE, Bare, Instruction, i
from lockstep import compare, make, single

from mem.regions import CODE_TABLE
from smp.codecache import CodeTable
from smp.fpformat import NV, NX, D, S
from smp.hart import FS, ILLEGAL
from smp.row import ROWS, Kind, Row
from smp.rows import ALL_EXTENSIONS
from smp.templates_fp import TEMPLATES

PROGRAMS = 150
SINGLES = 60
OTHERS = ("add", "addi", "beq", "jal", "jalr", "csrrs", "csrrwi")
INITIAL, CLEAN, DIRTY = 1 << 13, 2 << 13, 3 << 13
RNE, RTZ, RDN, RUP, RMM, RESERVED, DYN = 0, 1, 2, 3, 4, 5, 7
ONE, THIRD, THREE = 0x3FF0000000000000, 0x3FD5555555555555, 0x4008000000000000
QUIET_NAN, SIGNALING_NAN, INFINITY = D.nan, D.infinity | 1, D.infinity
BOXED = 0xFFFFFFFF << 32
DIVIDE = i("fdiv.d", rd=2, rs1=0, rs2=1, rm=DYN)


@pytest.fixture
def bare(translating: Bare) -> Bare:
    translating.reset()
    return translating


def rows_of(*formats: object) -> list[Row]:
    """Floating-point rows, with few others."""
    kinds = (Kind.FP, Kind.FLOAD, Kind.FSTORE)
    rows = [row for row in ROWS.values() if row.kind in kinds and (row.to or row.fmt) in (*formats, None)]
    return rows * 3 + [ROWS[name] for name in OTHERS]


@pytest.mark.parametrize("formats", [(D,), (S,), (S, D)], ids=["d", "s", "both"])
def test_programs_do_what_is_defined(bare: Bare, formats: tuple[object, ...]) -> None:
    for seed in range(PROGRAMS):
        program = make(random.Random(f"{len(formats)} {formats[0]} {seed}"), rows_of(*formats))
        _, different = compare(bare, program, ALL_EXTENSIONS)
        assert not different, f"seed {seed}: {different}"
    assert not CodeTable.at(CODE_TABLE).emptied


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_do_what_is_defined(bare: Bare, name: str) -> None:
    for seed in range(SINGLES):
        program = single(random.Random(f"{name} {seed}"), ROWS[name])
        _, different = compare(bare, program, ALL_EXTENSIONS)
        assert not different, f"{name}, seed {seed}: {different}"


BORDERS = [
    (name, value)
    for name in ("fcvt.w.d", "fcvt.wu.d", "fcvt.l.d", "fcvt.lu.d", "fcvt.s.d")
    for value in (
        -(2.0**31), -(2.0**31) - 0.5, -(2.0**31) - 1, 2.0**31 - 1, 2.0**31 - 0.5, 2.0**31, 2.0**32 - 1, 2.0**32 - 0.5,
        2.0**32, -(2.0**63), -(2.0**63) - 2048, 2.0**63 - 1024, 2.0**63, 2.0**64 - 2048, 2.0**64, -0.5, -1.0, -1.5, 0.5,
        -0.0, 1e-40, 3.5e38, float("inf"), float("-inf"), float("nan"),
    )
]  # fmt: skip


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


@pytest.mark.parametrize("mode", [RNE, RTZ, RDN, RUP, RMM, RESERVED])
@pytest.mark.parametrize("rm", [RTZ, DYN])
def test_conversions_at_their_borders(bare: Bare, mode: int, rm: int) -> None:
    for name, value in BORDERS:
        program = single(random.Random(name), ROWS[name])
        program.f, program.fcsr = [bits(value)] * 32, mode << 5
        program.words[0] = ROWS[name].encode(rd=5, rs1=3, rm=rm)
        program.code = b"".join(word.to_bytes(4, "little") for word in program.words)
        _, different = compare(bare, program, ALL_EXTENSIONS)
        assert not different, f"{name} {value}: {different}"


def run(bare: Bare, *instructions: Instruction) -> int:
    """Run these and an ebreak; gives the cause of the trap."""
    return bare.run_here(*instructions).cause


def test_a_loop_of_floating_point_needs_no_step(bare: Bare) -> None:
    bare.h.f[0], bare.h.f[1] = ONE, THREE
    bare.h.f[3] = bare.h.f[4] = BOXED | 0x3F800000
    bare.h.x[10] = RAM_BASE + 0x2000
    bare.put(
        RAM_BASE, DIVIDE, i("fmadd.d", rd=2, rs1=2, rs2=0, rs3=1, rm=DYN), i("fadd.s", rd=3, rs1=3, rs2=4, rm=DYN),
        i("fsd", rs1=10, rs2=2, imm=0), i("fld", rd=5, rs1=10, imm=0), i("fsgnjn.d", rd=5, rs1=5, rs2=5),
        i("fmin.d", rd=6, rs1=5, rs2=2), i("flt.d", rd=11, rs1=5, rs2=2), i("fcvt.w.d", rd=12, rs1=5, rm=RTZ),
        i("fcvt.d.w", rd=7, rs1=12, rm=RNE), i("jal", rd=0, imm=-40),
    )  # fmt: skip
    bare.forget_code()
    bare.h.pc, bare.h.stepped = RAM_BASE, 7  # a step makes it 0 or 1
    assert bare.step() is None
    assert bare.h.instret >= 10_000 and bare.h.stepped == 7
    assert bare.h.fflags == NX and bare.h.x[12] == (1 << 64) - 3


@pytest.mark.parametrize("state", [INITIAL, CLEAN, DIRTY])
def test_floating_point_makes_the_state_dirty(bare: Bare, state: int) -> None:
    bare.h.f[0], bare.h.f[1] = ONE, THREE
    for _ in range(2):
        bare.h.mstatus = bare.h.mstatus & ~FS | state
        run(bare, i("addi", rd=5, rs1=0, imm=1), DIVIDE, i("fadd.d", rd=3, rs1=2, rs2=2, rm=DYN))
        assert bare.h.mstatus & FS == DIRTY
        assert bare.h.f[2] == THIRD and bare.h.f[3] == THIRD + (1 << 52)


def test_floating_point_is_illegal_while_it_is_off(bare: Bare) -> None:
    program = i("addi", rd=5, rs1=0, imm=1), DIVIDE, DIVIDE
    run(bare, *program)
    before = bare.h.instret
    bare.h.mstatus &= ~FS
    bare.h.f[2] = 5
    trapped = bare.run_here(*program)
    assert (trapped.cause, trapped.pc) == (ILLEGAL, RAM_BASE + 4) and bare.h.f[2] == 5
    assert bare.h.instret == before + 1


def test_a_change_of_frm_counts_at_once(bare: Bare) -> None:
    """All modes in one block, those that the host has and those that it has not."""
    bare.h.f[0], bare.h.f[1] = ONE, THREE
    program: list[Instruction] = []
    for mode in (RUP, RDN, RMM, RTZ, RNE):
        program += [i("csrrwi", rd=0, csr=2, rs1=mode), i("fdiv.d", rd=10 + mode, rs1=0, rs2=1, rm=DYN)]
    run(bare, *program)
    assert [value - THIRD for value in bare.h.f[10:15]] == [0, 0, 0, 1, 0]
    bare.h.pc = RAM_BASE
    reserved = i("csrrwi", rd=0, csr=2, rs1=RESERVED)
    assert run(bare, DIVIDE, reserved, DIVIDE) == ILLEGAL
    assert bare.h.mepc == RAM_BASE + 8


def test_flags_are_read_and_written_between_operations(bare: Bare) -> None:
    bare.h.f[0], bare.h.f[1] = ONE, THREE
    read = [i("csrrs", rd=10 + n, csr=1, rs1=0) for n in range(3)]
    run(bare, DIVIDE, read[0], i("csrrwi", rd=0, csr=1, rs1=NV), read[1], DIVIDE, read[2])
    assert list(bare.h.x[10:13]) == [NX, NV, NV | NX]


def test_flags_survive_a_jump_to_code_not_yet_translated(bare: Bare) -> None:
    bare.h.f[0], bare.h.f[1] = ONE, THREE
    run(bare, DIVIDE, i("jal", rd=0, imm=8), DIVIDE, i("csrrs", rd=10, csr=1, rs1=0))
    assert bare.h.x[10] == NX


def test_the_hosts_state_and_the_guests_stay_apart(bare: Bare) -> None:
    bare.h.f[0], bare.h.f[1] = ONE, ONE
    bare.h.frm = RUP
    numbers = [0.1 * n for n in range(100)]
    run(bare, DIVIDE)
    assert bare.h.fflags == 0
    assert [0.1 * n for n in range(100)] == numbers


@pytest.mark.parametrize(
    ("a", "b", "c", "flags"),
    [(INFINITY, 0, QUIET_NAN, NV), (ONE, ONE, QUIET_NAN, 0), (ONE, ONE, SIGNALING_NAN, NV), (INFINITY, 0, ONE, NV)],
)
def test_fused_nans_are_canonical(bare: Bare, a: int, b: int, c: int, flags: int) -> None:
    bare.h.f[0], bare.h.f[1], bare.h.f[2] = a, b, c | D.sign_bit
    run(bare, i("fmadd.d", rd=3, rs1=0, rs2=1, rs3=2, rm=DYN))
    assert (bare.h.f[3], bare.h.fflags) == (QUIET_NAN, flags)
