"""The PLIC against a slow model of it, its registers, and many processes at once."""

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem import engine as compiler
from mem import memmap, regions
from mem.atomics import aload32, astore32, cpu_relax, now_ns, xchg32
from mem.layout import Layout, layout, many, u32
from mem.machine import machine
from mem.mailbox import ALARM_INTERRUPT, MEIP, SEIP, Mailbox, alarm, sleep
from mem.native import Native, Unit, building, native, ref
from mem.plic import (
    CLAIM,
    CONTEXT_BASE,
    CONTEXT_STRIDE,
    ENABLE_BASE,
    ENABLE_STRIDE,
    PENDING_BASE,
    SOURCES,
    THRESHOLD,
    Plic,
    plic_claim,
    plic_complete,
    plic_read,
    plic_set_level,
    plic_write,
)
from smp import engine

HARTS = 34
CONTEXTS = 2 * HARTS
CLAIMERS = (0, 1, 33)


@pytest.fixture(autouse=True, scope="module")
def shared() -> Iterator[None]:
    engine.load()
    opened = regions.open_regions(HARTS, 1 << 20)
    machine().harts = HARTS
    yield
    opened.close()


@pytest.fixture(autouse=True)
def fresh() -> None:
    reset()


def reset() -> None:
    ctypes.memset(regions.PLIC, 0, Plic.sizeof())
    ctypes.memset(regions.MAILBOXES, 0, HARTS * Mailbox.sizeof())


def mailbox(hart: int) -> Mailbox:
    return Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof())


