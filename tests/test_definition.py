"""The living definition: what programs may rely on, by hand, and random programs against QEMU."""

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mem.word import MASK64, W
from smp.cpu import BY_NAME, EXT_C
from smp.definition import Cause, Definition
from smp.fpformat import D, Format, H, S
from smp.row import ROWS, Kind, Row
from smp.rows import ALL_EXTENSIONS

BASE = 0x80000000
DATA = BASE + 0x1000
NAN_S, NAN_D = S.nan, D.nan
BOX = 0xFFFFFFFF << 32

Instruction = tuple[str, dict[str, int]]  # row name, fields


def program(*instructions: Instruction | int) -> bytes:
    """Machine code from instructions and words."""
    made = b""
    for item in instructions:
        word = ROWS[item[0]].encode(**item[1]) if isinstance(item, tuple) else item
        made += word.to_bytes(4 if word & 3 == 3 else 2, "little")
    return made


def hart(*instructions: Instruction | int, extensions: int = ALL_EXTENSIONS) -> Definition:
    """A hart about to run these, with x10 at DATA and x11 to x13 as their numbers times 11."""
    memory = bytearray(0x2000)
    code = program(*instructions)
    memory[: len(code)] = code
    made = Definition(memory, BASE, extensions=extensions)
    made.x[10:14] = [W(DATA), W(121), W(132), W(143)]
    return made


def trap_of(*instructions: Instruction | int, extensions: int = ALL_EXTENSIONS) -> tuple[Cause, int]:
    """How a program ends."""
    trap = hart(*instructions, extensions=extensions).run(100)
    assert trap is not None
    return trap.cause, trap.tval


def ran(*instructions: Instruction | int) -> Definition:
    """The hart after all of these."""
    made = hart(*instructions)
    assert made.run(len(instructions)) is None
    return made


def i(name: str, **fields: int) -> Instruction:
    return name, fields


def test_a_loop_counts() -> None:
    made = hart(
        i("addi", rd=5, rs1=0, imm=10),
        i("add", rd=6, rs1=6, rs2=5),
        i("c.addi", rd=5, imm=-1),
        i("bne", rs1=5, rs2=0, imm=-6),
        i("ecall"),
    )
    trap = made.run(1000)
    assert trap is not None and (trap.cause, trap.tval) == (Cause.ECALL_U, 0)
    assert made.x[6] == 55 and made.retired == 31 and made.pc == BASE + 14


def test_x0_stays_0() -> None:
    made = ran(i("addi", rd=0, imm=5), i("lw", rd=0, rs1=10), i("jal", rd=0, imm=4), i("amoadd.w", rs1=10, rs2=11))
    assert made.x[0] == 0 and made.memory[0x1000] == 121


def test_loads_extend_and_may_be_misaligned() -> None:
    made = hart(i("sd", rs1=10, rs2=5, imm=3), i("lb", rd=6, rs1=10, imm=3), i("lwu", rd=7, rs1=10, imm=3),
                i("lh", rd=8, rs1=10, imm=9))  # fmt: skip
    made.x[5] = W(0x8182838485868788)
    assert made.run(4) is None
    assert made.x[6] == W(-0x78) and made.x[7] == 0x85868788 and made.x[8] == W(-0x7E7E)


def test_jumps_link_and_clear_bit_0() -> None:
    made = ran(i("auipc", rd=5, imm=0), i("jalr", rd=5, rs1=5, imm=101))
    assert made.pc == BASE + 100 and made.x[5] == BASE + 8
    made = hart(i("c.jalr", rs1=11))
    made.step()
    assert made.pc == 120 and made.x[1] == BASE + 2


