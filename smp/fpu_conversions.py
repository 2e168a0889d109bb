"""Comparisons, classification and conversions as natives.  smp/fpu_parts.py says how numbers are taken apart."""

import struct
from typing import Any

from mem.native import native, table
from mem.word import clz, inv, lts, macro, select, sext32, zext32
from smp.fpformat import FLI_INFINITY, FLI_MIN_NORMAL, FLI_NAN, FLI_VALUES, NV, NX, RTZ, D, Format, H, S
from smp.fpu_parts import (
    TOP,
    exponent_field,
    exponent_of,
    generic,
    is_infinite,
    is_nan,
    is_signaling,
    is_special,
    is_zero,
    magnitude,
    nan_result,
    negative,
    raise_flags,
    round_pack,
    rounds_up,
    shift_right_sticky,
    significand_of,
    with_sign,
)

# Comparisons


@macro
def order(F: Format, a: Any) -> Any:
    """A number's place in the order of its format as a signed word, -0 just below +0."""
    return magnitude(F, a) ^ -negative(F, a)


@macro
def below(F: Format, a: Any, b: Any) -> Any:
    return lts(order(F, a), order(F, b))


@generic(cold=True)
def choose_nan(F: Format, a: int, b: int, number: int, flags: int) -> int:
    """The result of a minimum or maximum with a NaN: the other operand if `number`, else the canonical NaN."""
    canonical = nan_result(F, a, b, flags)
    if number and not is_nan(F, a):
        return a
    if number and not is_nan(F, b):
        return b
    return canonical


@generic
def minimum(F: Format, a: int, b: int, number: int, flags: int) -> int:
    """fmin if `number`, else fminm."""
    if is_nan(F, a) or is_nan(F, b):
        return choose_nan(F, a, b, number, flags)
    return select(below(F, a, b), a, b)


@generic
def maximum(F: Format, a: int, b: int, number: int, flags: int) -> int:
    """fmax if `number`, else fmaxm."""
    if is_nan(F, a) or is_nan(F, b):
        return choose_nan(F, a, b, number, flags)
    return select(below(F, a, b), b, a)


@generic(cold=True)
def unordered(F: Format, a: int, b: int, signaling: int, flags: int) -> int:
    """A comparison with a NaN is false; signaling comparisons find quiet ones invalid too."""
    nan_result(F, a, b, flags)
    if signaling:
        raise_flags(flags, NV)
    return 0


@generic
def equal(F: Format, a: int, b: int, flags: int) -> int:
    if is_nan(F, a) or is_nan(F, b):
        return unordered(F, a, b, 0, flags)
    return (a == b) | is_zero(F, a | b)


@generic
def less(F: Format, a: int, b: int, signaling: int, flags: int) -> int:
    if is_nan(F, a) or is_nan(F, b):
        return unordered(F, a, b, signaling, flags)
    return below(F, a, b) & inv(is_zero(F, a | b))


@generic
def less_or_equal(F: Format, a: int, b: int, signaling: int, flags: int) -> int:
    if is_nan(F, a) or is_nan(F, b):
        return unordered(F, a, b, signaling, flags)
    return inv(below(F, b, a)) | is_zero(F, a | b)


@generic
def classify(F: Format, a: int) -> int:
    """The mask of fclass: from bit 0 -inf, -normal, -subnormal, -0, +0, ..., +inf, signaling, quiet NaN."""
    if is_nan(F, a):
        return select(is_signaling(F, a), 1 << 8, 1 << 9)
    # 0 zero, 1 subnormal, 2 normal, 3 infinite; each of these tests adds one.
    rank = inv(is_zero(F, a)) + (exponent_field(F, a) != 0) + is_infinite(F, a)
    return select(negative(F, a), 8 >> rank, 16 << rank)


# Integers


@macro
def result_word(a: Any, width: Any) -> Any:
    return select(width == 32, sext32(a), a)


@native(cold=True)
def out_of_range(least: int, most: int, low: int, flags: int) -> int:
    """The end of the integer's range that a conversion saturates to."""
    raise_flags(flags, NV)
    return select(low, least, most)


