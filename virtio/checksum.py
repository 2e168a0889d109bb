"""The sum that Internet checksums are made of (RFC 1071), compiled: a frame may have 64 KiB."""

from mem.atomics import load8, load64
from mem.native import native


@native
def checksum_words(place: int, size: int) -> int:
    """The sum of little-endian 16-bit words at a host address, modulo 0xFFFF; an odd byte counts as the lower one."""
    total = 0
    for n in range(size >> 3):
        word = load64(place + 8 * n)
        total += (word & 0xFFFFFFFF) + (word >> 32)  # 2**16 is 1 modulo 0xFFFF: larger words sum up to the same
    rest = size & 7
    for n in range(rest):
        total += load8(place + size - rest + n) << (8 * (n & 1))
    return total % 0xFFFF
