"""The rows: encodings, meanings against expectations by hand, and emitted code against computed values."""

import ctypes
import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from llvmlite import ir

from mem import engine
from mem.native import Unit, building
from mem.word import I64, MASK64, V, W, emitting, raw, signed
from smp import overlap
from smp.cpu import EXT_C, EXT_D, EXT_I, EXT_M, EXT_ZBB, EXT_ZBKB, EXT_ZCB, EXT_ZIHINTPAUSE
from smp.row import ROWS, Kind, Row, unlisted
from smp.rows import ALL_EXTENSIONS, find

EDGES = (0, 1, 2, 63, 64, 0x7F, 0x80, 0xFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 63) - 1,
         MASK64, MASK64 - 1, -(1 << 31) & MASK64, 0x0123456789ABCDEF)  # fmt: skip


def words(row: Row, count: int, seed: int = 0) -> list[int]:
    """Words that are this row, and no row that comes first."""
    made: list[int] = []
    source = random.Random(f"{row.name}{seed}")
    for _ in range(1000 * count):
        word = source.getrandbits(row.bits) & ~row.mask | row.match
        if find(word) is row:
            made.append(word)
        if len(made) == count:
            break
    return made


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_every_row_has_a_word_that_encodes_back(row: Row) -> None:
    found = words(row, 5)
    assert found
    for word in found:
        assert row.encode(**row.written(word)) == word
        assert (word & 3 == 3) == (row.bits == 32)


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_a_meaning_takes_operands_that_the_row_has(row: Row) -> None:
    given = row.operands(words(row, 1)[0])
    for name in row.parameters():
        register = name.replace("f", "r", 1) if name.startswith("fs") else name
        assert name in ("value", "old", "src", "pc", "fpu") or register in given


def test_no_word_is_two_instructions() -> None:
    overlap.check()


def test_an_overlap_is_found_with_its_word() -> None:
    a = unlisted("a", "imm[11:0] rs1 000 rd!=0 0001011", "", Kind.ALU, ext=EXT_I)
    b = unlisted("b", "000000000000 rs1 000 rd!=0,1 0001011", "", Kind.ALU, ext=EXT_I)
    c = unlisted("c", "imm[11:0] rs1 000 00000 0001011", "", Kind.ALU, ext=EXT_I)
    assert overlap.common_word(a, c) is None and overlap.common_word(b, c) is None
    with pytest.raises(overlap.OverlapError, match="is both a and b"):
        overlap.check([a, b, c], ())
    overlap.check([a, b], [("a", "b")])
    with pytest.raises(overlap.OverlapError, match="remove the exception"):
        overlap.check([a, c], [("a", "c")])


def test_pause_is_a_fence_without_its_extension() -> None:
    assert find(0x0100000F).name == "pause"  # type: ignore[union-attr]
    assert find(0x0100000F, ALL_EXTENSIONS & ~EXT_ZIHINTPAUSE).name == "fence"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "word",
    [
        0x0000,  # all zeros
        0x0004,  # c.addi4spn with immediate 0
        0x2001,  # c.addiw x0
        0x6101,  # c.addi16sp with immediate 0
        0x6001,  # c.lui x0, 0
        0x6501,  # c.lui a0, 0
        0x4002,  # c.lwsp x0
        0x6002,  # c.ldsp x0
        0x8002,  # c.jr x0
        0x9C7D,  # the last of Zcb's unary encodings
        0xFFFFFFFF,
        0x0000_0007,  # a load of no width
        0x1010202F,  # lr.w with rs2 != 0
        0x2C10452F,  # amocas.q with an odd source
        0x28C0C5AF,  # amocas.q with an odd destination
        0x02051513 | 1 << 26,  # slli by 64 and more
        0x0205151B,  # slliw by 32 and more
    ],
)
def test_reserved_words_are_no_instructions(word: int) -> None:
    assert find(word) is None


@pytest.mark.parametrize(
    ("word", "base", "operands"),
    [
        (0x0005, "addi", {"rd": 0, "rs1": 0, "imm": 1}),  # c.addi x0, 1
        (0x0501, "addi", {"rd": 10, "rs1": 10, "imm": 0}),  # c.addi a0, 0
        (0x4005, "addi", {"rd": 0, "rs1": 0, "imm": 1}),  # c.li x0, 1
        (0x6005, "lui", {"rd": 0, "imm": 0x1000}),  # c.lui x0, 1
        (0x0502, "slli", {"rd": 10, "rs1": 10, "imm": 0}),  # c.slli a0, 0
        (0x8101, "srli", {"rd": 10, "rs1": 10, "imm": 0}),  # c.srli a0, 0
        (0x802A, "add", {"rd": 0, "rs1": 0, "rs2": 10}),  # c.mv x0, a0
        (0x902A, "add", {"rd": 0, "rs1": 0, "rs2": 10}),  # c.add x0, a0
        (0x6081, "addi", {"rd": 0, "rs1": 0, "imm": 0}),  # c.mop.1
    ],
)
def test_compressed_hints_do_nothing(word: int, base: str, operands: dict[str, int]) -> None:
    row = find(word)
    assert row is not None and row.base == base and row.operands(word) == operands


