"""Rings and devices while another process writes over them all the time: what was checked must be what is used.

The other process is a child that writes descriptors, heads, indices and bytes of buffers, in compiled code.  What it
does when is not repeated by playing an input again.
"""

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_fuzz import RING_SIZE, Requests
from fake_driver import DATA, RINGS
from fuzz_core import NativeFuzzer
from fuzz_natives import below, compile_natives, of_tests, roll
from fuzz_ring_driver import AVAIL, ENTRIES, LARGEST, TABLES, USED, Trial, describe, mark, some_flags
from fuzz_rings import RingFuzzer

from mem import regions
from mem.atomics import aload32, astore32, load64, sched_yield, store8, store16, store32, store64
from mem.layout import Layout, layout, u32
from mem.mailbox import relax
from mem.memmap import RAM_BASE
from mem.native import native, ref
from virtio.packed import packed_pop, packed_push, packed_wants_interrupt
from virtio.ring import BAD, FOUND, MAX_SIZE, RingState
from virtio.split import split_pop, split_push, split_wants_interrupt

PR_SET_PDEATHSIG = 1
PAUSED, GOING = 1, 0
YIELD_EVERY = 512


@layout
class Gate(Layout):
    """Holds the other process up; each word has one writer."""

    wanted: u32
    is_paused: u32


@of_tests
@native
def flip(trial: Trial, ring: RingState) -> None:
    """One write into a ring or a table of it."""
    dice = trial.dice
    kind = below(dice, 16)
    number = below(dice, ring.size)
    at = ring.table + 16 * number
    if kind < 4:
        entry = below(dice, ENTRIES)
        place = regions.HOST + trial.tables + 16 * (entry + ENTRIES * below(dice, TABLES))
        describe(trial, place, some_flags(trial, entry, ENTRIES), entry, ENTRIES)
    elif kind == 4:
        store64(at, load64(at) ^ (1 << below(dice, 64)))
    elif kind == 5:
        store64(at + 8, load64(at + 8) ^ (1 << below(dice, 64)))
    elif trial.packed:
        describe(trial, at, (some_flags(trial, number, ring.size) & 0x7F7F) | mark(trial, ring, number), 0, 1)
        store16(at + 14, some_flags(trial, number, ring.size) & 7 | (roll(dice) & 0x8080))
    elif kind < 12:
        describe(trial, at, some_flags(trial, number, ring.size), number, ring.size)
    elif kind < 15:
        store16(ring.driver + 4 + 2 * number, below(dice, ring.size + 1))
    else:
        store32(ring.driver, roll(dice))


@of_tests
@native
def flip_rings(trial: Trial, ring: RingState, gate: Gate, parent: int) -> None:
    """Go on until somebody kills this process, in one ring."""
    while True:
        for _ in range(256):
            flip(trial, ring)
        heed(gate)


@of_tests
@native
def flip_device(trial: Trial, ring: RingState, gate: Gate, queues: int) -> None:
    """The same in the rings and buffers of a device with so many queues."""
    while True:
        for _ in range(256):
            base = regions.HOST + RINGS + 0x10000 * below(trial.dice, queues)
            ring.table = base
            ring.driver = base + 0x8000
            ring.device = base + 0xC000
            if below(trial.dice, 4) == 0:
                flip(trial, ring)
            else:
                buffer = 0x4000 * below(trial.dice, 16) + 0x40000 * below(trial.dice, 8)
                store8(regions.HOST + DATA + buffer + below(trial.dice, 64), roll(trial.dice))
        heed(gate)


@of_tests
@native
def heed(gate: Gate) -> None:
    """Wait while a pause is wanted."""
    spins = 0
    while aload32(ref(gate.wanted)) == PAUSED:
        astore32(ref(gate.is_paused), PAUSED)
        relax(spins)
        spins += 1
    astore32(ref(gate.is_paused), GOING)


@of_tests
@native
def is_wrong(trial: Trial, ring: RingState) -> int:
    """Whether what was found could not be: parts outside of RAM, or more of anything than there may be."""
    count = ring.readable + ring.writable
    if ring.slots > ring.size or count > 2 * MAX_SIZE or (trial.packed == 0 and ring.head >= ring.size):
        return 1
    total = 0
    for number in range(count):
        start = ring.parts[2 * number]
        end = ring.parts[2 * number + 1]
        total += end - start
        if start >= end or end > trial.ram_bytes:
            return 1
    return total > 1 << 32


