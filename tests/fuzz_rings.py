"""Rings of a hostile driver, many in one call of compiled code: tables, heads, events and areas are random.

Each pop is compared with what a second reading of the specification makes of the same memory, and after each push what
the driver finds must be what was pushed.  The native code under test is that of virtio/split.py and virtio/packed.py.
"""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from fuzz_core import NativeFuzzer
from fuzz_memory import check_guards, guarded_memory
from fuzz_natives import below, compile_natives, of_tests, roll
from fuzz_ring_driver import AVAIL, INDIRECT, LARGEST, NEXT, USED, WRITE, Trial, begin, some_length

from mem import regions
from mem.atomics import load16, load32, load64
from mem.memmap import RAM_BASE
from mem.native import native
from virtio.packed import packed_arm, packed_pop, packed_push, packed_silence, packed_wants_interrupt
from virtio.ring import BAD, FOUND, MAX_SIZE, NOTHING, RingState
from virtio.split import split_arm, split_pop, split_push, split_silence, split_wants_interrupt

WRONG_RESULT, WRONG_CHAIN, WRONG_PARTS, WRONG_USED, WRONG_INTERRUPT, WRONG_ARM, WRONG_PLACE = range(1, 8)
REASONS = ("", "result of a pop", "chain", "parts", "used element", "interrupt", "arming", "place in the ring")


# What the device should make of it


@of_tests
@native
def piece(trial: Trial, address: int, length: int, flags: int) -> int:
    """Note a piece of a chain; gives 0 if it may not be there."""
    end = RAM_BASE + trial.ram_bytes
    if address < RAM_BASE or address > end or length > end - address:
        return 0
    trial.total += length
    if trial.total > 1 << 32:
        return 0
    if flags & WRITE == 0 and trial.writable:
        return 0
    if length:
        number = trial.readable + trial.writable
        trial.parts[2 * number] = address - RAM_BASE
        trial.parts[2 * number + 1] = address - RAM_BASE + length
        if flags & WRITE:
            trial.writable += 1
        else:
            trial.readable += 1
    return 1


@of_tests
@native
def visit(trial: Trial, index: int) -> int:
    """Gives 0 the second time."""
    bit = 1 << (index & 63)
    seen = trial.visited[index >> 6] & bit
    trial.visited[index >> 6] |= bit
    return seen == 0