def test_an_instruction_goes_with_its_extension() -> None:
    assert find(0x2100, ALL_EXTENSIONS & ~EXT_D) is None  # c.fld
    assert find(0x2100, ALL_EXTENSIONS & ~EXT_C) is None
    assert find(0x9C41, ALL_EXTENSIONS & ~EXT_ZCB) is None  # c.mul
    assert find(0x9C41, ALL_EXTENSIONS & ~EXT_M) is None
    rol = ROWS["rol"].encode(rd=1, rs1=2, rs2=3)
    assert find(rol, EXT_ZBB) is find(rol, EXT_ZBKB) is ROWS["rol"]
    assert find(rol, EXT_I) is None


LEAST, ONES = 1 << 63, MASK64

# fmt: off
EXPECTED = [
    ("mulhsu", (ONES, ONES), ONES),  # -1 * (2**64 - 1) = -2**64 + 1
    ("mulhsu", (LEAST, 2), ONES),
    ("mulh", (ONES, ONES), 0),
    ("mulhu", (ONES, ONES), ONES - 1),
    ("div", (LEAST, ONES), LEAST),
    ("div", (-7 & ONES, 2), -3 & ONES),
    ("div", (5, 0), ONES),
    ("rem", (LEAST, ONES), 0),
    ("rem", (-7 & ONES, 2), ONES),
    ("rem", (5, 0), 5),
    ("divu", (5, 0), ONES),
    ("remu", (5, 0), 5),
    ("divw", (0x80000000, ONES), 0xFFFFFFFF80000000),
    ("divw", (0x1_00000007, 2), 3),
    ("divuw", (0x80000000, 1), 0xFFFFFFFF80000000),
    ("divuw", (5, 0xFF_00000000), ONES),
    ("remw", (0x80000000, ONES), 0),
    ("remuw", (0x80000001, 0), 0xFFFFFFFF80000001),
    ("mulw", (0x10000, 0x8000), 0xFFFFFFFF80000000),
    ("sraw", (0x80000000, 36), 0xFFFFFFFFF8000000),
    ("srlw", (0xFF_80000000, 31), 1),
    ("sllw", (1, 63), 0xFFFFFFFF80000000),
    ("srlw", (0x80000000, 32), 0xFFFFFFFF80000000),
    ("slt", (LEAST, 0), 1),
    ("sltu", (LEAST, 0), 0),
    ("sh3add.uw", (0xFFFFFFFF_00000001, 5), 13),
    ("sh1add", (LEAST, 1), 1),
    ("add.uw", (ONES, 1), 1 << 32),
    ("clmul", (0b1101, 0b1011), 0b1111111),
    ("clmul", (ONES, ONES), 0x5555555555555555),
    ("clmulh", (ONES, ONES), 0x5555555555555555),
    ("clmulh", (LEAST, 2), 1),
    ("clmulh", (LEAST, LEAST), 1 << 62),
    ("clmulr", (LEAST, 1), 1),
    ("clmulr", (LEAST, LEAST), LEAST),
    ("rev8", (0x0123456789ABCDEF,), 0xEFCDAB8967452301),
    ("brev8", (0x0180FF0110AAF00F,), 0x8001FF8008550FF0),
    ("orc.b", (0x0100800000FF0010,), 0xFF00FF0000FF00FF),
    ("clz", (0,), 64),
    ("clz", (1,), 63),
    ("clzw", (0xFFFFFFFF_00000001,), 31),
    ("clzw", (0xFFFFFFFF_00000000,), 32),
    ("ctz", (0,), 64),
    ("ctz", (LEAST,), 63),
    ("ctzw", (0xFFFFFFFF_00000000,), 32),
    ("ctzw", (0xFFFFFFFF_80000000,), 31),
    ("cpop", (ONES,), 64),
    ("cpopw", (ONES,), 32),
    ("rol", (LEAST | 1, 1), 3),
    ("rol", (5, 64), 5),
    ("ror", (1, 1), LEAST),
    ("rolw", (0x80000000, 1), 1),
    ("rolw", (0x40000000, 33), 0xFFFFFFFF80000000),
    ("rorw", (1, 33), 0xFFFFFFFF80000000),
    ("rorw", (0x7, 0), 7),
    ("min", (ONES, 1), ONES),
    ("minu", (ONES, 1), 1),
    ("max", (ONES, 1), 1),
    ("maxu", (ONES, 1), ONES),
    ("andn", (0b1100, 0b1010), 0b0100),
    ("orn", (0, ONES - 1), 1),
    ("xnor", (0b1100, 0b1010), ONES & ~0b0110),
    ("zext.h", (0xFFFF8001,), 0x8001),
    ("sext.h", (0xFFFF8001,), 0xFFFFFFFFFFFF8001),
    ("sext.b", (0x80,), 0xFFFFFFFFFFFFFF80),
    ("pack", (0x1_00000002, 0x3_00000004), 0x00000004_00000002),
    ("packh", (0x1234, 0x5678), 0x7834),
    ("packw", (0x12345678, 0x9ABCDEF0), 0xFFFFFFFFDEF05678),
    ("bclr", (ONES, 64 + 3), ONES - 8),
    ("bext", (0x10, 64 + 4), 1),
    ("binv", (0x10, 4), 0),
    ("bset", (0, 63), LEAST),
    ("czero.eqz", (7, 0), 0),
    ("czero.eqz", (7, 1), 7),
    ("czero.nez", (7, 0), 7),
    ("czero.nez", (7, LEAST), 0),
]

