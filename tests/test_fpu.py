"""Floating point: the definition against the host's hardware, the natives against the definition.

Three witnesses: exact integers (smp/fpu_definition.py), compiled integer code (smp/fpu_native.py) and, for what an
x86-64 host has, its floating-point instructions under all its rounding modes, values and flags alike.
"""

import ctypes
import ctypes.util
import platform
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir

from mem import engine
from mem.native import Unit
from mem.word import I64, MASK64, V, W, builder, emitting
from smp.fpformat import DZ, NV, NX, OF, RDN, RMM, RNE, RTZ, RUP, UF, D, Format, H, S
from smp.fpu_definition import DefinitionFpu, is_nan, is_signaling
from smp.fpu_native import NativeFpu

FORMATS = (H, S, D)
MODES = (RNE, RTZ, RDN, RUP, RMM)
CASES = 20_000  # a method, over its formats and modes
Apply = Callable[[Any, Any, Any, Any], Any]


class Operation(NamedTuple):
    """A method with its formats and constants: `apply(fpu, a, b, c)`."""

    name: str
    method: str
    operand: Format | int  # a format, or an integer's width
    apply: Apply


def _operations() -> Iterator[Operation]:
    for fmt in FORMATS:
        for method in ("sqrt", "classify", "round", "roundnx"):
            yield Operation(f"{method}.{fmt.name}", method, fmt, _unary(method, fmt))
        for method in ("add", "sub", "mul", "div", "min", "max", "minm", "maxm", "eq", "lt", "le", "ltq", "leq"):
            yield Operation(f"{method}.{fmt.name}", method, fmt, _binary(method, fmt))
        yield Operation(f"fma.{fmt.name}", "fma", fmt, lambda fpu, a, b, c, fmt=fmt: fpu.fma(fmt, a, b, c))
        for other in FORMATS:
            if other is not fmt:
                yield Operation(f"convert.{fmt.name}.{other.name}", "convert", fmt, _conversion(fmt, other))
        for width, signed in ((32, True), (32, False), (64, True), (64, False)):
            name = f"{fmt.name}.{'w' if width == 32 else 'l'}{'' if signed else 'u'}"
            yield Operation(f"to_int.{name}", "to_int", fmt, _integer("to_int", fmt, width, signed))
            yield Operation(f"from_int.{name}", "from_int", 64, _integer("from_int", fmt, width, signed))
        yield Operation(f"fli.{fmt.name}", "fli", 5, _unary("fli", fmt))
    yield Operation("cvtmod", "cvtmod", D, lambda fpu, a, b, c: fpu.cvtmod(a))


def _unary(method: str, fmt: Format) -> Apply:
    return lambda fpu, a, b, c: getattr(fpu, method)(fmt, a)


def _binary(method: str, fmt: Format) -> Apply:
    return lambda fpu, a, b, c: getattr(fpu, method)(fmt, a, b)


def _conversion(source: Format, target: Format) -> Apply:
    return lambda fpu, a, b, c: fpu.convert(source, target, a)


def _integer(method: str, fmt: Format, width: int, signed: bool) -> Apply:
    return lambda fpu, a, b, c: getattr(fpu, method)(fmt, a, width, signed)


OPERATIONS = {op.name: op for op in _operations()}
METHODS = sorted({op.method for op in OPERATIONS.values()})


# Compiled entry points


def _entry(unit: Unit, name: str, emit: Callable[..., Any]) -> None:
    """A compiled function (a, b, c, rm, flags) of one operation."""
    function = ir.Function(unit.module, ir.FunctionType(I64, [I64] * 5), name)
    with emitting(ir.IRBuilder(function.append_basic_block("entry"))) as b:
        b.ret(emit(*function.args))


def _build(unit: Unit) -> None:
    for op in OPERATIONS.values():
        _entry(unit, "test." + op.name, _emit_native(op))
    for name, emit in HOST_OPERATIONS.items():
        _entry(unit, "host." + name, emit)


def _emit_native(op: Operation) -> Callable[..., Any]:
    def emit(a: Any, b: Any, c: Any, rm: Any, flags: Any) -> Any:
        return op.apply(NativeFpu(V(rm), V(flags)), V(a), V(b), V(c)).v

    return emit