@pytest.mark.parametrize(
    ("instruction", "cause", "tval"),
    [
        (0, Cause.ILLEGAL, 0),
        (0xFFFFFFFF, Cause.ILLEGAL, 0xFFFFFFFF),
        (i("ebreak"), Cause.BREAKPOINT, BASE),
        (i("c.ebreak"), Cause.BREAKPOINT, BASE),
        (i("ld", rd=5, rs1=11), Cause.LOAD_ACCESS, 121),
        (i("ld", rd=5, rs1=10, imm=-1), None, 0),
        (i("sd", rs2=5, rs1=11, imm=-1), Cause.STORE_ACCESS, 120),
        (i("lr.w", rd=5, rs1=11), Cause.LOAD_MISALIGNED, 121),
        (i("sc.w", rd=5, rs1=11), Cause.STORE_MISALIGNED, 121),
        (i("amoadd.d", rd=5, rs1=12), Cause.STORE_MISALIGNED, 132),
        (i("amoadd.w", rd=5, rs1=12), Cause.STORE_ACCESS, 132),
        (i("sc.w", rd=5, rs1=12), Cause.STORE_ACCESS, 132),
        (i("amocas.q", rd=6, rs1=11, rs2=8), Cause.STORE_MISALIGNED, 121),
        (i("cbo.zero", rs1=12), Cause.STORE_ACCESS, 132),
        (i("mret"), Cause.ILLEGAL, ROWS["mret"].match),
        (i("wfi"), Cause.ILLEGAL, ROWS["wfi"].match),
        (i("sfence.vma"), Cause.ILLEGAL, ROWS["sfence.vma"].match),
        (i("csrrw", csr=0xC02, rs1=0), Cause.ILLEGAL, 0xC0201073),
        (i("csrrs", csr=0x300), Cause.ILLEGAL, 0x30002073),
        (i("fadd.s", rm=5), Cause.ILLEGAL, 0x00005053),
        (i("fcvt.d.w", rm=6), Cause.ILLEGAL, 0xD2006053),
    ],
)  # fmt: skip
def test_traps(instruction: Instruction | int, cause: Cause | None, tval: int) -> None:
    made = hart(instruction)
    before = (list(made.x), list(made.f), made.fflags, made.pc, bytes(made.memory))
    trap = made.run(1)
    if cause is None:
        assert trap is None
        return
    assert trap is not None and (trap.cause, trap.tval) == (cause, tval)
    assert before == (made.x, made.f, made.fflags, made.pc, made.memory)
    assert made.retired == 0


def test_fetching_outside_memory_traps() -> None:
    assert trap_of(i("jalr", rs1=11)) == (Cause.FETCH_ACCESS, 120)
    made = hart()
    made.memory[-2:] = b"\x13\x00"  # the first half of an addi
    made.pc = BASE + len(made.memory) - 2
    trap = made.run(1)
    assert trap is not None and (trap.cause, trap.tval) == (Cause.FETCH_ACCESS, BASE + 0x2000)


def test_without_c_targets_are_words() -> None:
    no_c = ALL_EXTENSIONS & ~EXT_C
    assert trap_of(i("jal", rd=1, imm=6), extensions=no_c) == (Cause.FETCH_MISALIGNED, BASE + 6)
    made = hart(i("beq", imm=-2), extensions=no_c)
    assert made.run(1).cause is Cause.FETCH_MISALIGNED  # type: ignore[union-attr]
    assert hart(i("bne", imm=-2), extensions=no_c).run(1) is None  # not taken
    assert trap_of(i("c.addi", rd=5, imm=1), extensions=no_c) == (Cause.ILLEGAL, 0x0285)


def test_an_sc_needs_its_lr() -> None:
    made = ran(i("sc.w", rd=5, rs1=10, rs2=11))
    assert made.x[5] == 1 and made.memory[0x1000] == 0
    made = ran(i("lr.w", rd=4, rs1=10), i("sc.w", rd=5, rs1=10, rs2=11), i("sc.w", rd=6, rs1=10, rs2=12))
    assert made.x[5] == 0 and made.x[6] == 1 and made.memory[0x1000] == 121
    made = hart(i("lr.w", rd=4, rs1=10), i("sc.w", rd=5, rs1=9, rs2=11))
    made.x[9] = W(DATA + 64)
    assert made.run(2) is None and made.x[5] == 1