EXPECTED_IMMEDIATE = [
    ("bexti", 1 << 40, 40, 1),
    ("bseti", 0, 63, LEAST),
    ("slli.uw", ONES, 8, 0xFFFFFFFF00),
    ("rori", 3, 1, LEAST | 1),
    ("roriw", 1, 1, 0xFFFFFFFF80000000),
    ("sraiw", 0x80000000, 4, 0xFFFFFFFFF8000000),
    ("srai", LEAST, 63, ONES),
    ("addiw", 0x7FFFFFFF, 1, 0xFFFFFFFF80000000),
    ("slti", ONES, 0, 1),
    ("sltiu", 5, -1, 1),
    ("andi", ONES, -2048, 0xFFFFFFFFFFFFF800),
]
# fmt: on


@pytest.mark.parametrize(("name", "operands", "result"), EXPECTED)
def test_meaning(name: str, operands: tuple[int, ...], result: int) -> None:
    assert W(ROWS[name].meaning(*map(W, operands))) == result  # type: ignore[misc]


@pytest.mark.parametrize(("name", "rs1", "imm", "result"), EXPECTED_IMMEDIATE)
def test_meaning_with_an_immediate(name: str, rs1: int, imm: int, result: int) -> None:
    assert W(ROWS[name].meaning(rs1=W(rs1), imm=W(imm))) == result  # type: ignore[misc]


def by_bits(a: int, place: Callable[[int], int], width: int = 64) -> int:
    """Bit n of the value moved to `place(n)`."""
    return sum((a >> n & 1) << place(n) for n in range(width))


def carry_less(a: int, b: int) -> int:
    """The whole product, 127 bits."""
    product = 0
    for n in range(64):
        product ^= (a << n) * (b >> n & 1)
    return product


def in_bytes(a: int, byte: Callable[[int], int]) -> int:
    return int.from_bytes(bytes(byte(x) for x in a.to_bytes(8, "little")), "little")


