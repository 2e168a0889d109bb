"""Which device answers where, and the small ones: finisher, RTC, HTIF."""

import ctypes
import os
import time
from collections.abc import Iterator

import pytest

from mem import memmap, regions
from mem.atomics import py_now_ns
from mem.bus import bus_covers, bus_read, bus_write, is_plain, is_ram
from mem.clint import clint_reset
from mem.clock import FOREVER_NS
from mem.finisher import FINISH_FAIL, FINISH_PASS, FINISH_RESET
from mem.htif import REFUSED
from mem.machine import FAILED, POWER_OFF, RESET, Machine, machine
from mem.mailbox import ALARM_STOP, MSIP, SSIP, Mailbox
from mem.plic import Plic
from mem.rtc import RTC, Register, Rtc, rtc_ns_until_alarm, rtc_tick
from mem.uart import Uart, uart_collect
from mem.window import Window
from smp import engine

HARTS = 2
RAM_BYTES = 1 << 20
RAM, RAM_END = memmap.RAM_BASE, memmap.RAM_BASE + RAM_BYTES
TOHOST = RAM + 0x3040
RTC_BIT = 1 << memmap.RTC_IRQ
LAST_SLOT = memmap.VIRTIO[-1].base


@pytest.fixture(autouse=True, scope="module")
def shared() -> Iterator[None]:
    engine.load()
    opened = regions.open_regions(HARTS, RAM_BYTES)
    yield
    opened.close()


@pytest.fixture(autouse=True)
def log() -> Iterator[int]:
    """A fresh machine; gives the end of its log to read from."""
    for address, kind in (
        (regions.MACHINE, Machine),
        (regions.PLIC, Plic),
        (regions.UART, Uart),
        (RTC, Rtc),
    ):
        ctypes.memset(address, 0, kind.sizeof())
    ctypes.memset(regions.MAILBOXES, 0, HARTS * Mailbox.sizeof())
    ctypes.memset(regions.HOST + RAM, 0, 0x8000)
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    m = machine()
    m.harts, m.ram_bytes, m.one, m.clock_origin = HARTS, RAM_BYTES, 1, py_now_ns()
    m.io_fd = m.supervisor_fd = kick
    m.log_fd = writer
    clint_reset()
    yield reader
    for fd in (kick, reader, writer):
        os.close(fd)


def mailbox(hart: int) -> Mailbox:
    return Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof())


def ended() -> tuple[int, int]:
    return machine().ending, machine().code


def sent() -> bytes:
    buffer = (ctypes.c_uint8 * 64)()
    return bytes(buffer[: uart_collect(ctypes.addressof(buffer), 64)])


def test_bounds_of_ram() -> None:
    for pa, size in ((RAM, 8), (RAM_END - 1, 1), (RAM_END - 8, 8), (RAM + 1, 8)):
        assert is_ram(pa, size), hex(pa)
    for pa, size in ((RAM - 1, 1), (RAM - 1, 8), (RAM_END, 1), (RAM_END - 7, 8), (2**64 - 1, 8), (0, 1)):
        assert not is_ram(pa, size), hex(pa)


# fmt: off
ANSWERS = [
    (memmap.FINISHER_BASE, {2, 4}),
    (memmap.RTC_BASE + 4, {4}),
    (memmap.CLINT_BASE, {4}),
    (memmap.CLINT_BASE + 0x4000, {4, 8}),
    (memmap.CLINT_BASE + 0x4004, {4}),
    (memmap.CLINT_BASE + 0xBFF8, {4, 8}),
    (memmap.SSWI_BASE, {4}),
    (memmap.PLIC_BASE + 0x20_0004, {4}),
    (memmap.PLIC_BASE + 2, set()),
    (memmap.UART_BASE, {1, 2, 4}),
    (memmap.UART_BASE + 5, {1}),
    (memmap.UART_BASE + 8, set()),
    (memmap.VIRTIO_BASE, {1, 2, 4, 8}),
    (memmap.VIRTIO_BASE + 0x101, {1}),
    (LAST_SLOT + 0xFFC, {1, 2, 4}),
    (LAST_SLOT + 0x1000, set()),
    (0, set()),
    (RAM, {1, 2, 4, 8}),
    (RAM_END - 4, {1, 2, 4}),
    (RAM_END, set()),
    (2**64 - 8, set()),
]
# fmt: on


