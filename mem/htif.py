"""HTIF: the two words of RAM through which test programs end, and print (the Berkeley host-target interface).

The page of `tohost` is never cached for writing (mem/bus.py), so every store to it comes through here.
"""

from typing import Any

from mem import regions
from mem.atomics import load64, store8, store16, store32, store64
from mem.machine import FAILED, POWER_OFF, Machine, end_machine
from mem.native import call_external, native, table, unit
from mem.uart import uart_put
from mem.word import I64, V, builder, macro

DEVICE_SYSCALL, DEVICE_CONSOLE = 0, 1
CONSOLE_PUT = 1
REFUSED = "htif: tohost asks for a system call or device that this machine does not have; only exit and putchar are\n"
REFUSED_TEXT = table("u8", REFUSED.encode())


@macro
def write_refused(fd: Any) -> None:
    """Emit the write of REFUSED's text to a file descriptor."""
    address = V(builder().ptrtoint(unit().table(REFUSED_TEXT), I64))
    call_external("write", fd, address, len(REFUSED_TEXT.values))


@native(inline=True)
def store_ram(pa: int, size: int, value: int) -> None:
    """Store to RAM that is there."""
    match size:
        case 1:
            store8(regions.HOST + pa, value)
        case 2:
            store16(regions.HOST + pa, value)
        case 4:
            store32(regions.HOST + pa, value)
        case 8:
            store64(regions.HOST + pa, value)


@native(cold=True)
def htif_write(hart: int, pa: int, size: int, value: int) -> None:
    """Store to the page of `tohost`, and do what `tohost` then says.

    A store to its lower half counts at once, as riscv-tests expects, so the upper half must be right before.
    """
    store_ram(pa, size, value)
    tohost = Machine.at(regions.MACHINE).htif_tohost
    if pa < tohost + 8 and tohost < pa + size:
        htif_command(hart, load64(regions.HOST + tohost))


@native(cold=True)
def htif_command(hart: int, command: int) -> None:
    """Exit, putchar, or the end of a machine that asks for more."""
    m = Machine.at(regions.MACHINE)
    device = command >> 56
    if command == 0:
        return
    if command & 1 and device == DEVICE_SYSCALL:
        code = command >> 1
        end_machine(FAILED if code else POWER_OFF, code)
    elif device == DEVICE_CONSOLE and command >> 48 & 0xFF == CONSOLE_PUT:
        uart_put(hart, command & 0xFF)
        store64(regions.HOST + m.htif_tohost, 0)
    else:
        write_refused(m.log_fd)
        end_machine(FAILED, 1)
