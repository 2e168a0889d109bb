"""The floating-point unit of compiled code: each method emits a call of the native that does the operation.

The same methods as smp/fpu_definition.py, which is what they are tested against.
"""

from typing import Any

from mem.word import V
from smp import fpu_arithmetic as arithmetic
from smp import fpu_conversions as conversions
from smp.fpformat import NX, D, Format


class NativeFpu:
    """Operations under the rounding mode `rm` (a word, 0 to 4) that or their exceptions into a u64."""

    def __init__(self, rm: V, flags_address: V) -> None:
        self.rm, self.flags = rm, flags_address

    def add(self, fmt: Format, a: Any, b: Any) -> V:
        return arithmetic.add(fmt, a, b, self.rm, self.flags)

    def sub(self, fmt: Format, a: Any, b: Any) -> V:
        return arithmetic.add(fmt, a, b ^ fmt.sign_bit, self.rm, self.flags)

    def mul(self, fmt: Format, a: Any, b: Any) -> V:
        return arithmetic.mul(fmt, a, b, self.rm, self.flags)

    def div(self, fmt: Format, a: Any, b: Any) -> V:
        return arithmetic.div(fmt, a, b, self.rm, self.flags)

    def sqrt(self, fmt: Format, a: Any) -> V:
        return arithmetic.sqrt(fmt, a, self.rm, self.flags)

    def fma(self, fmt: Format, a: Any, b: Any, c: Any) -> V:
        """a*b + c with one rounding."""
        return arithmetic.fma(fmt, a, b, c, self.rm, self.flags)

    def min(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.minimum(fmt, a, b, 1, self.flags)

    def max(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.maximum(fmt, a, b, 1, self.flags)

    def minm(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.minimum(fmt, a, b, 0, self.flags)

    def maxm(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.maximum(fmt, a, b, 0, self.flags)

    def eq(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.equal(fmt, a, b, self.flags)

    def lt(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.less(fmt, a, b, 1, self.flags)

    def le(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.less_or_equal(fmt, a, b, 1, self.flags)

    def ltq(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.less(fmt, a, b, 0, self.flags)

    def leq(self, fmt: Format, a: Any, b: Any) -> V:
        return conversions.less_or_equal(fmt, a, b, 0, self.flags)

    def classify(self, fmt: Format, a: Any) -> V:
        return conversions.classify(fmt, a)

    def to_int(self, fmt: Format, a: Any, width: int, is_signed: bool) -> V:
        return conversions.to_int(fmt, a, width, is_signed, self.rm, self.flags)

    def from_int(self, fmt: Format, a: Any, width: int, is_signed: bool) -> V:
        return conversions.from_int(fmt, a, width, is_signed, self.rm, self.flags)

    def convert(self, source: Format, target: Format, a: Any) -> V:
        return conversions.convert(source, target, a, self.rm, self.flags)

    def round(self, fmt: Format, a: Any) -> V:
        return conversions.round_to_whole(fmt, a, 0, self.rm, self.flags)

    def roundnx(self, fmt: Format, a: Any) -> V:
        return conversions.round_to_whole(fmt, a, NX, self.rm, self.flags)

    def cvtmod(self, a: Any) -> V:
        return conversions.cvtmod(D, a, self.flags)

    def fli(self, fmt: Format, index: Any) -> V:
        return conversions.fli(fmt, index)
