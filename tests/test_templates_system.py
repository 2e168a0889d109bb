"""CSR instructions as translated code does them, against the interpreter: same registers, same hart record."""

import random
from collections.abc import Iterator

import pytest
from bare import RAM_BASE, Bare, Instruction, bare_machine, i

from mem.machine import machine
from smp.csr import CSRS
from smp.hart import FP_ALLOWED, FS, MPRV, MXR, SIE, SPIE, SPP, SUM, SUPERVISOR, USER
from smp.hart import MACHINE as MACHINE_MODE
from smp.interpreter import run_quantum
from smp.translated import run_translated
from smp.trap import due_interrupt

DATA = RAM_BASE + 0x8000
NOP = i("addi", rd=0, rs1=0, imm=0)
OPERATIONS = ("csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci")
NAMES = ("sstatus", "sscratch", "sepc", "scause", "stval", "mscratch", "mepc", "mcause", "mtval", "stvec", "mideleg",
         "mhartid", "sie")  # fmt: skip
FIELDS = ("mstatus", "privilege", "sscratch", "sepc", "scause", "stval", "mscratch", "mepc", "mcause",
          "mtval", "stvec", "mideleg", "mie", "pc", "instret")  # fmt: skip
STORAGE = ("sscratch", "sepc", "scause", "stval", "mscratch", "mepc", "mcause", "mtval")
NUMBERS = {row.name: number for number, row in CSRS.items()}
MMU_FIELDS = ("data", "sum", "mxr", "data_privilege")
BITS = (0, SIE, SPIE, SPP, FS, SUM, MXR, SUM | FS, SIE | SUM, (1 << 64) - 1)


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    with bare_machine(runs="jit") as made:
        yield made


def state(bare: Bare) -> dict[str, int]:
    h = bare.h
    found = {name: getattr(h, name) for name in FIELDS} | {name: getattr(h.mmu, name) for name in MMU_FIELDS}
    return found | {f"x{n}": h.x[n] for n in range(1, 32)}


def instructions(source: random.Random) -> list[Instruction]:
    made: list[Instruction] = []
    for _ in range(4):
        operation, register, rd = source.choice(OPERATIONS), NUMBERS[source.choice(NAMES)], source.randrange(32)
        if operation.endswith("i"):
            made.append(i(operation, rd=rd, csr=register, rs1=source.randrange(32)))
        else:
            made.append(i(operation, rd=rd, csr=register, rs1=source.choice((0, 5, 10, 28, rd))))
    return [*made, i("ebreak")]


def prepare(bare: Bare, seed: str) -> None:
    """The same state each time."""
    source = random.Random(seed)
    bare.reset()
    bare.put(RAM_BASE, *instructions(source))
    bare.forget_code()
    h = bare.h
    for n in range(1, 32):
        h.x[n] = source.choice((source.choice(BITS), source.getrandbits(64)))
    for name in STORAGE:
        setattr(h, name, source.getrandbits(64))
    h.mstatus = source.choice((0, FS)) | sum(bit for bit in (SIE, SUM, MXR, SPIE) if source.random() < 0.5)
    h.mstatus |= source.choice((0, 0, 0, MPRV))
    h.frm = source.randrange(8)
    h.mie, h.mideleg = 0x222, 0x222
    h.timers = source.choice((0, 0x20))
    h.pc = RAM_BASE
    bare.enter(source.choice((SUPERVISOR, SUPERVISOR, SUPERVISOR, MACHINE_MODE, USER)))


@pytest.mark.parametrize("seed", range(400))
def test_as_the_interpreter(bare: Bare, seed: int) -> None:
    prepare(bare, f"csr {seed}")
    while bare.h.traps == 0:
        run_quantum(bare.h, 100)
    expected = state(bare)
    prepare(bare, f"csr {seed}")
    while not bare.step():
        pass
    assert state(bare) == expected
    assert bare.h.fp_inline & FP_ALLOWED == (FP_ALLOWED if bare.h.mstatus & FS == FS and bare.h.frm < 4 else 0)


