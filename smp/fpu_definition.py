"""Floating point as the manual defines it: exact arithmetic on Python integers, then one rounding.

The oracle of the native unit.  Operands and results are bit patterns of their format, without NaN boxing.
Every finite number of a format is a whole number of its least subnormal: `units` gives that number, and sums,
products and quotients of units are exact.  Unprivileged manual, chapters F, D, Zfh, Zfa; IEEE 754-2019.
"""

from math import isqrt

from mem.word import W, signed
from smp.fpformat import (
    DZ,
    FLI_INFINITY,
    FLI_MIN_NORMAL,
    FLI_NAN,
    FLI_VALUES,
    NV,
    NX,
    OF,
    RDN,
    RMM,
    RNE,
    RTZ,
    RUP,
    UF,
    D,
    Format,
)


def round_ratio(n: int, d: int, rm: int) -> int:
    """n/d (d > 0) to a whole number by rounding mode."""
    floor, rest = divmod(n, d)
    if rest == 0 or rm == RDN:
        return floor
    if rm == RUP:
        return floor + 1
    if rm == RTZ:
        return floor + (n < 0)
    if 2 * rest != d:
        return floor + (2 * rest > d)
    return floor + (n > 0) if rm == RMM else floor + (floor & 1)


def is_nan(fmt: Format, a: int) -> bool:
    return a & fmt.magnitude_mask > fmt.infinity


def is_signaling(fmt: Format, a: int) -> bool:
    return is_nan(fmt, a) and a & fmt.quiet_bit == 0


def is_infinite(fmt: Format, a: int) -> bool:
    return a & fmt.magnitude_mask == fmt.infinity


def is_zero(fmt: Format, a: int) -> bool:
    return a & fmt.magnitude_mask == 0


def is_negative(fmt: Format, a: int) -> bool:
    return a & fmt.sign_bit != 0


def units(fmt: Format, a: int) -> int:
    """A finite number, in least subnormals."""
    exponent = a >> fmt.fraction_bits & fmt.special
    fraction = a & fmt.hidden_bit - 1
    magnitude = (fraction | fmt.hidden_bit) << exponent - 1 if exponent else fraction
    return -magnitude if is_negative(fmt, a) else magnitude


def scale(fmt: Format) -> int:
    """How many least subnormals make one."""
    return 1 << fmt.bias - 1 + fmt.fraction_bits


def order(fmt: Format, a: int) -> int:
    """A number's place in the order of its format, -0 below +0, infinities at the ends."""
    magnitude = a & fmt.magnitude_mask
    return -1 - magnitude if is_negative(fmt, a) else magnitude


