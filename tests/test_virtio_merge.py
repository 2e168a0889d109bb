"""Received frames in buffers: the compiled way against a slow one over the queue's requests, on random rings."""

from typing import Any

import pytest
from fake_driver import DATA, RINGS, Driver, PackedRing, Ring
from hypothesis import given, settings
from hypothesis import strategies as st

from mem import regions
from mem.reservation import NONE, Reservations, begin_watch, finish_watch
from virtio.features import IN_ORDER
from virtio.merge import FILLED, LOST, MISSING, Merger
from virtio.queue import Queue, QueueError, Ram, Request, size_of

HEADER = bytes(range(1, 11)) + b"\xff\xff"  # of which num_buffers is the device's
KINDS = (Ring, PackedRing)


class Slow:
    """Takes requests from the queue and gives them back together, a frame at a time."""

    def __init__(self) -> None:
        self.taken: list[Request] = []

    def put(self, queue: Queue, data: memoryview, header: bytes, is_merging: bool) -> int:
        """As Merger's."""
        found, count = self._gather(queue, 12 + len(data), is_merging)
        if found != FILLED:
            return found
        used, self.taken = self.taken[:count], self.taken[count:]
        rest, batch = header[:10] + count.to_bytes(2, "little") + bytes(data), []
        for request in used:
            written = request.write(rest)
            rest = rest[written:]
            batch.append((request, written))
        queue.finish(batch)
        return FILLED

    def _gather(self, queue: Queue, size: int, is_merging: bool) -> tuple[int, int]:
        """Have buffers for so many bytes in front: FILLED and how many, or why not."""
        room = 0
        for count in range(1, queue.size + 1):
            if count > len(self.taken):
                request = queue.pop()
                if request is None:
                    return MISSING, 0
                if size_of(request.writable) < 12:
                    raise QueueError("a buffer to receive of less than 12 bytes")
                self.taken.append(request)
            room += size_of(self.taken[count - 1].writable)
            if room >= size:
                return FILLED, count
            if not is_merging:
                break
        return LOST, 0


class Side:
    """A driver, its receive queue, and one of the ways to fill its buffers."""

    def __init__(self, ring: Any, features: int, filler: Merger | Slow, data: int) -> None:
        self.ring, self.filler = ring, filler
        self.queue = Queue(ring.ram, 256)
        ring.attach(self.queue, features)
        self.data = ring.bump = data
        self.heads: dict[int, list[Any]] = {}
        self.late: memoryview | None = None

    def offer(self, number: int, parts: list[bytes | int], indirect: bool) -> None:
        self.ring.bump = self.data + number % 64 * 0x800
        before = set(self.ring.chains) if isinstance(self.ring, Ring) else set(self.ring.taken)
        buffers = self.ring.add(*parts, indirect=indirect)
        after = set(self.ring.chains) if isinstance(self.ring, Ring) else set(self.ring.taken)
        (head,) = after - before
        self.heads[head] = buffers

    def put(self, data: memoryview, is_merging: bool) -> int | str:
        try:
            return self.filler.put(self.queue, data, HEADER, is_merging)
        except QueueError as error:
            return str(error)

    def collect(self) -> list[tuple[int, int, bytes]]:
        found = []
        for head, length in self.ring.collect():
            room = (self.ring.ram.view(b.address, b.size) for b in self.heads.pop(head) if b.writable)
            found.append((head, length, b"".join(map(bytes, room))[:length]))
        return found


def sides(ram: Ram, kind: type[Driver], size: int, event_index: bool, features: int) -> tuple[Side, Side]:
    fast = Side(kind(ram, size, RINGS, event_index), features, Merger(), DATA)
    slow = Side(kind(ram, size, RINGS + 0x1_0000, event_index), features, Slow(), DATA + 0x8_0000)
    return fast, slow


offers = st.tuples(
    st.lists(st.just(b"read"), max_size=1),
    st.lists(st.integers(0, 30) | st.just(12), min_size=1, max_size=4),
    st.booleans(),
)
frames = st.integers(0, 150)


@given(
    kind=st.sampled_from(KINDS),
    power=st.integers(0, 5),
    event_index=st.booleans(),
    in_order=st.booleans(),
    is_merging=st.sampled_from([True, True, False]),
    small=st.booleans(),
    steps=st.lists(offers | offers | frames, max_size=50),
)
@settings(max_examples=600)
def test_frames_fill_buffers_as_requests_would(
    ram: Ram, kind: Any, power: int, event_index: bool, in_order: bool, is_merging: bool, small: bool, steps: list[Any]
) -> None:
    pair = sides(ram, kind, 1 << power, event_index, IN_ORDER * in_order)
    number, waiting = 0, None
    for step in steps:
        if isinstance(step, tuple):
            readable, rooms, indirect = step
            parts = [*readable, *rooms, *([] if small else [12])]
            if (1 if indirect else len(parts)) <= min(side.ring.room() for side in pair):
                for side in pair:
                    side.offer(number, parts, indirect)
                number += 1
        elif waiting is None:
            waiting = memoryview(bytearray(n % 251 + 1 for n in range(step)))
        if waiting is not None:
            fast, slow = (side.put(waiting, is_merging) for side in pair)
            assert fast == slow
            used = [side.collect() for side in pair]
            assert used[0] == used[1]
            if isinstance(fast, str):
                return
            if fast != MISSING:
                waiting = None


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_may_be_in_a_frame_once(ram: Ram, kind: Any) -> None:
    fast, _ = sides(ram, kind, 4, False, 0)
    fast.ring.add(20)
    if kind is Ring:
        fast.ring.offer(0)
    else:
        fast.ring.offer([(DATA, 20, 2)], 3)
    assert "is offered again before it was given back" in str(fast.put(memoryview(bytes(20)), True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 10, 20])
def test_a_reservation_of_what_a_frame_writes_is_broken(ram: Ram, kind: Any, place: int) -> None:
    fast, _ = sides(ram, kind, 4, False, 0)
    (buffer,) = fast.ring.add(40)
    begin_watch(buffer.address)
    finish_watch(buffer.address)
    reservations: Any = Reservations.at(regions.RESERVATIONS)
    reservations.granule[0] = buffer.address + place & ~7
    assert fast.put(memoryview(bytes(20)), True) == FILLED
    assert reservations.granule[0] == NONE


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_that_waits_starts_again_in_the_rings_of_after_a_reset(ram: Ram, kind: Any) -> None:
    fast, _ = sides(ram, kind, 4, False, 0)
    fast.ring.add(20)
    data = memoryview(bytes(range(25)))
    assert fast.put(data, True) == MISSING
    fast.ring = kind(ram, 4, RINGS + 0x1_0000, False)
    fast.ring.attach(fast.queue)
    fast.heads.clear()
    for number in range(2):
        fast.offer(number, [20], False)
    assert fast.put(data, True) == FILLED
    assert b"".join(part for _, _, part in fast.collect()) == HEADER[:10] + b"\2\0" + bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_that_is_dropped_leaves_its_buffers(ram: Ram, kind: Any) -> None:
    fast, _ = sides(ram, kind, 4, False, 0)
    fast.offer(0, [20], False)
    assert fast.put(memoryview(bytes(25)), True) == MISSING
    fast.filler.drop()
    assert fast.put(memoryview(b"12345678"), True) == FILLED
    assert [data for _, _, data in fast.collect()] == [HEADER[:10] + b"\1\0" + b"12345678"]