def lines() -> list[bool]:
    """The external-interrupt line of each context, as the harts see it."""
    pending = [mailbox(hart).pending for hart in range(HARTS)]
    return [bool(pending[context // 2] & (SEIP if context % 2 else MEIP)) for context in range(CONTEXTS)]


def of_context(context: int, register: int) -> int:
    return CONTEXT_BASE + context * CONTEXT_STRIDE + register


def enable(context: int, *sources: int) -> None:
    for word in range(SOURCES // 32):
        bits = sum(1 << source % 32 for source in sources if source // 32 == word)
        plic_write(ENABLE_BASE + context * ENABLE_STRIDE + 4 * word, bits)


def claim(context: int) -> int:
    return plic_read(of_context(context, CLAIM))


def complete(context: int, source: int) -> None:
    plic_write(of_context(context, CLAIM), source)


@dataclass
class Model:
    """The specification, slowly."""

    level: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)
    priority: dict[int, int] = field(default_factory=dict)
    threshold: dict[int, int] = field(default_factory=dict)
    enabled: set[tuple[int, int]] = field(default_factory=set)

    def best(self, context: int) -> int:
        wanted = [s for s in self.pending if (context, s) in self.enabled and self.priority.get(s, 0)]
        return min(wanted, key=lambda source: (-self.priority[source], source), default=0)

    def lines(self) -> list[bool]:
        best = [self.best(context) for context in range(CONTEXTS)]
        return [self.priority.get(s, 0) > self.threshold.get(c, 0) for c, s in enumerate(best)]

    def set_level(self, source: int, level: int) -> None:
        if not level:
            self.level.discard(source)
            return
        self.level.add(source)
        if source not in self.claimed:
            self.pending.add(source)

    def claim(self, context: int) -> int:
        source = self.best(context)
        if source:
            self.pending.remove(source)
            self.claimed.add(source)
        return source

    def complete(self, context: int, source: int) -> None:
        if source in self.claimed and (context, source) in self.enabled:
            self.claimed.remove(source)
            if source in self.level:
                self.pending.add(source)

    def enable(self, context: int, word: int, bits: int) -> None:
        for source in range(32 * word, 32 * word + 32):
            self.enabled.discard((context, source))
            if source and bits >> source % 32 & 1:
                self.enabled.add((context, source))


# A few sources in all three words, so that examples meet each other.
sources = st.sampled_from([1, 2, 10, 31, 32, 33, 63, 64, 95])
contexts = st.sampled_from([0, 1, 3, 32, 64, CONTEXTS - 1])
steps = st.one_of(
    st.tuples(st.just("level"), sources, st.integers(0, 1)),
    st.tuples(st.just("priority"), st.one_of(sources, st.just(0)), st.integers(0, 9)),
    st.tuples(st.just("enable"), contexts, st.integers(0, 2), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("threshold"), contexts, st.integers(0, 9)),
    st.tuples(st.just("claim"), contexts),
    st.tuples(st.just("finish"), contexts),
    st.tuples(st.just("complete"), contexts, st.one_of(sources, st.sampled_from([0, 96, 2**32 - 1]))),
)


def take(step: tuple, model: Model) -> None:
    """One step in both; claims must agree."""
    match step:
        case ("level", source, level):
            plic_set_level(source, level)
            model.set_level(source, level)
        case ("priority", source, value):
            plic_write(4 * source, value)
            model.priority[source] = value & 7 if source else 0
        case ("enable", context, word, bits):
            plic_write(ENABLE_BASE + context * ENABLE_STRIDE + 4 * word, bits)
            model.enable(context, word, bits)
        case ("threshold", context, value):
            plic_write(of_context(context, THRESHOLD), value)
            model.threshold[context] = value & 7
        case ("claim", context):
            assert claim(context) == model.claim(context)
        case ("finish", context):
            complete(context, min(model.claimed, default=0))
            model.complete(context, min(model.claimed, default=0))
        case ("complete", context, source):
            complete(context, source)
            model.complete(context, source)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(contexts, st.integers(0, 2), st.integers(0, 2**32 - 1)), max_size=6),
    st.lists(steps, min_size=20, max_size=80),
)
def test_registers_and_lines_follow_the_specification(enables: list[tuple[int, int, int]], ops: list[tuple]) -> None:
    reset()
    model = Model()
    start = [("priority", source, 1 + source % 3) for source in (1, 2, 10, 31, 32, 33, 63, 64)]
    for step in [*start, *(("enable", *e) for e in enables), *ops]:
        take(step, model)
        assert lines() == model.lines(), step
        words = [plic_read(PENDING_BASE + 4 * word) for word in range(4)]
        assert {s for s in range(128) if words[s // 32] >> s % 32 & 1} == model.pending, step


def test_ties_go_to_the_lowest_source() -> None:
    enable(1, 5, 40, 95)
    for source in (95, 40, 5):
        plic_write(4 * source, 3)
        plic_set_level(source, 1)
    assert [claim(1) for _ in range(4)] == [5, 40, 95, 0]


def test_a_request_outlives_the_level_until_it_is_claimed() -> None:
    enable(1, 7)
    plic_write(4 * 7, 1)
    plic_set_level(7, 1)
    plic_set_level(7, 0)
    assert lines()[1]
    assert claim(1) == 7
    complete(1, 7)
    assert not lines()[1]
    assert claim(1) == 0


def test_a_level_still_high_at_completion_interrupts_again() -> None:
    enable(1, 7)
    plic_write(4 * 7, 1)
    plic_set_level(7, 1)
    assert claim(1) == 7
    assert not any(lines())
    mailbox(0).alarm = 0
    complete(1, 7)
    assert lines()[1]
    assert mailbox(0).alarm == ALARM_INTERRUPT


def test_completion_from_a_context_without_the_source_is_ignored() -> None:
    enable(1, 7)
    plic_write(4 * 7, 1)
    plic_set_level(7, 1)
    assert claim(1) == 7
    complete(3, 7)
    assert claim(1) == 0
    complete(1, 7)
    assert claim(1) == 7


def test_a_threshold_hides_the_interrupt_and_not_the_claim() -> None:
    enable(0, 3)
    plic_write(4 * 3, 2)
    plic_write(of_context(0, THRESHOLD), 2)
    plic_set_level(3, 1)
    assert not any(lines())
    assert claim(0) == 3


def test_contexts_beyond_the_harts_read_zero() -> None:
    for context in (CONTEXTS, 255):
        enable(context, 1)
        plic_write(of_context(context, THRESHOLD), 5)
        assert plic_read(ENABLE_BASE + context * ENABLE_STRIDE) == 0
        assert plic_read(of_context(context, THRESHOLD)) == 0
        assert claim(context) == 0
    assert bytes(Plic.at(regions.PLIC)) == bytes(Plic.sizeof())


def test_registers_read_back_what_they_can_hold() -> None:
    plic_write(4 * 95, 0xFFFF_FFFF)
    plic_write(4 * 96, 7)
    plic_write(0, 7)
    assert [plic_read(4 * source) for source in (0, 95, 96)] == [0, 7, 0]
    plic_write(ENABLE_BASE + 5 * ENABLE_STRIDE, 0xFFFF_FFFF)
    plic_write(ENABLE_BASE + 5 * ENABLE_STRIDE + 12, 0xFFFF_FFFF)
    assert [plic_read(ENABLE_BASE + 5 * ENABLE_STRIDE + 4 * word) for word in range(4)] == [0xFFFF_FFFE, 0, 0, 0]
    plic_write(of_context(5, THRESHOLD), 0xF)
    assert plic_read(of_context(5, THRESHOLD)) == 7
    plic_write(PENDING_BASE, 0xFFFF_FFFF)
    assert plic_read(PENDING_BASE) == 0


# Many processes, in compiled code so that they truly meet.  What they count lies at the start of RAM.  Who waits spins
# a little and then sleeps until it is told, as harts do: one that gives its core away again and again instead gets
# hardly any of it on a busy host.
POSTS = 20_000
DEVICES = (1, 33, 34, 35)
SENDERS = len(DEVICES)
SPINS = 1000
PATIENCE_NS = 60_000_000_000  # asleep; a busy host may keep a process from running for seconds


@layout
class Counts(Layout):
    """One source's work."""

    posted: u32
    seen: u32
    busy: u32
    doubled: u32
    done: u32
    pad: list[u32] = many(11)


@native(inline=True)
def counts(source: int) -> Counts:
    return Counts.at(regions.HOST + memmap.RAM_BASE + source * Counts.sizeof())


@native(inline=True)
def bell(source: int) -> int:
    """The mailbox in which a device hears that its work was seen: that of a hart which is not there."""
    return HARTS + source


@native
def device(source: int, posts: int, patience: int) -> int:
    """Posts work and raises its line as a virtio device does; every third time it waits until the work was seen."""
    count = counts(source)
    for number in range(1, posts + 1):
        astore32(ref(count.posted), number)
        plic_set_level(source, 1)
        while number % 3 == 0 and aload32(ref(count.seen)) < number:
            if rung(bell(source), patience) == 0:
                return 0
    astore32(ref(count.done), 1)
    ring_drivers()
    return 1


@native
def driver(context: int, posts: int, patience: int) -> int:
    """Claims on interrupts alone, until all work was seen; gives 0 when nothing comes."""
    hart = context >> 1
    pending = ref(Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof()).pending)
    while 1:
        if aload32(pending) & SEIP:
            source = plic_claim(context)
            if source:
                serve(context, source)
        elif is_over(posts) and aload32(pending) & SEIP == 0:
            ring_drivers()
            return 1
        elif rung(hart, patience) == 0:
            return 0


@native
def rung(hart: int, patience: int) -> int:
    """Wait until the hart's alarm rings, and take it back; 0 when it doesn't.  A ring of before may wake it, too."""
    alarmed = ref(Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof()).alarm)
    give_up = now_ns() + patience
    spins = 0
    while xchg32(alarmed, 0) == 0:
        while aload32(alarmed) == 0 and spins < SPINS:
            cpu_relax()
            spins += 1
        if spins == SPINS:
            if now_ns() > give_up:
                return 0
            sleep(hart, patience)
    return 1


@native
def ring_drivers() -> None:
    """It may be over."""
    for hart in range(HARTS):
        alarm(hart, ALARM_INTERRUPT)


@native
def is_over(posts: int) -> int:
    """Whether all devices have raised their lines for the last time, and all their work was seen."""
    over = 0
    for source in range(SOURCES):
        over += aload32(ref(counts(source).done)) and aload32(ref(counts(source).seen)) == posts
    return over == SENDERS


@native
def serve(context: int, source: int) -> None:
    """Lowers the line, then looks how much was posted."""
    count = counts(source)
    if xchg32(ref(count.busy), 1):
        astore32(ref(count.doubled), 1)
    plic_set_level(source, 0)
    astore32(ref(count.seen), aload32(ref(count.posted)))
    astore32(ref(count.busy), 0)
    plic_complete(context, source)
    alarm(bell(source), ALARM_INTERRUPT)


HAMMERS: tuple[Native, ...] = (device, driver, serve, counts, bell, rung, ring_drivers, is_over)
for hammer in HAMMERS:
    Native.registry.remove(hammer)  # they belong to this test, not to the engine


def compile_hammers() -> Any:
    """Give `device` and `driver` code; it lives as long as the result."""
    unit, target = Unit("hammers"), compiler._target()
    with building(unit):
        unit.function(device)
        unit.function(driver)
        unit.finish()
    linked = compiler._link(compiler.compile_unit(unit, target), target)
    for item in (device, driver):
        item.bind(linked.get_function_address(item.name))
    return linked


def in_process(function: Native, *args: int) -> int:
    """A child that calls the native and exits with 0 when that gave something."""
    child = os.fork()
    if child == 0:
        os._exit(0 if function(*args) else 1)
    return child


def test_no_interrupt_is_lost_and_none_served_twice_at_once() -> None:
    code = compile_hammers()
    for source in DEVICES:
        plic_write(4 * source, 1)
    for hart in CLAIMERS:
        enable(2 * hart + 1, *DEVICES)
    children = [in_process(driver, 2 * hart + 1, POSTS, PATIENCE_NS) for hart in CLAIMERS]
    children += [in_process(device, source, POSTS, PATIENCE_NS) for source in DEVICES]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert code and statuses == [0] * len(children)
    counted = [Counts.at(regions.HOST + memmap.RAM_BASE + s * Counts.sizeof()) for s in DEVICES]
    assert [count.seen for count in counted] == [POSTS] * len(DEVICES)
    assert not any(count.doubled for count in counted)
    assert Plic.at(regions.PLIC).lock == 0
    assert not any(lines())