def test_amos_work_on_their_width() -> None:
    made = hart(i("amomin.w", rd=5, rs1=10, rs2=11), i("amomaxu.b", rd=6, rs1=10, rs2=12), i("lwu", rd=7, rs1=10))
    made.memory[0x1000:0x1008] = (0xFFFFFFF0).to_bytes(8, "little")
    made.x[12] = W(0x1234)
    assert made.run(3) is None
    assert made.x[5] == W(-16) and made.x[6] == W(-16) and made.x[7] == 0xFFFFFFF0


def test_compare_and_swap_of_pairs() -> None:
    made = hart(i("amocas.q", rd=6, rs1=10, rs2=12), i("amocas.q", rd=6, rs1=10, rs2=12), i("amocas.w", rd=14, rs1=10))
    made.x[7] = W(1)
    assert made.run(1) is None  # 1 << 64 is not there: 0 is read
    assert made.x[6] == made.x[7] == 0 and not any(made.memory[0x1000:0x1010])
    made.x[14] = W(0xFFFFFFFF_00000084)  # only the word counts
    assert made.run(2) is None
    assert int.from_bytes(made.memory[0x1000:0x1010], "little") == 143 << 64 and made.x[14] == 132
    made = hart(i("amocas.q", rd=0, rs1=10, rs2=0))
    made.memory[0x1000:0x1010] = bytes(range(16))
    made.x[1] = W(5)
    assert made.run(1) is None and made.x[1] == 5 and made.memory[0x1000:0x1010] == bytes(range(16))


@pytest.mark.parametrize(
    ("instruction", "result"),
    [
        (i("fadd.s", rd=5, rs1=1, rs2=2), BOX | NAN_S),  # f1 is not boxed
        (i("fsgnj.s", rd=5, rs1=1, rs2=2), BOX | NAN_S),
        (i("fsgnjn.s", rd=5, rs1=3, rs2=3), BOX | 0xBF800000),
        (i("fsgnj.d", rd=5, rs1=1, rs2=2), 0x800000003F800000),  # f2 as a double is negative
        (i("fmv.d.x", rd=5, rs1=11), 121),
        (i("fmv.w.x", rd=5, rs1=11), BOX | 121),
        (i("fcvt.d.s", rd=5, rs1=1), NAN_D),
        (i("fcvt.d.s", rd=5, rs1=3), 0x3FF0000000000000),
        (i("fli.s", rd=5, imm=0), BOX | 0xBF800000),
        (i("fcvt.h.s", rd=5, rs1=3), 0xFFFFFFFFFFFF0000 | H.one),
    ],
)
def test_values_are_boxed(instruction: Instruction, result: int) -> None:
    made = hart(instruction)
    made.f[1:4] = [W(0x3F800000), W(BOX | 0x40000000), W(BOX | 0x3F800000)]
    assert made.run(1) is None
    assert made.f[5] == result


def test_moves_and_stores_take_bits_as_they_are() -> None:
    made = hart(i("fmv.x.w", rd=5, rs1=1), i("fsw", rs1=10, rs2=1), i("flw", rd=2, rs1=10), i("fmv.x.h", rd=6, rs1=1))
    made.f[1] = W(0x1234_8765_4321_FEDC)
    assert made.run(4) is None
    assert made.x[5] == 0x4321FEDC and made.f[2] == BOX | 0x4321FEDC and made.x[6] == W(-0x124)


def test_flags_gather_and_rounding_modes_hold() -> None:
    one, three = BOX | 0x3F800000, BOX | 0x40400000
    made = hart(
        i("csrrwi", csr=2, rs1=3),  # RUP
        i("fdiv.s", rd=3, rs1=1, rs2=2, rm=7),
        i("fdiv.s", rd=4, rs1=1, rs2=2, rm=1),  # RTZ
        i("fdiv.s", rd=4, rs1=1, rs2=0, rm=1),
        i("csrrs", rd=5, csr=3),
        i("csrrwi", csr=1, rs1=0),
        i("csrrci", rd=6, csr=2, rs1=1),
        i("csrrs", rd=7, csr=3),
    )
    made.f[0:3] = [W(BOX), W(one), W(three)]
    assert made.run(8) is None
    assert made.f[3] == BOX | 0x3EAAAAAB and made.f[4] == BOX | 0x7F800000
    assert made.x[5] == 0b011_01001 and made.x[6] == 3 and made.x[7] == 0b010_00000


