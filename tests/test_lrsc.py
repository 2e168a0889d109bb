"""LR/SC: which sequences are constrained, and exactness between harts in processes of their own."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from bare import RAM_BASE, Bare, Instruction, bare_machine, encode, i

from mem import regions
from mem.machine import is_ending, machine
from mem.mailbox import ALARM_STOP, sleepers
from mem.mailbox import alarm as ring
from mem.regions import HOST
from mem.reservation import ARMED, LET_GO_NS, NONE, Reservations, dma_wrote
from smp.alarm import fence_i
from smp.boot import check_engine
from smp.config import MachineConfig
from smp.cpu import ConfigError
from smp.decode import NO_SC, WINDOW_LIMIT, sequence_end
from smp.loop import run_hart
from smp.row import ROWS

HARTS = 4
PAGE = 4096
CODE, SHARED, RESULTS = RAM_BASE, RAM_BASE + 0x10_0000, RAM_BASE + 0x20_0000
A0, A1, A2, T0, T1, T2, S0 = 10, 11, 12, 5, 6, 7, 8
ROUNDS = 100_000
TIMEOUT = 240

LR, SC = i("lr.d", rd=T0, rs1=A0), i("sc.d", rd=T1, rs1=A0, rs2=T0)
ADD = i("addi", rd=T0, rs1=T0, imm=1)


@pytest.fixture(scope="module", params=["interp", "jit"])
def harts(request: pytest.FixtureRequest) -> Iterator[Bare]:
    try:
        check_engine(MachineConfig(engine=request.param))
    except ConfigError as error:
        pytest.skip(str(error))
    with bare_machine(harts=HARTS, runs=request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(harts: Bare) -> None:
    harts.reset()
    machine().harts = 1  # the others do not run, and nobody may wait for them
    harts.poke(SHARED, bytes(PAGE))
    harts.poke(RESULTS, bytes(PAGE))


# Classification


@pytest.mark.parametrize(
    ("between", "ends"),
    [
        ([], True),
        ([ADD], True),
        ([i("c.addi", rd=T0, imm=1)], True),
        ([i("bne", rs1=T0, rs2=A1, imm=64)], True),
        ([i("beq", rs1=T0, rs2=A1, imm=8), ADD], True),
        ([i("mul", rd=T0, rs1=T0, rs2=A1), i("lui", rd=T2, imm=0x1000)], True),
        ([ADD] * (WINDOW_LIMIT - 1), True),
        ([ADD] * WINDOW_LIMIT, False),
        ([i("ld", rd=T0, rs1=A1)], False),
        ([i("c.ld", rd=9, rs1=8)], False),
        ([i("sd", rs1=A1, rs2=T0)], False),
        ([i("amoadd.w", rd=T0, rs1=A1)], False),
        ([i("lr.d", rd=T2, rs1=A1)], True),  # this LR's own sequence is not, but the inner one's is
        ([i("jal", imm=8), ADD], False),
        ([i("jalr", rs1=1)], False),
        ([i("fence")], False),
        ([i("fence.i")], False),
        ([i("csrrs", rd=T2, csr=0xC02)], False),
        ([i("fadd.d", rd=1, rs1=1, rs2=1)], False),
        ([i("fld", rd=1, rs1=A1)], False),
        ([i("cbo.zero", rs1=A1)], False),
        ([0x0000], False),
        ([0xFFFF_FFFF], False),
    ],
)
def test_only_register_arithmetic_and_branches_are_constrained(
    harts: Bare, between: list[Instruction], ends: bool
) -> None:
    harts.put(CODE, LR, *between, SC)
    length = 4 + len(encode(*between))
    inner = any(isinstance(item, tuple) and item[0].startswith("lr") for item in between)
    assert sequence_end(HOST + CODE) == (length if ends and not inner else 0)


def test_a_sequence_ends_at_its_page_or_in_a_wait(harts: Bare) -> None:
    harts.put(CODE, LR, i("wrs.sto"), SC)
    assert sequence_end(HOST + CODE) == NO_SC == 1
    harts.put(CODE + PAGE - 8, LR, SC)
    assert sequence_end(HOST + CODE + PAGE - 8) == 4
    for at in (CODE + PAGE - 4, CODE + PAGE - 6):
        harts.put(at, LR, SC)
        assert sequence_end(HOST + at) == 0


def test_an_sc_of_another_size_is_no_end(harts: Bare) -> None:
    for load, store, length in (("w", "d", 0), ("d", "w", 0), ("w", "w", 4)):
        harts.put(CODE, ROWS[f"lr.{load}"].encode(rd=T0, rs1=A0), ROWS[f"sc.{store}"].encode(rd=T1, rs1=A0, rs2=T0))
        assert sequence_end(HOST + CODE) == length


def test_lr_d_with_sc_w_stores_just_when_it_says_so(harts: Bare) -> None:
    """A narrower swap once compared less than the LR had read: it stored and gave 1."""
    h = harts.h
    h.x[A0], h.x[A1] = SHARED, 7
    harts.put_word(SHARED, 0x1122334455667788)
    harts.run_here(i("lr.d", rd=T0, rs1=A0), i("sc.w", rd=T1, rs1=A0, rs2=A1))
    assert harts.word(SHARED) == (0x1122334400000007 if h.x[T1] == 0 else 0x1122334455667788)


def test_a_forward_branch_inside_the_sequence_does_not_stop_it(harts: Bare) -> None:
    """The manual promises that such loops end: a maximum, where nothing is to be done most of the time."""
    h = harts.h
    h.x[A0], h.x[A1] = SHARED, 50
    harts.put_word(SHARED, 100)
    loop = (LR, i("addi", rd=T1, rs1=T0), i("bge", rs1=T0, rs2=A1, imm=8), i("addi", rd=T1, rs1=A1),
            i("sc.d", rd=T2, rs1=A0, rs2=T1), i("bne", rs1=T2, imm=-20))  # fmt: skip
    harts.run_here(*loop)
    assert harts.word(SHARED) == 100 and h.instret == 5
    # Where code is translated it ends all the same, with a watched LR.
    assert harts.config.engine == "jit" or not Reservations.at(regions.RESERVATIONS).watched


def test_an_sc_after_a_branch_out_of_the_sequence_succeeds_in_the_end(harts: Bare) -> None:
    """lr; beq to another SC: the first attempt fails, then the LR is watched."""
    h = harts.h
    h.x[A0] = SHARED
    harts.run_here(
        *(LR, ADD, i("bne", rs1=A0, rs2=0, imm=12), SC, i("ebreak")),
        *(i("addi", rd=T2, rs1=0), SC, i("bne", rs1=T1, rs2=0, imm=-28)),
    )
    assert harts.word(SHARED) == 1 and h.x[T1] == 0 and h.instret == 2 * 6
    assert Reservations.at(regions.RESERVATIONS).watched == 1


@pytest.mark.parametrize("between", [[], [i("ld", rd=T2, rs1=A2)]], ids=["constrained", "watched"])
def test_sc_stores_once(harts: Bare, between: list[Instruction]) -> None:
    h = harts.h
    h.x[A0], h.x[A2] = SHARED, RESULTS
    harts.run_here(LR, *between, i("addi", rd=T0, imm=9), SC, i("sc.d", rd=S0, rs1=A0, rs2=A0))
    assert (h.x[T1], h.x[S0], harts.word(SHARED)) == (0, 1, 9)


# Other stores, at chosen moments: the SC runs by itself later, in this process


def reserve(harts: Bare) -> Callable[[], int]:
    """Run a watched LR of SHARED; gives what runs its SC."""
    h = harts.h
    h.x[A0], h.x[A2] = SHARED, RESULTS
    behind = harts.put(CODE, LR, i("ld", rd=T2, rs1=A2), i("ebreak"))
    harts.put(behind, i("addi", rd=T0, rs1=0, imm=5), SC, i("ebreak"))
    harts.forget_code()
    harts.run(CODE)

    def conditional() -> int:
        harts.run(behind)
        return h.x[T1]

    return conditional


def test_a_watched_reservation_holds(harts: Bare) -> None:
    conditional = reserve(harts)
    assert Reservations.at(regions.RESERVATIONS).granule[0] == SHARED
    assert conditional() == 0 and harts.word(SHARED) == 5
    assert Reservations.at(regions.RESERVATIONS).granule[0] == NONE


@pytest.mark.parametrize(("at", "size", "broken"), [
    (0, 8, 1), (0, 1, 1), (7, 1, 1), (-4, 8, 1), (4, 64, 1), (-8, 8, 0), (8, 8, 0), (-PAGE, 2 * PAGE, 1),
    (8, 2 * PAGE, 0), (-PAGE, PAGE, 0), (PAGE, 8, 0),
])  # fmt: skip
def test_a_device_that_writes_breaks_what_it_touches(harts: Bare, at: int, size: int, broken: int) -> None:
    conditional = reserve(harts)
    dma_wrote(SHARED + at, size)
    assert conditional() == broken


@pytest.mark.parametrize(("instruction", "broken"), [
    (i("sd", rs1=A0, rs2=0), 1), (i("sb", rs1=A0, rs2=0, imm=7), 1), (i("sd", rs1=A0, rs2=0, imm=8), 0),
    (i("sd", rs1=A0, rs2=0, imm=4), 1), (i("sd", rs1=A0, rs2=0, imm=-4), 1), (i("amoadd.w", rs1=A0), 1),
    (i("amocas.d", rs1=A0), 1), (i("amocas.q", rs1=A0, rd=0, rs2=0), 1), (i("cbo.zero", rs1=A0), 1),
    (i("fsd", rs1=A0, rs2=1), 1), (i("ld", rs1=A0), 0), (i("amocas.b", rs1=A0), 1),
])  # fmt: skip
def test_another_harts_store_breaks_it(harts: Bare, instruction: Instruction, broken: int) -> None:
    """Also one that leaves the value as it was (ABA)."""
    conditional = reserve(harts)
    other = harts.put(CODE + 0x800, instruction, i("ebreak"))
    harts.forget_code()
    reservations = Reservations.at(regions.RESERVATIONS)
    # This hart acts as number 1: what it reserved is number 0's.
    harts.h.id = harts.h.mmu.hart = 1
    harts.run(other - 4 if encode(instruction)[0] & 3 != 3 else CODE + 0x800)
    harts.h.id = harts.h.mmu.hart = 0
    assert (reservations.granule[0] == NONE) == bool(broken)
    assert conditional() == broken


def test_its_own_stores_do_not_break_it(harts: Bare) -> None:
    conditional = reserve(harts)
    harts.put(CODE + 0x800, i("sd", rs1=A0, rs2=A0), i("ebreak"))
    harts.forget_code()
    harts.run(CODE + 0x800)
    assert conditional() == 0


def test_a_watched_page_is_let_go_after_a_while(harts: Bare) -> None:
    mark = (ctypes.c_uint8 * 1).from_address(regions.WATCHED + (SHARED - RAM_BASE >> 12))
    reservations = Reservations.at(regions.RESERVATIONS)
    while True:
        began = time.monotonic_ns()
        conditional = reserve(harts)
        assert mark[0] == ARMED and reservations.watched == 1
        assert conditional() == 0
        harts.put(CODE + 0x800, i("sd", rs1=A0, rs2=0, imm=64), i("ebreak"))
        harts.forget_code()
        harts.run(CODE + 0x800)
        found = mark[0]
        if time.monotonic_ns() < began + LET_GO_NS:  # else a busy host took the time
            break
    assert found == ARMED
    time.sleep(LET_GO_NS / 1e9 * 1.5)
    harts.run(CODE + 0x800)
    assert mark[0] == 0 and reservations.watched == 0
    assert reserve(harts)() == 0  # and watched again when it is asked for


# Processes


def run_in_processes(harts: Bare, programs: list[int]) -> None:
    """Fork a process a hart, each with its pc; a hart is done when it writes to its place in RESULTS."""
    children = []
    machine().harts = len(programs)
    for number, pc in enumerate(programs):
        h = harts.hart(number)
        h.pc, h.x[A1] = pc, RESULTS + 8 * number
        child = os.fork()
        if child == 0:
            signal.alarm(TIMEOUT)
            os._exit(0 if run_hart.unlocked(ctypes.addressof(h)) == 1 else 1)
        children.append(child)
    end = time.monotonic() + TIMEOUT
    while not all(harts.word(RESULTS + 8 * n) for n in range(len(programs))) and time.monotonic() < end:
        time.sleep(0.005)
    for number in range(len(programs)):
        ring(number, ALARM_STOP)
    status = [os.waitpid(child, 0)[1] for child in children]
    assert time.monotonic() < end, "a hart did not end"
    assert status == [0] * len(programs) and not is_ending()


def write_done(*also: Instruction) -> list[Instruction]:
    """Tell the test, and wait for the end."""
    return [*also, i("addi", rd=T2, rs1=0, imm=1), i("sd", rs1=A1, rs2=T2), i("jal", imm=0)]


def counted(rounds: int, body: list[Instruction]) -> list[Instruction]:
    """The body `rounds` times."""
    size = len(encode(*body))
    return [
        i("lui", rd=S0, imm=rounds & ~0xFFF),
        i("addi", rd=S0, rs1=S0, imm=rounds & 0x7FF),
        *body,
        i("addi", rd=S0, rs1=S0, imm=-1),
        i("bne", rs1=S0, rs2=0, imm=-4 - size),
    ]


def put_program(harts: Bare, number: int, *instructions: Instruction) -> int:
    at = CODE + number * 2 * PAGE
    harts.put(at, *instructions)
    fence_i(harts.hart(number))  # the test before may have had other code here
    harts.hart(number).x[A0] = SHARED
    harts.hart(number).x[A2] = SHARED + 256
    return at


COUNTERS = {
    "constrained": [LR, ADD, SC, i("bne", rs1=T1, rs2=0, imm=-12)],
    "watched": [LR, i("ld", rd=T2, rs1=A2), ADD, SC, i("bne", rs1=T1, rs2=0, imm=-16)],
    "stray": [LR, ADD, i("bne", rs1=A0, rs2=0, imm=8), SC, SC, i("bne", rs1=T1, rs2=0, imm=-20)],
    "amo": [i("addi", rd=T0, rs1=0, imm=1), i("amoadd.d", rd=0, rs1=A0, rs2=T0)],
    "amocas": [i("ld", rd=T0, rs1=A0), i("addi", rd=T2, rs1=T0, imm=1), i("addi", rd=T1, rs1=T0),
               i("amocas.d", rd=T1, rs1=A0, rs2=T2), i("bne", rs1=T1, rs2=T0, imm=-16)],
}  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [("constrained",) * 4, ("watched",) * 4, ("stray",) * 4, ("constrained", "watched", "stray", "amo"),
     ("watched", "amocas", "amo", "constrained"), ("stray", "amocas", "stray", "amocas")],
    ids="-".join,
)  # fmt: skip
def test_counters_are_exact(harts: Bare, kinds: tuple[str, ...]) -> None:
    rounds = ROUNDS & ~0xFFF
    sleepers().harts, sleepers().cores = len(kinds), 0
    starts = [put_program(harts, n, *counted(rounds, COUNTERS[kind]), *write_done()) for n, kind in enumerate(kinds)]
    run_in_processes(harts, starts)
    assert harts.word(SHARED) == rounds * len(kinds)


STORED_BACK = (i("addi", rd=T0, rs1=0, imm=1), i("sd", rs1=A0, rs2=T0), i("sd", rs1=A0, rs2=0))


@pytest.mark.parametrize("stores", [STORED_BACK, ()], ids=["stored", "left-alone"])
def test_a_watched_sc_never_succeeds_over_stores_that_come_back(harts: Bare, stores: tuple[Instruction, ...]) -> None:
    """ABA: one hart reserves, tells the other, which stores another value and the old one; the SC must fail."""
    rounds = 600
    flag = i("sd", rs1=A2, rs2=S0)
    wait_for_other = [i("ld", rd=T2, rs1=A2, imm=64), i("bne", rs1=T2, rs2=S0, imm=-4)]
    taker = [LR, flag, *wait_for_other, SC, i("sltiu", rd=T1, rs1=T1, imm=1), i("add", rd=9, rs1=9, rs2=T1)]
    wait_for_taker = [i("ld", rd=T2, rs1=A2), i("bne", rs1=T2, rs2=S0, imm=-4)]
    storer = [*wait_for_taker, *stores, i("fence", pred=3, succ=3), i("sd", rs1=A2, rs2=S0, imm=64)]
    starts = [put_program(harts, 0, *counted(rounds, taker), *write_done(i("sd", rs1=A1, rs2=9, imm=512))),
              put_program(harts, 1, *counted(rounds, storer), *write_done())]  # fmt: skip
    run_in_processes(harts, starts)
    assert harts.word(RESULTS + 512) == (0 if stores else rounds)
    assert harts.word(SHARED) == 0
