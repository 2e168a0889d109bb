"""Limits on a disk's requests and bytes a second, in QEMU's way: buckets leak, and a request goes while none is full.

What is let through may be larger than the room that is left; what follows then waits for longer.
"""

import ctypes
import os
import select
import time

from virtio.host import Host
from virtio.netstream import CLOCK_MONOTONIC, TFD_FLAGS, set_timer

UNITS = ("iops", "bps")
BURST = 0.1  # seconds' worth of requests that go at once, where no -max says more


class Bucket:
    """Leaks `rate` a second; full when it holds more than `room`."""

    def __init__(self, rate: int, most: int = 0) -> None:
        self.rate, self.room = rate, float(most or rate * BURST)
        self.level = 0.0
        self.seen = time.monotonic()

    def wait(self, now: float) -> float:
        """Seconds until it is not full any more."""
        self.level = max(0.0, self.level - (now - self.seen) * self.rate)
        self.seen = now
        return max(0.0, self.level - self.room) / self.rate


class Throttle(Host):
    """The limits of one disk: `iops` or `bps`, then -total, -read or -write, and -max for how much may go at once."""

    def __init__(self, limits: dict[str, int]) -> None:
        self.buckets = {
            name: Bucket(rate, limits.get(name + "-max", 0))
            for name, rate in limits.items()
            if rate and not name.endswith("-max")
        }
        self.timer = -1
        self.due = False  # the time is over that somebody waited for

    def wait(self, is_write: bool, size: int) -> float:
        """0 if a request may go now, which then counts, or the seconds that it has to wait."""
        now = time.monotonic()
        concerned = [
            (self.buckets[name], 1 if unit == "iops" else size)
            for unit in UNITS
            for name in (f"{unit}-total", f"{unit}-{'write' if is_write else 'read'}")
            if name in self.buckets
        ]
        longest = max((bucket.wait(now) for bucket, _ in concerned), default=0.0)
        if longest == 0.0:
            for bucket, units in concerned:
                bucket.level += units
        return longest

    def wake_in(self, seconds: float) -> None:
        if self.timer < 0:
            self.timer = ctypes.CDLL(None).timerfd_create(CLOCK_MONOTONIC, TFD_FLAGS)
        set_timer(self.timer, seconds + 1e-6)  # a timer of 0 is off

    def interest(self) -> dict[int, int]:
        return {self.timer: select.EPOLLIN} if self.timer >= 0 else {}

    def ready(self, fd: int, events: int) -> None:
        try:
            os.read(fd, 8)
        except BlockingIOError:
            return
        self.due = True

    def stop(self) -> None:
        if self.timer >= 0:
            os.close(self.timer)
            self.timer = -1
