"""Instruction rows, a file an extension group; see smp/row.py for the notation. Importing the package loads all."""

from importlib import import_module

# Rows that others abbreviate come first.
GROUPS = ("rv64i", "rv64m", "rv64a", "rv64fd", "rvc")

for _group in GROUPS:
    import_module(f"smp.rows.{_group}")