@pytest.mark.parametrize(("pa", "sizes"), ANSWERS, ids=lambda value: hex(value) if type(value) is int else "")
def test_who_answers_to_which_sizes(pa: int, sizes: set[int]) -> None:
    assert {size for size in (1, 2, 4, 8) if bus_covers(pa, size)} == sizes


def test_every_row_of_the_map_answers() -> None:
    for row in memmap.MAP:
        assert bus_covers(row.base, 4), row.name


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ram_is_read_and_written_by_size_and_at_any_alignment(size: int) -> None:
    for pa in (RAM + 0x100, RAM + 0x103, RAM_END - size):
        bus_write(0, pa, size, 0x1122_3344_5566_7788)
        assert bus_read(0, pa, size) == 0x1122_3344_5566_7788 & ((1 << 8 * size) - 1)


def test_devices_behind_their_windows() -> None:
    bus_write(0, memmap.CLINT_BASE + 4, 4, 1)
    bus_write(0, memmap.SSWI_BASE + 4, 4, 1)
    assert mailbox(1).pending == MSIP | SSIP
    bus_write(0, memmap.CLINT_BASE + 0x4000, 8, 77)
    assert bus_read(0, memmap.CLINT_BASE + 0x4000, 8) == 77
    assert bus_read(0, memmap.SSWI_BASE + 4, 4) == 0
    bus_write(0, memmap.PLIC_BASE + 4 * 9, 4, 5)
    assert bus_read(0, memmap.PLIC_BASE + 4 * 9, 4) == 5
    bus_write(0, memmap.UART_BASE + 7, 1, 0x5A)
    assert bus_read(0, memmap.UART_BASE + 7, 1) == 0x5A
    bus_write(0, memmap.UART_BASE, 1, ord("u"))
    assert sent() == b"u"


def test_windows_of_virtio() -> None:
    for slot in (0, memmap.VIRTIO_SLOTS - 1):
        base = memmap.VIRTIO[slot].base
        word = ctypes.c_uint32.from_address(regions.WINDOWS + slot * Window.sizeof())
        word.value = 0x7472_6976 + slot
        assert bus_read(0, base, 4) == 0x7472_6976 + slot
        word.value = 0


@pytest.mark.parametrize(
    ("value", "end"),
    [
        (FINISH_PASS, (POWER_OFF, 0)),
        (FINISH_RESET, (RESET, 0)),
        (FINISH_FAIL | 7 << 16, (FAILED, 7)),
        (0x1234, (0, 0)),
    ],
)
def test_the_finisher_ends_the_machine(value: int, end: tuple[int, int]) -> None:
    bus_write(0, memmap.FINISHER_BASE, 4, value)
    assert ended() == end
    stop = ALARM_STOP if end[0] else 0
    assert [mailbox(hart).alarm for hart in range(HARTS)] == [stop] * HARTS


def rtc(register: Register) -> int:
    return bus_read(0, memmap.RTC_BASE + register, 4)


def set_rtc(register: Register, value: int) -> None:
    bus_write(0, memmap.RTC_BASE + register, 4, value)


def rtc_time() -> int:
    return rtc(Register.TIME_LOW) | rtc(Register.TIME_HIGH) << 32


def arm(ns: int) -> None:
    set_rtc(Register.ALARM_HIGH, ns >> 32)
    set_rtc(Register.ALARM_LOW, ns & 0xFFFF_FFFF)


