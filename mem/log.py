"""Log lines of compiled code for -d guest_errors and -d unimp: a text, two numbers, the hart."""

from typing import Any

from mem import regions
from mem.atomics import load8, store8, write_fd
from mem.machine import Machine
from mem.native import native, table, unit
from mem.word import I64, V, builder, macro

LOG_INT, LOG_EXEC, LOG_GUEST_ERRORS, LOG_UNIMP = 1, 2, 4, 8

NOTHING_THERE, WRONG_SIZE, NO_CSR, NO_SBI_CALL = range(4)
TEXTS = (
    "guest_errors: hart % reads or writes physical address % where nothing is, bytes %\n",
    "guest_errors: hart % writes virtio register % with a size or place that it does not have, bytes %\n",
    "unimp: hart % uses CSR % which is not there, writing %\n",
    "unimp: hart % calls the SBI's extension % function % which is not there\n",
)
_STARTS = [sum(len(t) for t in TEXTS[:n]) for n in range(len(TEXTS) + 1)]
STARTS = table("u16", _STARTS)
BYTES = table("u8", "".join(TEXTS).encode())
DIGITS = table("u8", b"0123456789abcdef")
LINE = 256  # bytes of a hart's line buffer


@macro
def texts_address() -> Any:
    """Host address of the texts."""
    return V(builder().ptrtoint(unit().table(BYTES), I64))


@native(cold=True)
def put_hex(at: int, value: int) -> int:
    """Write 0x and the digits; gives the place behind."""
    store8(at, 48)
    store8(at + 1, 120)
    at += 2
    shift = 60
    while shift and value >> shift == 0:
        shift -= 4
    while True:
        store8(at, DIGITS[(value >> shift) & 15])
        at += 1
        if shift == 0:
            break
        shift -= 4
    return at


@native(cold=True)
def write_line(hart: int, text: int, a: int, b: int) -> None:
    """Write the text with hart, a and b for its three per cent signs."""
    start = regions.LOG_LINES + hart * LINE
    at = start
    shown = 0
    for index in range(STARTS[text], STARTS[text + 1]):
        char = load8(texts_address() + index)
        if char == 37:
            value = hart if shown == 0 else (a if shown == 1 else b)
            at = put_hex(at, value)
            shown += 1
        else:
            store8(at, char)
            at += 1
    write_fd(Machine.at(regions.MACHINE).log_fd, start, at - start)


@native
def log(bit: int, hart: int, text: int, a: int, b: int) -> None:
    """Log if -d asks for it."""
    if Machine.at(regions.MACHINE).log & bit:
        write_line(hart, text, a, b)
