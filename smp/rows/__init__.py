"""Instruction rows, a file an extension group; see smp/row.py for the notation. Importing the package loads all."""

from importlib import import_module

# In this order: of two rows that accept a word (smp/overlap.py) the first is meant, and rows that others abbreviate
# must exist before them.
GROUPS = (
    *("zihint", "rv64i", "privileged", "rv64m", "rv64a", "rv64fd", "zfa", "zfhmin"),
    *("zba", "zbb", "zbc", "zbs", "zbkb", "zicond", "zicbo", "zawrs", "rvc", "zimop", "zcb"),
)

for _group in GROUPS:
    import_module(f"smp.rows.{_group}")
