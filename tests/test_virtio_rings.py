"""Split and packed rings under one random driver and device: both must tell the same story as a list does."""

from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import pytest
from fake_driver import DATA, RINGS, PackedRing, Ring, machine_memory
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from virtio.features import IN_ORDER
from virtio.queue import Queue, Ram, size_of

MEMORY: list[Ram] = []


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    with machine_memory() as ram:
        MEMORY.append(ram)
        yield
        MEMORY.clear()


class Side:
    """One kind of ring with its device, and what the driver knows of its requests."""

    def __init__(self, kind: type, ram: Ram, size: int, base: int, event_index: bool, features: int) -> None:
        self.ram, self.interrupts = ram, 0
        self.queue = Queue(ram, 256, self.interrupted)
        self.ring: Any = kind(ram, size, base, event_index)
        self.data = DATA + (base - RINGS)
        self.ring.attach(self.queue, features)
        self.buffers: dict[int, list[Any]] = {}  # by number of the request
        self.numbers: dict[int, int] = {}  # by head
        self.popped: dict[int, Any] = {}

    def interrupted(self) -> None:
        self.interrupts += 1

    def offer(self, number: int, parts: list[bytes | int], indirect: bool) -> None:
        self.ring.bump = self.data + number % 64 * 0x400
        self.buffers[number] = self.ring.add(*parts, indirect=indirect)

    def take(self, number: int) -> tuple[bytes, int] | None:
        """What the device finds: the bytes to be read and the room."""
        request = self.queue.pop()
        if request is None:
            return None
        self.popped[number], self.numbers[request.head] = request, number
        return b"".join(map(bytes, request.readable)), size_of(request.writable)

    def finish(self, number: int, data: bytes) -> None:
        request = self.popped.pop(number)
        request.done(request.write(data))

    def collect(self) -> list[tuple[int, int, bytes]]:
        """Requests given back: their numbers, lengths and what was written."""
        found = []
        for head, length in self.ring.collect():
            number = self.numbers.pop(head)
            room = b"".join(bytes(self.ram.view(b.address, b.size)) for b in self.buffers.pop(number) if b.writable)
            found.append((number, length, room[:length]))
        return found


class Rings(RuleBasedStateMachine):
    """A request is offered by the driver, taken and finished by the device, and collected by the driver."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 8, 16]),
        packed_size=st.integers(1, 17),
        event_index=st.booleans(),
        in_order=st.booleans(),
    )
    def start(self, size: int, packed_size: int, event_index: bool, in_order: bool) -> None:
        ram, features = MEMORY[0], IN_ORDER if in_order else 0
        split = Side(Ring, ram, size, RINGS, event_index, features)
        packed = Side(PackedRing, ram, packed_size, RINGS + 0x1_0000, event_index, features)
        self.sides = (split, packed)
        self.in_order, self.event_index = in_order, event_index
        self.count = self.interrupts = 0
        self.offered: deque[tuple[int, bytes, int]] = deque()
        self.order: list[int] = []  # requests that the device has taken and not given back, oldest first
        self.finished: dict[int, bytes] = {}  # of these, what it has written
        self.given: list[tuple[int, int, bytes]] = []  # given back and not collected
        self.ask()

    def ask(self) -> None:
        """As drivers do when they have collected everything."""
        self.asked = True
        if self.event_index:
            for side in self.sides:
                side.ring.want_interrupt()

    @rule(
        readable=st.lists(st.binary(max_size=9), max_size=3),
        rooms=st.lists(st.integers(0, 9), max_size=3),
        indirect=st.booleans(),
    )
    def offer(self, readable: list[bytes], rooms: list[int], indirect: bool) -> None:
        parts: list[bytes | int] = [*readable, *rooms]
        room = min(side.ring.room() for side in self.sides)
        if not parts or (1 if indirect else len(parts)) > room:
            return
        for side in self.sides:
            side.offer(self.count, parts, indirect)
        self.offered.append((self.count, b"".join(readable), sum(rooms)))
        self.count += 1

    @rule()
    def take(self) -> None:
        if not self.offered:
            assert [side.take(-1) for side in self.sides] == [None, None]
            return
        number, data, room = self.offered.popleft()
        assert [side.take(number) for side in self.sides] == [(data, room)] * 2
        self.order.append(number)
        self.rooms = {**getattr(self, "rooms", {}), number: room}

    @precondition(lambda self: len(self.order) > len(self.finished))
    @rule(which=st.integers(0, 63), filling=st.binary(min_size=30, max_size=30))
    def finish(self, which: int, filling: bytes) -> None:
        waiting = [number for number in self.order if number not in self.finished]
        number = waiting[which % len(waiting)]
        self.finished[number] = filling[: self.rooms[number]]
        for side in self.sides:
            side.finish(number, filling)
        due = [number]
        if self.in_order:
            due = list(takewhile(lambda each: each in self.finished, self.order))
        for each in due:
            data = self.finished.pop(each)
            self.given.append((each, len(data), data))
            self.order.remove(each)
        if due and (self.asked or not self.event_index):
            self.interrupts += 1
            self.asked = False

    @rule()
    def collect(self) -> None:
        for side in self.sides:
            assert side.ring.has_used() == bool(self.given)
            assert side.collect() == self.given
        self.given = []
        self.ask()

    @rule()
    def arm(self) -> None:
        assert [side.queue.arm() for side in self.sides] == [not self.offered] * 2

    @invariant()
    def the_driver_is_told_once_of_what_it_asked_for(self) -> None:
        assert [side.interrupts for side in getattr(self, "sides", ())] in ([], [self.interrupts] * 2)


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=150, stateful_step_count=60)
