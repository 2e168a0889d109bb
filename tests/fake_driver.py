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
from virtio.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from virtio.mmio import Transport, clear_windows
from virtio.queue import INDIRECT, NEXT, WRITE, Queue, Ram

RAM_BYTES = 4 << 20
RINGS = RAM_BASE + 0x10_0000
DATA = RAM_BASE + 0x20_0000
ACKNOWLEDGE_DRIVER, FEATURES_OK, DRIVER_OK = 3, 8, 4
ALL = VERSION_1 | INDIRECT_DESC | EVENT_IDX


@contextmanager
def machine_memory(harts: int = 2) -> Iterator[Ram]:
    """The regions of a small machine, and its RAM."""
    engine.load()
    opened = regions.open_regions(harts, RAM_BYTES)
    machine().harts, machine().ram_bytes = harts, RAM_BYTES
    try:
        clear_windows()
        yield Ram(opened.ram())
    finally:
        opened.close()


@dataclass
class Buffer:
    """A piece of a chain: bytes for the device, or room (a number of bytes) for it to fill."""

    address: int
    size: int
    writable: bool


class Ring:
    """The driver's side of a split virtqueue, written from the specification and not from the device's code."""

    def __init__(self, ram: Ram, size: int, base: int = RINGS, event_index: bool = False) -> None:
        self.ram, self.size, self.event_index = ram, size, event_index
        self.table, self.avail, self.used = base, base + 0x8000, base + 0xC000
        ram.view(base, 0x1_0000)[:] = bytes(0x1_0000)
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.added = self.seen = 0
        self.bump = DATA

    def put(self, data: bytes) -> int:
        """Place bytes in RAM; gives their address."""
        address, self.bump = self.bump, self.bump + (len(data) + 15) // 16 * 16
        self.ram.view(address, len(data))[:] = data
        return address

    def describe(self, index: int, address: int, size: int, flags: int, following: int = 0, table: int = 0) -> None:
        """Write one descriptor."""
        self.ram.view((table or self.table) + 16 * index, 16)[:] = pack("<QIHH", address, size, flags, following)

    def buffers(self, *parts: bytes | int) -> list[Buffer]:
        """Bytes to be read, then room to be written."""
        return [
            Buffer(self.put(bytes(p)), p, True) if isinstance(p, int) else Buffer(self.put(p), len(p), False)
            for p in parts
        ]

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

    def set_used_event(self, index: int) -> None:
        """Ask for an interrupt when this element is used."""
        self.ram.view(self.avail + 4 + 2 * self.size, 2)[:] = pack("<H", index)

    def avail_event(self) -> int:
        """The index of the chain that the device wants to be notified of."""
        return int(unpack("<H", self.ram.view(self.used + 4 + 8 * self.size, 2))[0])

    def attach(self, queue: Queue) -> None:
        """Set up a queue with this ring, without a transport."""
        queue.reset()
        queue.size, queue.descriptors, queue.driver, queue.device = self.size, self.table, self.avail, self.used
        queue.event_index, queue.indirect = self.event_index, True
        queue.enable()


class Rig:
    """A device behind a transport, and the driver that sets it up by registers."""

    def __init__(self, ram: Ram, device: Device, slot: int = 3) -> None:
        self.ram, self.device, self.slot = ram, device, slot
        self.transport: Any = Transport(slot, device, ram)
        self.rings: list[Ring] = []

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
        for word in range(2):
            self.write(Register.DRIVER_FEATURES_SEL, word)
            self.write(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)
        self.write(Register.STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK)
        return self.read(Register.STATUS)

    def set_up(self, index: int, ring: Ring) -> None:
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
            ring = Ring(self.ram, size, RINGS + index * 0x1_0000, bool(accepted & EVENT_IDX))
            ring.bump = DATA + index * 0x8_0000
            self.set_up(index, ring)
            self.rings.append(ring)
        self.write(Register.STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK)
        return self

    def notify(self, index: int = 0) -> None:
        """QueueNotify as a hart does it, and the I/O process's answer."""
        window_write(0, self.slot, Register.QUEUE_NOTIFY, 4, index)
        assert window_take_notified() >> self.slot & 1
        self.transport.notified(window_take_queues(self.slot))

    def interrupts(self) -> int:
        """InterruptStatus, acknowledged."""
        status = self.read(Register.INTERRUPT_STATUS)
        window_write(0, self.slot, Register.INTERRUPT_ACK, 4, status)
        return status

    def ask(self, *parts: bytes | int, queue: int = 0, indirect: bool = False) -> tuple[int, list[bytes]]:
        """One request from offer to answer: the used length and what the writable pieces hold."""
        ring = self.rings[queue]
        ring.bump = DATA + queue * 0x8_0000
        buffers = ring.add(*parts, indirect=indirect)
        self.notify(queue)
        ((_, used),) = ring.collect()
        return used, [bytes(self.ram.view(b.address, b.size)) for b in buffers if b.writable]

    def needs_reset(self) -> bool:
        """Whether the device has given up on the driver."""
        return bool(self.read(Register.STATUS) & 64)
