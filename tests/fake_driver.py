"""A virtio driver without a guest: builds rings in guest RAM and plays the registers, in this process.

`Rig` stands for the machine: it answers the register requests that a hart would wait for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import pack, unpack
from typing import Any

from mem import regions
from mem.machine import machine
from mem.memmap import RAM_BASE
from mem.window import Register, window_read, window_take_notified, window_take_queues, window_write
from smp import engine
from virtio.device import Device
from virtio.features import EVENT_IDX, INDIRECT_DESC, RING_PACKED, RING_RESET, VERSION_1
from virtio.mmio import Transport, clear_windows
from virtio.queue import Queue, Ram

RAM_BYTES = 4 << 20
RINGS = RAM_BASE + 0x10_0000
DATA = RAM_BASE + 0x20_0000
ACKNOWLEDGE_DRIVER, FEATURES_OK, DRIVER_OK = 3, 8, 4
ALL = VERSION_1 | INDIRECT_DESC | EVENT_IDX | RING_RESET
NEXT, WRITE, INDIRECT = 1, 2, 4  # of a descriptor
AVAIL, USED = 1 << 7, 1 << 15  # of a packed one


@contextmanager
def machine_memory(harts: int = 2) -> Iterator[Ram]:
    """The regions of a small machine, and its RAM."""
    engine.load()
    opened = regions.open_regions(harts, RAM_BYTES)
    machine().harts, machine().ram_bytes = harts, RAM_BYTES
    try:
        clear_windows()
        yield Ram(opened.ram(), fd=opened.ram_fd)
    finally:
        opened.close()


@dataclass
class Buffer:
    """A piece of a chain: bytes for the device, or room (a number of bytes) for it to fill."""

    address: int
    size: int
    writable: bool


class Driver:
    """What the driver's sides of both kinds of ring have in common."""

    kind = 0  # the feature

    def __init__(self, ram: Ram, size: int, base: int = RINGS, event_index: bool = False) -> None:
        self.ram, self.size, self.event_index = ram, size, event_index
        self.table, self.avail, self.used = base, base + 0x8000, base + 0xC000
        ram.view(base, 0x1_0000)[:] = bytes(0x1_0000)
        self.bump = DATA

    def put(self, data: bytes) -> int:
        """Place bytes in RAM; gives their address."""
        address, self.bump = self.bump, self.bump + (len(data) + 15) // 16 * 16
        self.ram.view(address, len(data))[:] = data
        return address

    def buffers(self, *parts: bytes | int) -> list[Buffer]:
        """Bytes to be read, then room to be written."""
        return [
            Buffer(self.put(bytes(p)), p, True) if isinstance(p, int) else Buffer(self.put(p), len(p), False)
            for p in parts
        ]

    def attach(self, queue: Queue, features: int = 0) -> None:
        """Set up a queue with this ring, without a transport."""
        queue.reset()
        queue.size, queue.descriptors, queue.driver, queue.device = self.size, self.table, self.avail, self.used
        queue.accept(features | self.kind | INDIRECT_DESC | (EVENT_IDX if self.event_index else 0))
        queue.enable()