def test_the_rtc_is_the_hosts_wall_clock() -> None:
    before = time.time_ns()
    assert before <= rtc_time() <= time.time_ns()


def test_the_rtc_can_be_set() -> None:
    set_rtc(Register.TIME_HIGH, 5)
    set_rtc(Register.TIME_LOW, 0)
    assert 5 << 32 <= rtc_time() < (5 << 32) + 60_000_000_000


def rtc_level() -> bool:
    return bool(Plic.at(regions.PLIC).level[0] & RTC_BIT)


def test_an_alarm_fires_when_its_time_has_come() -> None:
    assert rtc_ns_until_alarm() == FOREVER_NS
    set_rtc(Register.IRQ_ENABLED, 1)
    arm(rtc_time() + 60_000_000_000)
    assert 0 < rtc_ns_until_alarm() <= 60_000_000_000
    rtc_tick()
    assert rtc(Register.ALARM_STATUS) == 1
    assert not rtc_level()
    at = rtc_time() + 20_000_000
    arm(at)
    while rtc_time() <= at:
        time.sleep(0.01)
    assert rtc_ns_until_alarm() == 0
    rtc_tick()
    assert rtc_level()
    assert rtc_ns_until_alarm() == FOREVER_NS
    assert rtc(Register.ALARM_STATUS) == 0
    set_rtc(Register.CLEAR_INTERRUPT, 1)
    assert not rtc_level()


def test_an_alarm_can_be_taken_back() -> None:
    set_rtc(Register.IRQ_ENABLED, 1)
    arm(rtc_time() + 10_000_000_000)
    set_rtc(Register.CLEAR_ALARM, 1)
    assert rtc(Register.ALARM_STATUS) == 0
    assert rtc_ns_until_alarm() == FOREVER_NS


def test_an_alarm_in_the_past_fires_at_once() -> None:
    arm(1)
    assert not rtc_level()
    set_rtc(Register.IRQ_ENABLED, 1)
    assert rtc_level()


def test_the_page_of_tohost_is_not_plain() -> None:
    assert is_plain(TOHOST) and is_plain(RAM_END - 1)
    machine().htif_tohost = TOHOST
    page = TOHOST & ~0xFFF
    assert [is_plain(pa) for pa in (page - 1, page, TOHOST, page + 0xFFF, page + 0x1000)] == [1, 0, 0, 0, 1]
    assert not is_plain(RAM_END)
    assert not is_plain(memmap.UART_BASE)


@pytest.mark.parametrize(("value", "end"), [(1, (POWER_OFF, 0)), (3, (FAILED, 1)), (1337 << 1 | 1, (FAILED, 1337))])
@pytest.mark.parametrize("size", [4, 8])
def test_an_odd_tohost_is_an_exit(value: int, end: tuple[int, int], size: int) -> None:
    machine().htif_tohost = TOHOST
    bus_write(0, TOHOST - 8, 8, value)
    bus_write(0, TOHOST + 8, 8, value)
    assert ended() == (0, 0)
    bus_write(0, TOHOST, size, value)
    assert ended() == end


def test_without_htif_tohost_is_a_word_like_others() -> None:
    bus_write(0, TOHOST, 8, 1)
    assert ended() == (0, 0)
    assert bus_read(0, TOHOST, 8) == 1


def test_putchar_of_htif_goes_to_the_console() -> None:
    machine().htif_tohost = TOHOST
    for byte in b"hi":
        bus_write(0, TOHOST, 8, 1 << 56 | 1 << 48 | byte)
        assert bus_read(0, TOHOST, 8) == 0
    assert sent() == b"hi"
    assert ended() == (0, 0)


def test_a_system_call_of_htif_ends_the_machine_and_says_so(log: int) -> None:
    machine().htif_tohost = TOHOST
    bus_write(0, TOHOST, 8, RAM + 0x2000)
    assert ended() == (FAILED, 1)
    assert os.read(log, 1000) == REFUSED.encode()
