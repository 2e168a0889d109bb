"""Add, multiply, divide, square root and fused multiply-add as natives of integer arithmetic.

Each takes operands as bit patterns of its format, the rounding mode (0 to 4) and the address of the flags.
smp/fpu_parts.py says how numbers are taken apart.
"""

from typing import Any

from mem.native import native, table
from mem.word import clz, divu, ges, lts, macro, maxu, mulhu, select, sra, zext32
from smp.fpformat import RDN, Format
from smp.fpu_parts import (
    divided_by_zero,
    exponent_field,
    exponent_of,
    generic,
    invalid,
    is_infinite,
    is_nan,
    is_special,
    is_zero,
    magnitude,
    nan_result,
    negative,
    round_pack,
    shift_right_sticky,
    significand_of,
    with_sign,
    zero_sum,
)


@generic(cold=True)
def add_special(F: Format, a: int, b: int, flags: int) -> int:
    """a + b where one is infinite or a NaN."""
    if is_nan(F, a) or is_nan(F, b):
        return nan_result(F, a, b, flags)
    if is_infinite(F, a):
        if is_infinite(F, b) and a != b:
            return invalid(F, flags)
        return a
    return b


@macro
def aligned(F: Format, a: Any) -> Any:
    """A finite number's significand with the hidden bit at bit 62, which leaves room for a carry."""
    up = 62 - F.fraction_bits
    return (magnitude(F, a) << up) & (1 << 62) - 1 | ((exponent_field(F, a) != 0) << 62)


@generic
def add(F: Format, a: int, b: int, rm: int, flags: int) -> int:
    if is_special(F, a) or is_special(F, b):
        return add_special(F, a, b, flags)
    swap = magnitude(F, b) > magnitude(F, a)
    large = select(swap, b, a)
    small = select(swap, a, b)
    # A subnormal has the scale of exponent field 1.
    exponent = maxu(exponent_field(F, large), 1)
    distance = exponent - maxu(exponent_field(F, small), 1)
    x = aligned(F, large)
    y = shift_right_sticky(aligned(F, small), distance)
    total = select(negative(F, a ^ b), x - y, x + y)
    if total == 0:
        return zero_sum(F, a, b, rm)
    shift = clz(total)
    return round_pack(F, negative(F, large), exponent - F.bias + 1 - shift, total << shift, rm, flags)


@generic(cold=True)
def mul_special(F: Format, a: int, b: int, flags: int) -> int:
    """a * b where one is infinite or a NaN."""
    if is_nan(F, a) or is_nan(F, b):
        return nan_result(F, a, b, flags)
    if is_zero(F, a) or is_zero(F, b):
        return invalid(F, flags)
    return with_sign(F, negative(F, a ^ b), F.infinity)


@generic
def mul(F: Format, a: int, b: int, rm: int, flags: int) -> int:
    if is_special(F, a) or is_special(F, b):
        return mul_special(F, a, b, flags)
    sign = negative(F, a ^ b)
    if is_zero(F, a) or is_zero(F, b):
        return with_sign(F, sign, 0)
    x = significand_of(F, a)
    y = significand_of(F, b)
    product = mulhu(x, y) | (x * y != 0)
    shift = clz(product)
    exponent = exponent_of(F, a) + exponent_of(F, b) + 1 - shift
    return round_pack(F, sign, exponent, product << shift, rm, flags)


@native(inline=True)
def quotient_digit(rest: int, divisor: int) -> int:
    """floor(rest * 2**32 / divisor), where rest < divisor and divisor has bit 63 set.

    Knuth, The Art of Computer Programming 4.3.1, algorithm D: the estimate is at most 2 too large.  With zeros
    coming in, the one comparison also catches an estimate of 2**32 or more.
    """
    upper = divisor >> 32
    digit = divu(rest, upper)
    left = rest - digit * upper
    while left >> 32 == 0 and digit * zext32(divisor) > left << 32:
        digit -= 1
        left += upper
    return digit


