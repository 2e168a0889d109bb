"""Physical accesses that the TLB's fast path does not take: devices, and RAM that somebody watches.

Whoever accesses asks `bus_covers` first and raises an access fault when it says 0.  Addresses are mem/memmap.py's.
"""

from mem import memmap, regions
from mem.atomics import load8, load16, load32, load64
from mem.clint import clint_covers, clint_read, clint_write, sswi_write
from mem.finisher import finisher_write
from mem.htif import htif_write, store_ram
from mem.machine import Machine
from mem.native import native
from mem.plic import plic_read, plic_write
from mem.rtc import rtc_read, rtc_write
from mem.uart import uart_read, uart_write
from mem.window import window_read, window_write

PAGE_SHIFT = 12
UART_REGISTERS = 8

assert memmap.PAGE == 1 << PAGE_SHIFT
assert memmap.VIRTIO_STRIDE == 1 << PAGE_SHIFT


@native(inline=True)
def within(pa: int, base: int, size: int) -> int:
    """Whether the address lies in a window; an aligned access then does as a whole."""
    return pa - base < size


@native
def is_ram(pa: int, size: int) -> int:
    """Whether all bytes are RAM of this machine."""
    return pa - memmap.RAM_BASE <= Machine.at(regions.MACHINE).ram_bytes - size


@native
def is_plain(pa: int) -> int:
    """Whether stores to the page have no meaning of their own: RAM that a TLB may cache for writing."""
    tohost = Machine.at(regions.MACHINE).htif_tohost
    return is_ram(pa, 1) and (tohost == 0 or pa >> PAGE_SHIFT != tohost >> PAGE_SHIFT)


@native
def bus_covers(pa: int, size: int) -> int:
    """Whether RAM or a device answers to an access of 1, 2, 4 or 8 bytes; devices want natural alignment."""
    if is_ram(pa, size):
        return 1
    if pa & (size - 1):
        return 0
    if within(pa, memmap.VIRTIO_BASE, memmap.VIRTIO_SIZE):
        return 1
    if within(pa, memmap.PLIC_BASE, memmap.PLIC_SIZE):
        return size == 4
    if within(pa, memmap.UART_BASE, UART_REGISTERS):
        return size <= 4
    if within(pa, memmap.CLINT_BASE, memmap.CLINT_SIZE):
        return clint_covers(pa - memmap.CLINT_BASE, size)
    if within(pa, memmap.SSWI_BASE, memmap.SSWI_SIZE) or within(pa, memmap.RTC_BASE, memmap.RTC_SIZE):
        return size == 4
    return within(pa, memmap.FINISHER_BASE, memmap.FINISHER_SIZE) and (size == 2 or size == 4)


@native
def bus_read(hart: int, pa: int, size: int) -> int:
    """A load that `bus_covers` allows, zero-extended."""
    if within(pa, memmap.VIRTIO_BASE, memmap.VIRTIO_SIZE):
        return window_read((pa - memmap.VIRTIO_BASE) >> PAGE_SHIFT, pa % memmap.VIRTIO_STRIDE, size)
    if within(pa, memmap.PLIC_BASE, memmap.PLIC_SIZE):
        return plic_read(pa - memmap.PLIC_BASE)
    if within(pa, memmap.UART_BASE, UART_REGISTERS):
        return uart_read(pa - memmap.UART_BASE)
    if within(pa, memmap.CLINT_BASE, memmap.CLINT_SIZE):
        return clint_read(pa - memmap.CLINT_BASE, size)
    if within(pa, memmap.RTC_BASE, memmap.RTC_SIZE):
        return rtc_read(pa - memmap.RTC_BASE)
    return load_ram(pa, size) if is_ram(pa, size) else 0


@native(inline=True)
def load_ram(pa: int, size: int) -> int:
    """Load from RAM that is there."""
    match size:
        case 1:
            return load8(regions.HOST + pa)
        case 2:
            return load16(regions.HOST + pa)
        case 4:
            return load32(regions.HOST + pa)
    return load64(regions.HOST + pa)


@native
def bus_write(hart: int, pa: int, size: int, value: int) -> None:
    """A store that `bus_covers` allows, of the value's lowest bytes."""
    if within(pa, memmap.VIRTIO_BASE, memmap.VIRTIO_SIZE):
        slot = (pa - memmap.VIRTIO_BASE) >> PAGE_SHIFT
        window_write(hart, slot, pa % memmap.VIRTIO_STRIDE, size, value)
    elif within(pa, memmap.PLIC_BASE, memmap.PLIC_SIZE):
        plic_write(pa - memmap.PLIC_BASE, value)
    elif within(pa, memmap.UART_BASE, UART_REGISTERS):
        uart_write(hart, pa - memmap.UART_BASE, value)
    elif within(pa, memmap.CLINT_BASE, memmap.CLINT_SIZE):
        clint_write(pa - memmap.CLINT_BASE, size, value)
    elif within(pa, memmap.SSWI_BASE, memmap.SSWI_SIZE):
        sswi_write(pa - memmap.SSWI_BASE, value)
    elif is_ram(pa, size):
        write_ram(hart, pa, size, value)
    elif within(pa, memmap.RTC_BASE, memmap.RTC_SIZE):
        rtc_write(pa - memmap.RTC_BASE, value)
    elif within(pa, memmap.FINISHER_BASE, memmap.FINISHER_SIZE):
        finisher_write(pa - memmap.FINISHER_BASE, value)


@native
def write_ram(hart: int, pa: int, size: int, value: int) -> None:
    """Store to RAM; the page of `tohost` looks at what it got."""
    if is_plain(pa):
        store_ram(pa, size, value)
    else:
        htif_write(hart, pa, size, value)