class DefinitionFpu:
    """Operations under one rounding mode; `flags` accumulates the exceptions."""

    def __init__(self, rm: int = RNE) -> None:
        self.rm = int(rm)
        self.flags = 0

    # Results

    def _invalid(self, fmt: Format) -> W:
        self.flags |= NV
        return W(fmt.nan)

    def _nan(self, fmt: Format, *operands: int) -> W:
        if any(is_signaling(fmt, a) for a in operands):
            self.flags |= NV
        return W(fmt.nan)

    def _zero(self, fmt: Format, negative: bool) -> W:
        return W(fmt.sign_bit if negative else 0)

    def _infinity(self, fmt: Format, negative: bool) -> W:
        return W(fmt.infinity | (fmt.sign_bit if negative else 0))

    def _overflow(self, fmt: Format, negative: bool) -> W:
        self.flags |= OF | NX
        away = self.rm in (RNE, RMM) or self.rm == (RDN if negative else RUP)
        return W(self._infinity(fmt, negative) - (0 if away else 1))

    def _round(self, fmt: Format, n: int, d: int) -> W:
        """The number of the format for n/d, not zero and in least subnormals."""
        negative = n < 0
        length = abs(n).bit_length() - d.bit_length()
        exponent = length if abs(n) << max(-length, 0) >= d << max(length, 0) else length - 1  # floor(log2)
        # The spacing of numbers here, were there no least exponent; in fact it is never below 1.
        unbounded = exponent - fmt.fraction_bits
        spacing = max(unbounded, 0)
        whole = abs(round_ratio(n, d << spacing, self.rm))
        if whole << spacing >= fmt.hidden_bit << fmt.special - 1:
            return self._overflow(fmt, negative)
        if whole * (d << spacing) != abs(n):
            self.flags |= NX
            # Tiny is judged after rounding (manual, F): would the unbounded result lie below the normal numbers?
            fine = abs(round_ratio(n << max(-unbounded, 0), d << max(unbounded, 0), self.rm))
            if unbounded < 0 and fine < fmt.hidden_bit << -unbounded:
                self.flags |= UF
        # The hidden bit carries into the exponent field, which starts at 1 where the spacing is 1.
        return W((spacing << fmt.fraction_bits) + whole | (fmt.sign_bit if negative else 0))

    def _round_sum(self, fmt: Format, n: int, d: int, zero_negative: bool) -> W:
        """As `_round`, where the exact value may be zero and the operands settle the zero's sign."""
        return self._round(fmt, n, d) if n else self._zero(fmt, zero_negative)

    # Arithmetic

    def add(self, fmt: Format, a: int, b: int) -> W:
        return self.fma(fmt, a, fmt.one, b)

    def sub(self, fmt: Format, a: int, b: int) -> W:
        return self.add(fmt, a, int(b) ^ fmt.sign_bit)

    def mul(self, fmt: Format, a: int, b: int) -> W:
        # A zero of the product's sign changes neither value nor sign of the product.
        return self.fma(fmt, a, b, (int(a) ^ int(b)) & fmt.sign_bit)

    def fma(self, fmt: Format, a: int, b: int, c: int) -> W:
        """a*b + c with one rounding."""
        a, b, c = int(a), int(b), int(c)
        infinite = is_infinite(fmt, a) or is_infinite(fmt, b)
        negative = is_negative(fmt, a) != is_negative(fmt, b)
        if any(is_nan(fmt, x) for x in (a, b, c)):
            # 0 * inf raises NV even with a quiet NaN as addend (manual, F, "fused multiply-add").
            if {a & fmt.magnitude_mask, b & fmt.magnitude_mask} == {0, fmt.infinity}:
                self.flags |= NV
            return self._nan(fmt, a, b, c)
        if infinite and (is_zero(fmt, a) or is_zero(fmt, b)):
            return self._invalid(fmt)
        if infinite and is_infinite(fmt, c) and negative != is_negative(fmt, c):
            return self._invalid(fmt)
        if infinite or is_infinite(fmt, c):
            return self._infinity(fmt, negative if infinite else is_negative(fmt, c))
        n = units(fmt, a) * units(fmt, b) + units(fmt, c) * scale(fmt)
        minus = negative if negative == is_negative(fmt, c) else self.rm == RDN
        return self._round_sum(fmt, n, scale(fmt), minus)

    def div(self, fmt: Format, a: int, b: int) -> W:
        a, b = int(a), int(b)
        negative = is_negative(fmt, a) != is_negative(fmt, b)
        if is_nan(fmt, a) or is_nan(fmt, b):
            return self._nan(fmt, a, b)
        if a & fmt.magnitude_mask == b & fmt.magnitude_mask and (is_zero(fmt, a) or is_infinite(fmt, a)):
            return self._invalid(fmt)
        if is_infinite(fmt, a):
            return self._infinity(fmt, negative)
        if is_zero(fmt, b):
            self.flags |= DZ
            return self._infinity(fmt, negative)
        if is_infinite(fmt, b) or is_zero(fmt, a):
            return self._zero(fmt, negative)
        n, d = units(fmt, a) * scale(fmt), units(fmt, b)
        return self._round(fmt, n if d > 0 else -n, abs(d))

    def sqrt(self, fmt: Format, a: int) -> W:
        a = int(a)
        if is_nan(fmt, a):
            return self._nan(fmt, a)
        if is_zero(fmt, a):
            return W(a)
        if is_negative(fmt, a):
            return self._invalid(fmt)
        if is_infinite(fmt, a):
            return W(a)
        # The root with far more bits than any format has; where it is cut short, half of the last bit stands
        # for the rest, which rounds the same way in every mode.
        extra = 2 * fmt.fraction_bits + 8
        square = units(fmt, a) * scale(fmt) << 2 * extra
        root = isqrt(square)
        return self._round(fmt, 2 * root + (root * root != square), 2 << extra)

    # Comparisons

    def _choose(self, fmt: Format, a: int, b: int, larger: bool, number: bool) -> W:
        a, b = int(a), int(b)
        nans = [x for x in (a, b) if is_nan(fmt, x)]
        if nans:
            canonical = self._nan(fmt, a, b)
            others = [x for x in (a, b) if not is_nan(fmt, x)]
            return W(others[0]) if others and number else canonical
        return W((max if larger else min)(a, b, key=lambda x: order(fmt, x)))

    def min(self, fmt: Format, a: int, b: int) -> W:
        """minimumNumber: a NaN gives way to a number."""
        return self._choose(fmt, a, b, False, True)

    def max(self, fmt: Format, a: int, b: int) -> W:
        """maximumNumber."""
        return self._choose(fmt, a, b, True, True)

    def minm(self, fmt: Format, a: int, b: int) -> W:
        """minimum (Zfa): any NaN gives NaN."""
        return self._choose(fmt, a, b, False, False)

    def maxm(self, fmt: Format, a: int, b: int) -> W:
        """maximum (Zfa)."""
        return self._choose(fmt, a, b, True, False)

    def _compare(self, fmt: Format, a: int, b: int, signaling: bool) -> int | None:
        """-1, 0 or 1; None when unordered."""
        a, b = int(a), int(b)
        if is_nan(fmt, a) or is_nan(fmt, b):
            self._nan(fmt, a, b)
            self.flags |= NV if signaling else 0
            return None
        if is_zero(fmt, a) and is_zero(fmt, b):
            return 0
        x, y = order(fmt, a), order(fmt, b)
        return (x > y) - (x < y)

    def eq(self, fmt: Format, a: int, b: int) -> W:
        return W(self._compare(fmt, a, b, False) == 0)

    def lt(self, fmt: Format, a: int, b: int) -> W:
        return W(self._compare(fmt, a, b, True) == -1)

    def le(self, fmt: Format, a: int, b: int) -> W:
        return W(self._compare(fmt, a, b, True) in (-1, 0))

    def ltq(self, fmt: Format, a: int, b: int) -> W:
        """Less (Zfa): quiet NaNs raise nothing."""
        return W(self._compare(fmt, a, b, False) == -1)

    def leq(self, fmt: Format, a: int, b: int) -> W:
        """Less or equal (Zfa): quiet NaNs raise nothing."""
        return W(self._compare(fmt, a, b, False) in (-1, 0))

    def classify(self, fmt: Format, a: int) -> W:
        """The mask of fclass: one bit of ten."""
        a = int(a)
        if is_nan(fmt, a):
            return W(1 << 8 if is_signaling(fmt, a) else 1 << 9)
        if is_infinite(fmt, a):
            rank = 3
        elif is_zero(fmt, a):
            rank = 0
        else:
            rank = 1 if a & fmt.magnitude_mask < fmt.hidden_bit else 2
        return W(1 << 3 - rank if is_negative(fmt, a) else 1 << 4 + rank)

    # Conversions

    def to_int(self, fmt: Format, a: int, width: int, is_signed: bool) -> W:
        """fcvt.w/wu/l/lu: saturating; 32-bit results are sign-extended, unsigned ones too."""
        a, width = int(a), int(width)
        least = -1 << width - 1 if is_signed else 0
        most = (1 << width - 1) - 1 if is_signed else (1 << width) - 1
        if is_nan(fmt, a):
            value = most + 1
        elif is_infinite(fmt, a):
            value = least - 1 if is_negative(fmt, a) else most + 1
        else:
            value = round_ratio(units(fmt, a), scale(fmt), self.rm)
        if not least <= value <= most:
            self.flags |= NV
            value = min(max(value, least), most)
        elif value * scale(fmt) != units(fmt, a):
            self.flags |= NX
        return W(signed(value, width))

    def from_int(self, fmt: Format, a: int, width: int, is_signed: bool) -> W:
        """fcvt from the lowest `width` bits of a register."""
        value = int(a) & (1 << int(width)) - 1
        value = signed(value, int(width)) if is_signed else value
        return self._round_sum(fmt, value * scale(fmt), 1, False)

    def convert(self, source: Format, target: Format, a: int) -> W:
        """fcvt between formats."""
        a = int(a)
        if is_nan(source, a):
            self._nan(source, a)
            return W(target.nan)
        if is_infinite(source, a):
            return self._infinity(target, is_negative(source, a))
        n = units(source, a) * scale(target)
        return self._round_sum(target, n, scale(source), is_negative(source, a))

    def round(self, fmt: Format, a: int) -> W:
        """fround (Zfa): to a whole number, never NX."""
        a = int(a)
        if is_nan(fmt, a):
            return self._nan(fmt, a)
        if is_infinite(fmt, a):
            return W(a)
        whole = round_ratio(units(fmt, a), scale(fmt), self.rm)
        return self._round_sum(fmt, whole * scale(fmt), 1, is_negative(fmt, a))

    def roundnx(self, fmt: Format, a: int) -> W:
        """froundnx (Zfa): as fround, NX where the value changes."""
        result = self.round(fmt, a)
        if not is_nan(fmt, int(a)) and int(result) != int(a):
            self.flags |= NX
        return result

    def cvtmod(self, a: int) -> W:
        """fcvtmod.w.d (Zfa): toward zero, modulo 2**32; the flags are those of fcvt.w.d."""
        a = int(a)
        as_fcvt = DefinitionFpu(RTZ)
        as_fcvt.to_int(D, a, 32, True)
        self.flags |= as_fcvt.flags
        if is_nan(D, a) or is_infinite(D, a):
            return W(0)
        return W(signed(round_ratio(units(D, a), scale(D), RTZ), 32))

    def fli(self, fmt: Format, index: int) -> W:
        """The constant of fli; 2**16 is beyond H and gives infinity, with no flag."""
        if index == FLI_NAN:
            return W(fmt.nan)
        if index == FLI_INFINITY:
            return W(fmt.infinity)
        if index == FLI_MIN_NORMAL:
            return W(fmt.hidden_bit)
        value = FLI_VALUES[int(index)]
        assert value is not None
        return DefinitionFpu(RNE)._round(fmt, value.numerator * scale(fmt), value.denominator)
