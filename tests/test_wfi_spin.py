"""A hart that waits spins before it sleeps only where waits have lately been short."""

import ctypes
import os
import time
from collections.abc import Iterator

import pytest

from mem import regions
from mem.machine import machine
from mem.mailbox import alarm, sleep, sleepers
from smp import engine
from smp.hart import Hart, hart_record
from smp.loop import SPIN_FIRST, SPIN_MOST, learn_to_spin, spin_for_alarm


@pytest.fixture
def hart() -> Iterator[Hart]:
    engine.load()
    opened = regions.open_regions(2, 1 << 20)
    machine().harts = 2
    record = hart_record(1)
    record.id = 1
    yield record
    opened.close()


def learn(hart: Hart, *waits: int) -> int:
    for wait in waits:
        learn_to_spin(ctypes.addressof(hart), wait)
    return hart.wfi_spin


def test_the_spin_grows_with_short_waits_and_goes_with_long_ones(hart: Hart) -> None:
    assert learn(hart, 1_000_000) == 0
    assert learn(hart, 20_000) == SPIN_FIRST
    assert learn(hart, *[20_000] * 9) == 32_000
    assert learn(hart, *[50_000] * 9) == SPIN_MOST
    assert learn(hart, 100) == SPIN_MOST
    assert learn(hart, *[4_000_000] * 9) == 0, "an idle hart sleeps at once"


def test_a_spin_ends_with_its_time_or_the_alarm(hart: Hart) -> None:
    began = time.monotonic()
    assert spin_for_alarm(ctypes.addressof(hart), 20_000_000) == 0
    assert time.monotonic() - began >= 0.02
    child = os.fork()
    if child == 0:
        time.sleep(0.05)
        alarm(1, 1)
        os._exit(0)
    assert spin_for_alarm(ctypes.addressof(hart), 60_000_000_000) == 1
    os.waitpid(child, 0)


def test_more_harts_than_cores_give_their_core_away_at_once(hart: Hart) -> None:
    sleepers().harts, sleepers().cores = 2, 1
    began = time.monotonic()
    assert spin_for_alarm(ctypes.addressof(hart), 60_000_000_000) == 0
    assert time.monotonic() - began < 30


def test_a_hart_spins_while_those_awake_have_a_core_each(hart: Hart) -> None:
    sleepers().harts, sleepers().cores = 2, 1
    child = os.fork()
    if child == 0:
        sleep(0, 60_000_000_000)
        os._exit(0)
    while sleepers().asleep == 0:
        time.sleep(0.001)
    began = time.monotonic()
    assert spin_for_alarm(ctypes.addressof(hart), 20_000_000) == 0
    assert time.monotonic() - began >= 0.02
    alarm(0, 1)
    os.waitpid(child, 0)
    assert sleepers().asleep == 0, "it is awake again"
    assert spin_for_alarm(ctypes.addressof(hart), 20_000_000) == 0
