"""Limits on a disk's requests and bytes a second, in QEMU's way: buckets leak, and a request goes while none is full.

What is let through may be larger than the room that is left; what follows then waits for longer.
"""

import time

from virtio.timer import Timer

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


class Throttle(Timer):
    """The limits of one disk: `iops` or `bps`, then -total, -read or -write, and -max for how much may go at once."""

    def __init__(self, limits: dict[str, int]) -> None:
        super().__init__()
        self.buckets = {
            name: Bucket(rate, limits.get(name + "-max", 0))
            for name, rate in limits.items()
            if rate and not name.endswith("-max")
        }

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