@of_tests
@native
def offer_packed(trial: Trial, ring: RingState) -> None:
    """Make some descriptors available, whatever they are."""
    place = ring.next_avail
    for _ in range(1 + below(trial.dice, 4)):
        index = place if place < ring.size else place - ring.size
        marked = AVAIL if place < ring.size else USED
        store16(ring.table + 16 * index + 14, some_flags(trial, index, ring.size) & 7 | marked)
        place = 0 if place + 1 == 2 * ring.size else place + 1


@of_tests
@native
def racing_pops(trial: Trial, ring: RingState, first: int, count: int) -> int:
    """As many pops, each given back; gives how many were good."""
    for number in range(count):
        trial.dice.state = (first + number) * 0xD1342543DE82EF95
        if number % YIELD_EVERY == 0:
            sched_yield()  # on a busy host the other process has to have its turn
        if trial.packed:
            offer_packed(trial, ring)
            got = packed_pop(ring)
        else:
            store16(ring.driver + 2, ring.next_avail + 1)
            got = split_pop(ring)
        if got == FOUND:
            trial.found += 1
            if is_wrong(trial, ring):
                return number
            if trial.packed:
                packed_push(ring, ring.head, ring.slots, 1, 0)
                packed_wants_interrupt(ring)
            else:
                split_push(ring, ring.head, ring.slots, 1, 0)
                split_wants_interrupt(ring)
        elif trial.packed:
            ring.next_avail = below(trial.dice, 2 * ring.size)
            ring.next_used = ring.next_avail
            ring.signalled = ring.next_avail
        trial.bad += got == BAD
    return count


class Flipper:
    """The other process."""

    def __init__(self, what: Any, trial: Any, ring: Any, more: int) -> None:
        self.memory = mmap.mmap(-1, 4096)
        self.gate: Any = Gate.ctype.from_buffer(self.memory)
        arguments = (ctypes.addressof(trial), ctypes.addressof(ring), ctypes.addressof(self.gate), more)
        self.child = os.fork()
        if self.child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            what(*arguments)
            os._exit(1)

    def pause(self) -> None:
        """Comes back when it writes no more."""
        self.gate.wanted = PAUSED
        while self.gate.is_paused != PAUSED:
            os.sched_yield()

    def go_on(self) -> None:
        self.gate.wanted = GOING

    def end(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


class RingRace(RingFuzzer):
    """Pops from a split ring that another process writes to."""

    unit = "a pop from a ring that another process writes to"

    @classmethod
    def prepare(cls) -> None:
        super().prepare()
        compile_natives(flip_rings, flip_device, racing_pops)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        ring, self.trial.rarely, self.trial.tables = self.ring, 32, RINGS + 0x2_0000
        ring.size, ring.indirect, ring.event_index = LARGEST, 1, 1
        ring.table, ring.driver, ring.device = (regions.HOST + RINGS + place for place in (0, 0x8000, 0xC000))
        self.other = Flipper(flip_rings, self.trial, ring, 0)

    def play_seeds(self, first: int, count: int, tell: Callable[[int], None]) -> None:
        tell(first)
        good = racing_pops(ctypes.addressof(self.trial), ctypes.addressof(self.ring), first & (1 << 64) - 1, count)
        assert good == count, f"pop {good}: parts that are not in RAM, or too many of them"

    def close(self) -> None:
        self.other.end()
        super().close()


class PackedRingRace(RingRace):
    """The same with a packed ring."""

    packed = 1


class Race(Requests):
    """A device whose rings and buffers another process writes to while it works."""

    unit = "a request, while another process writes over the rings and the request"

    @classmethod
    def prepare(cls) -> None:
        super().prepare()
        RingRace.prepare()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.trial: Any = Trial.ctype()
        self.ring: Any = RingState.ctype()
        self.trial.ram, self.trial.ram_bytes = regions.HOST + RAM_BASE, self.ram.size
        self.trial.rarely, self.trial.tables, self.ring.size = 16, RINGS + 0x9000, RING_SIZE
        self.other = Flipper(flip_device, self.trial, self.ring, len(self.rig.rings))

    def check(self) -> None:
        self.other.pause()
        super().check()
        self.other.go_on()

    def close(self) -> None:
        self.other.end()
        super().close()


RACES: dict[str, type[NativeFuzzer]] = {"race-split": RingRace, "race-packed": PackedRingRace}
