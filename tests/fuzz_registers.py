"""Register files under harts that access anything: UART, PLIC, CLINT, clock, RTC and windows, in several processes.

Two children play harts and access random registers in all sizes, through mem/bus.py, while this process plays the I/O
process.  Afterwards no lock may be held, what is derived must fit what it is derived from, and the memory between the
records must be untouched.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from forked_io import io_memory
from fuzz_core import NativeFuzzer
from fuzz_memory import CANARY
from fuzz_natives import Dice, below, compile_natives, of_tests, roll

from mem import memmap, regions
from mem.bus import bus_covers, bus_read, bus_write
from mem.clint import Clint
from mem.clock import CLOCK, Clock
from mem.machine import Machine
from mem.mailbox import MEIP, SEIP, Mailbox
from mem.native import native
from mem.plic import CONTEXTS, ENABLER_WORDS, SOURCES, WORDS, Plic, plic_set_level
from mem.rtc import RTC, Rtc, rtc_tick
from mem.uart import RING, Uart, uart_collect, uart_receive
from mem.window import Window
from virtio.mmio import clear_windows

HARTS = 2
# Records, and what lies behind each up to the next: nobody's.
RECORDS: tuple[tuple[int, int, int], ...] = (
    (regions.MACHINE, Machine.sizeof(), regions.MAILBOXES),
    (regions.MAILBOXES, HARTS * Mailbox.sizeof(), regions.CLINT),
    (regions.CLINT, Clint.sizeof(), CLOCK),
    (CLOCK, Clock.sizeof(), regions.PLIC),
    (regions.PLIC, Plic.sizeof(), regions.UART),
    (regions.UART, Uart.sizeof(), RTC),
    (RTC, Rtc.sizeof(), regions.WINDOWS),
)


@of_tests
@native
def some_register(dice: Dice) -> int:
    """A physical address: in every device, at its ends, and anywhere."""
    match below(dice, 9):
        case 0:
            return memmap.UART_BASE + below(dice, 12)
        case 1:
            return memmap.PLIC_BASE + (below(dice, 0x4000) & (0 - 4))
        case 2:
            return memmap.PLIC_BASE + 0x200000 + 0x1000 * below(dice, 6) + 4 * below(dice, 3)
        case 3:
            return memmap.CLINT_BASE + 4 * below(dice, 4) + 0x4000 * below(dice, 2)
        case 4:
            return memmap.CLINT_BASE + 0xBFF0 + below(dice, 24)
        case 5:
            return memmap.SSWI_BASE + below(dice, 16)
        case 6:
            return memmap.RTC_BASE + 4 * below(dice, 9)
        case 7:
            return memmap.VIRTIO_BASE + below(dice, 34 * 0x1000)
    return memmap.PLIC_BASE + below(dice, memmap.PLIC_SIZE) - below(dice, 16)


@of_tests
@native
def some_value(dice: Dice) -> int:
    kind = below(dice, 8)
    if kind < 3:
        return below(dice, 100)
    if kind < 5:
        return 1 << below(dice, 32)
    return roll(dice)


@of_tests
@native
def access(dice: Dice, hart: int, pa: int) -> None:
    size = 1 << below(dice, 4)
    if bus_covers(pa, size):
        if below(dice, 2):
            bus_write(hart, pa, size, some_value(dice))
        else:
            bus_read(hart, pa, size)


@of_tests
@native
def register_storm(dice: Dice, hart: int, first: int, count: int) -> None:
    """As many accesses, one a seed."""
    for number in range(count):
        dice.state = (first + number) * 0xD1342543DE82EF95
        access(dice, hart, some_register(dice))


@of_tests
@native
def window_storm(dice: Dice, hart: int, first: int, count: int) -> None:
    """The same in windows alone; most values are what drivers write there."""
    for number in range(count):
        dice.state = (first + number) * 0xD1342543DE82EF95
        offset = 4 * below(dice, 0x48) if below(dice, 8) else below(dice, 0x1000)
        pa = memmap.VIRTIO_BASE + 0x1000 * (1 + below(dice, 3)) + offset
        access(dice, hart, pa)


def in_harts(storm: Any, first: int, count: int, meanwhile: Callable[[], None]) -> None:
    """Half of the accesses in each of two children; this process does something else until they have ended."""
    children = {}
    for hart in range(HARTS):
        begin, end = (count * n // HARTS for n in (hart, hart + 1))
        child = os.fork()
        if child == 0:
            dice: Any = Dice.ctype()
            storm(ctypes.addressof(dice), hart, (first + begin) & (1 << 64) - 1, end - begin)
            os._exit(0)
        children[child] = hart
    while children:
        meanwhile()
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            assert status == 0, f"hart {children[pid]} has ended with status {status}"
            del children[pid]


class RegisterFuzzer(NativeFuzzer):
    """All register files."""

    unit = "an access to a register"
    depends = True

    @classmethod
    def prepare(cls) -> None:
        super().prepare()
        compile_natives(register_storm)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(io_memory())
        clear_windows()
        self.buffer = ctypes.create_string_buffer(RING)
        self.turn = 0
        for place, size, end in RECORDS:
            ctypes.memset(place + size, CANARY[0], end - place - size)
        self.windows = ctypes.string_at(regions.WINDOWS, memmap.VIRTIO_SLOTS * Window.sizeof())

    def play_seeds(self, first: int, count: int, tell: Callable[[int], None]) -> None:
        tell(first)
        in_harts(register_storm, first, count, self.serve)

    def serve(self) -> None:
        """As the I/O process and the devices do."""
        self.turn += 1
        place = ctypes.addressof(self.buffer)
        uart_collect(place, self.turn % RING)
        uart_receive(place, self.turn % 50)
        rtc_tick()
        plic_set_level(1 + self.turn % 8, self.turn >> 3 & 1)
        if self.turn % 16 == 0:
            time.sleep(0.0002)

    def check(self) -> None:
        for place, size, end in RECORDS:
            gap = ctypes.string_at(place + size, end - place - size)
            assert gap == CANARY[:1] * len(gap), f"something was written between {place:#x} and {end:#x}"
        assert ctypes.string_at(regions.WINDOWS, len(self.windows)) == self.windows, "an empty window has changed"
        rtc_tick()
        check_plic()
        check_lines()

    def close(self) -> None:
        self.stack.close()


def check_plic() -> None:
    """What is derived fits, and what contexts are told is what the rules say."""
    plic: Any = Plic.at(regions.PLIC)
    assert plic.lock == 0, "the interrupt controller is locked"
    enable = bits_of(plic.enable, CONTEXTS, 32 * WORDS)[:, :SOURCES]
    enablers = bits_of(plic.enablers, SOURCES, 64 * ENABLER_WORDS)[:, :CONTEXTS]
    assert (enablers == enable.T).all(), "`enablers` is not `enable` transposed"
    assert not enable[2 * HARTS :].any() and not enable[:, 0].any(), "what does not exist is enabled"
    pending, claimed = (bits_of(words, 1, 32 * WORDS)[0, :SOURCES] for words in (plic.pending, plic.claimed))
    priority = np.array(plic.priority[:SOURCES])
    assert priority.max() <= 7 and not priority[0] and not pending[0] and not claimed[0]
    for context in range(2 * HARTS):
        best = (priority * (pending & enable[context])).max()
        assert plic.line[context] == (best > plic.threshold[context]), f"context {context}'s line"
        box: Any = Mailbox.at(regions.MAILBOXES + (context >> 1) * Mailbox.sizeof())
        assert bool(box.pending & (SEIP if context & 1 else MEIP)) == bool(plic.line[context])
    assert not any(plic.line[2 * HARTS :])


def bits_of(words: Any, rows: int, columns: int) -> Any:
    """A list of words as a matrix of bits, lowest first."""
    return np.unpackbits(np.frombuffer(bytes(words), np.uint8), bitorder="little").reshape(rows, columns)


def check_lines() -> None:
    """UART and RTC drive what their registers say."""
    uart: Any = Uart.at(regions.UART)
    rtc: Any = Rtc.at(RTC)
    plic: Any = Plic.at(regions.PLIC)
    assert not uart.lock and not rtc.lock, "a device is locked"
    for head, tail in ((uart.tx_head, uart.tx_tail), (uart.rx_head, uart.rx_tail)):
        assert (head - tail) & 0xFFFF_FFFF <= RING, "more in a ring than it holds"
    assert (uart.loop_head - uart.loop_tail) & 0xFF <= 16, "more in the loop than it holds"
    assert rtc.line == rtc.pending & rtc.enabled
    for irq, line in ((memmap.UART_IRQ, uart.line), (memmap.RTC_IRQ, rtc.line)):
        assert plic.level[irq >> 5] >> (irq & 31) & 1 == line, f"the line of interrupt {irq}"
