"""Virtqueues in guest RAM: one interface for back-ends, whatever the ring (virtio/split.py, virtio/packed.py).

A back-end writes `for request in queue:`.  The order of what is given back, when the driver is to be told, and what
becomes of requests at a reset are decided here; what a driver wrote is read and checked in the rings.
"""

import time
from collections.abc import Callable, Iterator
from itertools import takewhile

from virtio.features import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED
from virtio.packed import PackedRing
from virtio.ram import QueueError, Ram
from virtio.request import Request, size_of, take
from virtio.ring import MAX_SIZE, Ring
from virtio.split import SplitRing

__all__ = ["Queue", "QueueError", "Ram", "Request", "size_of", "take"]


def _nothing() -> None:
    pass


BATCH_NS = 100_000  # the driver is told of what is done at most this late while the device goes on


class Queue:
    """One virtqueue.  Addresses are guest physical; `interrupt` is called when the driver wants to know.

    `unsignalled`, if it is a list, gets the queue when it has given something back: whoever gave the list has the
    driver told by `signal` when the device is done for now, once for all that was given back until then.
    """

    ring: Ring = None  # type: ignore[assignment]  # as soon as the driver has set it up
    polled = False  # somebody looks at the ring all the time: the driver is spared its notifications
    pending = False  # something was given back that the driver has not been told of
    unsignalled: list["Queue"] | None = None

    def __init__(self, ram: Ram, maximum: int = 256, interrupt: Callable[[], None] = _nothing) -> None:
        self.ram, self.maximum, self.interrupt = ram, min(maximum, MAX_SIZE), interrupt
        self.outstanding: dict[int, Request] = {}  # by head, in the order in which they came
        self.reset()

    def reset(self) -> None:
        """As it is before the driver sets it up.  What a back-end still holds is the driver's again."""
        self.size = self.descriptors = self.driver = self.device = 0
        self.ready = self.polled = self.pending = False
        self.accept(0)
        if self.ring:
            self.ring.forget()
        for request in self.outstanding.values():
            request.forget()
        self.outstanding = {}

    def accept(self, features: int) -> None:
        """What the driver has negotiated."""
        self.packed, self.in_order = bool(features & RING_PACKED), bool(features & IN_ORDER)
        self.event_index, self.indirect = bool(features & EVENT_IDX), bool(features & INDIRECT_DESC)

    def enable(self) -> None:
        """Check what the driver has set up and start from the rings' beginning."""
        if not 0 < self.size <= self.maximum:
            raise QueueError(f"a queue of {self.size} entries: must be 1 to {self.maximum}")
        kind = PackedRing if self.packed else SplitRing
        areas = self.descriptors, self.driver, self.device
        self.ring = kind(self.ram, self.size, areas, self.event_index, self.indirect)
        self.ready = True

    def __iter__(self) -> Iterator[Request]:
        """All requests there are; notifications are on again when it ends."""
        while self.ready:
            request = self.pop()
            if request is not None:
                yield request
            elif self.arm():
                return

    def pop(self) -> Request | None:
        """The next request, or None when the ring is empty."""
        if not self.ready:
            return None
        request = Request(self)
        if not self.ring.pop(request):
            return None
        if request.head in self.outstanding:
            raise QueueError(f"descriptor {request.head} is offered again before it was given back")
        self.outstanding[request.head] = request
        return request

    def arm(self) -> bool:
        """Ask to be notified of the next request; False when one is there already."""
        return not self.ready or self.ring.arm(not self.polled)

    def begin_polling(self) -> None:
        """The caller looks at the ring from now on (`has_work`, or what `watch` names)."""
        if self.ready and not self.polled:
            self.polled = True
            self.ring.disarm()

    def end_polling(self) -> bool:
        """Have the driver notify again; False when there is a request already."""
        self.polled = False
        return not self.awaits() or self.arm()

    def awaits(self) -> bool:
        """Whether the device has taken all there was, and wants what comes next."""
        return self.ready and self.ring.awaits()

    def has_work(self) -> bool:
        """Whether a request has come that the device waits for."""
        return self.ready and self.ring.has_work()

    def disarm(self) -> None:
        """Spare the driver its notifications until `arm`; with event indices it already sends none."""
        if self.ready:
            self.ring.disarm()

    def give_back(self, request: Request, written: int) -> None:
        """Give one chain back: `finish` without what it rarely needs."""
        if self.in_order or self.ram.reservations.watched:
            self.finish([(request, written)])
        elif self.ready and self.outstanding.get(request.head) is request:
            del self.outstanding[request.head]
            request.written = written
            self.ring.push_one(request)
            self.given_back()

    def finish(self, batch: list[tuple[Request, int]]) -> None:
        """Give chains back, with how much was written into each: the driver sees all of them at once, or none.

        A frame in several buffers needs that, and it is at most one interrupt.  With IN_ORDER what is done early waits
        for what came before it.  Requests of before a reset are nobody's: the rings are the driver's again.
        """
        watched = self.ram.reservations.watched  # which is rare, and asking for each would cost something
        valid = [(request, written) for request, written in batch if self._is_outstanding(request)]
        for request, written in valid:
            request.written = written
            if watched:
                for address, size in request.ranges:
                    self.ram.wrote(address, size)
        due = self._due() if self.in_order else [request for request, _ in valid]
        if due and self.ready:
            for request in due:
                del self.outstanding[request.head]
            self.ring.push(due)
            self.given_back()

    def given_back(self) -> None:
        """Something was pushed: the driver is told now or soon."""
        if self.unsignalled is None:
            self.signal()
        elif not self.pending:
            self.pending, self.since = True, time.monotonic_ns()
            self.unsignalled.append(self)
        elif time.monotonic_ns() - self.since > BATCH_NS or 2 * self.ring.unsignalled() > self.ring.size:
            self.since = time.monotonic_ns()
            self._interrupt()

    def signal(self) -> None:
        """Tell the driver of what was given back, if it wants to know."""
        self.pending = False
        if self.ready:
            self._interrupt()

    def _interrupt(self) -> None:
        if self.ring.wants_interrupt():
            self.interrupt()

    def _is_outstanding(self, request: Request) -> bool:
        return self.outstanding.get(request.head) is request and request.written is None

    def _due(self) -> list[Request]:
        """What is done of the oldest requests, up to the first that is not."""
        return list(takewhile(lambda request: request.written is not None, self.outstanding.values()))