HOST_KIND = {S: ir.FloatType(), D: ir.DoubleType()}


def _host(fmt: Format, instruction: Callable[..., Any]) -> Callable[..., Any]:
    """Emits a host instruction on operands of a format."""

    def emit(a: Any, b: Any, c: Any, rm: Any, flags: Any) -> Any:
        bits = ir.IntType(fmt.bits)
        operands = [builder().bitcast(_narrow(x, bits), HOST_KIND[fmt]) for x in (a, b, c)]
        result = instruction(builder(), *operands)
        word = ir.IntType(64 if isinstance(result.type, ir.DoubleType) else 32)
        result = builder().bitcast(result, word)
        return result if word.width == 64 else builder().zext(result, I64)

    return emit


def _narrow(value: Any, kind: Any) -> Any:
    return value if kind.width == 64 else builder().trunc(value, kind)


def _square_root(b: Any, x: Any, y: Any, z: Any) -> Any:
    return b.call(b.module.declare_intrinsic("llvm.sqrt", [x.type]), [x])


HOST_OPERATIONS = {
    f"{name}.{fmt.name}": _host(fmt, instruction)
    for fmt in (S, D)
    for name, instruction in {
        "add": lambda b, x, y, z: b.fadd(x, y),
        "sub": lambda b, x, y, z: b.fsub(x, y),
        "mul": lambda b, x, y, z: b.fmul(x, y),
        "div": lambda b, x, y, z: b.fdiv(x, y),
        "fma": lambda b, x, y, z: b.fma(x, y, z),
        "sqrt": _square_root,
    }.items()
}
HOST_OPERATIONS["convert.D.S"] = _host(D, lambda b, x, y, z: b.fptrunc(x, HOST_KIND[S]))
HOST_OPERATIONS["convert.S.D"] = _host(S, lambda b, x, y, z: b.fpext(x, HOST_KIND[D]))


@pytest.fixture(scope="module")
def compiled() -> Callable[..., tuple[int, int]]:
    """Runs an entry point: (name, rm, a, b, c) to (result, flags)."""
    root = Path(__file__).resolve().parent.parent
    sources = sorted(p for folder in ("smp", "mem") for p in (root / folder).rglob("*.py"))
    linked = engine.load("test-fpu", [*sources, Path(__file__)], _build)
    fflags = ctypes.c_uint64()
    kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 5)
    found: dict[str, Any] = {}

    def run(name: str, rm: int, *operands: int, flags: int = 0) -> tuple[int, int]:
        if name not in found:
            found[name] = kind(linked.get_function_address(name))
        fflags.value = flags
        a, b, c = (*operands, 0, 0)[:3]
        return found[name](a, b, c, rm, ctypes.addressof(fflags)), fflags.value

    return run


def defined(op: Operation, rm: int, *operands: int) -> tuple[int, int]:
    """What the definition gives: (result, flags)."""
    fpu = DefinitionFpu(rm)
    a, b, c = (W(x) for x in (*operands, 0, 0)[:3])
    return int(op.apply(fpu, a, b, c)), fpu.flags


# Operands


def specials(fmt: Format) -> list[int]:
    """Both signs of what is at an edge."""
    top = fmt.infinity
    positive = [0, 1, 2, fmt.hidden_bit - 1, fmt.hidden_bit, fmt.hidden_bit + 1, fmt.half, fmt.one - 1, fmt.one]
    positive += [fmt.one + 1, fmt.one + fmt.hidden_bit, top - 1, top - 2, top, top + 1, fmt.nan, fmt.nan | 5]
    positive += [fmt.one | fmt.quiet_bit, fmt.hidden_bit * (fmt.special - 1)]
    return positive + [a | fmt.sign_bit for a in positive]