class Ring(Driver):
    """The driver's side of a split virtqueue, written from the specification and not from the device's code."""

    def __init__(self, ram: Ram, size: int, base: int = RINGS, event_index: bool = False) -> None:
        super().__init__(ram, size, base, event_index)
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.added = self.seen = 0

    def describe(self, index: int, address: int, size: int, flags: int, following: int = 0, table: int = 0) -> None:
        """Write one descriptor."""
        self.ram.view((table or self.table) + 16 * index, 16)[:] = pack("<QIHH", address, size, flags, following)

    def add(self, *parts: bytes | int, indirect: bool = False) -> list[Buffer]:
        """Offer a chain; gives where its pieces are."""
        buffers = self.buffers(*parts)
        if indirect:
            table = self.put(bytes(16 * len(buffers)))
            self._write(buffers, list(range(len(buffers))), table)
            head = self.free.pop(0)
            self.chains[head] = [head]
            self.describe(head, table, 16 * len(buffers), INDIRECT)
        else:
            indices = [self.free.pop(0) for _ in buffers]
            self._write(buffers, indices, self.table)
            head = indices[0]
            self.chains[head] = indices
        self.offer(head)
        return buffers

    def room(self) -> int:
        """Descriptors that are free."""
        return len(self.free)

    def _write(self, buffers: list[Buffer], indices: list[int], table: int) -> None:
        for n, (index, buffer) in enumerate(zip(indices, buffers, strict=True)):
            last = n + 1 == len(indices)
            flags = (WRITE if buffer.writable else 0) | (0 if last else NEXT)
            self.describe(index, buffer.address, buffer.size, flags, 0 if last else indices[n + 1], table)

    def offer(self, head: int) -> None:
        """Publish a head in the avail ring."""
        self.ram.view(self.avail + 4 + 2 * (self.added % self.size), 2)[:] = pack("<H", head)
        self.added = (self.added + 1) & 0xFFFF
        self.ram.view(self.avail + 2, 2)[:] = pack("<H", self.added)

    def has_used(self) -> bool:
        """Whether `collect` would find something."""
        return unpack("<H", self.ram.view(self.used + 2, 2))[0] != self.seen

    def collect(self) -> list[tuple[int, int]]:
        """The used elements since last time: head and length."""
        (index,) = unpack("<H", self.ram.view(self.used + 2, 2))
        found = []
        while self.seen != index:
            head, size = unpack("<II", self.ram.view(self.used + 4 + 8 * (self.seen % self.size), 8))
            self.seen = (self.seen + 1) & 0xFFFF
            found.append((head, size))
            self.free += self.chains.pop(head, [])
        return found

    def silence(self) -> None:
        """Want no interrupts."""
        self.ram.view(self.avail, 2)[:] = pack("<H", 1)

    def want_interrupt(self) -> None:
        """Ask for an interrupt at the next used element."""
        self.set_used_event(self.seen)

    def set_used_event(self, index: int) -> None:
        """Ask for an interrupt when this element is used."""
        self.ram.view(self.avail + 4 + 2 * self.size, 2)[:] = pack("<H", index)

    def avail_event(self) -> int:
        """The index of the chain that the device wants to be notified of."""
        return int(unpack("<H", self.ram.view(self.used + 4 + 8 * self.size, 2))[0])

    def wants_notification(self) -> bool:
        """Whether the device wants to know of the chain that was added last."""
        if self.event_index:
            return self.avail_event() == (self.added - 1) & 0xFFFF
        return not self.ram.view(self.used, 1)[0] & 1


class PackedRing(Driver):
    """The driver's side of a packed virtqueue, written from the specification's example (virtio 1.3, 2.8.21)."""

    kind = RING_PACKED

    def __init__(self, ram: Ram, size: int, base: int = RINGS, event_index: bool = False) -> None:
        super().__init__(ram, size, base, event_index)
        self.next = self.seen = 0
        self.wrap = self.seen_wrap = True
        self.ids = list(range(size))
        self.taken: dict[int, int] = {}  # descriptors of a buffer id

    def room(self) -> int:
        """Descriptors that are free."""
        return self.size - sum(self.taken.values())

    def flags(self) -> int:
        """What makes a descriptor available."""
        return AVAIL if self.wrap else USED

    def describe(self, index: int, address: int, size: int, ident: int, flags: int, table: int = 0) -> None:
        """Write one descriptor."""
        self.ram.view((table or self.table) + 16 * index, 16)[:] = pack("<QIHH", address, size, ident, flags)

    def offer(self, pieces: list[tuple[int, int, int]], ident: int) -> None:
        """Put descriptors (address, size, flags) into the ring; the first one's flags come last."""
        first, later = self.next, []
        for address, size, flags in pieces:
            flags |= self.flags()
            later.append((self.next, flags))
            self.describe(self.next, address, size, ident, 0 if self.next == first else flags)
            if self.next == first:
                self.ram.view(self.table + 16 * first + 14, 2)[:] = pack("<H", flags ^ (AVAIL | USED))
            self.next += 1
            if self.next == self.size:
                self.next, self.wrap = 0, not self.wrap
        index, flags = later[0]
        self.ram.view(self.table + 16 * index + 14, 2)[:] = pack("<H", flags)

    def add(self, *parts: bytes | int, indirect: bool = False) -> list[Buffer]:
        """Offer a buffer; gives where its pieces are."""
        buffers, ident = self.buffers(*parts), self.ids.pop()
        if indirect:
            table = self.put(bytes(16 * len(buffers)))
            for n, buffer in enumerate(buffers):
                self.describe(n, buffer.address, buffer.size, 0, WRITE if buffer.writable else 0, table)
            pieces = [(table, 16 * len(buffers), INDIRECT)]
        else:
            flags = [(WRITE if b.writable else 0) | (NEXT if b is not buffers[-1] else 0) for b in buffers]
            pieces = [(b.address, b.size, f) for b, f in zip(buffers, flags, strict=True)]
        self.taken[ident] = len(pieces)
        self.offer(pieces, ident)
        return buffers

    def has_used(self) -> bool:
        """Whether `collect` would find something."""
        (flags,) = unpack("<H", self.ram.view(self.table + 16 * self.seen + 14, 2))
        return bool(flags & AVAIL) == bool(flags & USED) == self.seen_wrap

    def collect(self) -> list[tuple[int, int]]:
        """The used descriptors since last time: id and length."""
        found = []
        while self.has_used():
            size, ident = unpack("<IH", self.ram.view(self.table + 16 * self.seen + 8, 6))
            found.append((ident, size))
            self.seen += self.taken.pop(ident, 1)
            self.ids.append(ident)
            if self.seen >= self.size:
                self.seen, self.seen_wrap = self.seen - self.size, not self.seen_wrap
        return found

    def _events(self, place: int, flags: int) -> None:
        self.ram.view(self.avail, 4)[:] = pack("<HH", place, flags)

    def silence(self) -> None:
        """Want no interrupts."""
        self._events(0, 1)

    def want_interrupt(self) -> None:
        """Ask for an interrupt at the next used descriptor."""
        self.set_used_event(self.seen, self.seen_wrap)

    def set_used_event(self, place: int, wrap: bool) -> None:
        """Ask for an interrupt when this descriptor is used."""
        self._events(place | wrap << 15, 2)

    def wants_notification(self) -> bool:
        """Whether the device wants to know of the buffer of one descriptor that was added last."""
        place, flags = unpack("<HH", self.ram.view(self.used, 4))
        if flags == 2:
            last, wrap = (self.next - 1, self.wrap) if self.next else (self.size - 1, not self.wrap)
            return bool(place == last | wrap << 15)
        return bool(flags == 0)