# The same in other words: on bits, bytes and Python's unbounded integers.
OTHERWISE: dict[str, Callable[..., int]] = {
    "clmul": lambda a, b: carry_less(a, b) & ONES,
    "clmulh": lambda a, b: carry_less(a, b) >> 64,
    "clmulr": lambda a, b: carry_less(a, b) >> 63 & ONES,
    "orc.b": lambda a: in_bytes(a, lambda x: 0xFF if x else 0),
    "brev8": lambda a: by_bits(a, lambda n: n & ~7 | 7 - (n & 7)),
    "rev8": lambda a: int.from_bytes(a.to_bytes(8, "little"), "big"),
    "rol": lambda a, b: by_bits(a, lambda n: (n + b) % 64),
    "ror": lambda a, b: by_bits(a, lambda n: (n - b) % 64),
    "rolw": lambda a, b: signed(by_bits(a, lambda n: (n + b) % 32, 32), 32) & ONES,
    "rorw": lambda a, b: signed(by_bits(a, lambda n: (n - b) % 32, 32), 32) & ONES,
    "mulh": lambda a, b: signed(a) * signed(b) >> 64 & ONES,
    "mulhsu": lambda a, b: signed(a) * b >> 64 & ONES,
    "mulhu": lambda a, b: a * b >> 64,
    "clz": lambda a: len(f"{a:064b}") - len(f"{a:064b}".lstrip("0")),
    "ctz": lambda a: len(f"{a:064b}") - len(f"{a:064b}".rstrip("0")),
    "cpop": lambda a: f"{a:b}".count("1"),
    "cpopw": lambda a: f"{a & 0xFFFFFFFF:b}".count("1"),
    "div": lambda a, b: math.trunc(Fraction(signed(a), signed(b))) & ONES if b else ONES,
    "remw": lambda a, b: int(math.fmod(signed(a, 32), signed(b, 32)) if b & 0xFFFFFFFF else signed(a, 32)) & ONES,
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_meaning_in_other_words(name: str) -> None:
    source, row = random.Random(name), ROWS[name]
    for _ in range(300):
        given = [operand(source, row, p) for p in row.parameters()]
        assert row.meaning(*map(W, given)) == OTHERWISE[name](*given), given  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "old", "src", "result"),
    [
        ("amomin.w", -1, 1, -1),
        ("amominu.w", -1, 1, 1),
        ("amomax.b", -128, 127, 127),
        ("amomaxu.b", -128, 127, -128),
        ("amoswap.d", 1, 2, 2),
        ("amoadd.h", 1, -2, -1),
        ("amoand.d", 12, 10, 8),
        ("amoor.d", 12, 10, 14),
        ("amoxor.d", 12, 10, 6),
    ],
)
def test_amo_meaning_on_sign_extended_values(name: str, old: int, src: int, result: int) -> None:
    assert ROWS[name].meaning(W(old), W(src)) == W(result)  # type: ignore[misc]


# Every pure meaning, emitted and run, computes what it computes on Python integers.

PURE = [row for row in ROWS.values() if row.meaning and not row.base and "fpu" not in row.parameters()]


def emit(unit: Unit, row: Row, name: str, fixed: dict[str, int]) -> None:
    """A function from the row's operands, but those that are `fixed`, to its result."""
    free = [p for p in row.parameters() if p not in fixed]
    made = ir.Function(unit.module, ir.FunctionType(I64, [I64] * len(free)), name)
    b = ir.IRBuilder(made.append_basic_block())
    with building(unit), emitting(b):
        arguments = {p: V(a) for p, a in zip(free, made.args, strict=True)}
        b.ret(raw(row.meaning(**arguments, **fixed)))  # type: ignore[misc]


@pytest.fixture(scope="module")
def emitted():
    """Entry points by row name: with all operands free, and with some constant immediates."""
    unit, wanted = Unit("rows"), {}
    for row in PURE:
        variants: list[dict[str, int]] = [{}]
        if "imm" in row.parameters():
            variants += [{"imm": row.operands(word)["imm"]} for word in words(row, 4, seed=1)]
        for number, fixed in enumerate(variants):
            emit(unit, row, f"{row.name}/{number}", fixed)
            wanted.setdefault(row.name, []).append((f"{row.name}/{number}", fixed))
    machine = engine._target()
    linked = engine._link(engine.compile_unit(unit, machine, level=1), machine)
    yield {
        name: [(_function(linked, symbol, ROWS[name], fixed), fixed) for symbol, fixed in made]
        for name, made in wanted.items()
    }


def _function(linked, symbol: str, row: Row, fixed: dict[str, int]):
    kinds = [ctypes.c_uint64] * (1 + len(row.parameters()) - len(fixed))
    return ctypes.CFUNCTYPE(*kinds)(linked.get_function_address(symbol))


def operand(source: random.Random, row: Row, name: str) -> int:
    """A value that the kind may give for this operand."""
    if name == "imm":
        return row.operands(words(row, 1, source.random())[0])["imm"] & MASK64  # type: ignore[arg-type]
    value = source.choice(EDGES) if source.random() < 0.4 else source.getrandbits(64) >> source.choice((0, 0, 32, 56))
    if name == "value":
        return value & (1 << 8 * row.size) - 1
    if name in ("old", "src") and row.size:
        low = value & (1 << 8 * row.size) - 1
        return low - (1 << 8 * row.size & -(low >> 8 * row.size - 1)) & MASK64
    return value


@pytest.mark.parametrize("row", PURE, ids=lambda row: row.name)
def test_emitted_meaning_computes_the_same(row: Row, emitted) -> None:
    source = random.Random(row.name)
    for function, fixed in emitted[row.name]:
        names = [p for p in row.parameters() if p not in fixed]
        for _ in range(2000 if "imm" not in names and not row.name.startswith("clmul") else 200):
            given = {p: operand(source, row, p) for p in names}
            meant = row.meaning(**{p: W(v) for p, v in {**given, **fixed}.items()})  # type: ignore[misc]
            assert function(*given.values()) == W(meant), {**given, **fixed}
