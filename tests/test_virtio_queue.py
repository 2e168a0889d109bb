"""Split virtqueues: wrap, event indices, indirect tables, and what a hostile driver may write into them."""

from collections.abc import Iterator
from struct import pack

import pytest
from fake_driver import RAM_BYTES, RINGS, Ring, machine_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem.memmap import RAM_BASE
from virtio.queue import INDIRECT, NEXT, WRITE, Queue, QueueError, Ram, take


@pytest.fixture(scope="module")
def ram() -> Iterator[Ram]:
    with machine_memory() as found:
        yield found


def pair(ram: Ram, size: int = 8, event_index: bool = False) -> tuple[Ring, Queue, list[int]]:
    interrupts: list[int] = []
    queue = Queue(ram, 256, lambda: interrupts.append(queue.next_used))
    ring = Ring(ram, size, event_index=event_index)
    ring.attach(queue)
    return ring, queue, interrupts


def test_a_chain_is_read_and_written(ram: Ram) -> None:
    ring, queue, interrupts = pair(ram)
    buffers = ring.add(b"abc", b"defg", 4, 6)
    (request,) = queue
    assert request.read(5) == b"abcde"
    assert request.read(99) == b"fg"
    assert request.write(b"123456") == 6
    assert request.write(b"xyzzy") == 4
    request.done(10)
    assert ring.collect() == [(0, 10)]
    assert bytes(ram.view(buffers[2].address, 4)) + bytes(ram.view(buffers[3].address, 6)) == b"123456xyzz"
    assert interrupts == [1]


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_index", [False, True])
def test_indices_wrap_at_65536(ram: Ram, indirect: bool, event_index: bool) -> None:
    ring, queue, _ = pair(ram, 4, event_index)
    ring.added = ring.seen = queue.next_avail = queue.next_used = 0xFFFE
    ram.view(ring.avail + 2, 2)[:] = ram.view(ring.used + 2, 2)[:] = pack("<H", 0xFFFE)
    for n in range(10):
        ring.bump = RINGS + 0x2_0000
        ring.add(bytes([n]), 1, indirect=indirect)
        (request,) = queue
        assert request.read(9) == bytes([n])
        request.done(n)
        assert [size for _, size in ring.collect()] == [n]
    assert queue.next_used == 8
    if event_index:
        assert ring.avail_event() == 8


def test_without_event_index_flags_suppress_interrupts(ram: Ram) -> None:
    ring, queue, interrupts = pair(ram)
    ram.view(ring.avail, 2)[:] = pack("<H", 1)
    ring.add(b"x")
    for request in queue:
        request.done(0)
    assert interrupts == []
    queue.disarm()
    assert ram.view(ring.used, 2)[0] == 1
    assert queue.arm()
    assert ram.view(ring.used, 2)[0] == 0


def test_arming_sees_a_request_that_came_meanwhile(ram: Ram) -> None:
    ring, queue, _ = pair(ram, event_index=True)
    assert queue.arm()
    ring.add(b"x")
    assert not queue.arm()


@given(start=st.integers(0, 0xFFFF), used=st.integers(1, 8), event=st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_used_event_interrupts_exactly_when_it_is_passed(ram: Ram, start: int, used: int, event: int) -> None:
    """vring_need_event of the specification, against counting."""
    ring, queue, interrupts = pair(ram, event_index=True)
    queue.next_used = start
    ring.set_used_event(event)
    for _ in range(used):
        queue.push([(0, 0)])
    passed = [(start + n) & 0xFFFF for n in range(used)]
    assert interrupts == [(n + 1) & 0xFFFF for n in passed if n == event]


def test_several_chains_are_given_back_at_once(ram: Ram) -> None:
    """The driver must never find a part of them: after the first it looks for the others."""
    ring, queue, interrupts = pair(ram)
    for _ in range(3):
        ring.add(4)
    requests = list(queue)
    published: list[int] = []
    queue.ordered = lambda: published.append(len(ring.collect()))  # type: ignore[method-assign]
    queue.finish([(request, n) for n, request in enumerate(requests)])
    assert published == [0]
    assert ring.collect() == [(0, 0), (1, 1), (2, 2)]
    assert interrupts == [3]
    queue.finish([])
    assert interrupts == [3]


def test_a_request_of_before_a_reset_is_not_given_back(ram: Ram) -> None:
    """The rings may be others by then, and its head another's (CVE-2021-3748)."""
    ring, queue, interrupts = pair(ram)
    ring.add(4)
    (old,) = queue
    ring.attach(queue)
    ring.added = ring.seen = 0
    ram.view(ring.avail, 0x8000)[:] = bytes(0x8000)
    ring.add(4)
    (new,) = queue
    old.done(4)
    assert ring.collect() == [] and interrupts == []
    new.done(2)
    assert ring.collect() == [(1, 2)]


def refuse(ram: Ram, build: "object", size: int = 8) -> None:
    ring, queue, _ = pair(ram, size)
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


def test_indirect_needs_the_feature(ram: Ram) -> None:
    ring, queue, _ = pair(ram)
    queue.indirect = False
    ring.add(b"x", indirect=True)
    with pytest.raises(QueueError):
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
)
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_ends_in_requests_or_an_error(ram: Ram, table: list[tuple[int, ...]], heads: list[int]) -> None:
    """No descriptors make the device loop, reach outside RAM or raise anything else."""
    ring, queue, _ = pair(ram)
    for index, (address, size, flags, following) in enumerate(table):
        ring.describe(index, address, size, flags, following)
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


@pytest.mark.parametrize("size", [0, 3, 512])
def test_queue_sizes_are_checked(ram: Ram, size: int) -> None:
    queue = Queue(ram, 256)
    queue.size, queue.descriptors, queue.driver, queue.device = size, RINGS, RINGS + 0x8000, RINGS + 0xC000
    with pytest.raises(QueueError, match="power of two"):
        queue.enable()


@pytest.mark.parametrize(("descriptors", "driver", "device"), [(8, 0, 0), (0, 1, 0), (0, 0, 2), (1 << 40, 0, 0)])
def test_ring_addresses_are_checked(ram: Ram, descriptors: int, driver: int, device: int) -> None:
    queue = Queue(ram, 256)
    queue.size = 8
    queue.descriptors, queue.driver, queue.device = RINGS + descriptors, RINGS + driver, RINGS + device
    with pytest.raises(QueueError):
        queue.enable()
