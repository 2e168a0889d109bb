"""virtio-balloon (virtio 1.3, 5.5): guest memory that goes back to the host while the guest does without it."""

import ctypes
import sys
import time
from collections.abc import Iterable, Iterator
from struct import iter_unpack, pack, unpack
from typing import Any

from virtio.device import Device
from virtio.queue import Queue, QueueError, Request
from virtio.timer import Timer

F_STATS_VQ, F_DEFLATE_ON_OOM, F_PAGE_POISON, F_PAGE_REPORTING = 1 << 1, 1 << 2, 1 << 4, 1 << 5
PAGE = 4096
MOST_PAGES = 4096  # of one request; Linux has 256
STATISTIC = 10  # bytes: tag and value
MOST_STATISTICS = 64
ACTUAL = 4  # where the driver says in the configuration how many pages the device has
POISON = 12  # and with what it fills pages that are free
MADV_REMOVE = 9
_libc = ctypes.CDLL(None, use_errno=True)


class Balloon(Device):
    """Asks the guest for `size` bytes; what it gives is taken out of the memfd that is its RAM, for all processes.

    A page that the guest takes again is there when it is touched, and zero; so deflating is nothing to do.
    """

    kind = 5
    name = "balloon"
    queue_sizes = (128, 128, 128, 128)
    orders = ("demand", "size", "poll_statistics", "last_statistics")
    host: Timer

    def __init__(self, size: int = 0, deflate_on_oom: bool = False, reporting: bool = False) -> None:
        self.wanted, self.actual, self.poison = size // PAGE, 0, 0
        self.host = Timer()
        self.interval = 0  # seconds between two looks at the statistics, or 0
        self.features = F_STATS_VQ
        self.features |= F_DEFLATE_ON_OOM if deflate_on_oom else 0
        self.features |= F_PAGE_REPORTING | F_PAGE_POISON if reporting else 0
        self.statistics: dict[int, int] = {}  # by tag, as of the last answer
        self.answered = 0  # when that came: seconds since 1970
        self.asking: Request | None = None  # the driver's buffer that asks for statistics when it is given back
        self.work = [self._inflate, self._deflate]

    def demand(self, size: int) -> None:
        """Ask the guest for as many bytes in all, in the process that serves the device."""
        self.wanted = size // PAGE
        self.config_changed()

    def size(self, _: None = None) -> int:
        """How many bytes the guest does without, as it says."""
        return self.actual * PAGE

    def poll_statistics(self, seconds: int) -> None:
        """Ask the driver for its statistics at once and then again and again, or with 0 not any more."""
        self.interval = seconds
        if seconds:
            self.host.wake_in(0)
        else:
            self.host.cancel()

    def last_statistics(self, _: None = None) -> dict[str, Any]:
        """What the driver has said last, by tag, and when."""
        return {"tags": self.statistics, "time": self.answered}

    def poll(self) -> bool:
        if not self.host.due:
            return False
        self.host.due = False
        self.host.wake_in(self.interval)
        return self.ask_statistics()

    def ask_statistics(self) -> bool:
        """Have the driver fill in `statistics` again; False when it has not answered the last time, or never will."""
        if self.asking is None:
            return False
        asking, self.asking = self.asking, None
        asking.done(0)
        return True

    def config(self) -> bytes:
        """struct virtio_balloon_config: num_pages, actual, free_page_hint_cmd_id, poison_val."""
        return pack("<IIII", self.wanted, self.actual, 0, self.poison)

    def configure(self, offset: int, data: bytes) -> None:
        if offset == ACTUAL and len(data) == 4:
            (actual,) = unpack("<I", data)
            if actual != self.actual:
                self.actual = actual
                self.tell("balloon", self.size())
        elif offset == POISON and len(data) == 4:
            (self.poison,) = unpack("<I", data)

    def start(self, queues: list[Queue], features: int) -> None:
        """Queues of features that were not negotiated are left out of the numbering, by Linux and QEMU."""
        super().start(queues, features)
        ram = queues[0].ram
        self.memory = ctypes.addressof(ctypes.c_char.from_buffer(ram.memory))
        self.work = [self._inflate, self._deflate]
        self.work += [self._take_statistics] if features & F_STATS_VQ else []
        self.work += [self._take_reported] if features & F_PAGE_REPORTING else []

    def handle(self, index: int) -> None:
        if index < len(self.work):
            for request in self.queues[index]:
                self.work[index](request)

    def queue_reset(self, index: int) -> None:
        if self.asking and self.asking.forgotten:
            self.asking = None

    def stop(self) -> None:
        super().stop()
        self.asking, self.actual, self.poison = None, 0, 0
        self.statistics, self.answered = {}, 0

    def _inflate(self, request: Request) -> None:
        for first, count in runs(_page_numbers(request)):
            self._give_to_host(first * PAGE, count * PAGE)
        request.done(0)

    def _deflate(self, request: Request) -> None:
        request.done(0)

    def _take_statistics(self, request: Request) -> None:
        data = request.read(MOST_STATISTICS * STATISTIC)
        self.answered = int(time.time())
        self.statistics = dict(iter_unpack("<HQ", data[: len(data) // STATISTIC * STATISTIC]))
        if self.asking:
            self.asking.done(0)  # a second one at once; the driver has one, as a rule
        self.asking = request

    def _take_reported(self, request: Request) -> None:
        """Pages that are free just now, of which the driver has them stay so until this is done.

        They must not change (virtio 1.3, 5.5.6.7.1): with zeroes on the host's side, those that the driver has filled
        with something else are left alone.
        """
        is_poisoned = self.negotiated & F_PAGE_POISON and self.poison
        for address, size in () if is_poisoned else request.ranges:
            start, end = -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE
            if start < end:
                self._give_to_host(start, end - start)
        request.done(0)

    def _give_to_host(self, address: int, size: int) -> None:
        """Pages that are not RAM are passed over, as in QEMU."""
        ram = self.queues[0].ram
        try:
            offset = ram.offset(address, size)
        except QueueError:
            return
        if _libc.madvise(ctypes.c_void_p(self.memory + offset), ctypes.c_size_t(size), MADV_REMOVE):
            error = OSError(ctypes.get_errno(), "")
            print(f"hartbeat: balloon: the host keeps the memory: errno {error.errno}", file=sys.stderr)
        ram.wrote(address, size)


def _page_numbers(request: Request) -> Iterator[int]:
    data = request.read(4 * MOST_PAGES)
    if request.readable:
        raise QueueError(f"more than {MOST_PAGES} pages in a request")
    yield from (number for (number,) in iter_unpack("<I", data[: len(data) // 4 * 4]))


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted, as first ones and how many follow each other."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and sum(found[-1]) == number:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((number, 1))
    return found
