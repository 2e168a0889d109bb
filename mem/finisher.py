"""SiFive's test finisher: one register with which a guest ends its machine."""

from mem.machine import FAILED, POWER_OFF, RESET, end_machine
from mem.native import native

FINISH_FAIL, FINISH_PASS, FINISH_RESET = 0x3333, 0x5555, 0x7777


@native
def finisher_write(offset: int, value: int) -> None:
    """A store of 2 or 4 bytes: what to do, and in the upper half the exit status of a failure."""
    if offset:
        return
    what = value & 0xFFFF
    if what == FINISH_PASS:
        end_machine(POWER_OFF, 0)
    elif what == FINISH_RESET:
        end_machine(RESET, 0)
    elif what == FINISH_FAIL:
        end_machine(FAILED, value >> 16 & 0xFFFF)
