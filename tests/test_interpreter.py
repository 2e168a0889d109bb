"""The interpreter against the living definition, and what the definition does not know: pages of code, extensions."""

import random

import pytest
from bare import RAM_BASE, Bare, Instruction, encode, i
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstep import CODE, PRIVILEGED, candidates, compare, make, single

from mem.machine import machine
from smp.cpu import EXT_C, EXTENSIONS, parse_cpu
from smp.hart import DECODED_PAGES, FS, MACHINE, USER
from smp.row import ROWS, Kind
from smp.rows import ALL_EXTENSIONS, find

PAGE = 4096
A0, A1, A2 = 10, 11, 12
EBREAK, ILLEGAL = 3, 2
OWN = {name: ROWS[name] for name in ROWS if name not in PRIVILEGED}


@pytest.fixture(autouse=True)
def fresh(bare: Bare) -> None:
    bare.reset()


@settings(max_examples=250)
@given(seed=st.integers(0, 1 << 48), privilege=st.sampled_from((USER, MACHINE)), quantum=st.sampled_from((1, 7, 1000)))
def test_random_programs_do_what_is_defined(bare: Bare, seed: int, privilege: int, quantum: int) -> None:
    source = random.Random(seed)
    program = make(source, candidates(privilege, ALL_EXTENSIONS), privilege)
    _, different = compare(bare, program, ALL_EXTENSIONS, limit=500, quantum=quantum)
    assert not different, different


@pytest.mark.parametrize("cpu", ["rv64,c=off", "rv64,f=off", "rv64,zfa=off,zba=off,zbb=off", "rv64,zicntr=off,a=off"])
def test_random_programs_on_smaller_processors(bare: Bare, cpu: str) -> None:
    extensions = parse_cpu(cpu).mask
    bare.extensions(cpu)
    bare.h.misaligned = 0 if extensions & EXT_C else 2
    for seed in range(25):
        source = random.Random(seed)
        program = make(source, candidates(USER, extensions), count=30)
        if not extensions & EXT_C:
            program.pc &= ~3
        _, different = compare(bare, program, extensions)
        assert not different, f"seed {seed}: {different}"


@pytest.mark.parametrize("row", OWN.values(), ids=list(OWN))
def test_each_instruction_alone(bare: Bare, row: object) -> None:
    source = random.Random(row.name)  # type: ignore[attr-defined]
    for _ in range(8):
        program = single(source, row, USER)  # type: ignore[arg-type]
        _, different = compare(bare, program, ALL_EXTENSIONS, limit=3)
        assert not different, f"{program.words[0]:#x} at {program.pc:#x}: {different}"


# Extensions that are off


def word_for(row_name: str) -> int:
    """A word that is an instruction of this row."""
    row = ROWS[row_name]
    source = random.Random(row_name)
    return next(w for _ in range(10_000) if row.accepts(w := source.getrandbits(row.bits) & ~row.mask | row.match))


OPTIONAL = [extension.name for extension in EXTENSIONS if extension.bit and extension.name not in ("i", "zicsr")]


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_extension_that_is_off_is_illegal(bare: Bare, name: str) -> None:
    have = parse_cpu(f"rv64,{name}=off").mask
    bare.extensions(f"rv64,{name}=off")
    for row in ROWS.values():
        if row.enabled(have):
            continue
        word = word_for(row.name)
        if find(word, have):  # another row that stays, as fence does for pause
            continue
        bare.reset()
        bare.extensions(f"rv64,{name}=off")
        trapped = bare.run_here(word)
        assert trapped == (ILLEGAL, word, RAM_BASE), f"{row.name}, {word:#x}"


@pytest.mark.parametrize(
    ("cpu", "number"),
    [("zicntr", 0xC00), ("zicntr", 0xC01), ("zicntr", 0xC02), ("zihpm", 0xC03), ("zihpm", 0xC1F), ("f", 1), ("f", 3),
     ("sstc", 0x14D), ("pmp", 0x3A0), ("pmp", 0x3B0)],
)  # fmt: skip
def test_registers_of_an_extension_that_is_off_are_illegal(bare: Bare, cpu: str, number: int) -> None:
    read = i("csrrs", rd=5, csr=number)
    assert bare.run_here(read).cause == EBREAK
    bare.extensions(f"rv64,{cpu}=off")
    if cpu == "f":
        bare.run_here(i("lui", rd=6, imm=0x6000), i("csrrs", rs1=6, csr=0x300))
        assert not bare.h.mstatus & FS
    assert bare.run_here(read).cause == ILLEGAL


def test_without_floating_point_state_its_instructions_are_illegal(bare: Bare) -> None:
    for row in ROWS.values():
        if row.kind in (Kind.FP, Kind.FLOAD, Kind.FSTORE):
            bare.reset()
            bare.h.mstatus &= ~FS
            word = word_for(row.name)
            assert bare.run_here(word) == (ILLEGAL, word, RAM_BASE), row.name
            assert not bare.h.mstatus & FS


# Pages of code


