"""The life of a device behind its registers: any writes in any order, against the specification's few sentences."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_driver import DATA, RAM_BYTES, RINGS, PackedRing, Rig, Ring, machine_memory
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mem.memmap import RAM_BASE
from mem.window import Register, window_take_notified, window_take_queues, window_write
from virtio.device import Device
from virtio.features import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, RING_RESET, VERSION_1
from virtio.mmio import clear_windows
from virtio.queue import Queue, Ram

MEMORY: list[Ram] = []
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
OFFERED = 3 | VERSION_1 | INDIRECT_DESC | EVENT_IDX | RING_RESET | RING_PACKED | IN_ORDER
QUEUES, MAXIMUM = 3, 16


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    with machine_memory() as ram:
        MEMORY.append(ram)
        yield
        MEMORY.clear()


class Echo(Device):
    """Answers with what it gets, and keeps what it was told."""

    kind, name, queue_sizes, features = 4, "echo", (MAXIMUM,) * QUEUES, 3
    ring_features = OFFERED & ~3 & ~VERSION_1

    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        self.told.append(f"start {features:#x}")

    def stop(self) -> None:
        super().stop()
        self.told.append("stop")

    def queue_reset(self, index: int) -> None:
        self.told.append(f"queue {index}")

    def handle(self, index: int) -> None:
        assert self.negotiated, "worked before it was started"
        for request in self.queues[index]:
            request.done(request.write(request.read(100)))


@dataclass
class QueueModel:
    """What a driver has said of a queue."""

    size: int = 0
    areas: list[int] = field(default_factory=lambda: [0, 0, 0])
    ready: bool = False

    def is_sound(self, features: int) -> bool:
        """Whether it may be made ready (virtio 1.3, 2.7 and 2.8: sizes and alignments)."""
        packed = bool(features & RING_PACKED)
        if not 1 <= self.size <= MAXIMUM or (not packed and self.size not in (1, 2, 4, 8, 16)):
            return False
        sizes = (16 * self.size, 4, 4) if packed else (16 * self.size, 6 + 2 * self.size, 6 + 8 * self.size)
        aligns = (16, 4, 4) if packed else (16, 2, 4)
        return all(
            at % align == 0 and at >= RAM_BASE and at + size <= RAM_BASE + RAM_BYTES
            for at, size, align in zip(self.areas, sizes, aligns, strict=True)
        )


AREAS = st.tuples(
    st.sampled_from([RINGS, RINGS, RINGS, RINGS + 8, 0]),
    st.sampled_from([RINGS + 0x8000, RINGS + 0x8000, RINGS + 0x8000, RINGS + 0x8002, RAM_BASE + RAM_BYTES - 4]),
    st.sampled_from([RINGS + 0xC000, RINGS + 0xC000, RINGS + 0xC000, RINGS + 0xC002, 1 << 63]),
)
BITS = st.sampled_from([0, VERSION_1, VERSION_1 | RING_RESET, OFFERED, OFFERED & ~RING_PACKED, OFFERED | 4, 1 << 33])
STATUSES = st.sampled_from([0, 1, 3, 11, 15, 15, 15, 4, 7, 64, 128, 255, 0x100, 0x10F])


class Life(RuleBasedStateMachine):
    """Every write goes to the device and to the model; what can be read must be the same."""

    @initialize()
    def begin(self) -> None:
        clear_windows()
        self.device = Echo()
        self.rig = Rig(MEMORY[0], self.device)
        self.device.told.clear()
        self.expected: list[str] = []
        self.forget()
        self.offer_word = 0

    def forget(self) -> None:
        """A reset: everything is as in the beginning."""
        self.status = self.selected = self.accepted = self.accept_word = self.offer_word = 0
        self.queues = [QueueModel() for _ in range(QUEUES)]
        self.rings: list[Any] = [None] * QUEUES

    def queue(self) -> QueueModel | None:
        return self.queues[self.selected] if self.selected < QUEUES else None

    def is_live(self) -> bool:
        return self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    # Writes

    @rule(value=STATUSES)
    def write_status(self, value: int) -> None:
        self.rig.write(Register.STATUS, value)
        value &= 0xFF
        if value == 0:
            self.expected.append("stop")
            self.forget()
            return
        value = value & ~NEEDS_RESET | self.status
        if self.accepted & ~OFFERED or not self.accepted & VERSION_1:
            value &= ~FEATURES_OK | self.status
        if not value & FEATURES_OK:
            value &= ~DRIVER_OK
        if value & ~self.status & DRIVER_OK and not value & NEEDS_RESET:
            self.expected.append(f"start {self.accepted:#x}")
        self.status = value

    @rule(word=st.sampled_from([0, 0, 1, 1, 2, 3, 4, 0xFFFF_FFFF]), bits=BITS)
    def accept(self, word: int, bits: int) -> None:
        """Half of the features."""
        self.rig.write(Register.DRIVER_FEATURES_SEL, word)
        self.rig.write(Register.DRIVER_FEATURES, bits >> 32 * word & 0xFFFF_FFFF if word < 2 else bits & 0xFF)
        if self.status & FEATURES_OK or word > 3:
            return
        mask = 0xFFFF_FFFF << 32 * word
        new = bits & mask if word < 2 else (bits & 0xFF) << 32 * word
        self.accepted = self.accepted & ~mask | new

    @rule(bits=BITS)
    def negotiate(self, bits: int) -> None:
        """All of them, as drivers do it."""
        self.write_status(0)
        self.write_status(3)
        for word in range(2):
            self.accept(word, bits)
        self.write_status(11)

    @rule(bits=st.sampled_from([VERSION_1 | RING_RESET, OFFERED, OFFERED & ~RING_PACKED]), count=st.integers(1, QUEUES))
    def come_up(self, bits: int, count: int) -> None:
        """A driver that does all as it should be, with so many queues."""
        self.negotiate(bits)
        for index in range(count):
            self.select(index)
            self.describe(8, (RINGS, RINGS + 0x8000, RINGS + 0xC000))
            self.write_ready(1)
        self.write_status(15)
        for index in range(count):
            self.ask(b"hello", index, False)

    @rule(word=st.integers(0, 3))
    def look_at_the_offer(self, word: int) -> None:
        self.rig.write(Register.DEVICE_FEATURES_SEL, word)
        self.offer_word = word

    @rule(index=st.sampled_from([0, 1, 2, 3, 0xFFFF_FFFF]))
    def select(self, index: int) -> None:
        self.rig.write(Register.QUEUE_SEL, index)
        self.selected = index

    @rule(size=st.sampled_from([0, 1, 4, 8, 8, 12, 16, 17, 0x1_0000]), areas=AREAS)
    def describe(self, size: int, areas: tuple[int, int, int]) -> None:
        """Size and areas of the selected queue; each has its own memory."""
        base = 0x1_0000 * (self.selected % QUEUES)
        areas = tuple(at + base if RINGS <= at < RINGS + 0x1_0000 else at for at in areas)  # type: ignore[assignment]
        self.rig.write(Register.QUEUE_NUM, size)
        for register, at in zip(
            (Register.QUEUE_DESC, Register.QUEUE_DRIVER, Register.QUEUE_DEVICE), areas, strict=True
        ):
            self.rig.write(register, at & 0xFFFF_FFFF)
            self.rig.write(register + 4, at >> 32)
        queue = self.queue()
        if queue and not queue.ready:
            queue.size, queue.areas = size, list(areas)

    @rule(value=st.sampled_from([1, 1, 1, 0, 2, 3]))
    def write_ready(self, value: int) -> None:
        queue = self.queue()
        may = self.status & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK and value & 1
        is_sound = queue is not None and queue.is_sound(self.accepted)
        if queue and not queue.ready and may and is_sound:
            kind = PackedRing if self.accepted & RING_PACKED else Ring
            base = RINGS + 0x1_0000 * self.selected
            self.rings[self.selected] = kind(self.rig.ram, queue.size, base, bool(self.accepted & EVENT_IDX))
        self.rig.write(Register.QUEUE_READY, value)
        if not value & 1:
            self.stop_queue()
        elif queue and not queue.ready and may:
            queue.ready = is_sound
            if not is_sound:
                self.fail()

    @rule(value=st.sampled_from([1, 1, 0]))
    def write_reset(self, value: int) -> None:
        self.rig.write(Register.QUEUE_RESET, value)
        if value & 1 and self.accepted & RING_RESET:
            self.stop_queue()

    def stop_queue(self) -> None:
        if self.selected < QUEUES:
            self.queues[self.selected], self.rings[self.selected] = QueueModel(), None
            if self.is_live():
                self.expected.append(f"queue {self.selected}")

    def fail(self) -> None:
        self.status |= NEEDS_RESET
        for queue in self.queues:
            queue.ready = False
        self.rings = [None] * QUEUES

    @rule(index=st.integers(0, 70))
    def notify(self, index: int) -> None:
        """Any number: nothing happens where nothing is."""
        window_write(0, self.rig.slot, Register.QUEUE_NOTIFY, 4, index)
        window_take_notified(0)
        self.rig.transport.notified(window_take_queues(self.rig.slot))

    @rule()
    def acknowledge(self) -> None:
        self.rig.interrupts()
        assert self.rig.read(Register.INTERRUPT_STATUS) == 0

    # Requests

    @precondition(lambda self: any(self.rings))
    @rule(data=st.binary(min_size=1, max_size=20), which=st.integers(0, QUEUES - 1), indirect=st.booleans())
    def ask(self, data: bytes, which: int, indirect: bool) -> None:
        """A queue that is ready answers once, at once, if the device is live, and not at all otherwise."""
        which = next((n % QUEUES for n in range(which, which + QUEUES) if self.rings[n % QUEUES]), 0)
        ring = self.rings[which]
        if ring is None or ring.room() < 2:
            return
        ring.bump = DATA + which * 0x1_0000
        buffers = ring.add(data, 32, indirect=indirect and bool(self.accepted & INDIRECT_DESC))
        self.notify(which)
        if not self.is_live():
            assert not ring.has_used()
            self.rings[which] = None  # what is in it is answered when the device comes to life, perhaps
            return
        ((_, used),) = ring.collect()
        assert used == len(data)
        assert bytes(self.rig.ram.view(buffers[1].address, used)) == data

    # What can be read

    @invariant()
    def it_reads_as_it_should(self) -> None:
        if not hasattr(self, "rig"):
            return
        assert self.rig.read(Register.STATUS) == self.status
        assert self.rig.transport.accepted == self.accepted
        assert not self.status & DRIVER_OK or self.status & FEATURES_OK
        queue = self.queue()
        assert self.rig.read(Register.QUEUE_NUM_MAX) == (MAXIMUM if queue else 0)
        assert self.rig.read(Register.QUEUE_READY) == int(bool(queue and queue.ready))
        assert self.rig.read(Register.QUEUE_RESET) == 0
        assert self.rig.read(Register.DEVICE_FEATURES) == OFFERED >> 32 * self.offer_word & 0xFFFF_FFFF
        if not self.status & DRIVER_OK:
            assert self.rig.read(Register.INTERRUPT_STATUS) == 0, "an interrupt of a device that has no driver"

    @invariant()
    def it_is_told_what_happens(self) -> None:
        assert getattr(self, "device", Echo()).told == getattr(self, "expected", [])


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=50)
