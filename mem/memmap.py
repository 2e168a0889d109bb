"""The machine's physical memory map: QEMU `virt`'s addresses and interrupt numbers, in one table.

The bus, the device tree and the image loader are derived from `MAP`. Constants are plain ints so that
compiled code can use them. Touches nothing: importing it proves that no two rows collide.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

PAGE = 4096
MAX_HARTS = 128
TIMEBASE_HZ = 10_000_000
PLIC_SOURCES = 96  # source 0 never interrupts, 1..95 do


class MapError(ValueError):
    """Two rows of a memory map collide, or a row can't exist."""


class Region(NamedTuple):
    """One row: addresses and sizes in bytes, `irq` the PLIC source, `compatible` as in the device tree."""

    name: str  # also the device tree node's name
    base: int
    size: int
    irq: int | None = None
    compatible: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        return self.base + self.size


VIRTIO_SLOTS = 32
VIRTIO_STRIDE = 0x1000


def virtio_irq(slot: int) -> int:
    """QEMU's numbers for QEMU's eight slots; the others go above 32..35, which its PCIe bridge uses."""
    return 1 + slot if slot < 8 else 32 + slot


# fmt: off
FINISHER = Region("test",   0x0010_0000, 0x1000, None, ("sifive,test1", "sifive,test0", "syscon"))
RTC      = Region("rtc",    0x0010_1000, 0x1000, 11,   ("google,goldfish-rtc",))
CLINT    = Region("clint",  0x0200_0000, 0x1_0000, None, ("sifive,clint0", "riscv,clint0"))
SSWI     = Region("sswi",   0x02F0_0000, 0x4000, None, ("riscv,aclint-sswi",))
PLIC     = Region("plic",   0x0C00_0000, 0x60_0000, None, ("sifive,plic-1.0.0", "riscv,plic0"))
UART     = Region("serial", 0x1000_0000, 0x100, 10, ("ns16550a",))
VIRTIO   = tuple(
           Region("virtio_mmio", 0x1000_1000 + n * VIRTIO_STRIDE, VIRTIO_STRIDE, virtio_irq(n),
                  ("virtio,mmio",))
           for n in range(VIRTIO_SLOTS))
RAM      = Region("memory", 0x8000_0000, 1 << 40)  # the most that `-m` may ask for; a machine has its start
# fmt: on

MAP: tuple[Region, ...] = (FINISHER, RTC, CLINT, SSWI, PLIC, UART, *VIRTIO, RAM)

FINISHER_BASE, FINISHER_SIZE = FINISHER.base, FINISHER.size
RTC_BASE, RTC_SIZE, RTC_IRQ = RTC.base, RTC.size, 11
CLINT_BASE, CLINT_SIZE = CLINT.base, CLINT.size
SSWI_BASE, SSWI_SIZE = SSWI.base, SSWI.size
PLIC_BASE, PLIC_SIZE = PLIC.base, PLIC.size
UART_BASE, UART_IRQ = UART.base, 10
VIRTIO_BASE, VIRTIO_SIZE = VIRTIO[0].base, VIRTIO_SLOTS * VIRTIO_STRIDE
RAM_BASE = RAM.base
RAM_MIN, RAM_MAX = 16 << 20, RAM.size

# Room for every hart: CLINT mtimecmp is 8 bytes from 0x4000 to 0xBFF8, a PLIC context is 4 KiB from 0x20_0000
# and a hart has two (M and S), SETSSIP is 4 bytes.
assert 8 * MAX_HARTS <= 0xBFF8 - 0x4000
assert 0x20_0000 + 2 * MAX_HARTS * 0x1000 <= PLIC_SIZE
assert 4 * MAX_HARTS <= SSWI_SIZE
assert (RTC.irq, UART.irq) == (RTC_IRQ, UART_IRQ)


def check(regions: Iterable[Region]) -> None:
    """Raise `MapError` where two regions overlap, two share an interrupt, or a row is impossible."""
    rows = sorted(regions, key=lambda region: region.base)
    owner: dict[int, Region] = {}
    for row in rows:
        if row.base < 0 or row.size <= 0:
            raise MapError(f"{row.name}: base {row.base:#x}, size {row.size:#x} is not a range")
        if row.irq is None:
            continue
        if not 0 < row.irq < PLIC_SOURCES:
            raise MapError(f"{row.name}: interrupt {row.irq} is not a PLIC source (1..{PLIC_SOURCES - 1})")
        if row.irq in owner:
            raise MapError(f"interrupt {row.irq}: used by {owner[row.irq].name} and by {row.name}")
        owner[row.irq] = row
    for low, high in pairwise(rows):
        if low.end > high.base:
            raise MapError(f"{low.name} up to {low.end:#x} overlaps {high.name} from {high.base:#x}")


check(MAP)