@native(inline=True)
def divide_half(x: int, y: int) -> int:
    """floor(x * 2**63 / y), the lowest bit sticky, for words with bit 63 set; x is even."""
    digit = quotient_digit(x >> 1, y)
    rest = (x << 31) - digit * y
    low = quotient_digit(rest, y)
    return (digit << 32) + low | ((rest << 32) != low * y)


@generic(cold=True)
def div_special(F: Format, a: int, b: int, flags: int) -> int:
    """a / b where one is zero, infinite or a NaN."""
    sign = negative(F, a ^ b)
    if is_nan(F, a) or is_nan(F, b):
        return nan_result(F, a, b, flags)
    if is_infinite(F, a):
        return invalid(F, flags) if is_infinite(F, b) else with_sign(F, sign, F.infinity)
    if is_zero(F, b):
        return invalid(F, flags) if is_zero(F, a) else divided_by_zero(F, sign, flags)
    return with_sign(F, sign, 0)


@generic
def div(F: Format, a: int, b: int, rm: int, flags: int) -> int:
    if is_special(F, a) or is_special(F, b) or is_zero(F, a) or is_zero(F, b):
        return div_special(F, a, b, flags)
    x = significand_of(F, a)
    y = significand_of(F, b)
    if F.fraction_bits < 32:
        # The lower half of y is zero: one division gives 31 or 32 bits.
        short = divu(x >> 1, y >> 32)
        quotient = short << 32 | ((x >> 1) != short * (y >> 32))
    else:
        quotient = divide_half(x, y)
    shift = clz(quotient)
    exponent = exponent_of(F, a) - exponent_of(F, b) - shift
    return round_pack(F, negative(F, a ^ b), exponent, quotient << shift, rm, flags)


# 2**16 / sqrt(m) at the middle of each interval of m in [1, 4), by the seven highest bits of m * 2**62.
RECIPROCAL_ROOTS = table("u16", [0] * 32 + [int(2**16 / ((i + 0.5) / 32) ** 0.5) for i in range(32, 128)])


@native(inline=True)
def reciprocal_root(m: int) -> int:
    """About 2**32 / sqrt(m / 2**62), good to 28 bits, for m from 2**62 up: two steps of Newton's iteration."""
    y = RECIPROCAL_ROOTS[m >> 57] << 16
    for _step in range(2):
        product = (m >> 32) * (y * y >> 32) >> 30  # m * y * y, close to 1, in units of 2**-32
        y = y * ((3 << 32) - product >> 2) >> 31
    return y


@native(inline=True)
def exact_root(square: int, guess: int) -> int:
    """2 * floor(sqrt(square)), the lowest bit sticky, from a guess that is a few units off.

    Of the square only its lowest 64 bits are given: so close to the root, the difference modulo 2**64, read as
    signed, is the difference itself.
    """
    root = guess
    rest = square - root * root
    while lts(rest, 0):
        rest += 2 * root - 1
        root -= 1
    while rest > 2 * root:
        rest -= 2 * root + 1
        root += 1
    return root << 1 | (rest != 0)


@generic(cold=True)
def sqrt_special(F: Format, a: int, flags: int) -> int:
    """The root of a zero, an infinity, a NaN or a negative number."""
    if is_nan(F, a):
        return nan_result(F, a, a, flags)
    if negative(F, a) and not is_zero(F, a):
        return invalid(F, flags)
    return a


@generic
def sqrt(F: Format, a: int, rm: int, flags: int) -> int:
    if is_special(F, a) or is_zero(F, a) or negative(F, a):
        return sqrt_special(F, a, flags)
    exponent = exponent_of(F, a)
    # The value is m / 2**62 * 4**(exponent >> 1), with m / 2**62 in [1, 4).
    m = significand_of(F, a) >> 1 - (exponent & 1)
    y = reciprocal_root(m)
    root = (m >> 32) * y >> 31  # sqrt(m / 2**62) * 2**31
    if F.fraction_bits < 32:
        significand = exact_root(m >> 6, root >> 3) << 34
    else:
        # One more step of Newton's, on the root: 24 bits more from the difference that is left.
        difference = m - root * root
        root = (root << 24) + sra(sra(difference, 8) * y, 32)
        significand = exact_root(m << 48, root) << 7
    return round_pack(F, 0, sra(exponent, 1), significand, rm, flags)