@of_tests
@native
def forget_visits(trial: Trial) -> None:
    for word in range(MAX_SIZE // 64):
        trial.visited[word] = 0


@of_tests
@native
def table_is_good(trial: Trial, ring: RingState, address: int, length: int) -> int:
    end = RAM_BASE + trial.ram_bytes
    if ring.indirect == 0 or length == 0 or length % 16 or length // 16 > MAX_SIZE:
        return 0
    return address >= RAM_BASE and address <= end and length <= end - address


@of_tests
@native
def follow(trial: Trial, table: int, entries: int) -> int:
    """The chain of an indirect table of a split ring; gives whether it is good."""
    index = 0
    forget_visits(trial)
    while True:
        if index >= entries or visit(trial, index) == 0:
            return 0
        place = table + 16 * index
        flags = load16(place + 12)
        if flags & INDIRECT or piece(trial, load64(place), load32(place + 8), flags) == 0:
            return 0
        if flags & NEXT == 0:
            return 1
        index = load16(place + 14)
    return 0


@of_tests
@native
def expect_split(trial: Trial, ring: RingState) -> int:
    """What the next pop gives."""
    ahead = (load16(ring.driver + 2) - ring.next_avail) & 0xFFFF
    if ahead == 0 or ahead > ring.size:
        return BAD if ahead else NOTHING
    index = load16(ring.driver + 4 + 2 * (ring.next_avail & (ring.size - 1)))
    trial.head = index
    trial.slots = 1
    forget_visits(trial)
    while True:
        if index >= ring.size or visit(trial, index) == 0:
            return BAD
        place = ring.table + 16 * index
        flags = load16(place + 12)
        address = load64(place)
        length = load32(place + 8)
        if flags & INDIRECT:
            if flags & NEXT or table_is_good(trial, ring, address, length) == 0:
                return BAD
            return FOUND if follow(trial, regions.HOST + address, length // 16) else BAD
        if piece(trial, address, length, flags) == 0:
            return BAD
        if flags & NEXT == 0:
            return FOUND
        index = load16(place + 14)
    return BAD


@of_tests
@native
def expect_packed(trial: Trial, ring: RingState) -> int:
    """What the next pop gives."""
    place = ring.next_avail
    behind = ring.next_avail - ring.next_used if ring.next_used <= place else place + 2 * ring.size - ring.next_used
    free = ring.size - behind
    at = ring.table + 16 * (place if place < ring.size else place - ring.size)
    wrapped = place >= ring.size
    marks = load16(at + 14) & (AVAIL | USED)
    if marks != (USED if wrapped else AVAIL):
        return NOTHING
    trial.slots = 0
    while trial.slots < free:
        at = ring.table + 16 * (place if place < ring.size else place - ring.size)
        flags = load16(at + 14)
        trial.head = load16(at + 12)
        trial.slots += 1
        place = 0 if place + 1 == 2 * ring.size else place + 1
        if packed_piece(trial, ring, at, flags) == 0:
            return BAD
        if flags & NEXT == 0:
            return FOUND
    return BAD


@of_tests
@native
def packed_piece(trial: Trial, ring: RingState, at: int, flags: int) -> int:
    """A descriptor of a packed ring; gives 0 if it may not be there."""
    address = load64(at)
    length = load32(at + 8)
    if flags & INDIRECT == 0:
        return piece(trial, address, length, flags)
    if flags & NEXT or trial.slots > 1 or table_is_good(trial, ring, address, length) == 0:
        return 0
    for number in range(length // 16):
        entry = regions.HOST + address + 16 * number
        if piece(trial, load64(entry), load32(entry + 8), load16(entry + 14)) == 0:
            return 0
    return 1


@of_tests
@native
def wanted_interrupt(trial: Trial, ring: RingState) -> int:
    """Whether the driver wants one for what was pushed; 2 where it has named no place."""
    at = ring.signalled
    wrap = 2 * ring.size if trial.packed else 0x10000
    if trial.packed:
        event = load32(ring.driver)
        kind = event >> 16 & 3
        if ring.event_index == 0 or kind != 2:
            return kind != 1
        if event & 0x7FFF >= ring.size:
            return 2
        event = (event & 0x7FFF) + (0 if event & 0x8000 else ring.size)
    else:
        if ring.event_index == 0:
            return load16(ring.driver) & 1 == 0
        event = load16(ring.driver + 4 + 2 * ring.size)
    while at != ring.next_used:
        if at == event:
            return 1
        at = 0 if at + 1 == wrap else at + 1
    return 0


# Comparisons: each gives a reason, or 0


@of_tests
@native
def check_pop(trial: Trial, ring: RingState) -> int:
    """Pop, and see that it is as expected; leaves the result in `trial.total`."""
    trial.total = 0
    trial.readable = 0
    trial.writable = 0
    want = expect_packed(trial, ring) if trial.packed else expect_split(trial, ring)
    before = ring.next_avail
    got = packed_pop(ring) if trial.packed else split_pop(ring)
    trial.total = got
    if got != want:
        return WRONG_RESULT
    if got != FOUND:
        return 0
    if ring.head != trial.head or ring.slots != trial.slots:
        return WRONG_CHAIN
    after = before + trial.slots
    wrap = 2 * ring.size if trial.packed else 0x10000
    if ring.next_avail != (after if after < wrap else after - wrap):
        return WRONG_PLACE
    if ring.readable != trial.readable or ring.writable != trial.writable:
        return WRONG_PARTS
    for number in range(2 * (ring.readable + ring.writable)):
        if ring.parts[number] != trial.parts[number]:
            return WRONG_PARTS
    return 0


@of_tests
@native
def check_push(trial: Trial, ring: RingState, hold: int) -> int:
    """Give the oldest chain back, and look for it as a driver does."""
    head = roll(trial.dice) & 0xFFFF
    written = some_length(trial)
    slots = trial.taken[0]
    trial.waiting -= 1
    for number in range(trial.waiting):
        trial.taken[number] = trial.taken[number + 1]
    place = ring.next_used
    shown = load16(ring.device + 2)
    if trial.packed:
        packed_push(ring, head, slots, written, hold)
        at = ring.table + 16 * (place if place < ring.size else place - ring.size)
        if load32(at + 8) != written or load16(at + 12) != head:
            return WRONG_USED
        flags = (0 if place >= ring.size else AVAIL | USED) | (WRITE if written else 0)
        if (hold == 0 or trial.held) and load16(at + 14) != flags:
            return WRONG_USED
        trial.held = hold
        return 0
    split_push(ring, head, slots, written, hold)
    at = ring.device + 4 + 8 * (place & (ring.size - 1))
    if load32(at) != head or load32(at + 4) != written:
        return WRONG_USED
    if load16(ring.device + 2) != (shown if hold else (place + 1) & 0xFFFF):
        return WRONG_USED
    trial.held = hold
    return 0


@of_tests
@native
def check_interrupt(trial: Trial, ring: RingState) -> int:
    want = wanted_interrupt(trial, ring)
    got = packed_wants_interrupt(ring) if trial.packed else split_wants_interrupt(ring)
    return 0 if want == 2 or (got != 0) == (want != 0) else WRONG_INTERRUPT


@of_tests
@native
def check_arm(trial: Trial, ring: RingState) -> int:
    """Arming says whether a chain is there, by the memory as it is then."""
    notify = below(trial.dice, 2)
    if trial.packed:
        packed_silence(ring)
        armed = packed_arm(ring, notify)
        at = ring.table + 16 * (ring.next_avail if ring.next_avail < ring.size else ring.next_avail - ring.size)
        has = load16(at + 14) & (AVAIL | USED) == (AVAIL if ring.next_avail < ring.size else USED)
    else:
        split_silence(ring)
        armed = split_arm(ring, notify)
        has = load16(ring.driver + 2) != ring.next_avail
    return 0 if (armed == 0) == (has != 0) else WRONG_ARM


@of_tests
@native
def ring_life(trial: Trial, ring: RingState) -> int:
    """Pops until the ring is empty or wrong, with pushes between; gives a reason."""
    for _ in range(LARGEST + 2):
        wrong = check_pop(trial, ring)
        got = trial.total
        if wrong == 0 and got == FOUND:
            trial.found += 1
            trial.taken[trial.waiting] = trial.slots
            trial.waiting += 1
        while wrong == 0 and trial.waiting and (trial.held or below(trial.dice, 3)):
            wrong = check_push(trial, ring, trial.waiting > 1 and below(trial.dice, 3) == 0)
        if wrong == 0 and trial.held == 0 and below(trial.dice, 2):
            wrong = check_interrupt(trial, ring)
        if wrong == 0 and below(trial.dice, 8) == 0:
            wrong = check_arm(trial, ring)
        if wrong:
            return wrong
        if got != FOUND:
            trial.bad += got == BAD
            trial.nothing += got == NOTHING
            return 0
    return 0


@of_tests
@native
def ring_trials(trial: Trial, ring: RingState, first: int, count: int) -> int:
    """As many rings, one a seed; gives how many were good before the first that was not."""
    for number in range(count):
        trial.dice.state = (first + number) * 0xD1342543DE82EF95 + trial.packed
        begin(trial, ring)
        trial.reason = ring_life(trial, ring)
        if trial.reason:
            return number
    return count


class RingFuzzer(NativeFuzzer):
    """Random rings in the memory of a small machine."""

    unit = "a ring: up to 18 chains popped and compared, pushes and events between"
    packed: ClassVar[int] = 0

    @classmethod
    def prepare(cls) -> None:
        super().prepare()
        compile_natives(ring_trials)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stack = contextlib.ExitStack()
        self.ram = self.stack.enter_context(guarded_memory())
        self.trial: Any = Trial.ctype()
        self.trial.ram, self.trial.ram_bytes = regions.HOST + RAM_BASE, self.ram.size
        self.trial.packed = self.packed
        self.ring: Any = RingState.ctype()
        self.ring.ram_host, self.ring.ram_start, self.ring.ram_bytes = regions.HOST, RAM_BASE, self.ram.size
        self.ring.watch.equal = self.packed

    def play_seeds(self, first: int, count: int, tell: Callable[[int], None]) -> None:
        tell(first)
        good = ring_trials(ctypes.addressof(self.trial), ctypes.addressof(self.ring), first & (1 << 64) - 1, count)
        if good < count:
            tell(first + good)
            raise AssertionError(f"{REASONS[self.trial.reason]} of seed {first + good}")

    def check(self) -> None:
        check_guards()

    def close(self) -> None:
        self.stack.close()


class PackedRingFuzzer(RingFuzzer):
    """The same with packed rings."""

    packed = 1