@generic
def to_int(F: Format, a: int, width: int, signed: int, rm: int, flags: int) -> int:
    """fcvt.w/wu/l/lu: saturating; 32-bit results are sign-extended, unsigned ones too (manual, F)."""
    sign = negative(F, a)
    most = select(signed, TOP - 1, ~0) >> 64 - width
    least = select(signed, ~most, 0)
    exponent = exponent_of(F, a)
    significand = select(is_zero(F, a), 0, significand_of(F, a))
    if is_special(F, a) or not lts(exponent, 64):
        return out_of_range(least, result_word(most, width), sign & inv(is_nan(F, a)), flags)
    # whole.rest, with 64 bits on either side of the point
    whole = 0
    rest = shift_right_sticky(significand, -1 - exponent)
    if not lts(exponent, 0):
        whole = significand >> 63 - exponent
        rest = significand << exponent << 1
    whole += rounds_up(rm, sign, whole & 1, rest, TOP)
    if whole > select(sign, -least, most):
        return out_of_range(least, result_word(most, width), sign, flags)
    if rest:
        raise_flags(flags, NX)
    return result_word(select(sign, -whole, whole), width)


@generic
def from_int(F: Format, a: int, width: int, signed: int, rm: int, flags: int) -> int:
    """fcvt from the lowest `width` bits of a register."""
    value = select(width == 32, select(signed, sext32(a), zext32(a)), a)
    sign = signed & value >> 63
    size = select(sign, -value, value)
    if size == 0:
        return 0
    shift = clz(size)
    return round_pack(F, sign, 63 - shift, size << shift, rm, flags)


@generic
def cvtmod(F: Format, a: int, flags: int) -> int:
    """fcvtmod.w.d (Zfa): toward zero, modulo 2**32; the flags are those of fcvt.w.d."""
    to_int(F, a, 32, 1, RTZ, flags)
    exponent = exponent_of(F, a)
    if is_special(F, a) or is_zero(F, a) or lts(exponent, 0) or not lts(exponent, 127):
        return 0
    up = significand_of(F, a) << exponent - 63
    whole = select(lts(exponent, 63), significand_of(F, a) >> 63 - exponent, up)
    return sext32(select(negative(F, a), -whole, whole))


# Between formats, and to whole numbers


@generic
def convert(F: Format, T: Format, a: int, rm: int, flags: int) -> int:
    """A number of format F in format T."""
    sign = negative(F, a)
    if is_special(F, a):
        if is_nan(F, a):
            nan_result(F, a, a, flags)
            return T.nan
        return with_sign(T, sign, T.infinity)
    if is_zero(F, a):
        return with_sign(T, sign, 0)
    return round_pack(T, sign, exponent_of(F, a), significand_of(F, a), rm, flags)


@generic
def round_to_whole(F: Format, a: int, inexact: int, rm: int, flags: int) -> int:
    """fround, or froundnx when `inexact` is NX (Zfa)."""
    if is_nan(F, a):
        return nan_result(F, a, a, flags)
    size = magnitude(F, a)
    sign = negative(F, a)
    places = F.bias + F.fraction_bits - exponent_field(F, a)  # how many fraction bits lie below the point
    if lts(places, 1):
        return a
    if size < F.one:
        # Patterns are ordered like their numbers, so that they can be compared with one half's.
        rest = size
        size = select(rounds_up(rm, sign, 0, rest, F.half), F.one, 0)
    else:
        rest = size & (1 << places) - 1
        up = rounds_up(rm, sign, size >> places & 1, rest, 1 << places - 1)
        size = (size >> places) + up << places
    if rest:
        raise_flags(flags, inexact)
    return with_sign(F, sign, size)


# Constants


def _fli_patterns(fmt: Format) -> list[int]:
    code = {"H": "e", "S": "f", "D": "d"}[fmt.name]
    made = []
    for index, value in enumerate(FLI_VALUES):
        special = {FLI_MIN_NORMAL: fmt.hidden_bit, FLI_INFINITY: fmt.infinity, FLI_NAN: fmt.nan}
        if value is None:
            made.append(special[index])
        elif value >= 2**fmt.bias * 2:
            made.append(fmt.infinity)  # 2**16 in half precision (manual, Zfa)
        else:
            made.append(int.from_bytes(struct.pack("<" + code, float(value)), "little"))
    return made


FLI_H, FLI_S, FLI_D = (table("u64", _fli_patterns(fmt)) for fmt in (H, S, D))


@generic
def fli(F: Format, index: int) -> int:
    """The constant of fli (Zfa) with an index below 32."""
    if F.bits == 16:
        return FLI_H[index]
    if F.bits == 32:
        return FLI_S[index]
    return FLI_D[index]