# Fused multiply-add: products and sums of 128 bits as two words


@macro
def shifted_low(high: Any, low: Any, n: Any) -> Any:
    """The lower word of high:low >> n for any n, the lowest bit sticky."""
    near = (low >> n) | ((high << 1) << (63 - n)) | (((low >> n) << n) != low)
    far = shift_right_sticky(high, n - 64) | (low != 0)
    return select(n < 64, near, far)


@macro
def shifted_high(high: Any, n: Any) -> Any:
    """The upper word of high:low >> n."""
    return select(n < 64, high >> n, 0)


@generic
def pack_wide(F: Format, sign: int, exponent: int, high: int, low: int, rm: int, flags: int) -> int:
    """Round high:low / 2**127 * 2**exponent, which is not zero."""
    if high == 0:
        shift = clz(low)
        return round_pack(F, sign, exponent - 64 - shift, low << shift, rm, flags)
    shift = clz(high)
    significand = high << shift | low >> 1 >> 63 - shift | (low << shift != 0)
    return round_pack(F, sign, exponent - shift, significand, rm, flags)


@generic(cold=True)
def fma_special(F: Format, a: int, b: int, c: int, flags: int) -> int:
    """a*b + c where one is infinite or a NaN."""
    if (is_infinite(F, a) and is_zero(F, b)) or (is_zero(F, a) and is_infinite(F, b)):
        # Invalid even when c is a quiet NaN (unprivileged manual, F).
        return invalid(F, flags)
    if is_nan(F, a) or is_nan(F, b):
        quieted = nan_result(F, a, b, flags)
        return nan_result(F, quieted, c, flags)
    if is_infinite(F, a) or is_infinite(F, b):
        return add_special(F, with_sign(F, negative(F, a ^ b), F.infinity), c, flags)
    return nan_result(F, c, c, flags) if is_nan(F, c) else c


@generic
def fma(F: Format, a: int, b: int, c: int, rm: int, flags: int) -> int:
    """a*b + c with one rounding."""
    if is_special(F, a) or is_special(F, b) or is_special(F, c):
        return fma_special(F, a, b, c, flags)
    sign = negative(F, a ^ b)
    if is_zero(F, a) or is_zero(F, b):
        return add(F, with_sign(F, sign, 0), c, rm, flags)
    x = significand_of(F, a)
    y = significand_of(F, b)
    exponent = exponent_of(F, a) + exponent_of(F, b) + 1
    high = mulhu(x, y)
    low = x * y
    if is_zero(F, c):
        return pack_wide(F, sign, exponent, high, low, rm, flags)
    # One bit down leaves room for a carry; no format's product reaches so low that a bit is lost.
    low = low >> 1 | high << 63
    high = high >> 1
    return add_wide(F, sign, exponent + 1, high, low, c, rm, flags)


@generic
def add_wide(F: Format, sign: int, exponent: int, high: int, low: int, c: int, rm: int, flags: int) -> int:
    """Round high:low / 2**127 * 2**exponent + c, where high is below 2**63 and c is finite and not zero."""
    z = significand_of(F, c) >> 1
    z_low = 0
    distance = exponent - 1 - exponent_of(F, c)
    if ges(distance, 0):
        z_low = shifted_low(z, z_low, distance)
        z = shifted_high(z, distance)
    else:
        distance = -distance
        exponent += distance
        low = shifted_low(high, low, distance)
        high = shifted_high(high, distance)
    if sign == negative(F, c):
        low += z_low
        high += z + (low < z_low)
        return pack_wide(F, sign, exponent, high, low, rm, flags)
    borrow = low < z_low
    low -= z_low
    high -= z + borrow
    if high >> 63:
        sign ^= 1
        low = -low
        high = ~high + (low == 0)
    if high | low == 0:
        return with_sign(F, rm == RDN, 0)
    return pack_wide(F, sign, exponent, high, low, rm, flags)