def test_a_reserved_frm_makes_dynamic_rounding_illegal() -> None:
    made = hart(i("csrrwi", csr=2, rs1=5), i("fsgnj.s"), i("feq.s"), i("fadd.s", rm=0), i("fadd.s", rm=7))
    trap = made.run(10)
    assert trap is not None and trap.cause is Cause.ILLEGAL and made.pc == BASE + 16


def test_counters() -> None:
    made = ran(i("addi"), i("addi"), i("csrrs", rd=5, csr=0xC02), i("csrrs", rd=6, csr=0xC00))
    assert made.x[5] == 2 and made.x[6] == 3


def test_cbo_zero_clears_its_block() -> None:
    made = hart(i("cbo.zero", rs1=10))
    made.memory[0xFFF:0x1041] = bytes([1]) * 66
    made.x[10] = W(DATA + 5)
    assert made.run(1) is None
    assert made.memory[0xFFF:0x1041] == b"\1" + bytes(64) + b"\1"


# Random programs against QEMU. A program is a run of blocks: load x8 to x15 and f8 to f15 and fcsr, execute one
# instruction on them, store all of them. Both machines start from the same memory image and must end with the same.

QEMU = "qemu-system-riscv64"
# What QEMU 7.2 has; newer ones have it too.
NAMES = [*"imafdc", "zicsr", "zifencei", "zba", "zbb", "zbc", "zbs", "zbkb", "zbkx", "zfhmin", "zfh"]
WITNESSED = sum(BY_NAME[name].bit for name in NAMES)
RAM_SIZE = 64 << 20
FINISHER = 0x100000
OPERANDS, RESULTS, SCRATCH = BASE + (8 << 20), BASE + (16 << 20), BASE + (24 << 20)
IMAGE_SIZE = 25 << 20
OPERAND_AT, RESULT_AT, SCRATCH_AT, ADDRESS, STACK = 18, 19, 20, 10, 2  # registers
BLOCK_BYTES = 17 * 8
ACCESSES = (Kind.LOAD, Kind.STORE, Kind.FLOAD, Kind.FSTORE)
JUMPS = (Kind.BRANCH, Kind.JAL, Kind.JALR)
INTERESTING = (0, 1, MASK64, 1 << 63, (1 << 63) - 1, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x100000000)


def integer_operand(source: random.Random) -> int:
    if source.random() < 0.3:
        return source.choice(INTERESTING)
    return source.getrandbits(64) >> source.choice((0, 0, 0, 32, 58))


def float_operand(source: random.Random, fmt: Format | None) -> int:
    """Mostly a boxed value of the format, with exponents close enough to interact."""
    fmt = fmt or source.choice((H, S, D))
    if source.random() < 0.1:
        return source.getrandbits(64)
    edges = (0, 1, fmt.hidden_bit - 1, fmt.hidden_bit, fmt.half, fmt.one, fmt.infinity - 1, fmt.infinity,
             fmt.infinity | 1, fmt.nan)  # fmt: skip
    value = source.choice(edges)
    if source.random() < 0.7:
        near = fmt.bias + source.randint(-4, 4)
        exponent = source.choice((near, near, source.randrange(fmt.special)))
        value = exponent << fmt.fraction_bits | source.getrandbits(fmt.fraction_bits)
    value |= source.getrandbits(1) * fmt.sign_bit
    return value | MASK64 & -1 << fmt.bits


def operands_of(source: random.Random, row: Row) -> bytes:
    """A block's x8 to x15, f8 to f15 and fcsr."""
    values = [integer_operand(source) for _ in range(8)] + [float_operand(source, row.fmt) for _ in range(8)]
    values.append(source.randrange(5) << 5 | source.getrandbits(5))
    return b"".join(value.to_bytes(8, "little") for value in values)


