"""Queues by examples: wrap, event indices, indirect tables, order, and what a hostile driver may write into rings."""

from struct import pack
from typing import Any

import pytest
from fake_driver import AVAIL, INDIRECT, NEXT, RAM_BYTES, RINGS, USED, WRITE, PackedRing, Ring
from hypothesis import given, settings
from hypothesis import strategies as st

from mem.memmap import RAM_BASE
from virtio.features import IN_ORDER
from virtio.queue import Queue, QueueError, Ram, Request, take

KINDS = (Ring, PackedRing)


def pair(
    ram: Ram, size: int = 8, event_index: bool = False, kind: type = Ring, features: int = 0
) -> tuple[Any, Any, list[int]]:
    interrupts: list[int] = []
    queue = Queue(ram, 256, lambda: interrupts.append(queue.ring.next_used))  # type: ignore[attr-defined]
    ring = kind(ram, size, event_index=event_index)
    ring.attach(queue, features)
    return ring, queue, interrupts


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_read_and_written(ram: Ram, kind: type) -> None:
    ring, queue, interrupts = pair(ram, kind=kind)
    buffers = ring.add(b"abc", b"defg", 4, 6)
    (request,) = queue
    assert request.read(5) == b"abcde"
    assert request.read(99) == b"fg"
    assert request.write(b"123456") == 6
    assert request.write(b"xyzzy") == 4
    request.done(10)
    assert [size for _, size in ring.collect()] == [10]
    assert bytes(ram.view(buffers[2].address, 4)) + bytes(ram.view(buffers[3].address, 6)) == b"123456xyzz"
    assert len(interrupts) == 1


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_index", [False, True])
def test_indices_wrap_at_65536(ram: Ram, indirect: bool, event_index: bool) -> None:
    ring, queue, _ = pair(ram, 4, event_index)
    ring.added = ring.seen = queue.ring.next_avail = queue.ring.next_used = 0xFFFE
    ram.view(ring.avail + 2, 2)[:] = ram.view(ring.used + 2, 2)[:] = pack("<H", 0xFFFE)
    for n in range(10):
        ring.bump = RINGS + 0x2_0000
        ring.add(bytes([n]), 1, indirect=indirect)
        (request,) = queue
        assert request.read(9) == bytes([n])
        request.done(n)
        assert [size for _, size in ring.collect()] == [n]
    assert queue.ring.next_used == 8
    if event_index:
        assert ring.avail_event() == 8


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_index", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_packed_ring_wraps_wherever_a_buffer_ends(ram: Ram, indirect: bool, event_index: bool, size: int) -> None:
    ring, queue, _ = pair(ram, size, event_index, PackedRing)
    for n in range(20):
        ring.bump = RINGS + 0x2_0000
        parts = (bytes([n]), 1)[-size:] if size < 2 else (bytes([n]), 1)
        buffers = ring.add(*parts, indirect=indirect)
        (request,) = queue
        assert request.read(9) == bytes([n])[: len(parts) - 1]
        assert request.write(bytes([n])) == 1
        request.done(1)
        assert [length for _, length in ring.collect()] == [1]
        assert ram.view(buffers[-1].address, 1)[0] == n


@pytest.mark.parametrize("kind", KINDS)
def test_without_event_index_flags_suppress_interrupts_and_notifications(ram: Ram, kind: type) -> None:
    ring, queue, interrupts = pair(ram, kind=kind)
    ring.silence()
    ring.add(b"x")
    for request in queue:
        request.done(0)
    assert interrupts == []
    queue.disarm()
    assert not ring.wants_notification()
    assert queue.arm()
    assert ring.wants_notification()


