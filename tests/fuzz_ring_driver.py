"""What a hostile driver writes into rings: tables, heads, events and areas, at random and mostly nearly right."""

from fuzz_natives import Dice, below, of_tests, roll

from mem import regions
from mem.atomics import store16, store32, store64
from mem.layout import Layout, layout, many, u64
from mem.memmap import RAM_BASE
from mem.native import native
from virtio.ring import MAX_SIZE, RingState

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
LARGEST = 16  # entries of a ring
TABLES, ENTRIES = 4, 12  # indirect tables that are filled in, and what each has


@layout
class Trial(Layout):
    """A ring that is played with, and what is expected of the next pop."""

    dice: Dice
    ram: u64  # host address of RAM
    ram_bytes: u64
    tables: u64  # guest address of the indirect tables
    packed: u64
    rarely: u64  # one in so many descriptors is meant to be wrong
    reason: u64
    found: u64
    bad: u64
    nothing: u64
    total: u64
    readable: u64
    writable: u64
    head: u64
    slots: u64
    waiting: u64  # chains that were popped and not pushed, in `taken`
    held: u64
    taken: list[u64] = many(64)
    visited: list[u64] = many(MAX_SIZE // 64)
    parts: list[u64] = many(4 * MAX_SIZE)


@of_tests
@native
def some_address(trial: Trial) -> int:
    """Of a buffer or table; mostly one that is there."""
    dice = trial.dice
    kind = below(dice, 16 if below(dice, trial.rarely) == 0 else 12)
    if kind < 8:
        return RAM_BASE + below(dice, trial.ram_bytes)
    if kind < 12:
        return trial.tables + 16 * ENTRIES * below(dice, TABLES)
    if kind == 12:
        return RAM_BASE + trial.ram_bytes - below(dice, 24)
    if kind == 13:
        return RAM_BASE - below(dice, 24)
    if kind == 14:
        return 0 - below(dice, 0x10000)
    return roll(dice)


@of_tests
@native
def some_length(trial: Trial) -> int:
    dice = trial.dice
    kind = below(dice, 16 if below(dice, trial.rarely) == 0 else 11)
    if kind < 6:
        return below(dice, 64)
    if kind < 11:
        return 16 * below(dice, ENTRIES + 2)
    if kind == 11:
        return 0
    if kind == 12:
        return 16 * MAX_SIZE + 16 * below(dice, 3) - 16
    if kind == 13:
        return trial.ram_bytes - below(dice, 3)
    return roll(dice) & 0xFFFFFFFF


@of_tests
@native
def some_flags(trial: Trial, number: int, entries: int) -> int:
    """NEXT more often than not, so that chains are long; in the second half of a table WRITE, so that some are good."""
    value = roll(trial.dice)
    flags = WRITE if 2 * number >= entries else 0
    if value >> 40 & 3 and number + 1 < entries:
        flags |= NEXT
    if value >> 48 & 7 == 0:
        flags = INDIRECT | (value & WRITE)
    if below(trial.dice, trial.rarely) == 0:
        flags = value & 0xFFFF if value >> 56 == 0 else value & 7
    return flags


@of_tests
@native
def describe(trial: Trial, place: int, flags: int, number: int, entries: int) -> None:
    """One descriptor of a split ring or an indirect table, at a host address."""
    store64(place, some_address(trial))
    index = number + 1 if below(trial.dice, trial.rarely) else below(trial.dice, entries + 1)
    store64(place + 8, some_length(trial) | flags << 32 | index << 48)


@of_tests
@native
def mark(trial: Trial, ring: RingState, place: int) -> int:
    """AVAIL and USED of a packed descriptor at a place: mostly as a driver does it."""
    value = AVAIL if place < ring.size else USED
    if below(trial.dice, trial.rarely) == 0:
        value = roll(trial.dice) & (AVAIL | USED)
    return value


@of_tests
@native
def fill(trial: Trial, ring: RingState) -> None:
    """Descriptors, heads and events; areas may lie over each other."""
    dice = trial.dice
    for number in range(TABLES * ENTRIES):
        entry = number % ENTRIES
        describe(trial, regions.HOST + trial.tables + 16 * number, some_flags(trial, entry, ENTRIES), entry, ENTRIES)
    for number in range(ring.size):
        if trial.packed:
            place = ring.next_avail + number
            if place >= 2 * ring.size:
                place -= 2 * ring.size
            at = ring.table + 16 * (place if place < ring.size else place - ring.size)
            store64(at, some_address(trial))
            flags = (some_flags(trial, number, ring.size) & 0x7F7F) | mark(trial, ring, place)
            store64(at + 8, some_length(trial) | (roll(dice) & 0xFFFF) << 32 | flags << 48)
        else:
            describe(trial, ring.table + 16 * number, some_flags(trial, number, ring.size), number, ring.size)
    store64(ring.device, 0)
    if trial.packed:
        store32(ring.driver, below(dice, 2 * ring.size) | (roll(dice) & 0x38000))
        return
    for number in range(ring.size):
        store16(ring.driver + 4 + 2 * number, below(dice, ring.size + (below(dice, 16) == 0)))
    store16(ring.driver, roll(dice) & 1)
    ahead = below(dice, ring.size + 1) if below(dice, 16) else roll(dice)
    store16(ring.driver + 2, ring.next_avail + ahead)
    store16(ring.driver + 4 + 2 * ring.size, ring.next_used + below(dice, 6) - 2)


@of_tests
@native
def some_area(trial: Trial, size: int, align: int) -> int:
    """Where a part of the ring lies, as a host address: also at the very ends of RAM, and over other parts."""
    kind = below(trial.dice, 8)
    offset = below(trial.dice, trial.ram_bytes - size)
    if kind == 0:
        offset = 0
    elif kind == 1:
        offset = trial.ram_bytes - size
    elif kind == 2:
        offset = trial.tables - RAM_BASE
    return trial.ram + (offset & (0 - align))


@of_tests
@native
def begin(trial: Trial, ring: RingState) -> None:
    """A new ring, somewhere, at some point of its life."""
    dice = trial.dice
    trial.rarely = 2 << below(dice, 7)
    ring.size = 1 + below(dice, LARGEST) if trial.packed else 1 << below(dice, 5)
    ring.event_index = below(dice, 2)
    ring.indirect = below(dice, 8) != 0
    trial.tables = RAM_BASE + (below(dice, trial.ram_bytes - 16 * TABLES * ENTRIES) & (0 - 16))
    ring.table = some_area(trial, 16 * ring.size, 16)
    ring.driver = some_area(trial, 4 if trial.packed else 6 + 2 * ring.size, 4 if trial.packed else 2)
    ring.device = some_area(trial, 8 if trial.packed else 6 + 8 * ring.size, 8)
    wrap = 2 * ring.size if trial.packed else 0x10000
    ring.next_avail = below(dice, wrap)
    trial.waiting = below(dice, ring.size + 1)
    behind = ring.next_avail + wrap - trial.waiting
    ring.next_used = behind if behind < wrap else behind - wrap
    for number in range(trial.waiting):
        trial.taken[number] = 1
    ring.signalled = ring.next_used
    ring.unsignalled = 0
    ring.held_place = 0
    ring.watch.active = 0
    trial.held = 0
    fill(trial, ring)
