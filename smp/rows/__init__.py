"""Instruction rows, a file an extension group; see smp/row.py for the notation. Importing the package loads all."""

from collections.abc import Iterable
from importlib import import_module

from smp.row import ROWS, Row

# In this order: of two rows that accept a word (smp/overlap.py) the first is meant, and rows that others abbreviate
# must exist before them.
GROUPS = (
    *("zihint", "rv64i", "privileged", "rv64m", "rv64a", "rv64fd", "zfhmin", "zfh", "zfa"),
    *("zba", "zbb", "zbc", "zbs", "zbkb", "zbkx", "zicond", "zicbo", "zawrs", "rvc", "zimop", "zcb"),
)

for _group in GROUPS:
    import_module(f"smp.rows.{_group}")


ALL_EXTENSIONS = (1 << 64) - 1


def find(word: int, extensions: int = ALL_EXTENSIONS, rows: Iterable[Row] | None = None) -> Row | None:
    """The instruction that the word (16 or 32 bits) is on a hart with these extensions, slowly."""
    bits = 32 if word & 3 == 3 else 16
    for row in ROWS.values() if rows is None else rows:
        if row.bits == bits and row.enabled(extensions) and row.accepts(word):
            return row
    return None