@pytest.mark.parametrize("event_index", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_arming_sees_a_request_that_came_meanwhile(ram: Ram, kind: type, event_index: bool) -> None:
    ring, queue, _ = pair(ram, event_index=event_index, kind=kind)
    assert queue.arm()
    ring.add(b"x")
    assert ring.wants_notification()
    assert not queue.arm()


@pytest.mark.parametrize("kind", KINDS)
def test_with_event_index_one_interrupt_is_enough_until_the_driver_asks_again(ram: Ram, kind: type) -> None:
    ring, queue, interrupts = pair(ram, event_index=True, kind=kind)
    for _ in range(5):
        ring.want_interrupt()
        for _ in range(3):
            ring.add(b"x")
        for request in queue:
            request.done(0)
        assert len(interrupts) == 1
        interrupts.clear()
        ring.collect()


@pytest.mark.parametrize("kind", KINDS)
def test_in_order_holds_back_what_is_done_early(ram: Ram, kind: type) -> None:
    ring, queue, interrupts = pair(ram, kind=kind, features=IN_ORDER)
    for n in range(4):
        ring.add(bytes([n]), 4)
    requests = list(queue)
    order = [request.head for request in requests]
    for n in (2, 1):
        requests[n].done(n)
        assert ring.collect() == [] and interrupts == []
    requests[0].done(0)
    assert ring.collect() == [(order[0], 0), (order[1], 1), (order[2], 2)]
    assert len(interrupts) == 1
    requests[3].done(3)
    assert ring.collect() == [(order[3], 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_without_in_order_requests_are_given_back_as_they_are_done(ram: Ram, kind: type) -> None:
    ring, queue, _ = pair(ram, kind=kind)
    for n in range(3):
        ring.add(bytes([n]), 4)
    requests = list(queue)
    for n in (2, 0, 1):
        requests[n].done(n)
        assert ring.collect() == [(requests[n].head, n)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_popped_before_a_reset_is_nobodys(ram: Ram, kind: type) -> None:
    """A back-end that finishes it later writes neither into its buffers nor into the rings of the next driver."""
    ring, queue, interrupts = pair(ram, kind=kind)
    (buffer,) = ring.add(4)
    (old,) = queue
    ring, queue_again = kind(ram, 8), queue
    ring.attach(queue_again)
    ring.add(4)
    (new,) = queue_again
    assert old.head == new.head
    assert old.write(b"late") == 0
    old.last()[0] = 7
    old.done(4)
    assert ring.collect() == [] and interrupts == []
    assert bytes(ram.view(buffer.address, 4)) == bytes(4)
    new.done(1)
    assert [size for _, size in ring.collect()] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_giving_back_twice_publishes_once(ram: Ram, kind: type) -> None:
    ring, queue, _ = pair(ram, kind=kind)
    ring.add(4)
    (request,) = queue
    request.done(1)
    request.done(2)
    assert [size for _, size in ring.collect()] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_several_chains_are_given_back_at_once(ram: Ram, kind: type) -> None:
    """The driver must never find a part of them: after the first it looks for the others."""
    ring, queue, interrupts = pair(ram, kind=kind)
    for _ in range(3):
        ring.add(4)
    requests = list(queue)
    for hold, request in zip((1, 1), requests, strict=False):
        queue.ring._push(queue.ring.place, request.head, request.slots, 0, hold)
        assert not ring.has_used()
    ring, queue, interrupts = pair(ram, kind=kind)
    for _ in range(3):
        ring.add(4)
    queue.finish([(request, n) for n, request in enumerate(queue)])
    assert [length for _, length in ring.collect()] == [0, 1, 2]
    assert len(interrupts) == 1
    queue.finish([])
    assert len(interrupts) == 1


def give_back(queue: Any, slots: int = 1) -> None:
    """An empty request of the device's own."""
    request = Request(queue)
    request.slots = slots
    queue.outstanding[0] = request
    queue.finish([(request, 0)])


@given(start=st.integers(0, 0xFFFF), used=st.integers(1, 8), event=st.integers(0, 0xFFFF))
def test_used_event_interrupts_exactly_when_it_is_passed(ram: Ram, start: int, used: int, event: int) -> None:
    """vring_need_event of the specification, against counting."""
    ring, queue, interrupts = pair(ram, event_index=True)
    queue.ring.next_used = queue.ring.signalled = start
    ring.set_used_event(event)
    for _ in range(used):
        give_back(queue)
    passed = [(start + n) & 0xFFFF for n in range(used)]
    assert interrupts == [(n + 1) & 0xFFFF for n in passed if n == event]


@given(data=st.data(), size=st.integers(1, 9))
def test_used_event_of_a_packed_ring_interrupts_exactly_when_it_is_passed(
    ram: Ram, data: st.DataObject, size: int
) -> None:
    """Places are counted on two rounds of the ring; a buffer of several descriptors may pass the event inside."""
    ring, queue, interrupts = pair(ram, size, True, PackedRing)
    start = data.draw(st.integers(0, 2 * size - 1))
    slots = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=4))
    ahead = data.draw(st.integers(0, size - 1))
    event = (start + ahead) % (2 * size)
    queue.ring.next_used = queue.ring.next_avail = queue.ring.signalled = start
    ring.set_used_event(event % size, event < size)
    expected, place = [], 0
    for count in slots:
        give_back(queue, count)
        if place <= ahead < place + count:
            expected.append((start + place + count) % (2 * size))
        place += count
        if place > 2 * size - 1:
            break
        if place > size:  # the event lies a round behind: a driver would have moved it
            return
        assert interrupts == expected


def refuse(ram: Ram, build: "object", size: int = 8, kind: type = Ring) -> None:
    ring, queue, _ = pair(ram, size, kind=kind)
    build(ring)  # type: ignore[operator]
    with pytest.raises(QueueError):
        list(queue)


HOSTILE = {
    "loop": lambda r: (r.describe(0, RINGS, 1, NEXT, 1), r.describe(1, RINGS, 1, NEXT, 0), r.offer(0)),
    "self": lambda r: (r.describe(0, RINGS, 1, NEXT, 0), r.offer(0)),
    "next beyond": lambda r: (r.describe(0, RINGS, 1, NEXT, 8), r.offer(0)),
    "head beyond": lambda r: r.offer(8),
    "outside": lambda r: (r.describe(0, RAM_BASE + RAM_BYTES - 1, 2, 0), r.offer(0)),
    "below": lambda r: (r.describe(0, RAM_BASE - 1, 1, 0), r.offer(0)),
    "overflow": lambda r: (r.describe(0, (1 << 64) - 1, 2, 0), r.offer(0)),
    "order": lambda r: (r.describe(0, RINGS, 1, NEXT | WRITE, 1), r.describe(1, RINGS, 1, 0), r.offer(0)),
    "indirect and next": lambda r: (r.describe(0, RINGS, 16, INDIRECT | NEXT, 1), r.offer(0)),
    "indirect odd": lambda r: (r.describe(0, RINGS, 17, INDIRECT), r.offer(0)),
    "indirect empty": lambda r: (r.describe(0, RINGS, 0, INDIRECT), r.offer(0)),
    "indirect long": lambda r: (r.describe(0, RINGS, 16 * 1025, INDIRECT), r.offer(0)),
    "nested": lambda r: (r.describe(0, RINGS, 16, INDIRECT), r.offer(0)),  # the table is the ring's own: it loops
    "too far ahead": lambda r: r.ram.view(r.avail + 2, 2).__setitem__(slice(None), pack("<H", 9)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_chains_are_refused(ram: Ram, name: str) -> None:
    refuse(ram, HOSTILE[name])


HOSTILE_PACKED = {
    "too long": lambda r: r.offer([(RINGS, 1, NEXT)] * 8, 0),
    "id twice": lambda r: [r.offer([(RINGS, 1, 0)], 3) for n in range(2)],
    "outside": lambda r: r.offer([(RAM_BASE + RAM_BYTES - 1, 2, 0)], 0),
    "below": lambda r: r.offer([(RAM_BASE - 1, 1, 0)], 0),
    "overflow": lambda r: r.offer([((1 << 64) - 1, 2, 0)], 0),
    "empty outside": lambda r: r.offer([(0, 0, 0)], 0),
    "order": lambda r: r.offer([(RINGS, 1, WRITE | NEXT), (RINGS, 1, 0)], 0),
    "indirect and next": lambda r: r.offer([(RINGS, 16, INDIRECT | NEXT), (RINGS, 1, 0)], 0),
    "next and indirect": lambda r: r.offer([(RINGS, 1, NEXT), (RINGS, 16, INDIRECT)], 0),
    "indirect odd": lambda r: r.offer([(RINGS, 17, INDIRECT)], 0),
    "indirect empty": lambda r: r.offer([(RINGS, 0, INDIRECT)], 0),
    "indirect long": lambda r: r.offer([(RINGS, 16 * 1025, INDIRECT)], 0),
    "indirect outside": lambda r: r.offer([(RAM_BASE + RAM_BYTES - 8, 16, INDIRECT)], 0),
}


@pytest.mark.parametrize("name", HOSTILE_PACKED)
def test_hostile_packed_chains_are_refused(ram: Ram, name: str) -> None:
    refuse(ram, HOSTILE_PACKED[name], kind=PackedRing)


def test_a_packed_indirect_table_has_no_tables_in_it(ram: Ram) -> None:
    """Flags other than WRITE are reserved there and not looked at (virtio 1.3, 2.8.7)."""
    ring, queue, _ = pair(ram, kind=PackedRing)
    table = ring.put(bytes(32))
    ring.describe(0, RINGS, 16, 0, INDIRECT | NEXT, table)
    ring.describe(1, RINGS, 4, 0, INDIRECT | WRITE, table)
    ring.offer([(table, 32, INDIRECT | WRITE)], 5)
    (request,) = queue
    assert [len(part) for part in request.readable + request.writable] == [16, 4]


def test_a_packed_ring_is_not_lapped(ram: Ram) -> None:
    """All descriptors are taken and none was given back: what the driver makes available now was the device's."""
    ring, queue, _ = pair(ram, kind=PackedRing)
    for n in range(8):
        ring.offer([(RINGS, 1, 0)], n)
    assert len(list(queue)) == 8
    ring.offer([(RINGS, 1, 0)], 8)
    with pytest.raises(QueueError, match="the 0 that are not in use"):
        queue.pop()
    ring, queue, _ = pair(ram, kind=PackedRing)
    ring.offer([(RINGS, 1, 0)], 0)
    assert queue.pop()
    ring.offer([(RINGS, 1, NEXT)] * 8, 1)
    with pytest.raises(QueueError, match="the 7 that are not in use"):
        queue.pop()


def test_a_request_of_more_than_4_gib_is_refused(ram: Ram) -> None:
    ring, queue, _ = pair(ram)
    table = ring.put(bytes(16 * 1024))
    for n in range(1024):
        ring.describe(n, RAM_BASE, RAM_BYTES, NEXT if n < 1023 else 0, n + 1, table)
    ring.describe(0, RAM_BASE, 1, NEXT, 1)
    ring.describe(1, table, 16 * 1024, INDIRECT)
    ring.offer(0)
    with pytest.raises(QueueError, match="4294967296"):
        queue.pop()
    ring, queue, _ = pair(ram)
    for n in range(1024):
        ring.describe(n, RAM_BASE, RAM_BYTES, NEXT if n < 1023 else 0, n + 1, table)
    ring.describe(1, table, 16 * 1024, INDIRECT)
    ring.offer(1)
    assert len(queue.pop().readable) == 1024


def test_a_head_that_is_in_use_is_refused(ram: Ram) -> None:
    """So no driver has more outstanding than its ring has entries (CVE-2016-5403)."""
    ring, queue, _ = pair(ram)
    ring.describe(2, RINGS, 1, 0)
    ring.offer(2)
    assert queue.pop()
    ring.offer(2)
    with pytest.raises(QueueError, match="offered again"):
        queue.pop()


def test_indirect_needs_the_feature(ram: Ram) -> None:
    for kind in KINDS:
        ring, queue, _ = pair(ram, kind=kind)
        queue.ring.indirect = False
        ring.add(b"x", indirect=True)
        with pytest.raises(QueueError, match="not negotiated"):
            list(queue)


@given(
    table=st.lists(
        st.tuples(
            st.sampled_from([0, RAM_BASE, RINGS, RINGS + 16, RAM_BASE + RAM_BYTES - 8, (1 << 64) - 1]),
            st.sampled_from([0, 1, 16, 32, 128, 0x4000, 0x7FFF_FFFF, 0xFFFF_FFFF]),
            st.integers(0, 7),
            st.integers(0, 9),
        ),
        min_size=8,
        max_size=8,
    ),
    heads=st.lists(st.integers(0, 9), max_size=8),
    kind=st.sampled_from(KINDS),
)
@settings(max_examples=400)
def test_any_table_ends_in_requests_or_an_error(
    ram: Ram, table: list[tuple[int, ...]], heads: list[int], kind: type
) -> None:
    """No descriptors make the device loop, reach outside RAM or raise anything else."""
    ring, queue, _ = pair(ram, kind=kind)
    for index, (address, size, flags, following) in enumerate(table):
        if kind is Ring:
            ring.describe(index, address, size, flags, following)
        else:
            ring.describe(index, address, size, following, flags | (AVAIL, USED, 0, AVAIL | USED)[following % 4])
    if kind is Ring:
        for head in heads:
            ring.offer(head)
    try:
        for request in queue:
            assert all(address >= RAM_BASE and address + n <= RAM_BASE + RAM_BYTES for address, n in request.ranges)
    except QueueError:
        pass


@given(st.lists(st.binary(max_size=9), max_size=6), st.integers(0, 60))
def test_take_cuts_the_front_off(parts: list[bytes], count: int) -> None:
    views = [memoryview(p) for p in parts]
    front = b"".join(map(bytes, take(views, count)))
    assert front == b"".join(parts)[:count]
    assert b"".join(map(bytes, views)) == b"".join(parts)[count:]


@pytest.mark.parametrize(("kind", "size"), [(Ring, 0), (Ring, 3), (Ring, 512), (PackedRing, 0), (PackedRing, 257)])
def test_queue_sizes_are_checked(ram: Ram, kind: type, size: int) -> None:
    with pytest.raises(QueueError, match="entries"):
        kind(ram, size).attach(Queue(ram, 256))


@pytest.mark.parametrize(("descriptors", "driver", "device"), [(8, 0, 0), (0, 1, 0), (0, 0, 2), (1 << 40, 0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_ring_addresses_are_checked(ram: Ram, kind: type, descriptors: int, driver: int, device: int) -> None:
    ring, queue = kind(ram, 8), Queue(ram, 256)
    ring.table, ring.avail, ring.used = ring.table + descriptors, ring.avail + driver, ring.used + device
    with pytest.raises(QueueError):
        ring.attach(queue)
    assert not queue.ready