@pytest.mark.parametrize("enable", [i("csrrsi", rd=0, csr=0x100, rs1=2), i("csrrw", rd=0, csr=0x100, rs1=10)])
def test_enabling_a_pending_interrupt_leaves_at_once(bare: Bare, enable: Instruction) -> None:
    bare.reset()
    bare.put(RAM_BASE, enable, i("addi", rd=5, rs1=0, imm=1), i("addi", rd=5, rs1=0, imm=2), i("ebreak"))
    bare.forget_code()
    h = bare.h
    h.pc, h.x[10], h.mie, h.mideleg, h.soft_pending = RAM_BASE, SIE, 0x200, 0x200, 0x200
    bare.enter(SUPERVISOR)
    bare.step()
    assert (h.pc, h.x[5]) == (RAM_BASE + 4, 0)
    assert due_interrupt(h) == 9


def test_a_deadline_that_software_saw_pass_interrupts_when_enabled(bare: Bare) -> None:
    """rdtime past stimecmp with interrupts off, then on."""
    bare.reset()
    bare.put(RAM_BASE, i("csrrs", rd=5, csr=0xC01, rs1=0), i("csrrsi", rd=0, csr=0x100, rs1=2), i("ebreak"))
    bare.forget_code()
    h = bare.h
    h.pc, h.mie, h.mideleg, h.mcounteren, h.stimecmp = RAM_BASE, 0x20, 0x20, 7, 0
    h.mmu.menvcfg = 1 << 63
    bare.enter(SUPERVISOR)
    bare.step()
    assert h.pc == RAM_BASE + 8
    assert due_interrupt(h) == 5


def test_what_may_wait_leaves(bare: Bare) -> None:
    """A loop of waits on a reservation must not keep the hart from its timers for a whole quantum."""
    bare.reset()
    bare.put(RAM_BASE, i("lr.w", rd=5, rs1=10), i("wrs.sto"), i("jal", rd=0, imm=-8))
    bare.forget_code()
    h = bare.h
    h.pc, h.x[10] = RAM_BASE, RAM_BASE + 4096
    bare.step()
    assert (h.pc, h.instret) == (RAM_BASE + 8, 2)


def test_an_endless_chain_of_traps_ends_its_quantum(bare: Bare) -> None:
    """A handler whose first instruction traps again."""
    bare.reset()
    bare.put(RAM_BASE, 0)
    bare.forget_code()
    h = bare.h
    h.pc = h.stvec = RAM_BASE
    h.medeleg = 1 << 2
    bare.enter(SUPERVISOR)
    machine().log = 0
    run_translated(h, 1000)
    assert h.instret == 0
    assert 900 < h.traps <= 1001


CBZE = 1 << 7


@pytest.mark.parametrize("privilege", [USER, SUPERVISOR, MACHINE_MODE])
@pytest.mark.parametrize("menvcfg", [0, CBZE])
@pytest.mark.parametrize("senvcfg", [0, CBZE])
@pytest.mark.parametrize("known", [False, True])
def test_a_block_of_zeros_as_the_interpreter(
    bare: Bare, privilege: int, menvcfg: int, senvcfg: int, known: bool
) -> None:
    """Inside its block at most; with and without its page in the TLB."""
    outcomes = []
    for interpreted in (True, False):
        bare.reset()
        bare.put(RAM_BASE, i("sb", rs1=10, rs2=0, imm=0) if known else NOP, i("cbo.zero", rs1=10), i("ebreak"))
        bare.forget_code()
        bare.poke(DATA, bytes(range(1, 193)))
        h = bare.h
        h.mmu.menvcfg, h.senvcfg, h.x[10], h.pc = menvcfg, senvcfg, DATA + 64 + 13, RAM_BASE
        bare.enter(privilege)
        if interpreted:
            while not h.traps:
                run_quantum(h, 100)
        else:
            while not bare.step():
                pass
        outcomes.append((state(bare), bare.peek(DATA, 192), h.slow_steps))
    allowed = privilege == MACHINE_MODE or (menvcfg and (privilege == SUPERVISOR or senvcfg))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert (outcomes[1][1][64:128] == bytes(64)) == bool(allowed)
    if allowed:  # the ebreak is a step
        assert outcomes[1][2] == (1 if known and menvcfg and privilege != USER else 2)
