"""The floating-point formats of F, D and Zfh, rounding modes and exception flags, as plain numbers.

Both floating-point units take a `Format` as first argument; in natives its attributes are constants.
"""

from dataclasses import dataclass
from fractions import Fraction

# Exception flags as they lie in fflags, and rounding modes as they lie in frm (unprivileged manual, chapter F).
NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16
RNE, RTZ, RDN, RUP, RMM = range(5)


@dataclass(frozen=True)
class Format:
    """An IEEE 754 binary interchange format."""

    name: str
    exponent_bits: int
    fraction_bits: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1

    @property
    def special(self) -> int:
        """The exponent field of infinities and NaNs."""
        return (1 << self.exponent_bits) - 1

    @property
    def sign_bit(self) -> int:
        return 1 << self.bits - 1

    @property
    def magnitude_mask(self) -> int:
        """All bits but the sign."""
        return self.sign_bit - 1

    @property
    def hidden_bit(self) -> int:
        """The least normal number, and the bit that a normal significand has above its fraction."""
        return 1 << self.fraction_bits

    @property
    def infinity(self) -> int:
        return self.special << self.fraction_bits

    @property
    def quiet_bit(self) -> int:
        return self.hidden_bit >> 1

    @property
    def nan(self) -> int:
        """The canonical NaN: positive, quiet, no payload."""
        return self.infinity | self.quiet_bit

    @property
    def one(self) -> int:
        return self.bias << self.fraction_bits

    @property
    def half(self) -> int:
        return self.bias - 1 << self.fraction_bits


H = Format("H", 5, 10)
S = Format("S", 8, 23)
D = Format("D", 11, 52)


def _fli_values() -> tuple[Fraction | None, ...]:
    powers = [Fraction(2) ** n for n in (-16, -15, -8, -7, -4, -3)]
    fractions = [Fraction(n, 16) for n in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)]
    large = [Fraction(2) ** n for n in (2, 3, 4, 7, 8, 15, 16)]
    return (Fraction(-1), None, *powers, *fractions, *large, None, None)


# The constants of fli by index; None stands for the least normal number (1), infinity (30) and NaN (31).
# Unprivileged manual, Zfa, table "Immediate values loaded by the FLI instructions".
FLI_VALUES = _fli_values()
FLI_MIN_NORMAL, FLI_INFINITY, FLI_NAN = 1, 30, 31
assert len(FLI_VALUES) == 32
