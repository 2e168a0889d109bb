"""Pages of memory that others may be writing."""

from mem.atomics import load64
from mem.native import native


@native
def pages_differ(a: int, b: int) -> int:
    """Whether two pages of 4096 bytes differ, each word looked at once.

    memcmp won't do: where it has found a difference it reads the bytes again to see which is the greater. If another
    hart has written meanwhile and they are equal now, it says so of the whole, of which another byte may differ.
    """
    difference = 0
    for word in range(512):
        difference |= load64(a + word * 8) ^ load64(b + word * 8)
    return difference != 0
