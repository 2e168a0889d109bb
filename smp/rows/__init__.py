"""Instruction rows, a file an extension group; see smp/row.py for the notation."""
