"""CLINT, the SSWI and the clock behind them."""

import ctypes
import time
from collections.abc import Iterator

import pytest

from mem import regions
from mem.atomics import py_now_ns
from mem.clint import (
    MTIME_BASE,
    MTIMECMP_BASE,
    Clint,
    clint_covers,
    clint_read,
    clint_reset,
    clint_write,
    sswi_write,
)
from mem.clock import CLOCK, FOREVER_NS, Clock, mtime, ns_until
from mem.machine import machine
from mem.mailbox import ALARM_INTERRUPT, MSIP, SSIP, Mailbox
from smp import engine

HARTS = 4
ONES = 2**64 - 1
SECOND = 10_000_000  # ticks


@pytest.fixture(autouse=True, scope="module")
def shared() -> Iterator[None]:
    engine.load()
    opened = regions.open_regions(HARTS, 1 << 20)
    machine().harts = HARTS
    yield
    opened.close()


@pytest.fixture(autouse=True)
def fresh() -> None:
    ctypes.memset(regions.MAILBOXES, 0, HARTS * Mailbox.sizeof())
    ctypes.memset(CLOCK, 0, Clock.sizeof())
    machine().clock_origin = py_now_ns()
    clint_reset()


def mailbox(hart: int) -> Mailbox:
    return Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof())


def alarms() -> list[int]:
    return [mailbox(hart).alarm for hart in range(HARTS)]


def test_the_clock_ticks_ten_million_times_a_second() -> None:
    outer = time.monotonic()
    before = mtime()
    inner = time.monotonic()
    time.sleep(0.05)
    inner = time.monotonic() - inner
    after = mtime()
    outer = time.monotonic() - outer
    assert inner - 0.001 < (after - before) / SECOND < outer + 0.001
    assert clint_read(MTIME_BASE, 8) >= after


def test_the_clock_starts_at_its_origin() -> None:
    assert mtime() < 60 * SECOND
    machine().clock_origin -= 1000 * 1_000_000_000
    assert 1000 * SECOND <= mtime() < 1060 * SECOND


@pytest.mark.parametrize("ticks", [0, 1, 0x1_2345_6789, 1 << 63, ONES - 60 * SECOND])
def test_mtime_goes_on_from_what_is_written(ticks: int) -> None:
    clint_write(MTIME_BASE, 8, ticks)
    assert ticks <= clint_read(MTIME_BASE, 8) < ticks + 60 * SECOND
    assert alarms() == [ALARM_INTERRUPT] * HARTS


def test_halves_of_mtime() -> None:
    clint_write(MTIME_BASE + 4, 4, 0xABCD)
    assert clint_read(MTIME_BASE + 4, 4) == 0xABCD
    clint_write(MTIME_BASE, 4, 0x1000_0000)
    assert 0x1000_0000 <= clint_read(MTIME_BASE, 4) < 0x1000_0000 + SECOND
    assert mtime() >> 32 == 0xABCD


def test_time_left_until_a_deadline() -> None:
    assert ns_until(0) == 0
    assert ns_until(mtime()) == 0
    left = ns_until(mtime() + SECOND)
    assert 900_000_000 < left <= 1_000_000_000
    assert ns_until(ONES) == FOREVER_NS


def test_no_deadline_after_reset() -> None:
    assert [clint_read(MTIMECMP_BASE + 8 * hart, 8) for hart in range(HARTS)] == [ONES] * HARTS


def test_a_new_deadline_alarms_its_hart_only() -> None:
    clint_write(MTIMECMP_BASE + 8 * 2, 8, 0x1122_3344_5566_7788)
    assert Clint.at(regions.CLINT).mtimecmp[2] == 0x1122_3344_5566_7788
    assert alarms() == [0, 0, ALARM_INTERRUPT, 0]


def test_halves_of_mtimecmp() -> None:
    where = MTIMECMP_BASE + 8
    clint_write(where, 4, 0x1111_1111)
    assert clint_read(where, 8) == 0xFFFF_FFFF_1111_1111
    clint_write(where + 4, 4, 0x2222_2222)
    assert [clint_read(where, 4), clint_read(where + 4, 4)] == [0x1111_1111, 0x2222_2222]
    assert clint_read(MTIMECMP_BASE, 8) == clint_read(MTIMECMP_BASE + 16, 8) == ONES


def test_msip_is_a_level_of_one_hart() -> None:
    clint_write(4 * 3, 4, 0xFFFF_FFFF)
    assert [mailbox(hart).pending for hart in range(HARTS)] == [0, 0, 0, MSIP]
    assert alarms() == [0, 0, 0, ALARM_INTERRUPT]
    assert [clint_read(4 * hart, 4) for hart in range(HARTS)] == [0, 0, 0, 1]
    clint_write(4 * 3, 4, 2)  # bit 0 alone counts
    assert mailbox(3).pending == 0
    assert clint_read(4 * 3, 4) == 0


def test_setssip_sets_and_never_clears() -> None:
    sswi_write(4, 1)
    sswi_write(4, 0)
    assert [mailbox(hart).pending for hart in range(HARTS)] == [0, SSIP, 0, 0]


def test_harts_that_are_not_there() -> None:
    for hart in (HARTS, 127, 4000):
        clint_write(4 * hart, 4, 1)
        sswi_write(4 * hart, 1)
    for hart in (HARTS, 127, 500):
        clint_write(MTIMECMP_BASE + 8 * hart, 8, 5)
        assert clint_read(MTIMECMP_BASE + 8 * hart, 8) == 0
    boxes = bytes((ctypes.c_uint8 * (5000 * 4)).from_address(regions.MAILBOXES))
    assert not any(boxes)


def test_widths() -> None:
    assert clint_covers(0, 4) and clint_covers(MTIMECMP_BASE, 8) and clint_covers(MTIME_BASE + 4, 4)
    assert not (clint_covers(0, 8) or clint_covers(MTIMECMP_BASE, 2) or clint_covers(MTIME_BASE, 1))
