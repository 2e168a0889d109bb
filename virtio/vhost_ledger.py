"""Which requests of a split ring are a back-end's, for one that keeps no record of its own.

A back-end that died took some requests and gave some back, in any order.  The front end follows both indices and so
knows what was left; it lays those heads out again in the entries from used.idx to avail.idx, of which there are as
many.  The driver has written these entries and never reads them.
"""

from collections import Counter

from mem import regions
from virtio.queue import Queue


class Ledger:
    """The outstanding heads of one queue, from its beginning."""

    def __init__(self, queue: Queue) -> None:
        size, ram = queue.size, queue.ram
        self.size, self.queue = size, queue
        self.avail = ram.view(queue.driver, 4 + 2 * size).cast("H")
        self.used = ram.view(queue.device, 4 + 8 * size)
        self.used_index = self.used[2:4].cast("H")
        self.elements = self.used[4:].cast("I")
        self.taken = self.given = 0
        self.heads: Counter[int] = Counter()
        self.exact = True

    def areas(self) -> tuple[int, int, int]:
        """User addresses of descriptors, used and avail ring: where they are mapped here."""
        return tuple(regions.HOST + area for area in (self.queue.descriptors, self.queue.device, self.queue.driver))  # type: ignore[return-value]

    def look(self) -> bool:
        """Follow the indices; to be called at every notification and every interrupt.  The back-end may be notified.

        used.idx is read before avail.idx: what is given back was offered before.
        """
        used, avail = self.used_index[0], self.avail[1]
        size, heads = self.size, self.heads
        ahead, done = (avail - self.taken) & 0xFFFF, (used - self.given) & 0xFFFF
        if ahead > size or done > size:  # entries were overwritten that nobody has looked at
            self.exact = False
        if self.exact:
            for place in range(self.taken, self.taken + ahead):
                heads[self.avail[2 + (place & 0xFFFF) % size]] += 1
            for place in range(self.given, self.given + done):
                heads[self.elements[2 * ((place & 0xFFFF) % size)]] -= 1
            if len(heads) > 2 * size:
                self.heads = +heads
        self.taken, self.given = avail, used
        return True

    def again(self) -> int:
        """Offer what is outstanding to another back-end; gives where that begins in the avail ring."""
        self.look()
        left = [head for head, count in self.heads.items() for _ in range(count)]
        if self.exact and len(left) == (self.taken - self.given) & 0xFFFF:
            for place, head in enumerate(left, self.given):
                self.avail[2 + (place & 0xFFFF) % self.size] = head
        return self.given