def random_fields(source: random.Random, row: Row) -> dict[str, int]:
    """Fields of a random word of the row, on the block's registers."""
    while True:
        fields = row.written(source.getrandbits(row.bits) & ~row.mask | row.match)
        fields |= {name: 8 + fields[name] % 8 for name in ("rd", "rs1", "rs2", "rs3") if name in fields}
        if row.kind in ACCESSES and "rs1" in fields:
            fields["rs1"] = ADDRESS
        if row.kind in JUMPS and "imm" in fields:
            fields["imm"] = 0 if row.kind is Kind.JALR else row.bits // 8 + 2
        if row.kind in (*JUMPS, Kind.AMO, Kind.LR, Kind.SC) and "rs1" in fields and row.kind is not Kind.BRANCH:
            fields["rs1"] = ADDRESS
        if "csr" in fields:
            fields["csr"] = source.choice((1, 2, 3))
        if fields.get("rm") in (5, 6):
            continue
        try:
            row.encode(**fields)
        except ValueError:
            continue
        return fields


def instruction_under_test(source: random.Random, row: Row) -> Iterator[Instruction]:
    """The instruction and what it needs around it."""
    fields = random_fields(source, row)
    if row.kind in ACCESSES:
        yield i("addi", rd=ADDRESS, rs1=SCRATCH_AT, imm=source.randrange(-64, 64))
    if row.kind in (Kind.AMO, Kind.LR, Kind.SC):
        yield i("addi", rd=ADDRESS, rs1=SCRATCH_AT, imm=source.randrange(-8, 8) * 8)
    if row.kind is Kind.SC:
        yield i(row.name.replace("sc", "lr"), rd=8, rs1=ADDRESS)
    if row.kind is Kind.JALR:  # past the c.addi
        yield i("auipc", rd=ADDRESS, imm=0)
        yield i("addi", rd=ADDRESS, rs1=ADDRESS, imm=8 + row.bits // 8 + 2 + source.getrandbits(1))
    yield row.name, fields
    if row.kind in JUMPS:
        yield i("c.addi", rd=15, imm=1)


def block(source: random.Random, row: Row) -> Iterator[Instruction]:
    for n in range(8):
        yield i("fld", rd=8 + n, rs1=OPERAND_AT, imm=64 + 8 * n)
    yield i("ld", rd=8, rs1=OPERAND_AT, imm=128)
    yield i("csrrw", rd=0, rs1=8, csr=3)
    for n in range(8):
        yield i("ld", rd=8 + n, rs1=OPERAND_AT, imm=8 * n)
    yield i("addi", rd=OPERAND_AT, rs1=OPERAND_AT, imm=BLOCK_BYTES)
    yield from instruction_under_test(source, row)
    for n in range(8):
        yield i("sd", rs2=8 + n, rs1=RESULT_AT, imm=8 * n)
        yield i("fsd", rs2=8 + n, rs1=RESULT_AT, imm=64 + 8 * n)
    yield i("csrrs", rd=8, csr=3)
    yield i("sd", rs2=8, rs1=RESULT_AT, imm=128)
    yield i("addi", rd=RESULT_AT, rs1=RESULT_AT, imm=BLOCK_BYTES)


def address_of(register: int, address: int) -> list[Instruction]:
    """Load an address that is a whole number of pages and may be above 2**31."""
    return [i("lui", rd=register, imm=address - (1 << 32) if address >> 31 else address),
            i("slli", rd=register, rs1=register, imm=32),
            i("srli", rd=register, rs1=register, imm=32)]  # fmt: skip


def image(source: random.Random, rows: list[Row]) -> tuple[bytearray, int]:
    """The memory image and the pc behind the privileged beginning, where the definition starts."""
    preamble = program(
        i("lui", rd=5, imm=0x6000),
        i("csrrs", rs1=5, csr=0x300),  # mstatus.FS
        i("auipc", rd=5, imm=0),
        i("addi", rd=5, rs1=5, imm=16),
        i("csrrw", rs1=5, csr=0x305),  # mtvec: a trap ends it with a failure
        i("jal", imm=20),
        i("lui", rd=6, imm=FINISHER),
        i("lui", rd=5, imm=0x13000),
        i("addi", rd=5, rs1=5, imm=0x333),
        i("sw", rs1=6, rs2=5),
    )
    code = [*address_of(OPERAND_AT, OPERANDS), *address_of(RESULT_AT, RESULTS), *address_of(SCRATCH_AT, SCRATCH + 4096),
            i("addi", rd=STACK, rs1=SCRATCH_AT)]  # fmt: skip
    operands = b""
    for row in rows:
        code += block(source, row)
        operands += operands_of(source, row)
    # QEMU 10 goes on for a moment after it was told to end: the last instruction keeps it there.
    code += [i("lui", rd=6, imm=FINISHER), i("lui", rd=5, imm=0x5000), i("addi", rd=5, rs1=5, imm=0x555),
             i("sw", rs1=6, rs2=5), i("jal", imm=0)]  # fmt: skip
    memory = bytearray(IMAGE_SIZE)
    text = preamble + program(*code)
    assert len(text) <= OPERANDS - BASE and len(operands) <= RESULTS - OPERANDS
    memory[: len(text)] = text
    memory[OPERANDS - BASE : OPERANDS - BASE + len(operands)] = operands
    memory[SCRATCH - BASE : SCRATCH - BASE + 8192] = source.randbytes(8192)
    return memory, BASE + len(preamble)


def qemu_cpu() -> str:
    """-cpu with the extensions that are off by themselves; names were capitalised before QEMU 8.2."""
    text = subprocess.run([QEMU, "--version"], capture_output=True, text=True).stdout
    version = tuple(int(part) for part in re.findall(r"version (\d+)\.(\d+)", text)[0])
    return f"rv64,zbkb=on,zbkx=on,{'zfh' if version >= (8, 2) else 'Zfh'}=on"


def run_in_qemu(memory: bytes, folder: Path) -> bytes:
    ram = folder / "ram"
    with ram.open("wb") as out:
        out.write(memory)
        out.truncate(RAM_SIZE)
    backend = f"memory-backend-file,id=ram,size={RAM_SIZE},mem-path={ram},share=on"
    machine = ["-M", "virt,memory-backend=ram", "-m", str(RAM_SIZE >> 20), "-cpu", qemu_cpu(), "-object", backend]
    command = [QEMU, *machine, "-bios", "none", "-display", "none", "-serial", "none", "-monitor", "none"]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"exit status {done.returncode}: the program trapped"
    with ram.open("rb") as result:
        after = result.read(len(memory))
    ram.unlink()
    return after


def witnessed_rows() -> list[Row]:
    unfit = ("ecall", "ebreak", "c.ebreak", "mret", "sret", "wfi", "sfence.vma",
             "ctzw")  # QEMU before 8.0 counts in all 64 bits  # fmt: skip
    return [row for row in ROWS.values() if row.enabled(WITNESSED) and row.name not in unfit]


@pytest.mark.skipif(not shutil.which(QEMU), reason=f"no {QEMU}")
@pytest.mark.parametrize("seed", range(2))
def test_random_programs_do_in_qemu_what_is_defined(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    rows = witnessed_rows() * 8
    source.shuffle(rows)
    memory, start = image(source, rows)
    expected = run_in_qemu(memory, tmp_path)
    made = Definition(memory, BASE, start, WITNESSED)
    trap = made.run(len(rows) * 60)
    assert trap is not None and (trap.cause, trap.tval) == (Cause.STORE_ACCESS, FINISHER)
    for number, row in enumerate(rows):
        at = RESULTS - BASE + number * BLOCK_BYTES
        ours, theirs = memory[at : at + BLOCK_BYTES], expected[at : at + BLOCK_BYTES]
        assert numbers(ours) == numbers(theirs), f"{row.name}: {numbers(memory[at - (8 << 20) :][:BLOCK_BYTES])}"
    assert memory == expected


def numbers(block: bytes) -> list[str]:
    return [hex(int.from_bytes(block[at : at + 8], "little")) for at in range(0, len(block), 8)]
