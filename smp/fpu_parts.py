"""What the native floating-point operations are made of: taking numbers apart, rounding, the exceptions.

A finite number that is not zero is taken apart into a sign (0 or 1), a signed exponent e and a significand word s
with bit 63 set: its value is s / 2**63 * 2**e.  On the way to rounding, the lowest bit of s is sticky: set when
anything not zero was shifted out below it.  The only effect of an operation is that it ors exception flags into
the u64 at `flags`.  Host floating point is never used, so the host's MXCSR (or FPCR) neither matters nor changes.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from mem.atomics import load64, store64
from mem.native import Native, call
from mem.word import MASK64, clz, lts, macro, select
from smp.fpformat import DZ, NV, NX, OF, RDN, RMM, RNE, UF, Format

TOP = 1 << 63


class Specialised(Native):
    """A generic native for particular formats: these parameters are constants, the others words."""

    def __init__(self, item: "Generic", formats: tuple[Format, ...]) -> None:
        names = dict(zip(item.format_names, formats, strict=True))
        generic_ = item.function
        function = FunctionType(generic_.__code__, {**generic_.__globals__, **names}, generic_.__name__)
        function.__annotations__ = generic_.__annotations__
        function.__module__, function.__qualname__ = generic_.__module__, generic_.__qualname__
        super().__init__(function, item.inline, item.cold)
        self.name = "_".join([self.name, *(f.name for f in formats)])
        self.format_names = item.format_names

    def parameters(self) -> dict[str, Any]:
        return {name: hint for name, hint in super().parameters().items() if name not in self.format_names}


class Generic:
    """A native written once for all formats: its first parameters are `Format`s, constants in each copy.

    Natives call it like any other; `of(formats)` is the copy for Python.
    """

    is_macro = True

    def __init__(self, function: Callable[..., Any], inline: bool, cold: bool) -> None:
        self.function: Any = function
        self.inline, self.cold = inline, cold
        self.format_names = [n for n, hint in function.__annotations__.items() if hint is Format]
        self.copies: dict[tuple[Format, ...], Specialised] = {}
        self.__doc__ = function.__doc__

    def of(self, *formats: Format) -> Specialised:
        """The native for these formats."""
        if formats not in self.copies:
            self.copies[formats] = Specialised(self, formats)
        return self.copies[formats]

    def __call__(self, *args: Any) -> Any:
        count = len(self.format_names)
        return call(self.of(*args[:count]), *args[count:])


def generic(function: Any = None, *, inline: bool = False, cold: bool = False) -> Any:
    """Decorator: a native with one copy for each format (or pair of formats) that it is called with."""
    if function is None:
        return lambda f: Generic(f, inline, cold)
    return Generic(function, inline, cold)


@macro
def raise_flags(flags: Any, which: Any) -> None:
    store64(flags, load64(flags) | which)


# Taking apart


@macro
def magnitude(F: Format, a: Any) -> Any:
    return a & F.magnitude_mask


@macro
def negative(F: Format, a: Any) -> Any:
    return (a >> F.bits - 1) & 1


@macro
def exponent_field(F: Format, a: Any) -> Any:
    return (a >> F.fraction_bits) & F.special


@macro
def is_special(F: Format, a: Any) -> Any:
    """Infinite or NaN."""
    return magnitude(F, a) >= F.infinity


@macro
def is_nan(F: Format, a: Any) -> Any:
    return magnitude(F, a) > F.infinity


@macro
def is_signaling(F: Format, a: Any) -> Any:
    return is_nan(F, a) & ((a & F.quiet_bit) == 0)


@macro
def is_infinite(F: Format, a: Any) -> Any:
    return magnitude(F, a) == F.infinity


@macro
def is_zero(F: Format, a: Any) -> Any:
    return magnitude(F, a) == 0


@macro
def exponent_of(F: Format, a: Any) -> Any:
    """The exponent of a finite number that is not zero, subnormal ones as if normalised."""
    field = exponent_field(F, a)
    subnormal = 1 - F.bias + 63 - F.fraction_bits - clz(magnitude(F, a))
    return select(field == 0, subnormal, field - F.bias)


@macro
def significand_of(F: Format, a: Any) -> Any:
    """The significand with bit 63 set."""
    tail = magnitude(F, a)
    normal = (a << 63 - F.fraction_bits) | TOP
    return select(exponent_field(F, a) == 0, tail << clz(tail), normal)


@macro
def with_sign(F: Format, sign: Any, bits: Any) -> Any:
    return (sign << F.bits - 1) | bits


# Rounding


@macro
def shift_right_sticky(a: Any, n: Any) -> Any:
    """a >> n for any n, the lowest bit set when something was lost."""
    kept = a >> n
    within = kept | ((kept << n) != a)
    return select(n < 64, within, a != 0)


@macro
def rounds_up(rm: Any, sign: Any, odd: Any, rest: Any, half: Any) -> Any:
    """Whether a magnitude grows when `rest` is cut off, where `half` is half of the last place kept.

    The modes differ only in what the rest must exceed.  rm ^ sign is 3 where a directed mode points away from zero:
    RDN (2) with sign 1, RUP (3) with sign 0.
    """
    directed = select((rm ^ sign) == 3, 0, MASK64)
    limit = select(rm == RNE, half - odd, select(rm == RMM, half - 1, directed))
    return rest > limit


@generic(cold=True)
def overflow(F: Format, sign: int, rm: int, flags: int) -> int:
    """Infinity, or the largest finite number where the mode points towards zero."""
    raise_flags(flags, OF | NX)
    away = rm & 3 == 0 or rm ^ sign == 3  # RNE (0) and RMM (4), or directed away from zero
    return with_sign(F, sign, select(away, F.infinity, F.infinity - 1))


@generic(cold=True)
def round_subnormal(F: Format, sign: int, field: int, significand: int, rm: int, flags: int) -> int:
    """As round_pack, where the exponent field would be 0 or negative."""
    dropped = 63 - F.fraction_bits
    rest_mask = (1 << dropped) - 1
    half = 1 << dropped - 1
    kept = significand >> dropped
    kept += rounds_up(rm, sign, kept & 1, significand & rest_mask, half)
    # Tiny is judged after rounding: only 0.111..1 that an unbounded exponent would round up to 1.0 is not tiny.
    tiny = lts(field, 0) or kept >> F.fraction_bits + 1 == 0
    shifted = shift_right_sticky(significand, 1 - field)
    rest = shifted & rest_mask
    kept = shifted >> dropped
    kept += rounds_up(rm, sign, kept & 1, rest, half)
    if rest:
        raise_flags(flags, select(tiny, NX | UF, NX))
    return with_sign(F, sign, kept)


@generic
def round_pack(F: Format, sign: int, exponent: int, significand: int, rm: int, flags: int) -> int:
    """The number of the format for a sign, an exponent and a significand with bit 63 set."""
    dropped = 63 - F.fraction_bits
    field = exponent + F.bias
    if field - 1 >= F.special - 1:  # unsigned: 0 and negative fields too
        if lts(field, 1):
            return round_subnormal(F, sign, field, significand, rm, flags)
        return overflow(F, sign, rm, flags)
    rest = significand & (1 << dropped) - 1
    kept = significand >> dropped
    kept += rounds_up(rm, sign, kept & 1, rest, 1 << dropped - 1)
    # The hidden bit, and a carry out of the fraction, add into the exponent field.
    packed = (field - 1 << F.fraction_bits) + kept
    if packed >= F.infinity:
        return overflow(F, sign, rm, flags)
    if rest:
        raise_flags(flags, NX)
    return with_sign(F, sign, packed)


@macro
def zero_sum(F: Format, a: Any, b: Any, rm: Any) -> Any:
    """The zero that a + b is: of their sign when they agree, otherwise +0, or -0 when rounding down."""
    return with_sign(F, select(negative(F, a ^ b), rm == RDN, negative(F, a)), 0)


# Exceptional results


@generic(cold=True)
def nan_result(F: Format, a: int, b: int, flags: int) -> int:
    """The canonical NaN; a signaling operand is invalid."""
    if is_signaling(F, a) or is_signaling(F, b):
        raise_flags(flags, NV)
    return F.nan


@generic(cold=True)
def invalid(F: Format, flags: int) -> int:
    raise_flags(flags, NV)
    return F.nan


@generic(cold=True)
def divided_by_zero(F: Format, sign: int, flags: int) -> int:
    raise_flags(flags, DZ)
    return with_sign(F, sign, F.infinity)
