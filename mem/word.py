"""64-bit words in three worlds, and the primitives that mean the same in all of them.

An instruction's meaning, and every native function, is written with Python's operators and the primitives below.
Called on `W` they compute (the living definition); called on `V` they emit LLVM instructions through the current
builder (mem/native.py and the interpreter's handlers).  All arithmetic is modulo 2**64 and unsigned; signed
operations are spelled out.  Comparisons of `V` give a `Bool`, to be combined with `&`, `|` and `inv`.
"""

from typing import Any

from llvmlite import ir

MASK64 = (1 << 64) - 1
I1, I8, I16, I32, I64, I128 = (ir.IntType(n) for n in (1, 8, 16, 32, 64, 128))
INT_OF_BYTES = {1: I8, 2: I16, 4: I32, 8: I64, 16: I128}

_builders: list[ir.IRBuilder] = []


def builder() -> ir.IRBuilder:
    """The builder that `V` operations emit to."""
    return _builders[-1]


class emitting:
    """Context: `V` operations inside go to this builder."""

    def __init__(self, target: ir.IRBuilder) -> None:
        self.target = target

    def __enter__(self) -> ir.IRBuilder:
        _builders.append(self.target)
        return self.target

    def __exit__(self, *exc: object) -> None:
        _builders.pop()


class W(int):
    """A 64-bit word that computes: plain Python integers held modulo 2**64."""

    def __new__(cls, value: int = 0) -> "W":
        return int.__new__(cls, int(value) & MASK64)

    def __add__(self, other: int) -> "W":
        return W(int(self) + int(other))

    __radd__ = __add__

    def __sub__(self, other: int) -> "W":
        return W(int(self) - int(other))

    def __rsub__(self, other: int) -> "W":
        return W(int(other) - int(self))

    def __mul__(self, other: int) -> "W":
        return W(int(self) * int(other))

    __rmul__ = __mul__

    def __and__(self, other: int) -> "W":
        return W(int(self) & int(other))

    __rand__ = __and__

    def __or__(self, other: int) -> "W":
        return W(int(self) | (int(other) & MASK64))

    __ror__ = __or__

    def __xor__(self, other: int) -> "W":
        return W(int(self) ^ (int(other) & MASK64))

    __rxor__ = __xor__

    def __lshift__(self, count: int) -> "W":
        return W(int(self) << (int(count) & 63))

    def __rlshift__(self, value: int) -> "W":
        return W(int(value) << (int(self) & 63))

    def __rshift__(self, count: int) -> "W":
        return W(int(self) >> (int(count) & 63))

    def __rrshift__(self, value: int) -> "W":
        return W((int(value) & MASK64) >> (int(self) & 63))

    def __invert__(self) -> "W":
        return W(~int(self))

    def __neg__(self) -> "W":
        return W(-int(self))


class V:
    """A 64-bit word that emits: an LLVM i64 value."""

    __slots__ = ("v",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: ir.Value) -> None:
        self.v = value

    def __bool__(self) -> bool:
        raise TypeError("a word of the guest decides nothing while code is being built: use select() or if_then")

    def __add__(self, o: Any) -> "V":
        return V(builder().add(self.v, raw(o)))

    __radd__ = __add__

    def __sub__(self, o: Any) -> "V":
        return V(builder().sub(self.v, raw(o)))

    def __rsub__(self, o: Any) -> "V":
        return V(builder().sub(raw(o), self.v))

    def __mul__(self, o: Any) -> "V":
        return V(builder().mul(self.v, raw(o)))

    __rmul__ = __mul__

    def __and__(self, o: Any) -> "V":
        return V(builder().and_(self.v, raw(o)))

    __rand__ = __and__

    def __or__(self, o: Any) -> "V":
        return V(builder().or_(self.v, raw(o)))

    __ror__ = __or__

    def __xor__(self, o: Any) -> "V":
        return V(builder().xor(self.v, raw(o)))

    __rxor__ = __xor__

    def __lshift__(self, n: Any) -> "V":
        return V(builder().shl(self.v, _count(n)))

    def __rlshift__(self, a: Any) -> "V":
        return V(builder().shl(raw(a), _count(self)))

    def __rshift__(self, n: Any) -> "V":
        return V(builder().lshr(self.v, _count(n)))

    def __rrshift__(self, a: Any) -> "V":
        return V(builder().lshr(raw(a), _count(self)))

    def __invert__(self) -> "V":
        return V(builder().not_(self.v))

    def __neg__(self) -> "V":
        return V(builder().neg(self.v))

    def __eq__(self, o: Any) -> "Bool":  # type: ignore[override]
        return Bool(builder().icmp_unsigned("==", self.v, raw(o)))

    def __ne__(self, o: Any) -> "Bool":  # type: ignore[override]
        return Bool(builder().icmp_unsigned("!=", self.v, raw(o)))

    def __lt__(self, o: Any) -> "Bool":
        return Bool(builder().icmp_unsigned("<", self.v, raw(o)))

    def __le__(self, o: Any) -> "Bool":
        return Bool(builder().icmp_unsigned("<=", self.v, raw(o)))

    def __gt__(self, o: Any) -> "Bool":
        return Bool(builder().icmp_unsigned(">", self.v, raw(o)))

    def __ge__(self, o: Any) -> "Bool":
        return Bool(builder().icmp_unsigned(">=", self.v, raw(o)))