def fraction(r: random.Random, fmt: Format) -> int:
    """Random, or with long runs of equal bits: sums and products of those meet the ties and carries."""
    shift = r.randrange(fmt.fraction_bits + 1)
    any_ = r.getrandbits(fmt.fraction_bits)
    run = (1 << shift) - 1 << r.randrange(fmt.fraction_bits)
    kind = r.randrange(4)
    return (any_, run, ~run, any_ >> shift << shift)[kind] & fmt.hidden_bit - 1


def number(r: random.Random, fmt: Format, near: int | None = None) -> int:
    """An operand, sometimes close to another one."""
    kind = r.randrange(8)
    if kind == 0:
        return r.choice(specials(fmt))
    sign = r.getrandbits(1) << fmt.bits - 1
    if kind == 1 and near is not None:
        return (near ^ sign) + r.randrange(-2, 3) & (1 << fmt.bits) - 1
    spread = (fmt.special, fmt.fraction_bits + 3, 70, 3)[kind & 3]
    centre = fmt.bias if near is None or kind < 6 else near >> fmt.fraction_bits & fmt.special
    field = min(max(centre + r.randint(-spread, spread), 0), fmt.special - 1)
    return sign | field << fmt.fraction_bits | fraction(r, fmt)


def integer(r: random.Random) -> int:
    run = (1 << r.randrange(65)) - 1 << r.randrange(64)
    return (r.choice((run, ~run, r.getrandbits(64) >> r.randrange(64), -run)) + r.randrange(-1, 2)) & MASK64


def operands(r: random.Random, op: Operation, rm: int) -> tuple[int, int, int]:
    if isinstance(op.operand, int):
        return integer(r) & (1 << op.operand) - 1, 0, 0
    fmt = op.operand
    a = number(r, fmt)
    b = number(r, fmt, a)
    c = number(r, fmt, b)
    if op.method == "fma" and r.randrange(4) == 0:
        product = int(DefinitionFpu(rm).mul(fmt, a, b))  # cancels most of the exact product
        c = (product ^ fmt.sign_bit) + r.choice((-1, 0, 0, 0, 1)) & (1 << fmt.bits) - 1
    return a, b, c


def shown(fmt_or_width: Format | int, values: tuple[int, ...]) -> str:
    return " ".join(f"{v:#x}" for v in values) + f" ({fmt_or_width})"


# Natives against the definition