def ring_of(features: int) -> type[Ring | PackedRing]:
    """The kind of ring that was negotiated."""
    return PackedRing if features & RING_PACKED else Ring


class Rig:
    """A device behind a transport, and the driver that sets it up by registers."""

    stride = 0x8_0000  # bytes of RAM for the buffers of each queue

    def __init__(self, ram: Ram, device: Device, slot: int = 3) -> None:
        self.ram, self.device, self.slot = ram, device, slot
        self.transport: Any = Transport(slot, device, ram)
        self.rings: list[Any] = []

    def read(self, register: int, size: int = 4) -> int:
        """As a hart reads it."""
        return window_read(self.slot, register, size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        """As the I/O process gets it."""
        self.transport.write(register, size, value)

    def features(self) -> int:
        """What the device offers."""
        words = []
        for word in range(2):
            self.write(Register.DEVICE_FEATURES_SEL, word)
            words.append(self.read(Register.DEVICE_FEATURES))
        return words[0] | words[1] << 32

    def negotiate(self, features: int) -> int:
        """Up to FEATURES_OK; gives the status read back."""
        self.write(Register.STATUS, 0)
        self.write(Register.STATUS, ACKNOWLEDGE_DRIVER)
        for word in range(4):
            self.write(Register.DRIVER_FEATURES_SEL, word)
            self.write(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)
        self.write(Register.STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK)
        return self.read(Register.STATUS)

    def set_up(self, index: int, ring: Driver) -> None:
        """Give the device a ring."""
        self.write(Register.QUEUE_SEL, index)
        self.write(Register.QUEUE_NUM, ring.size)
        for register, address in (
            (Register.QUEUE_DESC, ring.table),
            (Register.QUEUE_DRIVER, ring.avail),
            (Register.QUEUE_DEVICE, ring.used),
        ):
            self.write(register, address & 0xFFFF_FFFF)
            self.write(register + 4, address >> 32)
        self.write(Register.QUEUE_READY, 1)

    def start(self, features: int | None = None, size: int = 64) -> "Rig":
        """Everything up to DRIVER_OK."""
        accepted = self.features() if features is None else features
        self.negotiate(accepted)
        self.rings = []
        for index in range(len(self.device.queue_sizes)):
            ring = ring_of(accepted)(self.ram, size, RINGS + index * 0x1_0000, bool(accepted & EVENT_IDX))
            ring.bump = DATA + index * self.stride
            self.set_up(index, ring)
            self.rings.append(ring)
        self.write(Register.STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK)
        return self

    def notify(self, index: int = 0) -> None:
        """QueueNotify as a hart does it, and the I/O process's answer."""
        window_write(0, self.slot, Register.QUEUE_NOTIFY, 4, index)
        assert window_take_notified(0) >> self.slot & 1
        self.transport.notified(window_take_queues(self.slot))

    def interrupts(self) -> int:
        """InterruptStatus, acknowledged."""
        status = self.read(Register.INTERRUPT_STATUS)
        window_write(0, self.slot, Register.INTERRUPT_ACK, 4, status)
        return status

    def ask(self, *parts: bytes | int, queue: int = 0, indirect: bool = False) -> tuple[int, list[bytes]]:
        """One request from offer to answer: the used length and what the writable pieces hold."""
        ring = self.rings[queue]
        ring.bump = DATA + queue * self.stride
        buffers = ring.add(*parts, indirect=indirect)
        self.notify(queue)
        ((_, used),) = ring.collect()
        return used, [bytes(self.ram.view(b.address, b.size)) for b in buffers if b.writable]

    def needs_reset(self) -> bool:
        """Whether the device has given up on the driver."""
        return bool(self.read(Register.STATUS) & 64)