class Bool(V):
    """A truth value that emits: an LLVM i1; as a word it is 0 or 1."""

    __slots__ = ()

    def __and__(self, o: Any) -> Any:
        return Bool(builder().and_(self.v, o.v)) if isinstance(o, Bool) else V(raw(self)) & o

    def __or__(self, o: Any) -> Any:
        return Bool(builder().or_(self.v, o.v)) if isinstance(o, Bool) else V(raw(self)) | o


def _widened(name: str) -> Any:
    """An operation of V on a truth value read as 0 or 1."""
    operation = getattr(V, name)
    return lambda self, other: operation(V(raw(self)), other)


for _name in ("add", "sub", "mul", "xor", "lshift", "rshift", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Bool, f"__{_name}__", _widened(f"__{_name}__"))
for _name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift"):
    setattr(Bool, f"__r{_name}__", _widened(f"__r{_name}__"))


def const(value: int) -> ir.Constant:
    return ir.Constant(I64, int(value) & MASK64)


def raw(a: Any) -> ir.Value:
    """The LLVM i64 of a word, a truth value or a Python integer."""
    if isinstance(a, Bool):
        return builder().zext(a.v, I64)
    if isinstance(a, V):
        return a.v
    if isinstance(a, (int, bool)):
        return const(int(a))
    raise TypeError(f"{a!r} is no word")


def truth(a: Any) -> ir.Value:
    """The LLVM i1 that says whether a word is not zero."""
    if isinstance(a, Bool):
        return a.v
    if isinstance(a, V):
        return builder().icmp_unsigned("!=", a.v, const(0))
    return ir.Constant(I1, int(bool(a)))


def _count(n: Any) -> ir.Value:
    """A shift count modulo 64: LLVM leaves larger ones undefined, x86 and RISC-V mask them."""
    return const(n & 63) if isinstance(n, int) else builder().and_(raw(n), const(63))


def macro(function: Any) -> Any:
    """Marks a Python function that native code calls while it is being built (its arguments are words)."""
    function.is_macro = True
    return function


def emits(*args: Any) -> bool:
    """Whether one of the words emits; otherwise all of them are Python integers and the primitive computes."""
    return any(isinstance(a, V) for a in args)


def signed(a: int, bits: int = 64) -> int:
    """A Python integer read as two's complement."""
    a = int(a) & ((1 << bits) - 1)
    return a - (1 << bits) if a >> (bits - 1) else a


@macro
def select(cond: Any, a: Any, b: Any) -> Any:
    """a if cond else b, both computed."""
    if not emits(cond):
        return a if cond else b
    return V(builder().select(truth(cond), raw(a), raw(b)))


@macro
def inv(cond: Any) -> Any:
    """The opposite truth value."""
    return Bool(builder().not_(truth(cond))) if emits(cond) else not cond


def _sext(a: Any, bits: int) -> Any:
    if not emits(a):
        return W(signed(a, bits))
    return V(builder().sext(builder().trunc(raw(a), ir.IntType(bits)), I64))


def _zext(a: Any, bits: int) -> Any:
    return a & ((1 << bits) - 1) if emits(a) else W(int(a) & ((1 << bits) - 1))


@macro
def sext8(a: Any) -> Any:
    return _sext(a, 8)


@macro
def sext16(a: Any) -> Any:
    return _sext(a, 16)


@macro
def sext32(a: Any) -> Any:
    return _sext(a, 32)


@macro
def zext8(a: Any) -> Any:
    return _zext(a, 8)


@macro
def zext16(a: Any) -> Any:
    return _zext(a, 16)


@macro
def zext32(a: Any) -> Any:
    return _zext(a, 32)


def _compare(op: str, a: Any, b: Any) -> Any:
    return Bool(builder().icmp_signed(op, raw(a), raw(b)))


@macro
def lts(a: Any, b: Any) -> Any:
    """a < b as signed words."""
    return _compare("<", a, b) if emits(a, b) else signed(a) < signed(b)


@macro
def ges(a: Any, b: Any) -> Any:
    """a >= b as signed words."""
    return _compare(">=", a, b) if emits(a, b) else signed(a) >= signed(b)


@macro
def ltu(a: Any, b: Any) -> Any:
    """a < b as unsigned words."""
    return V(raw(a)) < b if emits(a, b) else (int(a) & MASK64) < (int(b) & MASK64)


@macro
def sra(a: Any, n: Any) -> Any:
    """a shifted right by n modulo 64, copies of the sign coming in."""
    if not emits(a, n):
        return W(signed(a) >> (int(n) & 63))
    return V(builder().ashr(raw(a), _count(n)))


def _high(a: Any, b: Any, extend_a: str, extend_b: str) -> Any:
    b_ = builder()
    wide = b_.mul(getattr(b_, extend_a)(raw(a), I128), getattr(b_, extend_b)(raw(b), I128))
    return V(b_.trunc(b_.lshr(wide, ir.Constant(I128, 64)), I64))