def test_an_instruction_may_lie_across_two_pages(bare: Bare) -> None:
    at = RAM_BASE + PAGE - 2
    bare.put(at, i("addi", rd=A0, rs1=0, imm=77), i("ebreak"))
    assert bare.run(at).pc == at + 4 and bare.h.x[A0] == 77
    # Its second half changes: the first page's decoded code must not remember it.
    bare.poke(at + 2, encode(i("addi", rd=A0, rs1=0, imm=-3))[2:4])
    bare.put(RAM_BASE, i("fence.i"), i("ebreak"))
    bare.run(RAM_BASE)
    bare.run(at)
    assert bare.h.x[A0] == (1 << 64) - 3


def test_an_illegal_instruction_across_two_pages_tells_its_bits(bare: Bare) -> None:
    at = RAM_BASE + PAGE - 2
    assert bare.run_here(0xFFFF_FFFF, pc=at) == (ILLEGAL, 0xFFFF_FFFF, at)


def test_code_runs_from_page_to_page(bare: Bare) -> None:
    pages = 5
    nops = [i("c.addi", rd=A0, imm=1)] * (pages * PAGE // 2)
    assert bare.run_here(*nops).pc == RAM_BASE + pages * PAGE
    assert bare.h.x[A0] == pages * PAGE // 2 == bare.h.instret


def test_jumps_between_pages_return(bare: Bare) -> None:
    far = RAM_BASE + 7 * PAGE
    bare.put(far, i("c.addi", rd=A0, imm=1), i("c.jr", rs1=1))
    loop = [i("jal", rd=1, imm=far - RAM_BASE), i("c.addi", rd=A1, imm=-1), i("bne", rs1=A1, rs2=0, imm=-6)]
    bare.h.x[A1] = 1000
    bare.run_here(*loop)
    assert bare.h.x[A0] == 1000 and bare.h.instret == 1000 * 5


def count_to(value: int) -> Instruction:
    return i("addi", rd=A0, rs1=0, imm=value)


def test_changed_code_runs_after_fence_i(bare: Bare) -> None:
    place = RAM_BASE + 0x40
    bare.put(place, count_to(1), i("ebreak"))
    bare.put(RAM_BASE, i("sw", rs1=A1, rs2=A2), i("fence.i"), i("jalr", rs1=A1))
    assert bare.run(place).cause == EBREAK and bare.h.x[A0] == 1
    bare.h.x[A1], bare.h.x[A2] = place, int.from_bytes(encode(count_to(2)), "little")
    assert bare.run(RAM_BASE).pc == place + 4 and bare.h.x[A0] == 2


def test_code_written_by_itself_ahead_of_the_pc(bare: Bare) -> None:
    """The store changes an instruction of the very page that runs, decoded before."""
    bare.h.x[A1], bare.h.x[5] = RAM_BASE, 2
    bare.h.x[A2] = int.from_bytes(encode(i("addi", rd=A0, rs1=A0, imm=100)), "little")
    body = [i("addi", rd=A0, rs1=A0, imm=1), i("sw", rs1=A1, rs2=A2), i("fence.i"), i("addi", rd=5, rs1=5, imm=-1),
            i("bne", rs1=5, rs2=0, imm=-16)]  # fmt: skip
    bare.run_here(*body)
    assert bare.h.x[A0] == 101


def test_more_pages_of_code_than_are_kept_decoded(bare: Bare) -> None:
    pages = 3 * DECODED_PAGES // 2 + 3
    for page in range(pages):
        at = RAM_BASE + page * PAGE
        last = page == pages - 1
        bare.put(at, i("addi", rd=A0, rs1=A0, imm=page & 7), i("ebreak") if last else i("jal", imm=PAGE - 4))
    total = sum(page & 7 for page in range(pages))
    for turn in range(1, 4):
        bare.run(RAM_BASE)
        assert bare.h.x[A0] == turn * total
    assert bare.h.pages_evicted > pages


def test_two_pages_that_share_a_place_among_the_decoded_ones(bare: Bare) -> None:
    """Their code calls each other: what leads to an evicted page must be forgotten."""
    size = bare.config.ram // PAGE
    index = {}
    pairs = []
    for page in range(size):
        ppn = (RAM_BASE >> 12) + page
        pairs.append((index.setdefault((ppn ^ ppn >> 9) & DECODED_PAGES - 1, page), page))
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    first, second = RAM_BASE + one * PAGE, RAM_BASE + other * PAGE
    bare.h.x[A1], bare.h.x[5] = second, 100
    bare.put(first, i("jalr", rd=1, rs1=A1), i("addi", rd=5, rs1=5, imm=-1), i("bne", rs1=5, imm=-8), i("ebreak"))
    bare.put(second, i("addi", rd=A0, rs1=A0, imm=1), i("jalr", rs1=1))
    bare.run(first)
    assert bare.h.x[A0] == 100


def test_the_quantum_ends_at_a_jump(bare: Bare) -> None:
    bare.put(CODE, i("addi", rd=A0, rs1=A0, imm=1), i("jal", imm=-4))
    bare.h.pc = CODE
    assert bare.step(100) is None
    assert 100 <= bare.h.instret <= 102 and bare.h.x[A0] == bare.h.instret // 2
    assert machine().ending == 0