@pytest.mark.parametrize("method", METHODS)
def test_native_gives_the_definitions_values_and_flags(method: str, compiled: Any) -> None:
    chosen = [op for op in OPERATIONS.values() if op.method == method]
    r = random.Random(method)
    for op in chosen:
        for rm in MODES:
            for _ in range(-(-CASES // (len(chosen) * len(MODES)))):
                given_ = operands(r, op, rm)
                expected = defined(op, rm, *given_)
                got = compiled("test." + op.name, rm, *given_)
                assert got == expected, f"{op.name} rm={rm} {shown(op.operand, given_)}"


@pytest.mark.parametrize("op", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_native_agrees_on_every_pair_of_specials(op: Operation, compiled: Any) -> None:
    if isinstance(op.operand, int):
        cases = [(a, 0, 0) for a in range(1 << 5)]
    else:
        values = specials(op.operand)
        cases = [(a, b, c) for a in values for b in values for c in (values[::5] if op.method == "fma" else [0])]
    for i, case in enumerate(cases):
        rm = i % 5
        assert compiled("test." + op.name, rm, *case) == defined(op, rm, *case), shown(op.operand, case)


@settings(max_examples=300)
@given(st.data())
def test_native_agrees_on_operands_that_shrink(compiled: Any, data: Any) -> None:
    op = data.draw(st.sampled_from(list(OPERATIONS.values())))
    bits = op.operand if isinstance(op.operand, int) else op.operand.bits
    case = data.draw(st.tuples(*[st.integers(0, (1 << bits) - 1)] * 3))
    rm = data.draw(st.sampled_from(MODES))
    assert compiled("test." + op.name, rm, *case) == defined(op, rm, *case)


def test_half_precision_unary_operations_agree_on_all_numbers(compiled: Any) -> None:
    for name in ("convert.H.S", "convert.H.D", "round.H", "sqrt.H"):
        for a in range(0, 1 << 16, 3):
            rm = a % 5
            assert compiled("test." + name, rm, a) == defined(OPERATIONS[name], rm, a), (name, hex(a))


def test_flags_accumulate(compiled: Any) -> None:
    fpu = DefinitionFpu(RNE)
    fpu.div(D, D.one, 0)
    fpu.add(D, D.one, 1)
    assert fpu.flags == DZ | NX
    assert compiled("test.add.D", RNE, D.one, 1, flags=DZ) == (D.one, DZ | NX)


def test_fma_sees_the_last_bit_of_a_product_just_above_a_tie(compiled: Any) -> None:
    """With the product's highest bit at half a unit of the addend, only its tail says that it is no tie."""
    x, y = 2**52 + 2**26, 2**53 - 2**27 + 2
    assert x * y == 2**105 + 2**27
    a, b = (D.one | significand - D.hidden_bit for significand in (x, y))
    for up in range(50, 60):
        for odd in (0, 1):
            c = (D.bias + up << 52) + odd
            for sign in (0, D.sign_bit):
                for rm in MODES:
                    case = (a, b, c | sign)
                    assert compiled("test.fma.D", rm, *case) == defined(OPERATIONS["fma.D"], rm, *case)


# The definition against the host

FE_MODES = {RNE: 0, RDN: 0x400, RUP: 0x800, RTZ: 0xC00}
FE_FLAGS = {1: NV, 4: DZ, 8: OF, 16: UF, 32: NX}
FE_ALL = sum(FE_FLAGS)


@pytest.fixture(scope="module")
def on_host(compiled: Any) -> Iterator[Callable[..., tuple[int, int]]]:
    """Runs a host instruction under a rounding mode: (name, rm, a, b, c) to (result, flags)."""
    if platform.machine() != "x86_64":
        pytest.skip("the constants of fenv.h and the flags are those of x86-64")
    libm = ctypes.PyDLL(ctypes.util.find_library("m"))

    def run(name: str, rm: int, *operands: int) -> tuple[int, int]:
        libm.fesetround(FE_MODES[rm])
        libm.feclearexcept(FE_ALL)
        result, _ = compiled("host." + name, rm, *operands)
        raised = libm.fetestexcept(FE_ALL)
        libm.fesetround(FE_MODES[RNE])
        return result, sum(flag for bit, flag in FE_FLAGS.items() if raised & bit)

    yield run


@pytest.mark.parametrize("name", HOST_OPERATIONS)
def test_definition_gives_the_hosts_values_and_flags(name: str, on_host: Any) -> None:
    op = OPERATIONS[name]
    fmt = op.operand
    target = {"convert.D.S": S, "convert.S.D": D}.get(name, fmt)
    assert isinstance(fmt, Format) and isinstance(target, Format)
    r = random.Random(name)
    for rm in FE_MODES:
        for _ in range(2500):
            case = operands(r, op, rm)
            result, flags = on_host(name, rm, *case)
            expected, expected_flags = defined(op, rm, *case)
            if is_nan(target, result):
                result = target.nan
            assert result == expected, f"{name} rm={rm} {shown(fmt, case)}"
            if op.method == "fma" and is_nan(fmt, case[2]) and not is_signaling(fmt, case[2]):
                continue  # hosts differ in whether 0 * inf + NaN is invalid
            assert flags == expected_flags, f"{name} rm={rm} {shown(fmt, case)}"


@pytest.mark.parametrize("method", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_definition_rounds_to_nearest_like_numpy(fmt: Format, method: str) -> None:
    r = random.Random(fmt.name)
    word = {16: np.uint16, 32: np.uint32, 64: np.uint64}[fmt.bits]
    kind = {16: np.float16, 32: np.float32, 64: np.float64}[fmt.bits]
    pairs = [operands(r, OPERATIONS[f"add.{fmt.name}"], RNE)[:2] for _ in range(5000)]
    a, b = (np.array(column, dtype=word).view(kind) for column in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        host = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[method](a, b)
    for pair, expected in zip(pairs, host.view(word).tolist(), strict=True):
        result = int(getattr(DefinitionFpu(RNE), method)(fmt, *pair))
        assert result == (fmt.nan if is_nan(fmt, expected) else expected), shown(fmt, pair)


# Known hard cases of the definition, by hand

MINUS = {fmt: fmt.sign_bit for fmt in FORMATS}
SNAN = {fmt: fmt.infinity | 1 for fmt in FORMATS}


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_overflow_goes_where_the_mode_points(fmt: Format) -> None:
    largest = fmt.infinity - 1
    for rm, up, down in ((RNE, 1, 1), (RMM, 1, 1), (RTZ, 0, 0), (RUP, 1, 0), (RDN, 0, 1)):
        fpu = DefinitionFpu(rm)
        assert fpu.add(fmt, largest, largest) == largest + up
        assert fpu.add(fmt, largest | MINUS[fmt], largest | MINUS[fmt]) == (largest + down) | MINUS[fmt]
        assert fpu.flags == OF | NX


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_ties(fmt: Format) -> None:
    """1 + half a unit in the last place, and the next odd number."""
    half_unit = fmt.one - (fmt.fraction_bits + 1 << fmt.fraction_bits)
    expected = {RNE: (0, 2), RTZ: (0, 1), RDN: (0, 1), RUP: (1, 2), RMM: (1, 2)}
    for rm, (even, odd) in expected.items():
        fpu = DefinitionFpu(rm)
        assert fpu.add(fmt, fmt.one, half_unit) == fmt.one + even
        assert fpu.add(fmt, fmt.one + 1, half_unit) == fmt.one + odd
        assert fpu.flags == NX


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_tininess_is_detected_after_rounding(fmt: Format) -> None:
    """Both results round up to the least normal number; with an unbounded exponent the first would stay below it."""
    below_two = fmt.one + fmt.hidden_bit - 1
    fpu = DefinitionFpu(RNE)
    assert fpu.mul(fmt, below_two, fmt.hidden_bit >> 1) == fmt.hidden_bit  # half a least subnormal below
    assert fpu.flags == NX | UF
    fpu = DefinitionFpu(RNE)
    eighth = fmt.one - (3 << fmt.fraction_bits)
    assert fpu.fma(fmt, 1 | MINUS[fmt], eighth, fmt.hidden_bit) == fmt.hidden_bit  # an eighth of one below
    assert fpu.flags == NX


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_exact_subnormals_raise_nothing(fmt: Format) -> None:
    fpu = DefinitionFpu(RNE)
    assert fpu.sub(fmt, fmt.hidden_bit, 1) == fmt.hidden_bit - 1
    assert fpu.mul(fmt, fmt.hidden_bit, fmt.half) == fmt.hidden_bit >> 1
    assert fpu.flags == 0


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_invalid_operations_give_the_canonical_nan(fmt: Format) -> None:
    inf, minus = fmt.infinity, MINUS[fmt]
    quiet = fmt.nan | 5 | minus
    cases: list[tuple[str, tuple[int, ...], int]] = [
        ("add", (inf, inf | minus), NV), ("sub", (inf, inf), NV), ("mul", (0, inf), NV), ("div", (0, minus), NV),
        ("div", (inf, inf), NV), ("sqrt", (fmt.one | minus,), NV), ("fma", (0, inf, quiet), NV),
        ("fma", (inf, fmt.one, inf | minus), NV), ("add", (SNAN[fmt], fmt.one), NV), ("add", (quiet, fmt.one), 0),
        ("fma", (fmt.one, quiet, 0), 0), ("min", (SNAN[fmt], quiet), NV), ("minm", (quiet, fmt.one), 0),
        ("sqrt", (quiet,), 0), ("round", (SNAN[fmt],), NV), ("roundnx", (quiet,), 0),
    ]  # fmt: skip
    for method, args, flags in cases:
        fpu = DefinitionFpu(RNE)
        assert (getattr(fpu, method)(fmt, *args), fpu.flags) == (fmt.nan, flags), (method, args)


def test_division_by_zero_raises_dz_for_finite_numbers_only() -> None:
    for a, flags in ((D.one, DZ), (1, DZ), (D.infinity, 0)):
        fpu = DefinitionFpu(RNE)
        assert (fpu.div(D, a, D.sign_bit), fpu.flags) == (D.infinity | D.sign_bit, flags)


def test_zeros_keep_their_signs() -> None:
    minus = D.sign_bit
    for rm in MODES:
        fpu = DefinitionFpu(rm)
        assert fpu.sub(D, D.one, D.one) == (minus if rm == RDN else 0)
        assert fpu.add(D, minus, minus) == minus
        assert fpu.sqrt(D, minus) == minus
        assert fpu.round(D, minus) == minus
        assert fpu.fma(D, minus, D.one, 0) == (minus if rm == RDN else 0)
        assert fpu.flags == 0


def test_minimum_and_maximum() -> None:
    fpu, minus = DefinitionFpu(RNE), D.sign_bit
    assert (fpu.min(D, 0, minus), fpu.max(D, minus, 0)) == (minus, 0)
    assert (fpu.min(D, D.nan, D.one), fpu.max(D, D.one, D.nan)) == (D.one, D.one)
    assert fpu.flags == 0
    assert (fpu.max(D, SNAN[D], D.one), fpu.flags) == (D.one, NV)


def test_comparisons_with_nan() -> None:
    for method, quiet_flags in (("eq", 0), ("ltq", 0), ("leq", 0), ("lt", NV), ("le", NV)):
        for nan, flags in ((D.nan, quiet_flags), (SNAN[D], NV)):
            fpu = DefinitionFpu(RNE)
            assert (getattr(fpu, method)(D, D.one, nan), fpu.flags) == (0, flags), method


def test_integers_saturate_as_the_manual_says() -> None:
    """Unprivileged manual, F, "Domains of float-to-integer conversions and behavior for invalid inputs"."""
    minus = D.sign_bit
    for bad, end in ((minus | D.infinity, 0), (D.infinity, 1), (D.nan, 1), (minus | D.nan, 1)):
        for width, signed, ends in (
            (32, True, (0xFFFFFFFF80000000, 0x7FFFFFFF)), (32, False, (0, MASK64)),
            (64, True, (1 << 63, MASK64 >> 1)), (64, False, (0, MASK64)),
        ):  # fmt: skip
            fpu = DefinitionFpu(RNE)
            assert (fpu.to_int(D, bad, width, signed), fpu.flags) == (ends[end], NV)
    fpu = DefinitionFpu(RTZ)
    assert (fpu.to_int(D, minus | D.half, 32, False), fpu.flags) == (0, NX)  # -0.5 is within the domain
    fpu = DefinitionFpu(RDN)
    assert (fpu.to_int(D, minus | D.half, 32, False), fpu.flags) == (0, NV)


def test_modular_conversion() -> None:
    def double(x: float) -> int:
        return int(np.float64(x).view(np.uint64))

    for value, result, flags in (
        (2.0**32 + 3, 3, NV), (-(2.0**31) - 1, 0x7FFFFFFF, NV), (-1.5, MASK64, NX), (2.0**31, MASK64 << 31, NV),
        (2.0**90, 0, NV), (float("inf"), 0, NV), (float("nan"), 0, NV), (-0.0, 0, 0),
    ):  # fmt: skip
        fpu = DefinitionFpu(RUP)
        assert (fpu.cvtmod(double(value)), fpu.flags) == (result & MASK64, flags), value


@settings(max_examples=300)
@given(st.integers(0, MASK64), st.sampled_from(MODES))
def test_whole_numbers_survive_rounding(a: int, rm: int) -> None:
    fpu = DefinitionFpu(rm)
    whole = fpu.round(D, a)
    assert fpu.roundnx(D, whole) == whole
    assert fpu.flags & ~NV == 0


def test_constants_of_fli() -> None:
    fpu = DefinitionFpu(RNE)
    assert [fpu.fli(S, i) for i in (0, 1, 16, 30, 31)] == [0xBF800000, 0x800000, 0x3F800000, 0x7F800000, 0x7FC00000]
    assert [fpu.fli(H, i) for i in (2, 28, 29)] == [0x0100, 0x7800, 0x7C00]