@macro
def mulhu(a: Any, b: Any) -> Any:
    """The upper 64 bits of the unsigned product."""
    return _high(a, b, "zext", "zext") if emits(a, b) else W((int(a) & MASK64) * (int(b) & MASK64) >> 64)


@macro
def mulh(a: Any, b: Any) -> Any:
    """The upper 64 bits of the signed product."""
    return _high(a, b, "sext", "sext") if emits(a, b) else W(signed(a) * signed(b) >> 64)


@macro
def mulhsu(a: Any, b: Any) -> Any:
    """The upper 64 bits of signed a times unsigned b."""
    return _high(a, b, "sext", "zext") if emits(a, b) else W(signed(a) * (int(b) & MASK64) >> 64)


def _divide(a: Any, b: Any, operation: str, signed_: bool, by_zero: Any) -> Any:
    """A division that never traps the host: the divisor is made harmless first, then the result put right."""
    b_ = builder()
    va, vb = raw(a), raw(b)
    zero = b_.icmp_unsigned("==", vb, const(0))
    bad = zero
    if signed_:
        least = b_.icmp_unsigned("==", va, const(1 << 63))
        bad = b_.or_(zero, b_.and_(least, b_.icmp_unsigned("==", vb, const(-1))))
    result = getattr(b_, operation)(va, b_.select(bad, const(1), vb))
    # The least number over -1 overflows: divided by 1 it is itself with remainder 0, as the manual has it.
    return V(b_.select(zero, raw(by_zero), result))


@macro
def divu(a: Any, b: Any) -> Any:
    """Unsigned quotient; all ones when b is 0 (unprivileged manual, M extension)."""
    if emits(a, b):
        return _divide(a, b, "udiv", False, MASK64)
    a, b = int(a) & MASK64, int(b) & MASK64
    return W(a // b) if b else W(MASK64)


@macro
def remu(a: Any, b: Any) -> Any:
    """Unsigned remainder; a when b is 0."""
    if emits(a, b):
        return _divide(a, b, "urem", False, a)
    a, b = int(a) & MASK64, int(b) & MASK64
    return W(a % b) if b else W(a)


@macro
def div(a: Any, b: Any) -> Any:
    """Signed quotient towards zero; -1 when b is 0."""
    if emits(a, b):
        return _divide(a, b, "sdiv", True, MASK64)
    x, y = signed(a), signed(b)
    if y == 0:
        return W(-1)
    quotient = abs(x) // abs(y)
    return W(quotient if (x < 0) == (y < 0) else -quotient)


@macro
def rem(a: Any, b: Any) -> Any:
    """Signed remainder with a's sign; a when b is 0."""
    if emits(a, b):
        return _divide(a, b, "srem", True, a)
    x, y = signed(a), signed(b)
    if y == 0:
        return W(x)
    remainder = abs(x) % abs(y)
    return W(-remainder if x < 0 else remainder)


def _count_zeros(a: Any, bits: int, name: str) -> Any:
    b_ = builder()
    kind = ir.IntType(bits)
    value = raw(a) if bits == 64 else b_.trunc(raw(a), kind)
    result = getattr(b_, name)(value, ir.Constant(I1, 0))
    return V(result if bits == 64 else b_.zext(result, I64))


@macro
def clz(a: Any) -> Any:
    """Leading zeros, 64 for 0."""
    return _count_zeros(a, 64, "ctlz") if emits(a) else W(64 - (int(a) & MASK64).bit_length())


@macro
def ctz(a: Any) -> Any:
    """Trailing zeros, 64 for 0."""
    if emits(a):
        return _count_zeros(a, 64, "cttz")
    a = int(a) & MASK64
    return W((a & -a).bit_length() - 1 if a else 64)


@macro
def popcount(a: Any) -> Any:
    """How many bits are set."""
    return V(builder().ctpop(raw(a))) if emits(a) else W((int(a) & MASK64).bit_count())


@macro
def bswap(a: Any) -> Any:
    """The eight bytes in opposite order."""
    if emits(a):
        return V(builder().bswap(raw(a)))
    return W(int.from_bytes((int(a) & MASK64).to_bytes(8, "little"), "big"))


@macro
def rotl(a: Any, n: Any) -> Any:
    """Rotated left by n modulo 64."""
    a = a if emits(a, n) else W(a)
    return (a << n) | (a >> ((-n if emits(n) else -int(n)) & 63))


@macro
def rotr(a: Any, n: Any) -> Any:
    """Rotated right by n modulo 64."""
    a = a if emits(a, n) else W(a)
    return (a >> n) | (a << ((-n if emits(n) else -int(n)) & 63))


@macro
def minu(a: Any, b: Any) -> Any:
    return select(ltu(a, b), a, b)


@macro
def maxu(a: Any, b: Any) -> Any:
    return select(ltu(a, b), b, a)


@macro
def mins(a: Any, b: Any) -> Any:
    return select(lts(a, b), a, b)


@macro
def maxs(a: Any, b: Any) -> Any:
    return select(lts(a, b), b, a)
