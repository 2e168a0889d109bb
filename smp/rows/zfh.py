"""Zfh: half precision (unprivileged manual, chapter Zfh); smp/rows/zfhmin.py has its subset Zfhmin."""

from smp.fpformat import H
from smp.rows.rv64fd import arithmetic, comparisons, conversions

arithmetic(H)
comparisons(H)
conversions(H)
