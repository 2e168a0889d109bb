"""The rows of the benchmark: a table of names, from which the programs to run and the output derive."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class BenchError(Exception):
    """The benchmark cannot run as asked; the message says why and what to do, in one line."""


@dataclass(frozen=True)
class Row:
    """A line of the table. `guest` rows are programs; the others are measured from outside the machine.

    native: the host can run the program too.
    """

    name: str
    what: str
    guest: bool = True
    native: bool = True


SINGLE = (
    Row("mix", "lists, matrices, states, CRC"),
    Row("sort", "quicksort, 5 x 2 M words"),
    Row("hash", "SHA-256, 16 MB"),
    Row("crc", "CRC-32 by table, 100 MB"),
    Row("matmul", "matrix product, double"),
    Row("nbody", "n-body, double"),
    Row("triad", "STREAM triad, 64 MB"),
    Row("chase", "pointer chase, 16 MB"),
    Row("syscall", "500 k system calls"),
    Row("fault", "40 k page faults"),
    Row("exec", "200 fork and exec"),
    Row("pingpong", "10 k futex round trips"),
)
THREADED = (
    ("work", "independent work"),
    ("amoadd", "contended amoadd"),
    ("cas", "contended CAS"),
)
DEVICES = (
    Row("seqread", "disk, 1 GiB in order", native=False),
    Row("seqwrite", "disk, 1 GiB in order", native=False),
    Row("rand-1", "20 k reads of 4 KB, 1 deep", native=False),
    Row("rand-8", "20 k reads of 4 KB, 8 deep", native=False),
    Row("netin", "TCP, 512 MB to the guest", native=False),
    Row("netout", "TCP, 512 MB to the host", native=False),
    Row("rr", "TCP, 5 k round trips", native=False),
)
BOOT = "boot"


def thread_counts(harts: int) -> list[int]:
    """1, 2, 4 and on, up to the number of harts."""
    return [1 << k for k in range(harts.bit_length()) if 1 << k <= harts]


def all_rows(harts: int) -> list[Row]:
    rows = list(SINGLE)
    for name, what in THREADED:
        rows += [Row(f"{name}-{n}", f"{what}, {n} thread{'s' * (n > 1)}") for n in thread_counts(harts)]
    return rows + [Row(f"{BOOT}-{n}", f"boot to init, -smp {n}", guest=False) for n in sorted({1, harts})]


def select(rows: Sequence[Row], only: Iterable[str]) -> list[Row]:
    """The rows named in `only`, all without it; `cas` stands for cas-1, cas-2 and so on."""
    wanted = list(only)
    for name in wanted:
        if not any(name in (row.name, row.name.split("-")[0]) for row in rows):
            known = dict.fromkeys(row.name.split("-")[0] for row in rows)
            raise BenchError(f"--only {name}: no such row; rows are {', '.join(known)}")
    return [row for row in rows if not wanted or row.name in wanted or row.name.split("-")[0] in wanted]
