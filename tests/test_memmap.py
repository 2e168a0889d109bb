"""The memory map is QEMU `virt`'s, and a map that collides is refused."""

import pytest

from mem import memmap
from mem.memmap import MapError, Region, check


def test_addresses_and_interrupts_are_qemu_virts():
    assert memmap.FINISHER_BASE == 0x100000
    assert (memmap.RTC_BASE, memmap.RTC.irq) == (0x101000, 11)
    assert memmap.CLINT_BASE == 0x2000000
    assert memmap.PLIC_BASE == 0xC000000
    assert (memmap.UART_BASE, memmap.UART.irq) == (0x10000000, 10)
    assert [(slot.base, slot.irq) for slot in memmap.VIRTIO[:8]] == [(0x10000000 + 0x1000 * n, n) for n in range(1, 9)]
    assert memmap.RAM_BASE == 0x80000000


def test_every_virtio_slot_has_an_interrupt_of_its_own():
    assert len({slot.irq for slot in memmap.VIRTIO}) == len(memmap.VIRTIO) == 32


def test_constants_are_plain_ints():
    for name in dir(memmap):
        if name.endswith(("_BASE", "_SIZE", "_IRQ")):
            assert type(getattr(memmap, name)) is int


def test_the_machines_own_map_passes():
    check(memmap.MAP)
    check(reversed(memmap.MAP))


def test_touching_ranges_do_not_overlap():
    check([Region("a", 0, 0x1000), Region("b", 0x1000, 0x1000)])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Region("a", 0, 0x1001), Region("b", 0x1000, 0x1000)], "a .* overlaps b"),
        ([Region("b", 0x1000, 0x1000), Region("a", 0, 0x10000)], "a .* overlaps b"),
        ([Region("a", 0, 0x1000), Region("b", 0, 0x1000)], "overlaps"),
        ([Region("a", 0, 0x1000, 5), Region("b", 0x1000, 0x1000, 5)], "interrupt 5: used by a and by b"),
        ([Region("a", 0, 0x1000, 0)], "interrupt 0 is not a PLIC source"),
        ([Region("a", 0, 0x1000, 96)], "interrupt 96 is not a PLIC source"),
        ([Region("a", 0, 0)], "not a range"),
        ([Region("a", -4096, 4096)], "not a range"),
    ],
)
def test_a_map_that_collides_is_refused(rows, message):
    with pytest.raises(MapError, match=message):
        check(rows)
